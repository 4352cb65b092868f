"""What a recipe can switch on: it trains, and its export loads without this project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nml.errors import UserError
from pretrain.export import export_run


@pytest.fixture(scope="module")
def runs(
    work: Path,
    image_set: Path,
    caption_set: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_clip: dict[str, Any],
    tiny_data: dict[str, Any],
) -> Path:
    """Several runs in one process: everything of the RSB recipes, fp16, accumulation, SigLIP."""
    rsb = {**tiny_data, "crop": "rrc", "auto_augment": "rand-m7-mstd0.5-inc1", "repeats": 3, "erasing": 0.1}
    lamb = {"name": "lamb", "lr": 5e-3, "weight_decay": 0.02, "clip": 1.0}
    mixed = {"name": "bce", "mixup": 0.1, "cutmix": 1.0}
    fast = {"dtype": "bf16", "channels_last": True}
    recipes = {
        "rsb": make_recipe(
            "rsb",
            epochs=1,
            data=rsb,
            loss=mixed,
            optimizer=lamb,
            engine=fast,
        ),
        "fp16": make_recipe("fp16", epochs=1, engine={"dtype": "fp16", "micro_batch": 8}),
        "siglip": make_recipe(
            "siglip",
            objective="clip",
            epochs=1,
            model=tiny_clip,
            loss={"name": "siglip"},
            engine={"micro_batch": 8},
        ),
    }
    extra = {"rsb": ["--tensorboard"], "fp16": ["--profile", "2"], "siglip": ["--validation", str(image_set)]}
    commands = []
    for name, recipe in recipes.items():
        shards = caption_set if name == "siglip" else image_set
        words = ["--recipe", str(recipe), "--shards", str(shards), "--run-dir", str(work / "features" / name)]
        commands.append([*words, *extra[name]])
    run_ranks(1, *commands, cwd=work)
    return work / "features"


@pytest.mark.parametrize("name", ["rsb", "fp16", "siglip"])
def test_a_recipe_trains_to_finite_losses(runs: Path, name: str, losses: Callable[..., Any]) -> None:
    found = losses(runs / name)
    assert len(found) == (4 if name == "siglip" else 10)
    assert np.isfinite(found).all()


def test_a_classifier_loads_with_timm_alone(runs: Path) -> None:
    import timm

    meta = json.loads((runs / "rsb" / "export" / "meta.json").read_text())
    model = timm.create_model(meta["architecture"], **meta["model_kwargs"]).eval()
    model.load_state_dict(load_file(runs / "rsb" / "export" / "model.safetensors"))
    assert model(torch.zeros(1, *meta["preprocessing"]["input_size"])).shape == (1, 4)
    assert meta["format"] == "nml-export/1"
    assert meta["noise"]["level"] == "n00"


def test_a_contrastive_model_loads_with_open_clip_alone(runs: Path) -> None:
    import open_clip

    meta = json.loads((runs / "siglip" / "export" / "meta.json").read_text())
    model = open_clip.create_model(meta["architecture"], **meta["model_kwargs"])
    model.load_state_dict(load_file(runs / "siglip" / "export" / "model.safetensors"))
    # Zero-shot validation with the class names of the named set.
    assert meta["validation"]["num_samples"] == 320


def test_traces_and_tensorboard_are_written(runs: Path) -> None:
    assert list((runs / "fp16" / "logs" / "profile").glob("trace-*.json"))
    assert list((runs / "rsb" / "logs" / "tensorboard").glob("events.*"))


def test_an_encoder_is_taken_out_of_a_checkpoint(runs: Path, tmp_path: Path) -> None:
    out = export_run(runs / "fp16", 10, str(tmp_path / "encoder"))
    assert json.loads((out / "meta.json").read_text())["step"] == 10
    with pytest.raises(UserError, match="--step 11: no such checkpoint; possible: 10"):
        export_run(runs / "fp16", 11, None)
    with pytest.raises(UserError, match="exists"):
        export_run(runs / "fp16", 10, str(tmp_path / "encoder"))


def test_losses_that_stay_infinite_stop_the_run_and_name_the_samples(
    work: Path, image_set: Path, make_recipe: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    recipe = make_recipe("diverging", optimizer={"name": "sgd", "lr": 1e30}, skip_nonfinite=2)
    words = ["--recipe", str(recipe), "--shards", str(image_set), "--run-dir", str(work / "diverging")]
    out = run_ranks(2, words, cwd=work, status=2)
    assert "3 steps in a row are not finite" in out
    lines = (work / "diverging" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines][-2:] == [None, None]
    assert "and 16 more, all in" in out
    note = json.loads((work / "diverging" / "logs" / "not-finite.json").read_text())
    assert note["step"] == len(lines)
    assert len(set(note["samples"])) == 32


def test_one_two_and_four_ranks_take_the_same_steps(
    work: Path,
    image_set: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    losses: Callable[..., Any],
    weights: Callable[..., Any],
) -> None:
    # Statistics of a rank's own batch differ by definition: synchronised ones leave the rest to compare.
    model = {"name": "resnet18", "kwargs": {"channels": [8, 16, 16, 32]}, "batch_norm": "sync"}
    recipe = make_recipe("worlds", model=model, optimizer={"name": "sgd", "lr": 0.01})
    for size in (1, 2, 4):
        words = [
            "--recipe",
            str(recipe),
            "--shards",
            str(image_set),
            "--run-dir",
            str(work / f"world-{size}"),
        ]
        run_ranks(size, words, cwd=work)
    for size in (2, 4):
        np.testing.assert_allclose(losses(work / f"world-{size}"), losses(work / "world-1"), rtol=1e-4)
        one, other = weights(work / f"world-{size}"), weights(work / "world-1")
        for name in other:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-4, err_msg=name)
