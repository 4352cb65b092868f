"""Classifiers and CLIPs train as they did before objectives were plugins: 50 losses of each, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 50


def test_the_losses_of_fifty_steps_are_those_that_were_recorded(
    work: Path,
    few_images: Path,
    few_captions: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    losses: Callable[[Path], list[float]],
    tiny_resnet: dict[str, Any],
    tiny_clip: dict[str, Any],
) -> None:
    over = {
        "classify": {"model": tiny_resnet, "loss": {"name": "bce", "mixup": 0.3, "cutmix": 1.0}},
        "clip": {"objective": "clip", "model": tiny_clip, "loss": {"name": "siglip"}},
    }
    shards = {"classify": few_images, "clip": few_captions}
    sizes = {"epochs": STEPS, "global_batch": 16, "engine": {"micro_batch": 8}}
    commands = []
    for name, values in over.items():
        recipe = make_recipe(f"golden-{name}", **sizes, checkpoints={"every_epochs": 0}, **values)
        words = ["--recipe", str(recipe), "--shards", str(shards[name]), "--run-dir", str(work / name)]
        commands.append([*words, "--seed", "3"])
    run_ranks(1, *commands, cwd=work, double=True)
    golden = json.loads(GOLDEN.read_text())
    for name in over:
        np.testing.assert_allclose(losses(work / name), golden[name], rtol=1e-6, err_msg=name)
