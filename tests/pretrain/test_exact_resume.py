"""A run that is killed and started again ends bit-identical to one that was left alone."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.checkpoints import verify

STEPS = 20
# All ranks of ddp are killed at a random step of each third of a run, before the first checkpoint and later;
# those of the others, whose checkpoints alone differ, in the second.
THIRDS = ((1, 3), (5, 11), (12, 17))
ELASTIC_STEPS = 6
AVERAGED, SAVED_OFTEN = ["--recipe.ema", "0.5"], ["--recipe.checkpoints.every_steps", "1"]
# fsdp in groups of two: all of 2 ranks, two groups of 4, and a process that is alone.
ELASTIC = {
    "ddp": AVERAGED,
    "fsdp": [*AVERAGED, *SAVED_OFTEN, "--recipe.engine.shard_group", "2"],
    "deepspeed-1": AVERAGED,
    "deepspeed-2": AVERAGED,
    "deepspeed-3": [],
}
# Engines on more ranks add in another order. In float64 that is below this; a state not restored is not.
ELASTIC_BOUND = 1e-9
# What a line says of a step, but for times and memory.
EXACT = ("event", "step", "epoch", "loss", "lr", "grad_norm", "samples_seen")
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
        model={
            "name": "resnet18",
            "kwargs": {"channels": [8, 16, 16, 32], "layers": [1, 1, 1, 1], "drop_path_rate": 0.2},
        },
        loss={"name": "bce", "mixup": 0.2, "cutmix": 1.0, "smoothing": 0.1},
        optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "clip": 1.0},
        checkpoints={"every_epochs": 1, "every_steps": 4, "keep_last": 3},
    )


def told(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in EXACT} for line in lines if line["event"] == "step"]


def noise_told(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "epoch", "source", "kept", "flipped")
    return [{name: line[name] for name in names} for line in lines if line["event"] == "noise"]


def command(recipe: Path, shards: Path, run: Path, *more: str) -> list[str]:
    return ["--recipe", str(recipe), "--shards", str(shards), "--run-dir", str(run), *more]


def steps_done(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_text().count('"event": "step"')
    except FileNotFoundError:
        return 0


def kill_after(start_ranks: Callable[..., Any], size: int, words: list[str], run: Path, step: int) -> None:
    """Start ranks and kill all of them, kill -9, once ``step`` steps are on record."""
    ranks = start_ranks(size, words, cwd=run.parent)
    deadline = time.monotonic() + 200
    while steps_done(run) < step and ranks.running() and time.monotonic() < deadline:
        time.sleep(0.002)
    ranks.kill()
    assert not (run / "DONE.json").exists(), "it finished before it could be killed"


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_random_steps_ends_bit_identical(
    engine: str,
    work: Path,
    image_set: Path,
    recipe: Path,
    start_ranks: Callable[..., Any],
    run_ranks: Callable[..., str],
    weights: Callable[..., Any],
) -> None:
    # Three ranks or more are where ddp's buckets matter; see Trainer.warm_up.
    size = 4 if engine == "ddp" else 2
    calm, struck = work / f"calm-{engine}", work / f"struck-{engine}"
    more = ["--noise", "0.25", "--memorisation", *ENGINES[engine]]
    run_ranks(size, command(recipe, image_set, calm, *more), cwd=work)
    words = command(recipe, image_set, struck, *more)
    draws = random.Random(engine)
    for first, last in THIRDS if engine == "ddp" else THIRDS[1:2]:
        kill_after(start_ranks, size, words, struck, draws.randint(first, last))
    out = run_ranks(size, words, cwd=work)
    assert "resuming at step" in out
    assert [line["step"] for line in told(calm)] == list(range(1, STEPS + 1))
    assert told(struck) == told(calm)
    assert [line["epoch"] for line in noise_told(calm)] == [1, 2]
    assert noise_told(struck) == noise_told(calm)
    remembered = [(run / "memorisation.parquet").read_bytes() for run in (struck, calm)]
    assert remembered[0] == remembered[1]
    one, other = weights(struck), weights(calm)
    assert all(np.array_equal(one[name], other[name]) for name in other)
    last = json.loads((struck / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["lost_s"]["redone"] > 0
    assert 0 < last["goodput"] < 1


@pytest.fixture(scope="module")
def elastic(
    work: Path,
    few_images: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_resnet: dict[str, Any],
) -> tuple[Path, str]:
    """A run on 2 ranks, and what 4 made of its second half, every engine and ZeRO stage, in float64.

    Under fsdp also what one process made of the last step of those 4.
    """
    # Statistics of a rank's own batch differ by definition: synchronised ones leave the rest to compare.
    recipe = make_recipe(
        "elastic",
        model=tiny_resnet | {"batch_norm": "sync"},
        optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "clip": 1.0},
        global_batch=16,
        epochs=ELASTIC_STEPS,
        schedule={"warmup_epochs": 1},
        checkpoints={"every_epochs": 0, "every_steps": ELASTIC_STEPS // 2, "keep_last": 9},
    )
    folder = work / "elastic"
    small, large = [], []
    for engine, more in ELASTIC.items():
        name, _, stage = engine.partition("-")
        words = ["--engine", name, *(["--recipe.engine.zero_stage", stage] if stage else []), *more]
        small.append(command(recipe, few_images, folder / f"{engine}-2", *words))
        large.append(
            ["rewind", str(folder / f"{engine}-2"), str(folder / f"{engine}-4"), str(ELASTIC_STEPS // 2)]
        )
        large.append(command(recipe, few_images, folder / f"{engine}-4", *words))
    words = command(recipe, few_images, folder / "fsdp-1", "--engine", "fsdp", *ELASTIC["fsdp"])
    last = ["rewind", str(folder / "fsdp-4"), str(folder / "fsdp-1"), str(ELASTIC_STEPS - 1)]
    run_ranks(2, *small, cwd=work, double=True)
    out = run_ranks(4, *large, cwd=work, double=True)
    return folder, out + run_ranks(1, last, words, cwd=work, double=True)


@pytest.mark.parametrize("resumed", [*(f"{engine}-4" for engine in ELASTIC), "fsdp-1"])
def test_another_world_size_continues_with_the_same_samples(
    resumed: str, elastic: tuple[Path, str], losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    folder, out = elastic
    half = ELASTIC_STEPS // 2
    assert out.count(f"resuming at step {half} of") == len(ELASTIC)
    assert out.count(f"resuming at step {ELASTIC_STEPS - 1} of") == 1
    run, small = folder / resumed, folder / f"{resumed[:-2]}-2"
    assert len(losses(small)) == ELASTIC_STEPS
    np.testing.assert_allclose(losses(run), losses(small), rtol=ELASTIC_BOUND)
    one, other = weights(run), weights(small)
    assert one["conv1.weight"].dtype == np.float64
    for name in other:
        np.testing.assert_allclose(
            one[name], other[name], rtol=ELASTIC_BOUND, atol=ELASTIC_BOUND, err_msg=name
        )
    # What the conversion wrote is gone again; the checkpoint is as it was saved.
    saved = run / "checkpoints" / f"step-{half:08d}"
    assert verify(saved).step == half
    assert not list(saved.rglob("*universal*"))
