"""ddp is the reference; fsdp and every stage of deepspeed train the same weights on the same ranks.

AdamW divides by the root of the second moment: where gradients are nothing but rounding, its update
is the sign of the rounding, and engines that add in another order part ways. Its eps is set above
that level here; sgd needs no such care.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BOUND = 1e-4
ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "eps": 1e-4, "clip": 1.0}
ENGINES = ["ddp", "fsdp", "deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3"]


def command(recipe: Path, shards: Path, run: Path, engine: str, *more: str) -> list[str]:
    name, _, stage = engine.partition("-")
    extra = [f"--recipe.engine.zero_stage={stage}"] if stage else []
    words = ["--recipe", str(recipe), "--shards", str(shards), "--noise", "0", "--run-dir", str(run)]
    return [*words, "--engine", name, *extra, *more]


def check_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Hold weights to 1e-4, and running variances, which reach 100 here, to 1e-4 of their size."""
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=BOUND, atol=BOUND, err_msg=name)


@pytest.fixture(scope="module")
def classified(
    work: Path, image_set: Path, make_recipe: Callable[..., Path], run_ranks: Callable[..., str]
) -> Path:
    """20 steps of a narrow ResNet-18 with its batch normalisation, every engine, on 2 ranks."""
    recipe = make_recipe("parity", epochs=2, optimizer={"name": "sgd", "lr": 0.01, "clip": 1.0})
    runs = [command(recipe, image_set, work / "parity" / engine, engine) for engine in ENGINES]
    run_ranks(2, *runs, cwd=work)
    return work / "parity"


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_classification_matches_ddp(
    classified: Path, engine: str, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    reference = losses(classified / "ddp")
    assert len(reference) == 20
    np.testing.assert_allclose(losses(classified / engine), reference, rtol=BOUND)
    check_close(weights(classified / engine), weights(classified / "ddp"))


@pytest.fixture(scope="module")
def contrasted(
    work: Path,
    caption_set: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_clip: dict[str, Any],
) -> Path:
    """20 steps of a small CLIP with a ResNet of the RN50 type, every engine, and ddp in micro-batches."""
    recipe = make_recipe(
        "parity-clip", objective="clip", epochs=5, model=tiny_clip, loss={"name": "infonce"}, optimizer=ADAMW
    )
    runs = [command(recipe, caption_set, work / "parity-clip" / engine, engine) for engine in ENGINES]
    frozen = ["--recipe.model.batch_norm", "frozen"]
    for name, micro in (("whole", 0), ("parts", 4)):
        folder = work / "parity-clip" / name
        runs.append(
            command(recipe, caption_set, folder, "ddp", *frozen, f"--recipe.engine.micro_batch={micro}")
        )
    run_ranks(2, *runs, cwd=work)
    return work / "parity-clip"


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_contrastive_training_matches_ddp(
    contrasted: Path, engine: str, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    reference = losses(contrasted / "ddp")
    assert len(reference) == 20
    np.testing.assert_allclose(losses(contrasted / engine), reference, rtol=BOUND)
    check_close(weights(contrasted / engine), weights(contrasted / "ddp"))


def test_contrastive_accumulation_has_the_loss_of_the_whole_batch(
    contrasted: Path, losses: Callable[..., Any]
) -> None:
    # Batch statistics of a micro-batch differ by definition; frozen ones leave the rest to compare.
    np.testing.assert_allclose(losses(contrasted / "parts"), losses(contrasted / "whole"), rtol=BOUND)
