"""Class text embeddings: of encoders with a text tower, for the heads that ask, and refused of others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nml.errors import UserError
from nml.files import sha256_file
from plugins.saved import load_head
from probes.encoders import Settings, open_checkpoint, open_encoder
from probes.encoders.text_tower import TwoTowerEncoder
from probes.results import read_rows
from probes.run import main
from tests.probes.own_files import write_folder

SETTINGS = Settings(device="cpu", batch_size=4)


def expected_of(architecture: str, weights: dict[str, torch.Tensor], prompts: list[str]) -> np.ndarray:
    import open_clip

    model = open_clip.create_model(architecture, pretrained=None).eval()
    model.load_state_dict(weights)
    tokens = open_clip.get_tokenizer(architecture, context_length=8)(prompts)
    with torch.no_grad():
        found: np.ndarray = model.encode_text(tokens, normalize=True).numpy()
    return found


@pytest.mark.parametrize("kind", ["open_clip", "checkpoint"])
def test_names_of_classes_go_through_the_text_tower(
    kind: str,
    tiny_clip: str,
    tmp_path: Path,
    make_export: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(3)
    weights = open_clip.create_model(tiny_clip, pretrained=None).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    caplog.clear()
    if kind == "open_clip":
        encoder = open_encoder(f"open_clip:{tiny_clip},weights={tmp_path}/model.safetensors", SETTINGS)
    else:
        run = make_export(tmp_path / "run", objective="clip", library="open_clip", architecture=tiny_clip)
        export = run / "export"
        (tmp_path / "model.safetensors").rename(export / "model.safetensors")
        meta = json.loads((export / "meta.json").read_text())
        meta |= {"model_kwargs": {}, "weights_sha256": sha256_file(export / "model.safetensors")}
        (export / "meta.json").write_text(json.dumps(meta))
        encoder = open_checkpoint(run, SETTINGS)
    assert isinstance(encoder, TwoTowerEncoder)
    # Nothing of weights that are random.
    assert not caplog.records
    found = encoder.class_embeddings(["grey_wolf", "egg"])
    prompts = ["a photo of a grey wolf.", "a photo of a egg."]
    np.testing.assert_allclose(found, expected_of(tiny_clip, weights, prompts), atol=1e-5)
    with pytest.raises(UserError, match="WordNet ids"):
        encoder.class_embeddings(["n01440764", "n01443537"])


def test_heads_that_ask_are_measured_and_others_stay(
    tiny_clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "train", {"ant": 6, "bee": 6})
    write_folder(tmp_path / "test", {"ant": 3, "bee": 3})
    words = ["--task", "imagefolder:train,test,shifts=none", "--allow-overlap"]
    encoder = ["--encoder", f"open_clip:{tiny_clip},weights=random"]
    main(["--plugin", "knn", *encoder, *words])
    [before] = read_rows("results")
    main(["--plugin", "knn,lp++", *encoder, *words, "--save-heads", "heads"])
    rows = {row.head: row for row in read_rows("results")}
    assert rows["knn"].row_id == before.row_id
    assert len(rows) == 2
    assert json.loads(rows["lp++"].study)["texts"].keys() == {"template", "weights_sha256", "classes"}
    assert json.loads(rows["lp++"].selection)["outcome"].keys() == {"mean_multiplier"}
    [folder] = Path("heads").glob("lp++-*")
    assert load_head(folder).head.state_dict()["texts"].shape == (2, 16)
    told = "--plugin lp++: asks for text embeddings of the classes, and encoder timm:test_resnet"
    with pytest.raises(UserError, match=re.escape(told)):
        main(["--plugin", "lp++", "--encoder", "timm:test_resnet,weights=random", *words])
