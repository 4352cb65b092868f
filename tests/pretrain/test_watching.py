"""Whether anybody looks at a run is nothing to it: same losses, same weights, however often it is watched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pretrain.ranks import Ranks

STEPS = 3
SAMPLES = 16
ENGINES = ["ddp", "fsdp", "deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3"]
AVERAGED = [engine for engine in ENGINES if engine != "deepspeed-3"]
# A CLIP differs by its validation alone, and that by the average.
CASES = {
    "classify": [(engine, "0") for engine in ENGINES] + [(engine, "0.9") for engine in AVERAGED],
    "clip": [(engine, "0.9") for engine in AVERAGED] + [("deepspeed-3", "0")],
}
# On several ranks sums are taken in whatever order messages come.
BOUND = {1: 0.0, 2: 1e-12}
WATCHED = ["--recipe.checkpoints.every_steps", "1", "--recipe.checkpoints.keep_last", "9"]
UNWATCHED = ["--recipe.checkpoints.every_epochs", "0"]


@pytest.fixture(scope="module")
def sets(work: Path, few_images: Path, few_captions: Path) -> dict[str, Path]:
    return {"classify": few_images, "clip": few_captions}


def command(recipe: Path, shards: Path, engine: str, average: str, run: Path, *more: str) -> list[str]:
    name, _, stage = engine.partition("-")
    words = ["--recipe", str(recipe), "--shards", str(shards), "--noise", "0", "--run-dir", str(run)]
    words += ["--engine", name, "--recipe.ema", average, *more]
    return [*words, *(["--recipe.engine.zero_stage", stage] if stage else [])]


@pytest.fixture(scope="module")
def watched(
    work: Path,
    sets: dict[str, Path],
    make_recipe: Callable[..., Path],
    start_ranks: Callable[..., Ranks],
    tiny_clip: dict[str, Any],
) -> Path:
    """A step is an epoch: every engine, with and without an average, watched and unwatched, and resumed."""
    model = {"name": "resnet18", "kwargs": {"channels": [8, 8, 8, 8], "drop_path_rate": 0.2}}
    over: dict[str, dict[str, object]] = {
        "classify": {"model": model, "loss": {"name": "bce", "mixup": 0.2, "cutmix": 1.0}},
        "clip": {"objective": "clip", "model": tiny_clip, "loss": {"name": "infonce"}},
    }
    looks = ["--validation", str(sets["classify"]), "--tensorboard", "--profile", "1", *WATCHED]
    started: list[Ranks] = []
    for world in BOUND:
        commands = []
        for objective, cases in CASES.items():
            sizes = {"epochs": STEPS, "global_batch": SAMPLES}
            recipe = make_recipe(f"watching-{objective}", **sizes, **over[objective])
            for case in cases:
                run = folder_of(work, world, objective, *case)
                words = (recipe, sets[objective], *case)
                commands.append(command(*words, run / "watched", *looks))
                commands.append(command(*words, run / "unwatched", *UNWATCHED))
                if is_resumed(world, objective):
                    commands.append(["rewind", str(run / "watched"), str(run / "resumed"), "2"])
                    commands.append(command(*words, run / "resumed", *looks))
        started.append(start_ranks(world, *commands, cwd=work, double=world > 1))
    for ranks in started:
        status, out = ranks.end()
        assert status == 0, out
    return work


def is_resumed(world: int, objective: str) -> bool:
    return world == 1 and objective == "classify"


def folder_of(work: Path, world: int, objective: str, engine: str, average: str) -> Path:
    return work / "watching" / f"{objective}-{world}-{engine}-{average}"


@pytest.mark.parametrize("world", BOUND)
@pytest.mark.parametrize(
    ("objective", "engine", "average"), [(name, *case) for name, cases in CASES.items() for case in cases]
)
def test_a_run_that_is_watched_at_every_step_is_the_one_that_nobody_watches(
    watched: Path,
    world: int,
    objective: str,
    engine: str,
    average: str,
    losses: Callable[..., Any],
    weights: Callable[..., Any],
) -> None:
    run = folder_of(watched, world, objective, engine, average)
    lines = [json.loads(line) for line in (run / "watched" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "validation"] == [1, 2, 3]
    expected, exported = losses(run / "unwatched"), weights(run / "unwatched")
    assert len(expected) == STEPS
    bound = BOUND[world]
    for other in ["watched", *(["resumed"] if is_resumed(world, objective) else [])]:
        np.testing.assert_allclose(losses(run / other), expected, rtol=bound, atol=0)
        found = weights(run / other)
        assert found.keys() == exported.keys()
        for name in exported:
            np.testing.assert_allclose(found[name], exported[name], rtol=bound, atol=bound, err_msg=name)
