"""Tiny sets, tiny recipes, and ranks that start fast."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from shards.write import main as write_shards
from tests.pretrain.ranks import Ranks, Zygote, call_on_ranks

# What an engine does for a parameter costs more than a step with so few numbers: half the blocks.
RESNET = {"name": "resnet18", "kwargs": {"channels": [8, 16, 16, 32], "layers": [1, 1, 1, 1]}}
TINY_RESNET = {"name": "resnet18", "kwargs": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}}
TINY_CLIP = {
    "name": "RN50",
    "kwargs": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1},
    },
}
DATA = {
    "size": 32,
    "test_size": 32,
    "crop_pct": 1.0,
    "crop": "pad",
    "flip": 0.5,
    "workers": 0,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "streams": 8,
}
OPTIMIZER = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}


@pytest.fixture(scope="session")
def start_ranks() -> Iterator[Callable[..., Ranks]]:
    zygotes: dict[bool, Zygote] = {}
    started: list[Ranks] = []

    def start(size: int, *commands: list[str], cwd: Path, double: bool = False) -> Ranks:
        if double not in zygotes:
            zygotes[double] = Zygote(double=double)
        started.append(zygotes[double].fork(size, commands, cwd))
        return started[-1]

    yield start
    for ranks in started:
        if not ranks.output.closed:
            ranks.kill()
    for zygote in zygotes.values():
        zygote.end()


@pytest.fixture(scope="session")
def run_ranks(start_ranks: Callable[..., Ranks]) -> Callable[..., str]:
    """Run commands on ranks to their end; return the output, which a failure shows."""

    def run(size: int, *commands: list[str], cwd: Path, status: int = 0, double: bool = False) -> str:
        ended, out = start_ranks(size, *commands, cwd=cwd, double=double).end()
        assert ended == status, out
        return out

    return run


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretrain")


@pytest.fixture(scope="session")
def image_set(work: Path) -> Path:
    """320 random 32 x 32 images of 4 classes, noise 0 and 0.25, in several shards."""
    return _write_images(work, "image-set", 320, "--noise", "0", "0.25")


@pytest.fixture(scope="session")
def few_images(work: Path) -> Path:
    """16 of them, for runs of which a step is an epoch."""
    return _write_images(work, "few-images", 16)


def _write_images(work: Path, name: str, count: int, *more: str) -> Path:
    generator = np.random.default_rng(0)
    images = work / f"{name}-images"
    for number in range(count):
        folder = images / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (32, 32, 3), np.uint8) // 2 + 32 * (number % 4)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:04d}.png")
    return _write(work / name, f"imagefolder:{images}", *more)


@pytest.fixture(scope="session")
def caption_set(work: Path) -> Path:
    """128 random 32 x 32 images with captions."""
    return _write_captions(work, "caption-set", 128)


@pytest.fixture(scope="session")
def few_captions(work: Path) -> Path:
    """16 of them."""
    return _write_captions(work, "few-captions", 16)


@pytest.fixture(scope="session")
def swapped_captions(work: Path) -> Path:
    """64 of them, a quarter with another's caption."""
    return _write_captions(work, "swapped-captions", 64, "--noise", "0.25")


def _write_captions(work: Path, name: str, count: int, *more: str) -> Path:
    generator = np.random.default_rng(1)
    source = work / f"{name}.tar"
    with tarfile.open(source, "w") as tar:
        for number in range(count):
            picture = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(picture, "PNG")
            words = " ".join(generator.choice(["red", "green", "blue", "cat", "dog", "fish"], 4))
            members = {"png": picture.getvalue(), "txt": f"{words} {number}".encode()}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return _write(work / name, f"webdataset:{source}", *more)


def _write(out: Path, source: str, *more: str) -> Path:
    words = ["--source", source, "--out", str(out), "--workers", "1", "--max-shard-count", "50", *more]
    write_shards(words)
    return out


@pytest.fixture(scope="session")
def make_recipe(work: Path) -> Callable[..., Path]:
    """Write a small recipe, given values over the defaults, and return its file."""

    def make(name: str, **over: object) -> Path:
        recipe: dict[str, object] = {
            "objective": "classify",
            "epochs": 2,
            "global_batch": 32,
            "model": RESNET,
            "data": DATA,
            "optimizer": OPTIMIZER,
            "schedule": {"warmup_epochs": 0.5},
        }
        path = work / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | over))
        return path

    return make


@pytest.fixture(scope="session")
def losses() -> Callable[[Path], list[float]]:
    """Read the loss of every step of a run."""

    def read(run: Path) -> list[float]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if line["event"] == "step"]

    return read


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, np.ndarray]]:
    """Read the exported tensors of a run."""

    def read(run: Path) -> dict[str, np.ndarray]:
        return load_file(run / "export" / "model.safetensors")

    return read


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """A group of this process alone, as a run on one process has; the environment is as before afterwards."""
    import torch

    from pretrain.world import World, join, leave

    before = os.environ.copy()
    torch.set_num_threads(1)
    join(World())
    yield
    leave()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_resnet() -> dict[str, Any]:
    return TINY_RESNET


@pytest.fixture(scope="session")
def tiny_clip() -> dict[str, object]:
    return TINY_CLIP


@pytest.fixture(scope="session")
def tiny_data() -> dict[str, object]:
    return DATA


@pytest.fixture(scope="session")
def on_ranks() -> Callable[..., list[Any]]:
    """Call a function on gloo ranks, and return what each returned.

    ``on_ranks(size, function, store, *arguments)`` calls ``function(rank, size, *arguments)``. What it
    returns must pickle without torch's shared memory: NumPy arrays, not tensors.

    The ranks are forked from a process that has done nothing: torch computes no gradient in one whose parent
    has computed any, and which tests ran before in this process is not known.
    """

    def call(size: int, function: Callable[..., Any], store: Path, *arguments: Any) -> list[Any]:
        # Local functions, too.
        cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
        called = cloudpickle.dumps((function, arguments))
        return call_on_ranks(size, store, called)

    return call
