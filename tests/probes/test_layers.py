"""``layer=NAME`` and several layers in one pass, for every kind of network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nml.errors import UserError
from probes.encoders import Settings, open_encoder, open_encoders
from probes.features import FeatureStore, feature_pass
from probes.reporting.families import families, repetition
from probes.results import Row, read_rows
from probes.run import main
from probes.tasks import open_task
from tests.probes.reporting.made_up import make_row
from tests.probes.test_encoders import save_text_model
from tests.probes.test_overlap import images

SETTINGS = Settings(device="cpu", batch_size=8)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8))


def pictures(folder: Path) -> str:
    """Return a task of 40 images to train on and 12 to test on."""
    train, test = (
        images(folder / "train.parquet", list(range(40))),
        images(folder / "test.parquet", list(range(50, 62))),
    )
    return f"parquet:{train},{test},shifts=none"


def encoded(encoder: Any, content: Any = IMAGE) -> Any:
    return encoder.encode([encoder.prepare(content)])[0]


def test_maps_are_averaged_over_their_places() -> None:
    import timm
    import torch

    encoder: Any = open_encoder("timm:test_resnet,weights=random,layer=layer2", SETTINGS)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # as weights=random does
        network = timm.create_model("test_resnet", num_classes=0).eval()
    with torch.inference_mode():
        maps = network.forward_intermediates(encoder.prepare(IMAGE)[None], intermediates_only=True)
    np.testing.assert_allclose(encoded(encoder), maps[2].mean((2, 3))[0], atol=1e-5)


def test_of_tokens_the_class_token_counts_and_texts_are_pooled_as_ever(tmp_path: Path) -> None:
    import torch
    import transformers

    vit: Any = open_encoder("timm:test_vit,weights=random,layer=norm", SETTINGS)
    usual = open_encoder("timm:test_vit,weights=random", SETTINGS)
    np.testing.assert_allclose(encoded(vit), encoded(usual), atol=1e-5)
    folder = save_text_model(tmp_path, "bert")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("a fine film", return_tensors="pt")
    with torch.inference_mode():
        states = model(**tokens, output_hidden_states=True).hidden_states[1][0].numpy()
    for pooling, expected in (("cls", states[0]), ("mean", states.mean(0))):
        text = open_encoder(f"transformers:{folder},layer=encoder.layer.0,pooling={pooling}", SETTINGS)
        np.testing.assert_allclose(encoded(text, "a fine film"), expected, atol=1e-5)


def test_towers_of_open_clip_and_exports_have_layers(
    tiny_clip: str, tmp_path: Path, make_export: Callable[..., Path]
) -> None:
    run = make_export(tmp_path / "runs" / "tiny-n20-seed1", realised=0.2)
    layer, usual = open_encoders(f"checkpoint:{run},layer=layer1+output", SETTINGS)
    assert (layer.info.name, usual.info.name) == ("tiny-n20-seed1,layer=layer1", "tiny-n20-seed1")
    assert layer.info.provenance == usual.info.provenance
    assert usual.info.hash == open_encoder(f"checkpoint:{run}", SETTINGS).info.hash != layer.info.hash
    tower: Any = open_encoder(f"open_clip:{tiny_clip},weights=random", SETTINGS)
    name = next(name for name, _ in tower.module.named_modules() if name.endswith("resblocks.0"))
    layer, usual = open_encoders(f"open_clip:{tiny_clip},weights=random,layer={name}+output", SETTINGS)
    assert encoded(layer).ndim == 1
    # The text tower speaks of the output alone.
    assert hasattr(usual, "class_embeddings")
    assert not hasattr(layer, "class_embeddings")


def test_all_layers_of_a_pass_are_stored_by_whoever_is_asked_first(tmp_path: Path) -> None:
    samples = open_task(pictures(tmp_path)).train
    store = FeatureStore(tmp_path)
    text = "timm:test_resnet,weights=random,layer="
    plain = open_encoder(text.removesuffix(",layer="), SETTINGS)
    group: Any = open_encoders(f"{text}output+layer1+layer2", SETTINGS)
    passes: list[int] = []
    group[0]._encoder.module.register_forward_hook(lambda *_: passes.append(1))
    last = feature_pass(store, group[2], samples, dataset="x")
    once = len(passes)
    assert once == 5
    others = [feature_pass(store, each, samples, dataset="x") for each in group[:2]]
    assert len(passes) == once
    assert len({last.key, *(each.key for each in others)}) == 3
    # Features are known by what they are of, not by how they were asked for.
    assert feature_pass(store, plain, samples, dataset="x").key == others[0].key
    alone = feature_pass(
        FeatureStore(tmp_path / "b"), open_encoder(f"{text}layer2", SETTINGS), samples, dataset="x"
    )
    assert alone.key == last.key
    np.testing.assert_allclose(alone.array, last.array, atol=1e-5)


def test_each_layer_has_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "timm:test_resnet,weights=random"
    words = ["--task", pictures(tmp_path), "--encoder", f"{name},layer=layer1+output"]
    main(["--plugin", "knn", "--tries", "1", *words])
    rows = read_rows("results")
    assert {row.encoder for row in rows} == {name, f"{name},layer=layer1"}
    assert len({row.encoder_hash for row in rows}) == 2


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("timm:test_resnet,weights=random,layer=layr1", "layer: unknown name 'layr1'; .*did you mean layer1"),
        (
            "timm:test_resnet,weights=random,layer=layer1+layer1",
            r"layer layer1\+layer1; possible: NAME, or NAME",
        ),
        ("timm:test_resnet,weights=random,layer=", "layer ; possible: NAME"),
        ("features:train=a.npy,test=b.npy,layer=x", "layer x: encoders of kind features have none"),
        ("api:model,url=http://localhost:1,layer=x", "layer x: encoders of kind api have none"),
    ],
)
def test_a_layer_that_cannot_be_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        np.save(f"{name}.npy", np.full((2, 2), number, np.float32))
    with pytest.raises(UserError, match=error):
        open_encoder(spec, SETTINGS)


def test_layers_of_runs_are_families_of_their_own() -> None:
    def of(name: str, ratio: float) -> Row:
        return make_row(encoder=name, encoder_hash=name, noise_ratio=ratio, noise_level=None, dim=64)

    names = [f"{run}@40,layer={layer}" for run in ("mine", "yours") for layer in ("a", "b")]
    found = families([of(name, float(name.startswith("yours"))) for name in names])
    assert [found[name] for name in names] == 2 * [found[names[0]], found[names[1]]]
    assert found[names[0]] != found[names[1]]
    assert repetition("tiny-n20-seed1@40,layer=a") == "seed1"
