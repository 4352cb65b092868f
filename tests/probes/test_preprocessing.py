"""Images reach an encoder as its library would prepare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probes.encoders import Settings, open_encoder

SETTINGS = Settings(device="cpu", batch_size=4)


def wide_image() -> Image.Image:
    """Return an image of which a centre crop loses the left and the right."""
    ramp = np.linspace(0, 255, 90, dtype=np.uint8)
    return Image.fromarray(np.stack([np.tile(ramp, (40, 1)), np.tile(ramp[::-1], (40, 1))] * 2, -1)[..., :3])


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_images_are_cropped_the_way_timm_crops_for_the_model(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    create = timm.create_model
    weights = "timm:test_resnet,weights=random"
    usual = open_encoder(weights, SETTINGS).info.identity["preprocessing"]
    assert "crop_mode" not in usual  # the key under which earlier features are stored

    def with_mode(*args: Any, **kwargs: Any) -> Any:
        return create(*args, **kwargs, pretrained_cfg_overlay={"crop_mode": mode})

    monkeypatch.setattr(timm, "create_model", with_mode)
    encoder = open_encoder(weights, SETTINGS)
    config = timm.data.resolve_model_data_config(with_mode("test_resnet"))
    assert config["crop_mode"] == mode
    expected = timm.data.create_transform(**config, is_training=False)(wide_image())
    np.testing.assert_array_equal(encoder.prepare(wide_image()), expected)
    assert (encoder.info.identity["preprocessing"] == usual) == (mode == "center")


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_images_are_resized_the_way_open_clip_resizes_for_the_model(
    mode: str, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    create = open_clip.create_model

    def with_mode(*args: Any, **kwargs: Any) -> Any:
        overlay = kwargs.pop("force_preprocess_cfg", {})
        return create(*args, **kwargs, force_preprocess_cfg={**overlay, "resize_mode": mode})

    monkeypatch.setattr(open_clip, "create_model", with_mode)
    encoder = open_encoder(f"open_clip:{tiny_clip},weights=random", SETTINGS)
    transform = open_clip.image_transform(224, is_train=False, resize_mode=mode)
    np.testing.assert_allclose(encoder.prepare(wide_image()), transform(wide_image()), atol=1e-6)
    assert encoder.info.identity["preprocessing"].get("crop_mode") == {"squash": "squash"}.get(mode)


@pytest.mark.parametrize("source", ["pretrained", "file", "random"])
def test_a_tag_says_how_images_are_prepared_wherever_its_weights_come_from(
    source: str,
    tiny_clip: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import open_clip
    import torch

    name = tiny_clip
    recipe: dict[str, Any] = {"mean": (0.0, 0.1, 0.2), "std": (1.0, 0.9, 0.8)}
    recipe |= {"interpolation": "bilinear", "resize_mode": "squash"}
    file = tmp_path / "w.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)  # as weights=random does
        model = open_clip.create_model(name, force_quick_gelu=True).eval()
    torch.save(model.state_dict(), file)
    known = {"own": {**recipe, "quick_gelu": True, "url": "https://example.org/w.pt", "hf_hub": ""}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, known)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(file))
    weights = file if source == "file" else source
    encoder = open_encoder(f"open_clip:{name}/own,weights={weights}", SETTINGS)
    assert "no tag" not in capsys.readouterr().err
    expected = open_clip.image_transform(224, is_train=False, **recipe)(wide_image())
    np.testing.assert_allclose(encoder.prepare(wide_image()), expected, atol=1e-6)
    with torch.inference_mode():
        features = model.encode_image(expected[None]).numpy()
    np.testing.assert_allclose(encoder.encode([expected]), features, atol=1e-5)

    plain = open_encoder(f"open_clip:{name}/mine,weights={file}", SETTINGS)
    warning = capsys.readouterr().err
    assert f"has no tag 'mine' of {name}" in warning
    assert "tags: own" in warning
    assert warning.count("\n") == 1
    assert encoder.info.identity["quick_gelu"]
    assert "quick_gelu" not in plain.info.identity
