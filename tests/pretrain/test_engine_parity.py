"""ddp is the reference; fsdp and every stage of deepspeed train the same weights on the same ranks.

In fp32 engines add in different orders, and training amplifies the last digit: AdamW with a small eps
takes the sign of gradients that are nothing but rounding, large steps multiply it by themselves, and batch
normalisation of a few values divides by their spread. So fp32 is held to 1e-4 with gentle settings here,
and the harsh ones, and all that a recipe can switch on, are held to 1e-9 in float64, where rounding
cannot hide a real difference.
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
STEPS = 20
ENGINES = ["ddp", "fsdp", "deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3"]
ACCUMULATING = ["ddp", "fsdp", "deepspeed-2"]
GENTLE_SGD = {"name": "sgd", "lr": 0.01, "clip": 1.0}
ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "eps": 1e-8, "clip": 1.0}
HARSH = {
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.05, "clip": 1.0}},
    "lamb": {"optimizer": {"name": "lamb", "lr": 5e-3, "weight_decay": 0.02, "eps": 1e-6, "clip": 1.0}},
    # Four micro-batches, stochastic depth, mixing, and an average of the weights.
    "everything": {
        "optimizer": ADAMW,
        "ema": 0.9,
        "engine": {"micro_batch": 4},
        "loss": {"name": "bce", "mixup": 0.2, "cutmix": 1.0},
    },
}
SYNCHRONISED = {"batch_norm": "sync"}


def command(recipe: Path, shards: Path, run: Path, engine: str, *more: str) -> list[str]:
    name, _, stage = engine.partition("-")
    extra = [f"--recipe.engine.zero_stage={stage}"] if stage else []
    words = ["--recipe", str(recipe), "--shards", str(shards), "--noise", "0", "--run-dir", str(run)]
    return [*words, "--engine", name, *extra, *more]


def check_equal(run: Path, reference: Path, losses: Any, weights: Any, bound: float) -> None:
    """Hold losses to ``bound`` relative, weights to it absolute, or relative where they are above 1."""
    assert len(losses(reference)) == STEPS
    np.testing.assert_allclose(losses(run), losses(reference), rtol=bound)
    one, other = weights(run), weights(reference)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=bound, atol=bound, err_msg=name)


def harsh_engines(setting: str) -> list[str]:
    if setting == "lamb":
        return [engine for engine in ENGINES if engine[-1] not in "123"]
    if setting == "everything":
        return [engine for engine in ENGINES if engine[-1] != "3"]
    return ENGINES


@pytest.fixture(scope="module")
def in_double(
    work: Path, image_set: Path, make_recipe: Callable[..., Path], run_ranks: Callable[..., str]
) -> Path:
    """20 steps of a narrow ResNet-18 on 2 ranks, every engine, in float64."""
    runs = []
    for setting, over in HARSH.items():
        recipe = make_recipe(f"harsh-{setting}", **over)
        for engine in harsh_engines(setting):
            runs.append(command(recipe, image_set, work / "double" / f"{setting}-{engine}", engine))
    run_ranks(2, *runs, cwd=work, double=True)
    return work / "double"


@pytest.mark.parametrize(
    ("setting", "engine"), [(setting, engine) for setting in HARSH for engine in harsh_engines(setting)[1:]]
)
def test_without_rounding_engines_agree_in_all_digits(
    in_double: Path, setting: str, engine: str, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    run, reference = in_double / f"{setting}-{engine}", in_double / f"{setting}-ddp"
    assert weights(reference)["conv1.weight"].dtype == np.float64
    check_equal(run, reference, losses, weights, DOUBLE_BOUND)


@pytest.fixture(scope="module")
def trained(
    work: Path, image_set: Path, make_recipe: Callable[..., Path], run_ranks: Callable[..., str]
) -> Path:
    """20 steps in fp32 of a narrow ResNet-18 on 4 ranks, every engine, and deepspeed by an own file.

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
    folder = work / "parity"
    recipe = make_recipe("parity", optimizer=GENTLE_SGD)
    runs = [command(recipe, image_set, folder / engine, engine) for engine in ENGINES]
    more = ["--recipe.engine.deepspeed_config", str(path)]
    runs.append(command(recipe, image_set, folder / "own-file", "deepspeed-2", *more))
    run_ranks(4, *runs, cwd=work)
    return folder


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_engines_match_ddp(
    trained: Path, engine: str, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    check_equal(trained / engine, trained / "ddp", losses, weights, BOUND)


def test_an_own_deepspeed_file_trains_the_recipe(
    trained: Path, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    check_equal(trained / "own-file", trained / "deepspeed-2", losses, weights, BOUND)


@pytest.fixture(scope="module")
def contrasted(
    work: Path,
    caption_set: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_clip: dict[str, Any],
) -> Path:
    """20 steps of a small CLIP on 2 ranks in float64, engine by engine; and whole or in micro-batches."""
    recipe = make_recipe(
        "harsh-clip", objective="clip", epochs=5, model=tiny_clip, loss={"name": "infonce"}, optimizer=ADAMW
    )
    runs = [command(recipe, caption_set, work / "contrast" / engine, engine) for engine in ENGINES]
    # Batch statistics of a micro-batch differ by definition; frozen ones leave the rest to compare.
    frozen = ["--recipe.model.batch_norm", "frozen"]
    runs.append(command(recipe, caption_set, work / "contrast" / "whole", "ddp", *frozen))
    parts = ["--recipe.engine.micro_batch", "4"]
    for engine in ACCUMULATING:
        runs.append(
            command(recipe, caption_set, work / "contrast" / f"{engine}-parts", engine, *frozen, *parts)
        )
    run_ranks(2, *runs, cwd=work, double=True)
    return work / "contrast"


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_contrastive_training_matches_ddp_in_all_digits(
    contrasted: Path, engine: str, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    check_equal(contrasted / engine, contrasted / "ddp", losses, weights, DOUBLE_BOUND)


@pytest.mark.parametrize("engine", ACCUMULATING)
def test_contrastive_accumulation_has_the_loss_of_the_whole_batch(
    contrasted: Path, engine: str, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    check_equal(contrasted / f"{engine}-parts", contrasted / "whole", losses, weights, DOUBLE_BOUND)


@pytest.fixture(scope="module")
def worlds(
    work: Path,
    image_set: Path,
    caption_set: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_clip: dict[str, Any],
) -> Path:
    """The same global batches on 1 and 4 ranks of ddp, in float64.

    Statistics of a rank's own batch differ by definition: synchronised ones leave the rest to compare.
    """
    model = {"name": "resnet18", "kwargs": {"channels": [8, 16, 16, 32]}, **SYNCHRONISED}
    classify = make_recipe("worlds", model=model, **HARSH["sgd"])
    clip = make_recipe(
        "worlds-clip", objective="clip", epochs=5, model=tiny_clip | SYNCHRONISED, loss={"name": "infonce"}
    )
    for size in (1, 4):
        runs = [
            command(classify, image_set, work / "worlds" / f"classify-{size}", "ddp"),
            command(clip, caption_set, work / "worlds" / f"clip-{size}", "ddp"),
        ]
        out = run_ranks(size, *runs, cwd=work, double=True)
        assert ("recipe.model.batch_norm sync: no effect in one process" in out) == (size == 1)
    return work / "worlds"


@pytest.mark.parametrize("objective", ["classify", "clip"])
def test_more_ranks_take_the_same_steps(
    worlds: Path, objective: str, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    check_equal(worlds / f"{objective}-4", worlds / f"{objective}-1", losses, weights, DOUBLE_BOUND)
