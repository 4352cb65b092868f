"""A run that is killed and started again ends bit-identical to one that was left alone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STEPS = 20
# Steps after which all ranks are killed: before the first checkpoint, on one, and between two.
KILLS = (3, 8, 14)
ENGINES = {
    "ddp": ["--engine", "ddp", "--recipe.ema", "0.9"],
    "fsdp": ["--engine", "fsdp"],
    "deepspeed": ["--engine", "deepspeed", "--recipe.engine.zero_stage", "1"],
}


@pytest.fixture(scope="module")
def recipe(make_recipe: Callable[..., Path]) -> Path:
    """Mixing, stochastic depth and augmentation: all that draws random numbers."""
    return make_recipe(
        "resume",
        model={"name": "resnet18", "kwargs": {"channels": [8, 16, 16, 32], "drop_path_rate": 0.2}},
        loss={"name": "bce", "mixup": 0.2, "cutmix": 1.0, "smoothing": 0.1},
        checkpoints={"every_epochs": 1, "every_steps": 4, "keep_last": 3},
    )


def command(recipe: Path, shards: Path, run: Path, *more: str) -> list[str]:
    words = ["--recipe", str(recipe), "--shards", str(shards), "--noise", "0.25", "--run-dir", str(run)]
    return [*words, *more]


def steps_done(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_text().count('"event": "step"')
    except FileNotFoundError:
        return 0


def kill_after(start_ranks: Callable[..., Any], size: int, words: list[str], run: Path, step: int) -> None:
    """Start ranks and kill all of them, kill -9, once ``step`` steps are on record."""
    ranks = start_ranks(size, words, cwd=run.parent)
    deadline = time.monotonic() + 200
    while steps_done(run) < step and ranks.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    ranks.kill()
    assert not (run / "DONE.json").exists(), "it finished before it could be killed"


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_three_times_ends_bit_identical(
    engine: str,
    work: Path,
    image_set: Path,
    recipe: Path,
    start_ranks: Callable[..., Any],
    run_ranks: Callable[..., str],
    losses: Callable[..., Any],
    weights: Callable[..., Any],
) -> None:
    # Three ranks or more are where ddp's buckets matter; see Trainer.warm_up.
    size = 4 if engine == "ddp" else 2
    calm, struck = work / f"calm-{engine}", work / f"struck-{engine}"
    run_ranks(size, command(recipe, image_set, calm, *ENGINES[engine]), cwd=work)
    words = command(recipe, image_set, struck, *ENGINES[engine])
    for step in KILLS:
        kill_after(start_ranks, size, words, struck, step)
    out = run_ranks(size, words, cwd=work)
    assert "resuming at step" in out
    assert len(losses(calm)) == STEPS
    assert losses(struck) == losses(calm)
    one, other = weights(struck), weights(calm)
    assert all(np.array_equal(one[name], other[name]) for name in other)
    last = json.loads((struck / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["lost_s"]["redone"] > 0
    assert 0 < last["goodput"] < 1


@pytest.mark.parametrize("engine", ENGINES)
def test_another_world_size_continues_with_the_same_samples(
    engine: str,
    work: Path,
    image_set: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    losses: Callable[..., Any],
) -> None:
    # Statistics of a rank's own batch differ by definition: synchronised ones leave the rest to compare.
    recipe = make_recipe(
        "elastic",
        model={"name": "resnet18", "kwargs": {"channels": [8, 16, 16, 32]}, "batch_norm": "sync"},
        optimizer={"name": "adamw", "lr": 1e-3, "eps": 1e-4},
        checkpoints={"every_steps": 10, "keep_last": 9},
    )
    words = ["--engine", engine]
    small, large = work / f"elastic-{engine}", work / f"elastic-{engine}-4"
    run_ranks(2, command(recipe, image_set, small, *words), cwd=work)
    shutil.copytree(small, large)
    (large / "DONE.json").unlink()
    shutil.rmtree(large / "checkpoints" / "step-00000020")
    out = run_ranks(4, command(recipe, image_set, large, *words), cwd=work)
    assert "resuming at step 10" in out
    np.testing.assert_allclose(losses(large), losses(small), rtol=1e-4)
