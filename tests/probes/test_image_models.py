"""Image models of transformers behave as transformers runs them: its processor, its weights, its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nml.conformance import outcomes
from nml.errors import UserError
from probes.encoders import Settings, conformance, open_encoder
from probes.encoders.transformer_models import open_transformers

SETTINGS = Settings(device="cpu", batch_size=4)
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def save_image_model(folder: Path, kind: str, seed: int = 0) -> Path:
    """Save a tiny randomly initialised model and its processor as save_pretrained does."""
    import torch
    import transformers

    torch.manual_seed(seed)
    shape = {**SIZE, "image_size": 28, "patch_size": 14}
    if kind == "siglip":
        text = {**SIZE, "vocab_size": 30, "max_position_embeddings": 8}
        config: Any = transformers.SiglipConfig(text_config=text, vision_config=shape)
        model: Any = transformers.SiglipModel(config)
        processor: Any = transformers.SiglipImageProcessor(size={"height": 28, "width": 28})
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**shape, mlp_ratio=2))
        processor = transformers.BitImageProcessor(
            size={"shortest_edge": 36}, crop_size=28, do_convert_rgb=True
        )
    elif kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**shape))
        processor = transformers.ViTImageProcessor(size={"height": 28, "width": 28})
    else:
        model = transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        )
        processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 28}, crop_pct=0.875)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8))


@pytest.mark.parametrize(
    ("kind", "pooling"), [("siglip", "pooled"), ("dinov2", "pooled"), ("vit", "cls"), ("resnet", "pooled")]
)
def test_features_are_what_transformers_gives(tmp_path: Path, kind: str, pooling: str) -> None:
    import torch
    import transformers

    folder = save_image_model(tmp_path, kind)
    encoder = open_encoder(f"transformers:{folder}", SETTINGS)
    assert (encoder.info.modality, encoder.info.identity["pooling"]) == ("image", pooling)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    pixels = processor(images=picture().convert("RGB"), return_tensors="pt")["pixel_values"]
    np.testing.assert_array_equal(encoder.prepare(picture()), pixels[0])
    with torch.inference_mode():
        output = getattr(model, "vision_model", model)(pixel_values=pixels)
    expected = output.last_hidden_state[:, 0] if pooling == "cls" else output.pooler_output.flatten(1)
    found = encoder.encode([encoder.prepare(picture()), encoder.prepare(picture(30, 60))])
    assert found.shape == (2, 16)
    np.testing.assert_allclose(found[:1], expected.numpy(), atol=1e-5)


def test_the_mean_leaves_the_class_token_out(tmp_path: Path) -> None:
    import torch

    folder = save_image_model(tmp_path, "vit")
    encoder: Any = open_encoder(f"transformers:{folder},pooling=mean", SETTINGS)
    batch = encoder.prepare(picture())
    with torch.inference_mode():
        states = encoder.module(pixel_values=batch[None]).last_hidden_state
    assert states.shape == (1, 5, 16)
    np.testing.assert_allclose(encoder.encode([batch])[0], states[0, 1:].mean(0), atol=1e-6)


def test_processor_weights_and_pooling_make_the_identity(tmp_path: Path) -> None:
    folder, twin = (save_image_model(tmp_path / name, "dinov2") for name in "ab")
    first = open_encoder(f"transformers:{folder}", SETTINGS).info.hash
    assert open_encoder(f"transformers:{twin}", SETTINGS).info.hash == first
    others = [open_encoder(f"transformers:{folder},pooling=cls", SETTINGS).info.hash]
    file = folder / "preprocessor_config.json"
    file.write_text(file.read_text().replace("0.48145466", "0.5"))
    others.append(open_encoder(f"transformers:{folder}", SETTINGS).info.hash)
    assert len({first, *others}) == 3


@pytest.mark.parametrize(
    ("kind", "option", "error"),
    [
        ("siglip", "pooling=cls", "pooling cls: the model has no class token; possible: mean"),
        ("siglip", "pooling=last", "pooling last; possible: pooled, cls, mean"),
        ("vit", "prompt=a photo", "option: unknown name 'prompt'; possible: pooling, revision"),
    ],
)
def test_what_a_model_of_images_cannot_do_is_told(tmp_path: Path, kind: str, option: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        open_encoder(f"transformers:{save_image_model(tmp_path, kind)},{option}", SETTINGS)


def test_images_that_keep_their_shapes_and_folders_without_a_processor_are_refused(tmp_path: Path) -> None:
    folder = save_image_model(tmp_path, "dinov2")
    file = folder / "preprocessor_config.json"
    text = file.read_text()
    file.write_text(text.replace('"do_center_crop": true', '"do_center_crop": false'))
    with pytest.raises(UserError, match="possible: images of one size"):
        open_encoder(f"transformers:{folder}", SETTINGS)
    file.unlink()
    with pytest.raises(
        UserError, match=r"no complete model: .*save_pretrained, its image processor included"
    ):
        open_encoder(f"transformers:{folder}", SETTINGS)


@pytest.mark.parametrize(("kind", "layer"), [("siglip", "post_layernorm"), ("vit", "layernorm")])
def test_a_model_of_images_and_its_layers_keep_their_promises(tmp_path: Path, kind: str, layer: str) -> None:
    folders = [save_image_model(tmp_path / str(seed), kind, seed) for seed in (0, 1)]
    specs = [f"transformers:{folder},layer={layer}+output" for folder in folders]
    found = outcomes(conformance.CHECKS, conformance.Subject(open_transformers, *specs))
    # A model of images alone has no text tower.
    assert {outcome.name: outcome.status for outcome in found if outcome.status != "ok"} == {
        "class_embeddings_fit_the_features": "skip"
    }
