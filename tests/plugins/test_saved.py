"""A fitted head on disk: it predicts what it predicted, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from nml.errors import UserError
from plugins.registry import HEADS
from plugins.saved import is_saved, load_head, save_head

CLASSES = ("cat", "dog", "eel")


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [60, 6] and labels [60] of three classes that lie apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60).remainder(3)
    return torch.randn(60, 6, generator=generator) + 3 * torch.eye(3, 6)[labels], labels


def save(folder: Path, name: str = "lp") -> torch.Tensor:
    """Save a head fitted on the problem; return its logits there."""
    features, labels = problem()
    make = HEADS.load(name)
    known = {field.name for field in dataclasses.fields(make)} if dataclasses.is_dataclass(make) else set()
    head = make(**({"epochs": 2} if "epochs" in known else {}))
    asked = {"class_embeddings": torch.eye(3, 6)} if name == "lp++" else {}
    head.fit(features, labels, validation=(features, labels), seed=1, **asked)
    save_head(
        folder, head, HEADS.find(name), dim=6, classes=CLASSES, about={"encoder": "mine"}, temperature=1.5
    )
    return head.predict_logits(features)


@pytest.mark.parametrize("name", [plugin.name for plugin in HEADS.discover()])
def test_a_saved_head_predicts_what_it_predicted(name: str, tmp_path: Path) -> None:
    logits = save(tmp_path / name, name)
    saved = load_head(tmp_path / name)
    assert torch.equal(saved.head.predict_logits(problem()[0]), logits)
    assert (saved.dim, saved.classes, saved.about) == (6, CLASSES, {"encoder": "mine"})
    assert saved.temperature == 1.5


def test_a_folder_of_one_head_stands_for_it_and_one_of_several_names_them(tmp_path: Path) -> None:
    save(tmp_path / "heads" / "lp-1")
    assert load_head(tmp_path / "heads").name == "lp"
    save(tmp_path / "heads" / "knn-2", "knn")
    with pytest.raises(UserError, match=r"heads: holds 2 heads; possible: .*knn-2, .*lp-1; name one of them"):
        load_head(tmp_path / "heads")


def test_a_head_whose_saving_was_interrupted_is_none(tmp_path: Path) -> None:
    save(tmp_path / "lp")
    (tmp_path / "lp" / "head.json").unlink()
    assert not is_saved(tmp_path / "lp")
    with pytest.raises(UserError, match=r"lp: no saved head .*; save one: python -m probes.run --save-heads"):
        load_head(tmp_path / "lp")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "one")
    save(tmp_path / "other", "mlp")
    (tmp_path / "other" / "head.safetensors").rename(tmp_path / "one" / "head.safetensors")
    with pytest.raises(UserError, match="not the weights that were saved"):
        load_head(tmp_path / "one")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"head": "nmtun"}, "did you mean nmtune"),
        ({"distribution": "other-heads"}, "head lp of other-heads .*; install other-heads"),
        ({"hyper_parameters": {"colour": 3}}, "cannot take what .* saved: .*colour.*; install noisy-model"),
        ({"temperature": 0}, "temperature 0; possible: a finite number above 0; save the head again"),
        ({"format": "nml-head/9"}, "format 'nml-head/9'; possible: nml-head/1"),
    ],
)
def test_a_head_that_is_not_the_one_installed_is_refused_in_one_line(
    changes: dict[str, object], error: str, tmp_path: Path
) -> None:
    save(tmp_path)
    record = tmp_path / "head.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))
    with pytest.raises(UserError, match=error):
        load_head(tmp_path)


def test_a_head_that_cannot_be_described_costs_none_that_was_saved(tmp_path: Path) -> None:
    logits = save(tmp_path)
    other = HEADS.load("mlp")().fit(*problem())
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_head(tmp_path, other, HEADS.find("mlp"), dim=6, classes=CLASSES, about={"day": tmp_path})
    assert torch.equal(load_head(tmp_path).head.predict_logits(problem()[0]), logits)


def test_a_head_saved_when_its_layers_were_as_wide_as_few_features_loads() -> None:
    features, labels = problem()
    earlier = HEADS.load("nmtune")(hidden=features.shape[1], epochs=1, least_steps=0)
    earlier.fit(features, labels)
    head = HEADS.load("nmtune")(epochs=1, least_steps=0)
    head.load_state_dict(earlier.state_dict())
    assert head.hidden is None
    assert torch.equal(head.predict_logits(features), earlier.predict_logits(features))
