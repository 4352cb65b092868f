"""Read and augment, side by side: this project, timm's ImageFolder loader and open_clip's loader.

    python -m pip install --no-deps --target WEBDATASET webdataset==0.2.86
    python benchmarks/shards_read.py --images FOLDER [--samples 3000] [--webdataset WEBDATASET]

Every loader reads the same JPEGs, takes a RandomResizedCrop(224, bicubic) and a flip in two workers,
and its batches end as normalised float32, as a model on a CPU takes them; rows marked uint8 stop
short of normalising, which an accelerator does in passing. Runs alternate, each loader's best
counts. open_clip's loader needs webdataset 0.2.86, which a folder of its own holds.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORKERS = 2
# A pass over so many samples of what was prepared in a folder.
Loaders = Mapping[str, Callable[[Path, int], Iterable[Any]]]


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


def our_loader(scratch: Path, transform: Any) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    from shards.dataset import ShardDataset
    from shards.sampler import ElasticBatchSampler
    from shards.shardset import ShardSet

    shard_set = ShardSet.open(scratch / "set")
    dataset = ShardDataset(shard_set, "n20", transform)
    sampler = ElasticBatchSampler(shard_set, global_batch=BATCH)
    return DataLoader(dataset, batch_sampler=sampler, num_workers=WORKERS)


def ours_uint8(scratch: Path, samples: int) -> Iterable[Any]:  # noqa: ARG001 - one signature for all
    from shards.augment import RandomResizedCrop

    return our_loader(scratch, RandomResizedCrop(size=224, interpolation="bicubic"))


def ours(scratch: Path, samples: int) -> Iterable[Any]:
    """Normalised into the same memory each time, as the training loop does it."""
    import torch

    from pretrain.transforms import normalised

    floats = torch.empty(BATCH, 3, 224, 224)
    loader = ours_uint8(scratch, samples)
    return ((normalised(batch.image, MEAN, STD, out=floats), batch.target) for batch in loader)


def ours_stock(scratch: Path, samples: int) -> Iterable[Any]:  # noqa: ARG001 - one signature for all
    return our_loader(scratch, torchvision_transform())


def torchvision_transform() -> Any:
    from torchvision import transforms

    steps = [
        transforms.RandomResizedCrop(224, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)


def timm_image_folder(scratch: Path, samples: int, *, prefetcher: bool = False) -> Iterable[Any]:  # noqa: ARG001
    import torch
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=str(scratch / "train"), split="", is_training=True)
    return create_loader(
        dataset,
        (3, 224, 224),
        BATCH,
        is_training=True,
        hflip=0.5,
        color_jitter=None,
        interpolation="bicubic",
        num_workers=WORKERS,
        use_prefetcher=prefetcher,
        persistent_workers=False,
        device=torch.device("cpu"),
    )


def timm_prefetched(scratch: Path, samples: int) -> Iterable[Any]:
    """As timm's train.py has it by default: uint8 from the workers, normalised by its PrefetchLoader."""
    return timm_image_folder(scratch, samples, prefetcher=True)


def open_clip(scratch: Path, samples: int) -> Iterable[Any]:
    from open_clip_train.data import get_wds_dataset

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
    return get_wds_dataset(arguments, torchvision_transform(), True, tokenizer=lambda _: [0]).dataloader


LOADERS = {
    "ours": ours,
    "ours, uint8": ours_uint8,
    "ours, torchvision transforms": ours_stock,
    "timm ImageFolder": timm_image_folder,
    "timm ImageFolder, prefetcher": timm_prefetched,
    "open_clip": open_clip,
}


def run_one(loaders: Loaders, name: str, scratch: Path, samples: int) -> None:
    """Print images a second and a CPU second of one pass, the start of the workers included."""
    import torch

    torch.set_num_threads(1)
    loader = loaders[name](scratch, samples)
    start, start_cpu = time.perf_counter(), cpu_seconds()
    batches = iter(loader)
    images = sum(len(batch[0]) for batch in batches)
    seconds = time.perf_counter() - start
    # Workers count once they are waited for, which the end of the iterator does.
    del batches, loader
    gc.collect()
    print(images / seconds, images / (cpu_seconds() - start_cpu))


def cpu_seconds() -> float:
    """Return user and system time of this process and the workers it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def read(images: Path, samples: int, repeats: int, scratch: Path, webdataset: str) -> None:
    """Print the rates of every loader, and how many times faster this project is."""
    wall: dict[str, float] = {}
    cpu: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        prepare(images, Path(folder), samples)
        for _ in range(repeats):
            for name in LOADERS:
                environment = dict(os.environ)
                if name == "open_clip":
                    if not webdataset:
                        continue
                    paths = [webdataset, environment.get("PYTHONPATH", "")]
                    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
                command = [sys.executable, __file__, "--one", name, "--scratch", folder]
                command += ["--samples", str(samples)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                rates = [float(rate) for rate in done.stdout.split()[-2:]]
                wall[name] = max(wall.get(name, 0.0), rates[0])
                cpu[name] = max(cpu.get(name, 0.0), rates[1])
    print(f"{'':28} {'images/s':>9} {'ours / it':>10} {'images/CPU s':>13} {'ours / it':>10}")
    for name in wall:
        ratios = wall["ours"] / wall[name], cpu["ours"] / cpu[name]
        print(f"{name:28} {wall[name]:9,.0f} {ratios[0]:10.2f} {cpu[name]:13,.0f} {ratios[1]:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of class folders of JPEGs")
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--webdataset", default="", help="folder that holds webdataset 0.2.86")
    parser.add_argument("--one", choices=[*LOADERS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(LOADERS, arguments.one, arguments.scratch, arguments.samples)
    elif arguments.images:
        read(arguments.images, arguments.samples, arguments.repeats, arguments.scratch, arguments.webdataset)
    else:
        parser.error("name a folder of images with --images")


if __name__ == "__main__":
    main()
