"""Read and augment, side by side: this project, timm's ImageFolder loader and open_clip's loader.

    python benchmarks/shards_read.py --images FOLDER [--samples 1000] [--open-clip-python PYTHON]

Every loader gives RandomResizedCrop(224) and a flip, with two workers. Runs alternate, and each
loader's best counts. open_clip's loader needs webdataset 0.2.86, so it may live in an environment
of its own. --resume instead times loading a state of 15 million samples and the next batch.
"""

from __future__ import annotations

import argparse
import gc
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BATCH = 64
WORKERS = 2


def replicate(images: Path, target: Path, samples: int) -> None:
    found = sorted(path for path in images.rglob("*") if path.is_file())
    for number in range(samples):
        source = found[number % len(found)]
        copy = target / source.parent.name / f"{number:06d}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


def prepare(images: Path, scratch: Path, samples: int) -> None:
    """Write the same images as a folder, a class set and a caption set."""
    from shards import write

    replicate(images, scratch / "train", samples)
    source = f"imagefolder:{scratch / 'train'}"
    write.main(
        ["--source", source, "--noise", "0", "0.2", "--out", str(scratch / "set"), "--max-shard-count", "100"]
    )
    rows = ["filepath\tcaption"]
    rows += [f"{path.relative_to(scratch)}\ta photo" for path in sorted((scratch / "train").rglob("*.jpg"))]
    (scratch / "captions.tsv").write_text("\n".join(rows) + "\n")
    source = f"tsv:{scratch / 'captions.tsv'}"
    write.main(["--source", source, "--out", str(scratch / "captions"), "--max-shard-count", "100"])


def ours(scratch: Path, samples: int) -> Iterable[Any]:  # noqa: ARG001 - one signature for all
    return our_loader(scratch, fast=True)


def ours_stock(scratch: Path, samples: int) -> Iterable[Any]:  # noqa: ARG001 - one signature for all
    return our_loader(scratch, fast=False)


def our_loader(scratch: Path, *, fast: bool) -> Iterable[Any]:
    from torch.utils.data import DataLoader
    from torchvision import transforms

    from shards.augment import RandomResizedCrop
    from shards.dataset import ShardDataset
    from shards.sampler import ElasticBatchSampler
    from shards.shardset import ShardSet

    stock = transforms.Compose(
        [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )
    shard_set = ShardSet.open(scratch / "set")
    dataset = ShardDataset(shard_set, "n20", RandomResizedCrop(size=224) if fast else stock)
    sampler = ElasticBatchSampler(shard_set, global_batch=BATCH)
    return DataLoader(dataset, batch_sampler=sampler, num_workers=WORKERS)


def timm_image_folder(scratch: Path, samples: int) -> Iterable[Any]:  # noqa: ARG001
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=str(scratch / "train"), split="", is_training=True)
    return create_loader(
        dataset,
        (3, 224, 224),
        BATCH,
        is_training=True,
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=WORKERS,
        use_prefetcher=False,
        persistent_workers=False,
    )


def open_clip(scratch: Path, samples: int) -> Iterable[Any]:
    from open_clip_train.data import get_wds_dataset
    from torchvision import transforms

    shards = sorted((scratch / "captions").glob("*.tar"))
    arguments = types.SimpleNamespace(
        train_data=f"{scratch}/captions/shard-{{000000..{len(shards) - 1:06d}}}.tar",
        train_num_samples=samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=BATCH,
        world_size=1,
        workers=WORKERS,
        distributed=False,
    )
    stock = transforms.Compose(
        [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    return get_wds_dataset(arguments, stock, True, tokenizer=lambda _: [0]).dataloader


LOADERS = {
    "ours": ours,
    "ours, stock transforms": ours_stock,
    "timm ImageFolder": timm_image_folder,
    "open_clip": open_clip,
}


def run_one(name: str, scratch: Path, samples: int) -> None:
    """Print images a second and a CPU second of one pass, the start of the workers included."""
    import torch

    torch.set_num_threads(1)
    start, start_cpu = time.perf_counter(), cpu_seconds()
    loader = iter(LOADERS[name](scratch, samples))
    images = sum(len(batch[0]) for batch in loader)
    seconds = time.perf_counter() - start
    # Workers count once they are waited for, which the end of the iterator does.
    del loader
    gc.collect()
    print(images / seconds, images / (cpu_seconds() - start_cpu))


def cpu_seconds() -> float:
    """Return user and system time of this process and the workers it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def resume() -> None:
    from shards.sampler import ElasticBatchSampler

    def sampler() -> ElasticBatchSampler:
        return ElasticBatchSampler(15_000_000, global_batch=4096)

    state = sampler().state_dict(epoch=7, step=3000)
    start = time.perf_counter()
    fresh = sampler()
    fresh.load_state_dict(state)
    batch = next(iter(fresh))
    seconds = time.perf_counter() - start
    print(f"15,000,000 samples: state loaded and batch of {len(batch)} named in {seconds:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--open-clip-python", default="", help="an interpreter with webdataset 0.2.86")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--one", choices=LOADERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resume:
        resume()
        return
    if arguments.one:
        run_one(arguments.one, arguments.scratch, arguments.samples)
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        prepare(arguments.images, Path(folder), arguments.samples)
        wall: dict[str, float] = {}
        cpu: dict[str, float] = {}
        for _ in range(arguments.repeats):
            for name in LOADERS:
                python = arguments.open_clip_python if name == "open_clip" else sys.executable
                if not python:
                    continue
                command = [python, __file__, "--one", name, "--scratch", folder]
                command += ["--samples", str(arguments.samples)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rates = [float(rate) for rate in done.stdout.split()[-2:]]
                wall[name] = max(wall.get(name, 0.0), rates[0])
                cpu[name] = max(cpu.get(name, 0.0), rates[1])
        print(f"{'':24} {'images/s':>9} {'ours / it':>10} {'images/CPU s':>13} {'ours / it':>10}")
        for name in wall:
            ratios = wall["ours"] / wall[name], cpu["ours"] / cpu[name]
            print(f"{name:24} {wall[name]:9,.0f} {ratios[0]:10.2f} {cpu[name]:13,.0f} {ratios[1]:10.2f}")


if __name__ == "__main__":
    main()
