"""One process under ddp is the reference; every engine takes its steps on several.

In fp32 engines add in different orders, and training amplifies the last digit: AdamW with a small eps
takes the sign of gradients that are nothing but rounding, large steps multiply it by themselves, and batch
normalisation of a few values divides by their spread. So fp32 is held to 1e-4 with gentle settings here,
and the harsh ones to 1e-9 in float64, where rounding cannot hide a real difference. What else a recipe can
switch on meets every engine in test_crossings.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BOUND = 1e-4
DOUBLE_BOUND = 1e-9
STEPS, SAMPLES = 5, 16
ENGINES = ["ddp", "fsdp", "deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3"]
ACCUMULATING = ["ddp", "fsdp", "deepspeed-2"]
SIZES = {
    "epochs": STEPS,
    "global_batch": SAMPLES,
    "schedule": {"warmup_epochs": 2},
    "checkpoints": {"every_epochs": 0},
}
GENTLE = {"name": "sgd", "lr": 0.01, "clip": 1.0}
HARSH = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "eps": 1e-8, "clip": 1.0}
# Statistics of a rank's own batch, and of a micro-batch, differ by definition.
SYNCHRONISED, FROZEN = {"batch_norm": "sync"}, ["--recipe.model.batch_norm", "frozen"]


def command(recipe: Path, shards: Path, run: Path, engine: str, *more: str) -> list[str]:
    name, _, stage = engine.partition("-")
    extra = [f"--recipe.engine.zero_stage={stage}"] if stage else []
    words = ["--recipe", str(recipe), "--shards", str(shards), "--run-dir", str(run)]
    return [*words, "--engine", name, *extra, *more]


def check_equal(run: Path, reference: Path, losses: Any, weights: Any, bound: float) -> None:
    """Hold losses to ``bound`` relative, weights to it absolute, or relative where they are above 1."""
    assert len(losses(reference)) == STEPS
    np.testing.assert_allclose(losses(run), losses(reference), rtol=bound)
    one, other = weights(run), weights(reference)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=bound, atol=bound, err_msg=name)


@pytest.fixture(scope="module")
def in_double(
    work: Path,
    few_images: Path,
    few_captions: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_resnet: dict[str, Any],
    tiny_clip: dict[str, Any],
) -> Path:
    """A ResNet and a CLIP by every engine on 2 ranks and by ddp on 1, in float64; a CLIP in parts besides."""
    shards = {"classify": few_images, "clip": few_captions}
    over = {
        "classify": {"model": tiny_resnet | SYNCHRONISED},
        "clip": {"objective": "clip", "model": tiny_clip | SYNCHRONISED, "loss": {"name": "infonce"}},
    }
    folder, alone, together = work / "double", [], []
    for objective, values in over.items():
        recipe = make_recipe(f"parity-{objective}", **SIZES, optimizer=HARSH, **values)
        words = (recipe, shards[objective])
        alone.append(command(*words, folder / objective / "alone", "ddp"))
        together += [command(*words, folder / objective / engine, engine) for engine in ENGINES]
    together.append(command(*words, folder / "whole", "ddp", *FROZEN))
    for engine in ACCUMULATING:
        parts = [*FROZEN, "--recipe.engine.micro_batch", "4"]
        together.append(command(*words, folder / "parts" / engine, engine, *parts))
    for size, runs in ((1, alone), (2, together)):
        out = run_ranks(size, *runs, cwd=work, double=True)
        assert ("recipe.model.batch_norm sync: no effect in one process" in out) == (size == 1)
    return folder


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("objective", ["classify", "clip"])
def test_two_ranks_of_any_engine_take_the_steps_of_one_process(
    in_double: Path, objective: str, engine: str, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    run, reference = in_double / objective / engine, in_double / objective / "alone"
    assert all(tensor.dtype != np.float32 for tensor in weights(reference).values())
    check_equal(run, reference, losses, weights, DOUBLE_BOUND)


@pytest.mark.parametrize("engine", ACCUMULATING)
def test_contrastive_accumulation_has_the_loss_of_the_whole_batch(
    in_double: Path, engine: str, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    check_equal(in_double / "parts" / engine, in_double / "whole", losses, weights, DOUBLE_BOUND)


@pytest.fixture(scope="module")
def in_single(
    work: Path,
    few_images: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_resnet: dict[str, Any],
) -> Path:
    """A ResNet by every engine on 4 ranks in fp32, and by deepspeed with an own file.

    The file has small buckets, and leaves the rest to the recipe.
    """
    own = {
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": False},
        "zero_optimization": {"stage": 2, "allgather_bucket_size": 5000, "reduce_bucket_size": 5000},
    }
    path = work / "own.json"
    path.write_text(json.dumps(own))
    folder = work / "single"
    recipe = make_recipe("parity", **SIZES, model=tiny_resnet, optimizer=GENTLE)
    runs = [command(recipe, few_images, folder / engine, engine) for engine in ENGINES]
    more = ["--recipe.engine.deepspeed_config", str(path)]
    runs.append(command(recipe, few_images, folder / "own-file", "deepspeed-2", *more))
    runs.append(command(recipe, few_images, folder / "groups", "fsdp", "--recipe.engine.shard_group", "2"))
    run_ranks(4, *runs, cwd=work)
    return folder


@pytest.mark.parametrize("engine", [*ENGINES[1:], "groups"])
def test_engines_match_ddp_in_fp32(
    in_single: Path, engine: str, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    check_equal(in_single / engine, in_single / "ddp", losses, weights, BOUND)


def test_an_own_deepspeed_file_trains_the_recipe(
    in_single: Path, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    check_equal(in_single / "own-file", in_single / "deepspeed-2", losses, weights, BOUND)
