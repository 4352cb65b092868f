"""Read and augment, side by side: this project, timm's ImageFolder loader and open_clip's loader.

    python -m pip install --no-deps --target WEBDATASET webdataset==0.2.86
    python benchmarks/shards_read.py --images FOLDER [--samples 3000] [--webdataset WEBDATASET]

Every loader reads the same JPEGs, takes a RandomResizedCrop(224, bicubic) and a flip in two workers,
and its batches end as normalised float32, as a model on a CPU takes them; rows marked uint8 stop
short of normalising, which an accelerator does in passing. Runs alternate, each loader's best
counts. open_clip's loader needs webdataset 0.2.86, which a folder of its own holds.

    python benchmarks/shards_read.py --resume [--samples 15000000]

instead makes an index of that many samples and measures a process that opens it, loads a state of
mid-epoch and names the next batch.
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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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
    from pretrain.transforms import normalised

    loader = ours_uint8(scratch, samples)
    return ((normalised(batch.image, MEAN, STD), batch.target) for batch in loader)


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


def run_one(name: str, scratch: Path, samples: int) -> None:
    """Print images a second and a CPU second of one pass, the start of the workers included."""
    import torch

    torch.set_num_threads(1)
    loader = LOADERS[name](scratch, samples)
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


def make_large_set(folder: Path, samples: int) -> None:
    """Make all of a set that resuming looks at; its shards are as long as real ones, but hollow."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from nml.files import write_json
    from shards.manifest import index_digests, index_schema, write_index
    from shards.setfile import SetInfo, Shard

    per_shard, image_bytes = 10_000, 108_000
    schema = index_schema("class", ["label"], "f" * 64)
    generator = np.random.default_rng(0)
    shards = []

    def tables() -> Iterator[pa.Table]:
        for number, start in enumerate(range(0, samples, per_shard)):
            rows = np.arange(start, min(start + per_shard, samples))
            shards.append(Shard(f"shard-{number:06d}.tar", len(rows), len(rows) * image_bytes, ""))
            with (folder / shards[-1].name).open("wb") as file:
                file.truncate(shards[-1].bytes)
            columns = {
                "key": pc.binary_join_element_wise("n01440764_", pa.array(rows).cast(pa.string()), ""),
                "shard": np.full(len(rows), number),
                "image_extension": pa.repeat("jpg", len(rows)),
                "image_offset": (rows - start) * image_bytes,
                "image_size": np.full(len(rows), image_bytes - 2048),
                "sha256": pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(32), len(rows), [None, pa.py_buffer(generator.bytes(32 * len(rows)))]
                ),
                "label": generator.integers(0, 1000, len(rows)),
            }
            yield pa.table(columns).cast(schema)

    write_index(folder / "index.arrow", schema, tables())
    info = SetInfo(
        kind="class",
        source="made up",
        num_samples=samples,
        classes=tuple(map(str, range(1000))),
        seed=0,
        fingerprint="f" * 64,
        manifest_sha256="",
        index_sha256="",
        levels={},
        shards=tuple(shards),
        index_digests=index_digests(folder / "index.arrow"),
    )
    write_json(folder / "set.json", info.as_json())


def resume_once(folder: Path) -> None:
    """Print what a fresh process takes to open the set, and to load a state and name the next batch."""
    import psutil

    from shards.dataset import ShardDataset
    from shards.sampler import ElasticBatchSampler
    from shards.shardset import ShardSet

    def megabytes() -> float:
        return psutil.Process().memory_info().rss / 1e6

    before, start = megabytes(), time.perf_counter()
    shard_set = ShardSet.open(folder)
    dataset = ShardDataset(shard_set)
    opened, opened_at = megabytes(), time.perf_counter()
    sampler = ElasticBatchSampler(shard_set, global_batch=4096)
    sampler.load_state_dict(sampler.state_dict(epoch=7, step=sampler.steps_per_epoch // 2))
    batch = next(iter(sampler))
    labels = [shard_set.index.supervision(ref.index, dataset.level.column) for ref in batch]
    places = [shard_set.index.place(ref.index) for ref in batch]
    named, named_at = megabytes(), time.perf_counter()
    print(f"opened: {opened_at - start:.2f} s, {opened - before:.0f} MB more")
    print(f"state loaded, next batch of {len(places)} located with its labels: {named_at - opened_at:.2f} s")
    print(
        f"memory then: {named - before:.0f} MB more, most of it the mapped index ({len(set(labels))} classes)"
    )


def resume(samples: int, scratch: Path) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        make_large_set(Path(folder), samples)
        size = (Path(folder) / "index.arrow").stat().st_size
        print(f"{samples:,} samples, index of {size / 1e9:.2f} GB")
        subprocess.run([sys.executable, __file__, "--one", "resume", "--scratch", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of class folders of JPEGs")
    parser.add_argument("--samples", type=int, help="default: 3000, or 15 million with --resume")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--webdataset", default="", help="folder that holds webdataset 0.2.86")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--one", choices=[*LOADERS, "resume"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one == "resume":
        resume_once(arguments.scratch)
    elif arguments.one:
        run_one(arguments.one, arguments.scratch, arguments.samples)
    elif arguments.resume:
        resume(arguments.samples or 15_000_000, arguments.scratch)
    elif arguments.images:
        samples = arguments.samples or 3000
        read(arguments.images, samples, arguments.repeats, arguments.scratch, arguments.webdataset)
    else:
        parser.error("name a folder of images with --images, or ask for --resume")


if __name__ == "__main__":
    main()
