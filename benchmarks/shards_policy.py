"""Read and augment as "ResNet strikes back" does, side by side: RandAugment on planes, by Pillow, and in timm's loader.

    python benchmarks/shards_policy.py --images FOLDER [--samples 1500] [--workers 2]

Every loader takes a RandomResizedCrop(224, bicubic), a flip and the RandAugment of recipe rsb_a2, and hands over
bytes that an accelerator normalises in passing. "by Pillow" is the same crop with timm's own operations after it.
"in threads" has threads of one process take the place of the worker processes; what timm draws is the same from
run to run in processes alone, since Python's and NumPy's random states are those of a process. "three views" has three
views of each image behind each other, as the recipe asks for and a single process gets them: each image is decoded
once for all of them, and an epoch shows a third of the images. "rank of eight" is one of eight ranks with the recipe's
batch and ``repeats_on: rank``, which has all views of an image. "resized" reads a set of ``--resize 256``. Loaders run
in turns, and medians count; what else runs on the machine slows the loaders of one turn alike.
"""  # noqa: E501 - a title

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import shards_read
from shards_read import BATCH, Loaders, replicate, run_one

RECIPE = "rsb_a2"


def prepare(images: Path, scratch: Path, samples: int) -> None:
    """Write the images as a folder, as a set, and as a set of smaller images."""
    from shards import write

    replicate(images, scratch / "train", samples)
    source = f"imagefolder:{scratch / 'train'}"
    for name, options in (("set", []), ("resized", ["--resize", "256"])):
        write.main(["--source", source, "--out", str(scratch / name), "--max-shard-count", "100", *options])


def _data() -> Any:
    import yaml

    from nml.recipe import Data
    from nml.recipe_files import find_recipe

    return Data(**yaml.safe_load(find_recipe(RECIPE).read_text())["data"])


def _parts(scratch: Path, name: str = "set", repeats: int = 1, ranks: int = 1) -> tuple[Any, Any]:
    """Return the dataset and the sampler of a run of the recipe: the first rank's, for an epoch a rank."""
    from nml.recipe import Data, Recipe
    from pretrain.loading import StepSampler
    from pretrain.transforms import training_transform
    from pretrain.world import World
    from shards.dataset import ShardDataset
    from shards.shardset import ShardSet

    shard_set = ShardSet.open(scratch / name)
    data = Data(repeats=repeats, repeats_on="ranks" if ranks == 1 else "rank")
    recipe = Recipe(epochs=ranks, global_batch=BATCH if ranks == 1 else 2048, data=data)
    sampler = StepSampler(shard_set, recipe, World(0, ranks), 0)
    return ShardDataset(shard_set, "n00", training_transform(_data())), sampler


def ours(scratch: Path, samples: int, **parts: Any) -> Iterable[Any]:  # noqa: ARG001 - one signature for all
    from torch.utils.data import DataLoader

    from pretrain.loading import collate, worker_processes

    dataset, sampler = _parts(scratch, **parts)
    workers = worker_processes(shards_read.WORKERS, timedelta(minutes=10))
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **workers)


def three_views(scratch: Path, samples: int) -> Iterable[Any]:
    return ours(scratch, samples, repeats=3)


def rank_of_eight(scratch: Path, samples: int) -> Iterable[Any]:
    return ours(scratch, samples, repeats=3, ranks=8)


def resized(scratch: Path, samples: int) -> Iterable[Any]:
    return ours(scratch, samples, name="resized")


def by_pillow(scratch: Path, samples: int) -> Iterable[Any]:
    from pretrain import transforms

    transforms.on_planes = lambda policy: None  # type: ignore[assignment]  # noqa: ARG005
    return ours(scratch, samples)


def in_threads(scratch: Path, samples: int) -> Iterator[Any]:  # noqa: ARG001
    from pretrain.loading import collate

    dataset, sampler = _parts(scratch)
    pending: list[Future[Any]] = []
    with ThreadPoolExecutor(max(1, shards_read.WORKERS)) as pool:
        for refs in sampler:
            pending.append(pool.submit(lambda refs: collate(dataset.__getitems__(refs)), refs))
            if len(pending) > 2 * shards_read.WORKERS:
                yield pending.pop(0).result()
        for batch in pending:
            yield batch.result()


def timm(scratch: Path, samples: int) -> Iterable[Any]:  # noqa: ARG001
    import torch
    from timm.data import create_dataset, create_loader

    return create_loader(  # type: ignore[no-any-return]
        create_dataset("", root=str(scratch / "train"), split="", is_training=True),
        (3, 224, 224),
        BATCH,
        is_training=True,
        hflip=0.5,
        color_jitter=None,
        auto_augment=_data().auto_augment,
        interpolation="bicubic",
        num_workers=shards_read.WORKERS,
        persistent_workers=False,
        device=torch.device("cpu"),
    )


LOADERS: Loaders = {
    "ours": ours,
    "ours, three views": three_views,
    "ours, rank of eight": rank_of_eight,
    "ours, resized": resized,
    "ours, by Pillow": by_pillow,
    "ours, in threads": in_threads,
    "timm ImageFolder, prefetcher": timm,
}


def read(images: Path, samples: int, repeats: int, scratch: Path) -> None:
    """Print the median rates of every loader, and how many times each of them ours is."""
    turns: dict[str, list[tuple[float, ...]]] = {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        prepare(images, Path(folder), samples)
        for _ in range(repeats):
            for name in LOADERS:
                command = [sys.executable, __file__, "--one", name, "--scratch", folder]
                command += ["--samples", str(samples), "--workers", str(shards_read.WORKERS)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                turns.setdefault(name, []).append(tuple(map(float, done.stdout.split()[-2:])))
    print(f"{'':30} {'images/s':>9} {'images/CPU s':>13} {'ours / it':>10} {'lowest':>7} {'highest':>8}")
    for name, rates in turns.items():
        wall, cpu = (median(rate[which] for rate in rates) for which in (0, 1))
        times = [first[1] / rate[1] for rate, first in zip(rates, turns["ours"], strict=True)]
        print(
            f"{name:30} {wall:9,.0f} {cpu:13,.0f} {median(times):10.2f} {min(times):7.2f} {max(times):8.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of class folders of JPEGs")
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--workers", type=int, default=shards_read.WORKERS, help="0: all in one process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--one", choices=[*LOADERS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shards_read.WORKERS = arguments.workers
    if arguments.one:
        run_one(LOADERS, arguments.one, arguments.scratch, arguments.samples)
    elif arguments.images:
        read(arguments.images, arguments.samples, arguments.repeats, arguments.scratch)
    else:
        parser.error("name a folder of images with --images")


if __name__ == "__main__":
    main()
