"""A run begins from weights that are there: what is taken, said and refused, and which run it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nml.errors import UserError
from nml.initial_weights import describe_weights
from pretrain.models import Architecture, build_network
from pretrain.options import parse_options
from pretrain.same_run import check_same_run, check_same_start
from pretrain.warm_start import Taken, begin_from

NARROW = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}


def resnet(classes: int = 4, seed: int = 0, **other: Any) -> torch.nn.Module:
    kwargs = {"num_classes": classes, **NARROW, **other}
    return build_network(Architecture("timm", "resnet18", kwargs), seed)


def begin(network: torch.nn.Module, location: Path) -> Taken:
    return begin_from(network, describe_weights(str(location)))


def tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as timm leaves one, with a classifier of 7 classes."""
    save_file(tensors(resnet(7, seed=1)), tmp_path / "model.safetensors")
    return tmp_path


def test_everything_but_a_classifier_of_another_number_of_classes_is_taken(saved: Path) -> None:
    network, given = resnet(4), load_file(saved / "model.safetensors")
    fresh = tensors(network)
    taken = begin(network, saved)
    assert taken.classes == ["fc.bias", "fc.weight"]
    assert taken.fresh == taken.left_over == []
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name in taken.classes else given[name]), name
    line = taken.line("FILE")
    assert line.startswith(f"begins from FILE: {len(fresh) - 2} tensors taken; left out, of another number")
    assert line.endswith("of classes: fc.bias, fc.weight")


def test_a_checkpoint_of_pytorch_is_read_and_what_does_not_match_is_named(tmp_path: Path) -> None:
    given = tensors(resnet(4, seed=1))
    state = {f"module.{name}": tensor for name, tensor in given.items() if name != "bn1.bias"}
    file = tmp_path / "last.pth.tar"
    torch.save({"epoch": 3, "state_dict": state | {"module.projector": torch.ones(2)}}, file)
    network = resnet(4)
    taken = begin(network, file)
    assert (taken.fresh, taken.left_over, taken.classes) == (["bn1.bias"], ["projector"], [])
    assert "; not in it, and fresh: bn1.bias; in it alone: projector" in taken.line("FILE")
    assert torch.equal(network.state_dict()["fc.weight"], given["fc.weight"])


def test_a_clip_begins_from_what_open_clip_holds(tmp_path: Path, tiny_clip: dict[str, Any]) -> None:
    arch = Architecture("open_clip", tiny_clip["name"], tiny_clip["kwargs"])
    given = tensors(build_network(arch, 1))
    # As open_clip builds it: a number.
    given["logit_scale"] = torch.tensor(1.25)
    save_file(given, tmp_path / "open_clip_model.safetensors")
    network = build_network(arch, 0)
    taken = begin(network, tmp_path)
    assert len(taken.taken) == len(given)
    assert network.state_dict()["logit_scale"].tolist() == [1.25]


class Elsewhere:
    """What a pickle may hold beside tensors."""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda own: own | {"conv1.weight": torch.ones(8, 1, 7, 7)},
            "conv1.weight is [8, 1, 7, 7], and [64",
        ),
        (
            lambda own: {"visual.conv1.weight": own["conv1.weight"]},
            "holds 0% of the recipe's network; it lacks",
        ),
        (lambda own: own | {"bn1.bias": torch.full((64,), torch.nan)}, "infinite or NaN values: bn1.bias"),
        # What PyTorch says of such a file is how to run what is in it.
        (
            lambda own: {"state_dict": own, "args": Elsewhere()},
            "it is damaged, or holds other things; possible:",
        ),
        (lambda _: None, "it is damaged, or holds other things; possible:"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], named: str
) -> None:
    file, network = tmp_path / "weights.pth", resnet()
    state = change(tensors(network))
    file.touch() if state is None else torch.save(state, file)
    with pytest.raises(UserError, match=re.escape(named)):
        begin(network, file)


@pytest.mark.parametrize(("place", "why"), [("", "holds no weights"), ("nowhere", "no such file or folder")])
def test_weights_that_are_not_there_are_told_with_what_would_be(tmp_path: Path, place: str, why: str) -> None:
    with pytest.raises(UserError, match=f"{why}; possible: a file of weights, a run folder"):
        describe_weights(str(tmp_path / place))


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed"])
def test_a_run_trains_on_from_an_export_and_is_told_from_other_runs(
    work: Path,
    few_images: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    weights: Callable[..., dict[str, np.ndarray]],
    engine: str,
) -> None:
    # So slow that the weights stay as they were.
    still = {"name": "sgd", "lr": 1e-12}
    model = {"name": "resnet18", "kwargs": NARROW}
    recipe = make_recipe("still", epochs=2, global_batch=16, model=model, optimizer=still)
    start, run = work / f"start-{engine}", work / f"warm-{engine}"
    save_file(tensors(resnet(4, seed=1)), start.with_suffix(".safetensors"))
    save_file(tensors(resnet(4, seed=2)), work / "others.safetensors")
    words = ["--recipe", str(recipe), "--shards", str(few_images), "--run-dir", str(run), "--engine", engine]
    warm = [*words, "--init-from", str(start.with_suffix(".safetensors"))]
    told = run_ranks(2, warm, cwd=work)
    assert told.count("tensors taken") == 1
    given = load_file(start.with_suffix(".safetensors"))
    for name, value in weights(run).items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            np.testing.assert_allclose(value, given[name], atol=1e-7, err_msg=name)
    record = json.loads((run / "data.json").read_text())["init"]
    assert json.loads((run / "export" / "meta.json").read_text())["init"] == record
    assert record == describe_weights(str(start.with_suffix(".safetensors"))).as_json()
    with pytest.raises(UserError, match=r"--init-from fresh weights: .* holds a run with .*start-"):
        check_same_run(run, parse_options(words)[1])
    with pytest.raises(UserError, match="holds a run that began from other weights"):
        check_same_start(run, str(work / "others.safetensors"))
    # It goes on from its own checkpoint, for which it needs them no more.
    for later in ("DONE.json", "checkpoints/step-00000002"):
        path = run / later
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    start.with_suffix(".safetensors").unlink()
    assert "resuming at step 1 of 2" in run_ranks(2, [*warm, "--resume", "must"], cwd=work)
    assert json.loads((run / "data.json").read_text())["init"] == record


def test_a_run_that_has_saved_nothing_needs_its_weights(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    record = describe_weights(str(saved)).as_json()
    (run / "data.json").write_text(json.dumps({"set_fingerprint": "x", "level": {}, "init": record}))
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        check_same_start(run, str(saved))
