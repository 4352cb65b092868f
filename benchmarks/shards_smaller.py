"""Read images made smaller, side by side: JPEGs as they came, --resize, the cache, and what others read.

    python -m pip install --no-deps --target EXTRA mosaicml-streaming brotli python-snappy cramjam zstd xxhash catalogue
    python benchmarks/shards_smaller.py --images FOLDER [--samples 2000] [--extra EXTRA]

Every loader takes a RandomResizedCrop(224, bicubic) and a flip in two workers, or as many as --workers says. Ours, and timm's with its
prefetcher, hand over bytes that an accelerator normalises in passing; the others end as torchvision's
transforms end. Loaders run in turns, and medians count. mosaicml-streaming and FFCV are read where EXTRA
or the environment has them, and are named where not.
"""  # noqa: E501 - a command

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import shards_read
from shards_read import BATCH, Loaders, replicate, run_one, timm_prefetched, torchvision_transform

SIDE = 256


def prepare(images: Path, scratch: Path, samples: int) -> None:
    """Write the images as a folder, a set, a smaller set with its cache, and in the formats of others."""
    from shards import cache, write

    replicate(images, scratch / "train", samples)
    command = ["--source", f"imagefolder:{scratch / 'train'}", "--max-shard-count", "100"]
    write.main([*command, "--out", str(scratch / "set")])
    write.main([*command, "--out", str(scratch / "smaller"), "--resize", str(SIDE)])
    cache.main([str(scratch / "set"), "--size", str(SIDE)])
    if importlib.util.find_spec("streaming"):
        from streaming import MDSWriter

        with MDSWriter(out=str(scratch / "mds"), columns={"image": "jpeg", "label": "int"}) as writer:
            for path in sorted((scratch / "train").rglob("*.jpg")):
                from PIL import Image

                writer.write({"image": Image.open(path), "label": 0})
    if importlib.util.find_spec("ffcv"):
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter
        from torchvision.datasets import ImageFolder

        fields = {"image": RGBImageField(write_mode="raw", max_resolution=SIDE), "label": IntField()}
        DatasetWriter(
            str(scratch / "set.beton"), fields, num_workers=shards_read.WORKERS
        ).from_indexed_dataset(ImageFolder(scratch / "train"))


def _ours(name: str, cache: int) -> Callable[[Path, int], Iterable[Any]]:
    def loader(scratch: Path, samples: int) -> Iterable[Any]:  # noqa: ARG001 - one signature for all
        from torch.utils.data import DataLoader

        from shards.augment import RandomResizedCrop
        from shards.dataset import ShardDataset
        from shards.sampler import ElasticBatchSampler
        from shards.shardset import ShardSet

        shard_set = ShardSet.open(scratch / name)
        crop = RandomResizedCrop(size=224, interpolation="bicubic", packed=bool(cache))
        dataset = ShardDataset(shard_set, "n00", crop, cache=cache)
        sampler = ElasticBatchSampler(shard_set, global_batch=BATCH)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=shards_read.WORKERS)

    return loader


def _webdataset(name: str) -> Callable[[Path, int], Iterable[Any]]:
    def loader(scratch: Path, samples: int) -> Iterable[Any]:  # noqa: ARG001
        import webdataset
        from torch.utils.data import DataLoader

        tars = sorted(str(path) for path in (scratch / name).glob("*.tar"))
        dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000).decode("pil")
        dataset = dataset.to_tuple("jpg;png", "cls").map_tuple(torchvision_transform()).batched(BATCH)
        return DataLoader(dataset, batch_size=None, num_workers=shards_read.WORKERS)

    return loader


def _streaming(scratch: Path, samples: int) -> Iterable[Any]:  # noqa: ARG001
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    transform = torchvision_transform()

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[Any, int]:
            sample = super().__getitem__(index)
            return transform(sample["image"].convert("RGB")), sample["label"]

    dataset = Images(local=str(scratch / "mds"), shuffle=True, batch_size=BATCH)
    return DataLoader(dataset, batch_size=BATCH, num_workers=shards_read.WORKERS)


def _ffcv(scratch: Path, samples: int) -> Iterable[Any]:  # noqa: ARG001
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    return Loader(  # type: ignore[no-any-return]
        str(scratch / "set.beton"),
        batch_size=BATCH,
        num_workers=shards_read.WORKERS,
        order=OrderOption.QUASI_RANDOM,
        pipelines={
            "image": [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), ToTensor()],
            "label": None,
        },
    )


LOADERS: Loaders = {
    "ours, JPEGs as they came": _ours("set", 0),
    "ours, --resize 256": _ours("smaller", 0),
    "ours, cache of 256": _ours("set", SIDE),
    "timm ImageFolder, prefetcher": timm_prefetched,
    "webdataset": _webdataset("set"),
    "webdataset, --resize 256": _webdataset("smaller"),
    "mosaicml-streaming": _streaming,
    "FFCV, raw at 256": _ffcv,
}
NEEDS = {"mosaicml-streaming": "streaming", "FFCV, raw at 256": "ffcv"}


def read(images: Path, samples: int, repeats: int, scratch: Path) -> None:
    """Print the median rates of every loader, and how many times those of the JPEGs as they came they are.

    Times are ratios of processor time within a turn, of which the median counts: what else runs on the
    machine slows the loaders of one turn alike.
    """
    turns: dict[str, list[tuple[float, ...]]] = {}
    names = [name for name in LOADERS if name not in NEEDS or importlib.util.find_spec(NEEDS[name])]
    for name in LOADERS.keys() - names:
        print(f"left out, as it is not installed: {name}")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        prepare(images, Path(folder), samples)
        for _ in range(repeats):
            for name in names:
                command = [sys.executable, __file__, "--one", name, "--scratch", folder]
                done = subprocess.run(
                    [*command, "--samples", str(samples), "--workers", str(shards_read.WORKERS)],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                turns.setdefault(name, []).append(tuple(map(float, done.stdout.split()[-2:])))
    first = turns[names[0]]
    print(f"{'':30} {'images/s':>9} {'images/CPU s':>13} {'times':>6} {'lowest':>7} {'highest':>8}")
    for name, rates in turns.items():
        wall, cpu = (median(rate[which] for rate in rates) for which in (0, 1))
        times = [rate[1] / base[1] for rate, base in zip(rates, first, strict=True)]
        print(f"{name:30} {wall:9,.0f} {cpu:13,.0f} {median(times):6.2f} {min(times):7.2f} {max(times):8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of class folders of JPEGs")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=shards_read.WORKERS, help="0: all in one process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--extra", type=Path, help="folder that further packages were installed to")
    parser.add_argument("--one", choices=[*LOADERS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shards_read.WORKERS = arguments.workers
    if arguments.extra:
        sys.path.append(str(arguments.extra))
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [os.environ.get("PYTHONPATH", ""), str(arguments.extra)])
        )
    if arguments.one:
        run_one(LOADERS, arguments.one, arguments.scratch, arguments.samples)
    elif arguments.images:
        read(arguments.images, arguments.samples, arguments.repeats, arguments.scratch)
    else:
        parser.error("name a folder of images with --images")


if __name__ == "__main__":
    main()
