"""What a recipe can switch on: it trains, and its export loads without this project."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nml.errors import UserError
from nml.run_options import check_extras
from pretrain import encoder_files
from pretrain.export import export_run
from pretrain.options import parse_options
from pretrain.transforms import normalised

WANDB = importlib.util.find_spec("wandb") is not None


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
    names, templates = work / "names.txt", work / "templates.txt"
    names.write_text("cat\nsmall dog\nred fish\nbird {odd}\n")
    templates.write_text("a photo of a {}.\n{} in a field\n")
    prompts = ["--class-names", str(names), "--templates", str(templates)]
    extra = {
        "rsb": ["--tensorboard"],
        "fp16": ["--profile", "2", *(["--wandb"] if WANDB else [])],
        "siglip": ["--validation", str(image_set), *prompts],
    }
    commands = []
    for name, recipe in recipes.items():
        shards = caption_set if name == "siglip" else image_set
        words = ["--recipe", str(recipe), "--shards", str(shards), "--run-dir", str(work / "features" / name)]
        commands.append([*words, *extra[name]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run_ranks(1, *commands, cwd=work)
    return work / "features"


@pytest.mark.parametrize("name", ["rsb", "fp16", "siglip"])
def test_a_recipe_trains_to_finite_losses(runs: Path, name: str, losses: Callable[..., Any]) -> None:
    found = losses(runs / name)
    assert len(found) == (4 if name == "siglip" else 10)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_batch_is_normalised_to_the_last_bit_as_torchvision_does_it(layout: torch.memory_format) -> None:
    from torchvision.transforms import functional

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.arange(2 * 3 * 16 * 16).remainder(256).to(torch.uint8).view(2, 3, 16, 16)
    expected = functional.normalize(images.float() / 255, mean, std)
    batch = images.to(memory_format=layout)
    assert torch.equal(normalised(batch, mean, std), expected)
    reused = torch.full_like(batch, torch.nan, dtype=torch.float32)
    assert normalised(batch, mean, std, out=reused) is reused
    assert torch.equal(reused, expected)
    assert normalised(expected, mean, std, out=reused) is expected


# Run with nothing of the project in reach: what docs/pretraining.md shows, and a forward pass.
ALONE = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nml", "shards", "pretrain", "plugins", "probes", "slurm"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import load_file

for export in sys.argv[1:]:
    meta = json.load(open(export + "/meta.json"))
    if meta["library"] == "timm":
        import timm
        model = timm.create_model(meta["architecture"], **meta["model_kwargs"])
    else:
        import open_clip
        model = open_clip.create_model(meta["architecture"], **meta["model_kwargs"])
    model.load_state_dict(load_file(export + "/model.safetensors"))
    images = torch.zeros(2, *meta["preprocessing"]["input_size"])
    print(tuple((model.eval() if meta["library"] == "timm" else model.eval().encode_image)(images).shape))
"""


def test_exports_load_without_this_project(runs: Path, tmp_path: Path) -> None:
    exports = [runs / name / "export" for name in ("rsb", "siglip")]
    words = [sys.executable, "-c", ALONE, *map(str, exports)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["(2, 4)", "(2, 16)"]
    for export in exports:
        meta = json.loads((export / "meta.json").read_text())
        assert meta["format"] == "nml-export/1"
        assert meta["noise"]["level"] == "n00"


def test_an_export_that_does_not_fit_fails_loudly(runs: Path) -> None:
    import timm

    weights = load_file(runs / "rsb" / "export" / "model.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        timm.create_model("resnet18", num_classes=4).load_state_dict(weights)


def test_zero_shot_accuracy_is_that_of_open_clips_own_classifier(runs: Path, image_set: Path) -> None:
    import open_clip
    from open_clip.zero_shot_classifier import build_zero_shot_classifier

    from nml.recipe import Data
    from pretrain.transforms import testing_transform
    from shards.dataset import ShardDataset
    from shards.shardset import ShardSet

    export = runs / "siglip" / "export"
    meta = json.loads((export / "meta.json").read_text())
    model = open_clip.create_model(meta["architecture"], **meta["model_kwargs"]).eval()
    model.load_state_dict(load_file(export / "model.safetensors"))
    data = {
        name: meta["recipe"]["resolved"]["data"][name] for name in ("test_size", "crop_pct", "mean", "std")
    }
    samples = ShardDataset(ShardSet.open(str(image_set)), "n00", testing_transform(Data(**data)))
    tokenizer = open_clip.get_tokenizer(meta["architecture"], context_length=12)
    names = ["cat", "small dog", "red fish", "bird {odd}"]
    templates = [lambda name: f"a photo of a {name}.", lambda name: f"{name} in a field"]
    classifier = build_zero_shot_classifier(model, tokenizer, names, templates)
    with torch.no_grad():
        images = torch.stack([samples[number].image for number in range(len(samples))])
        found = (model.encode_image(images, normalize=True) @ classifier).argmax(dim=1)
    labels = torch.tensor([samples[number].target for number in range(len(samples))])
    assert meta["validation"]["num_samples"] == 320
    # Two scores that are equal but for rounding may fall either way.
    assert meta["validation"]["top1"] == pytest.approx(float((found == labels).float().mean()), abs=2 / 320)


def test_a_trace_holds_the_steps_asked_for(runs: Path) -> None:
    (trace,) = (runs / "fp16" / "logs" / "profile").glob("trace-*.json")
    # Two steps of warm-up, which begins after the first.
    assert trace.name == "trace-from-step-4.json"
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert len({name for name in names if name.startswith("ProfilerStep#")}) == 2


def test_tensorboard_has_every_step(runs: Path, losses: Callable[..., Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs / "rsb" / "logs" / "tensorboard")).Reload()
    scalars = events.Scalars("step/loss")
    assert [scalar.step for scalar in scalars] == list(range(1, 11))
    np.testing.assert_allclose([scalar.value for scalar in scalars], losses(runs / "rsb"), rtol=1e-6)
    assert {"step/samples_per_s", "step/lost_s/data_wait"} <= set(events.Tags()["scalars"])


@pytest.mark.skipif(not WANDB, reason="the extra wandb is not installed")
def test_wandb_offline_has_every_step(runs: Path) -> None:
    logs = runs / "fp16" / "logs"
    (folder,) = (logs / "wandb").glob("offline-run-*")
    assert folder.name.endswith((logs / "wandb-id").read_text())
    content = next(folder.glob("run-*.wandb")).read_bytes()
    assert content.count(b"step/loss") >= 10
    assert b"trained_steps" in content


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_an_extra_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    options, _ = parse_options([f"--{extra}"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'noisy-model-learning\[{extra}\]'"):
        check_extras(options)


def test_an_encoder_is_taken_out_of_a_checkpoint(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(encoder_files, "sync_tree", full)
        with pytest.raises(OSError, match="No space"):
            export_run(runs / "fp16", 10, str(tmp_path / "encoder"))
    assert not list(tmp_path.iterdir())
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
