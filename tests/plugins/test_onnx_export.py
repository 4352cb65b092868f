"""What onnxruntime says of a file is what the head says, for every head that comes with the project."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nml.errors import UserError
from plugins import onnx_export
from plugins.knn import NearestNeighbours
from plugins.onnx_export import onnx_bytes
from plugins.onnx_graph import Graph
from plugins.registry import HEADS
from plugins.saved import SavedHead

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CLASSES = ("cat", "dög", "eel", "fox")
DIM = 7


def fitted(name: str, **options: Any) -> SavedHead:
    """Return a head fitted on features whose unit is far from 1; the last class has no sample."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90).remainder(3)
    features = 300 * (torch.randn(90, DIM, generator=generator) + 2 * torch.eye(3, DIM)[labels])
    head = HEADS.load(name)(**options)
    asked = {"class_embeddings": torch.eye(len(CLASSES), DIM)} if name == "lp++" else {}
    head.fit(features, labels, validation=(features, labels), num_classes=len(CLASSES), **asked)
    return SavedHead(head, DIM, CLASSES, {"encoder": "mine"}, temperature=1.7, name=name)


# The other heads are networks of the same parts.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lp", {"epochs": 2}),
        ("nmtune", {"epochs": 2}),
        ("nmtune-layers4", {"epochs": 2}),
        ("nmtune-linear", {"epochs": 2}),
        ("nmtune-topk", {"epochs": 2, "grid": [1]}),
        ("nmtune-gelu", {"epochs": 2}),
        ("nmtune-released", {"epochs": 2}),
        ("co-teaching", {"epochs": 2}),
        ("logreg", {}),
        ("knn", {}),
        ("lp++", {"iterations": 20}),
    ],
)
def test_the_file_gives_the_logits_and_probabilities_of_the_head(name: str, options: dict[str, Any]) -> None:
    saved = fitted(name, **options)
    session = onnxruntime.InferenceSession(onnx_bytes(saved))
    for count in (1, 33):
        features = 300 * torch.randn(count, DIM, generator=torch.Generator().manual_seed(count))
        expected = saved.head.predict_logits(features)
        logits, probabilities = session.run(["logits", "probabilities"], {"features": features.numpy()})
        assert np.abs(logits - expected.numpy()).max() < 1e-5 * max(1, float(expected.abs().max()))
        assert np.abs(probabilities - (expected / 1.7).softmax(dim=1).numpy()).max() < 1e-5
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)
    assert (about["head"], float(about["temperature"]), about["encoder"]) == (name, 1.7, "mine")


def test_layers_that_heads_of_others_are_made_of_have_their_form() -> None:
    norm = nn.BatchNorm1d(6, affine=False)
    norm(torch.randn(50, 6))
    parts = [
        nn.Linear(DIM, 6, bias=False),
        nn.Tanh(),
        norm,
        nn.LayerNorm(6),
        nn.Dropout(),
        nn.Sigmoid(),
        nn.GELU(),
    ]
    module = nn.Sequential(*parts, nn.Linear(6, 4)).eval()
    graph = Graph()
    model = graph.model(
        "parts", graph.apply(module, "features"), dim=DIM, outputs=4, temperature=1, target="classification"
    )
    features = torch.randn(5, DIM)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(
        ["logits"], {"features": features.numpy()}
    )
    assert np.abs(found[0] - module(features).detach().numpy()).max() < 1e-5
    for part in (nn.Conv1d(1, 1, 1), nn.GELU("tanh"), nn.BatchNorm1d(3, track_running_stats=False)):
        with pytest.raises(UserError, match="no ONNX form"):
            Graph().apply(part, "features")


def test_every_head_of_the_project_can_be_exported() -> None:
    for plugin in HEADS.discover():
        if plugin.distribution == "noisy-model-learning":
            assert callable(HEADS.load(plugin.name).inference_module), plugin.name


def test_heads_that_cannot_be_exported_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        """A head of others, without the method."""

    with pytest.raises(UserError, match=r"head plain cannot be exported: it has no inference_module\(\)"):
        onnx_bytes(SavedHead(Plain(), DIM, CLASSES, {}, name="plain"))  # type: ignore[arg-type]
    head = NearestNeighbours().fit(torch.randn(60, DIM), torch.arange(60).remainder(4))
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"head knn holds .* bytes, too many for an ONNX file"):
        onnx_bytes(SavedHead(head, DIM, CLASSES, {}, name="knn"))


@pytest.mark.parametrize("wrong", [{"dim": DIM - 1}, {"classes": CLASSES[:2]}])
def test_a_record_that_does_not_fit_the_weights_is_one_line(wrong: dict[str, Any]) -> None:
    saved = fitted("lp", epochs=1)._replace(**wrong)
    with pytest.raises(UserError, match=r"cannot be exported: features .* are not its network's: ") as found:
        onnx_bytes(saved)
    assert "\n" not in str(found.value)


def test_without_the_extra_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx is not installed; pip install 'noisy-model-learning\[onnx\]'"):
        onnx_bytes(fitted("lp", epochs=1))


def test_exporting_changes_neither_the_head_nor_the_random_state() -> None:
    saved = fitted("lp", epochs=2)
    before, state = saved.head.state_dict(), torch.get_rng_state()
    assert onnx_bytes(saved) == onnx_bytes(saved)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in saved.head.state_dict().items())
