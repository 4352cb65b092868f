"""Whether anybody looks at a run is nothing to it: same losses, same weights, to the last bit.

On several ranks, where sums are taken in whatever order messages come, test_crossings.py has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STEPS = 3
SAMPLES = 16
ENGINES = ["ddp", "fsdp", "deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3"]
AVERAGED = [engine for engine in ENGINES if engine != "deepspeed-3"]
# A CLIP differs by its validation alone, which meets the average, and fsdp's shards of both towers.
CASES = {
    "classify": [(engine, "0") for engine in ENGINES] + [(engine, "0.9") for engine in AVERAGED],
    "clip": [("ddp", "0.9"), ("fsdp", "0.9")],
}
WATCHED = ["--recipe.checkpoints.every_steps", "1", "--recipe.checkpoints.keep_last", "9"]
UNWATCHED = ["--recipe.checkpoints.every_epochs", "0"]


def command(recipe: Path, shards: Path, engine: str, average: str, run: Path, *more: str) -> list[str]:
    name, _, stage = engine.partition("-")
    words = ["--recipe", str(recipe), "--shards", str(shards), "--noise", "0", "--run-dir", str(run)]
    words += ["--engine", name, "--recipe.ema", average, *more]
    return [*words, *(["--recipe.engine.zero_stage", stage] if stage else [])]


@pytest.fixture(scope="module")
def watched(
    work: Path,
    few_images: Path,
    few_captions: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_resnet: dict[str, Any],
    tiny_clip: dict[str, Any],
) -> Path:
    """A step is an epoch: every engine, with and without an average, watched and unwatched, and resumed."""
    model = {**tiny_resnet, "kwargs": tiny_resnet["kwargs"] | {"drop_path_rate": 0.2}}
    over: dict[str, dict[str, object]] = {
        "classify": {"model": model, "loss": {"name": "bce", "mixup": 0.2, "cutmix": 1.0}},
        "clip": {"objective": "clip", "model": tiny_clip, "loss": {"name": "infonce"}},
    }
    shards = {"classify": few_images, "clip": few_captions}
    looks = ["--validation", str(few_images), "--tensorboard", "--profile", "1", *WATCHED]
    commands = []
    for objective, cases in CASES.items():
        recipe = make_recipe(f"watching-{objective}", epochs=STEPS, global_batch=SAMPLES, **over[objective])
        for case in cases:
            run, words = folder_of(work, objective, *case), (recipe, shards[objective], *case)
            commands.append(command(*words, run / "watched", *looks))
            commands.append(command(*words, run / "unwatched", *UNWATCHED))
            if objective == "classify":
                commands.append(["rewind", str(run / "watched"), str(run / "resumed"), "2"])
                commands.append(command(*words, run / "resumed", *looks))
    run_ranks(1, *commands, cwd=work)
    return work


def folder_of(work: Path, objective: str, engine: str, average: str) -> Path:
    return work / "watching" / f"{objective}-{engine}-{average}"


@pytest.mark.parametrize(
    ("objective", "engine", "average"), [(name, *case) for name, cases in CASES.items() for case in cases]
)
def test_a_run_that_is_watched_at_every_step_is_the_one_that_nobody_watches(
    watched: Path,
    objective: str,
    engine: str,
    average: str,
    losses: Callable[..., Any],
    weights: Callable[..., Any],
) -> None:
    run = folder_of(watched, objective, engine, average)
    lines = [json.loads(line) for line in (run / "watched" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "validation"] == [1, 2, 3]
    expected, exported = losses(run / "unwatched"), weights(run / "unwatched")
    assert len(expected) == STEPS
    for other in ["watched", *(["resumed"] if objective == "classify" else [])]:
        assert losses(run / other) == expected
        found = weights(run / other)
        assert found.keys() == exported.keys()
        for name in exported:
            np.testing.assert_array_equal(found[name], exported[name], err_msg=name)
