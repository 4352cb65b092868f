"""What limits a run, from what its steps were measured to take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nml.recipe import Data, Recipe
from pretrain.feed_limit import FeedLimit, feed_limits

STEPS, BATCH = 30, 700


def epoch(watch: FeedLimit, number: int, *, seconds: float, waited: float) -> None:
    for step in range(number * STEPS + 1, (number + 1) * STEPS + 1):
        watch({"event": "step", "step": step, "samples_per_s": BATCH / seconds, "data_wait_s": waited})


def test_a_run_says_once_whether_its_loader_or_its_gpus_limit_it(capsys: pytest.CaptureFixture[str]) -> None:
    watch = FeedLimit(STEPS, BATCH, workers=70, cheaper=["a set written with --resize 256"])
    # Ten steps of the first epoch come after the warm-up: too few to tell.
    epoch(watch, 0, seconds=9.0, waited=9.0)
    assert capsys.readouterr().out == ""
    # 700 images in 0.132 s; without the wait of 0.032 s in 0.1 s.
    epoch(watch, 1, seconds=0.132, waited=0.032)
    assert capsys.readouterr().out == (
        "the loader sets the pace: it delivers 5,303 images/s, the GPUs would take up to 7,000: up to 23 "
        "more loader processes on cores of their own (70 are at work), or a set written with --resize 256\n"
    )
    epoch(watch, 2, seconds=0.132, waited=0.032)
    assert capsys.readouterr().out == ""
    epoch(watch, 3, seconds=0.1, waited=0.001)
    told = "the GPUs set the pace: they take 7,000 images/s and wait 1 % of the time for data\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("values", "world", "told"),
    [
        ({}, 2, ["a set written with --resize 256"]),
        ({"crop": "pad"}, 2, []),
        ({"cache": 256, "repeats": 3}, 2, ["a run with --recipe.data.repeats_on rank"]),
        ({"cache": 256, "repeats": 3}, 1, []),
        ({"cache": 256, "repeats": 3, "repeats_on": "rank"}, 2, []),
    ],
)
def test_what_would_make_an_image_cheaper_is_told(
    values: dict[str, Any], world: int, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(global_batch=BATCH, data=Data(workers=4, **values))
    parts: Any = SimpleNamespace(info=SimpleNamespace(resized=None)), SimpleNamespace(steps_per_epoch=STEPS)
    [watch] = feed_limits(recipe, *parts, torch.device("cuda"), world)
    for number in range(2):
        epoch(watch, number, seconds=0.2, waited=0.1)
    _, _, mends = capsys.readouterr().out.partition("are at work)")
    assert [mend.partition(", which")[0] for mend in mends.strip().split(", or ")[1:]] == told
