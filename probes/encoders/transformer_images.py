"""Image encoders of transformers: ``transformers:facebook/dinov2-base``, SigLIP, ViT, or a local folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from PIL import Image

from nml.errors import UserError
from probes.encoders.encoder import Encoder, EncoderInfo, Settings
from probes.encoders.torch_images import TorchImageEncoder, has_class_token
from probes.encoders.weights import hash_model
from probes.hashing import hash_value
from probes.spec import Spec, check_options

OPTIONS = ("pooling", "revision")
POOLINGS = ("pooled", "cls", "mean")
# What of a processor's settings changes an image; others name its class, its library or its inputs.
_SETTINGS = re.compile(r"(do|crop|image|pad|size|resample|rescale)(_.*)?")
# Tokens before those of the patches, by what models call their parameters or count them in their settings.
_DISTILLATION = "distillation_token"


def image_tower(model: Any) -> Any | None:
    """Return the part of a model that reads images; None of a model of texts."""
    if hasattr(model, "vision_model"):
        return model.vision_model
    return model if model.main_input_name == "pixel_values" else None


def open_image_tower(
    spec: Spec, settings: Settings, tower: Any, processor: Any, missing: list[str]
) -> Encoder:
    """Return the encoder of a model of images, behind its own processor.

    ``pooling`` is ``pooled`` (the model's own pooled output), ``cls`` (the class token of the last layer) or
    ``mean`` (over the patches of the last layer). By default it is ``pooled``, but ``cls`` where the model
    puts a layer of its own behind the class token (``pooler.dense``: ViT, DeiT), which is trained with a
    classifier or not at all.

    Args:
        spec: What the user named.
        settings: How to run it.
        tower: The model.
        processor: From images to its input.
        missing: Parameters that its files lack.

    Raises:
        UserError: If an option is impossible, or the processor makes no images of one size.
    """
    check_options(spec, OPTIONS, where="--encoder")
    transform = _transform(processor, spec)
    has_class, names = has_class_token(tower), [name for name, _ in tower.named_parameters()]
    usual = (
        "cls" if has_class and any(".dense." in name and "pooler." in name for name in names) else "pooled"
    )
    pooling = spec.options.get("pooling", usual)
    if pooling not in POOLINGS:
        raise UserError(f"--encoder {spec.text}: pooling {pooling}", possible=", ".join(POOLINGS))
    if pooling == "cls" and not has_class:
        raise UserError(f"--encoder {spec.text}: pooling cls: the model has no class token", possible="mean")
    lacking = [name for name in missing if "pooler" in name or ".head." in f".{name}"]
    if pooling == "pooled" and lacking:
        raise UserError(
            f"--encoder {spec.text}: pooling pooled: its files lack {lacking[0]}", possible="cls, mean"
        )
    before = int(has_class) + getattr(tower.config, "num_register_tokens", 0)
    before += any(name.endswith(_DISTILLATION) for name in names)
    info = EncoderInfo(
        name=spec.text,
        kind="transformers",
        modality="image",
        identity={
            "library": "transformers",
            "architecture": tower.config.model_type,
            "config": hashlib.sha256(tower.config.to_json_string().encode()).hexdigest(),
            "weights_sha256": hash_model(tower),
            "processor": hash_value(settings_of(processor)),
            "pooling": pooling,
        },
        versions={package: metadata.version(package) for package in ("torch", "transformers", "pillow")},
    )
    encoder = TorchImageEncoder(info, tower, _forward(tower, pooling, before, spec), transform, settings)
    # Which outputs a model has is not known before it has run.
    encoder.encode([encoder.prepare(Image.new("RGB", (32, 32)))])
    return encoder


def settings_of(processor: Any) -> Mapping[str, Any]:
    """Return what of a processor changes an image, as JSON-like values."""
    found = processor.to_dict().items()
    return {name: value for name, value in sorted(found) if _SETTINGS.fullmatch(name) and value is not None}


def _transform(processor: Any, spec: Spec) -> Callable[[Image.Image], Any]:
    def apply(image: Image.Image) -> Any:
        return processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    shapes = {tuple(apply(Image.new("RGB", size)).shape) for size in ((48, 32), (32, 48))}
    if len(shapes) > 1 or any(len(shape) != 3 for shape in shapes):
        raise UserError(
            f"--encoder {spec.text}: its processor makes inputs {' and '.join(map(str, sorted(shapes)))}",
            possible="images of one size, [C, H, W]",
        )
    return apply


def _forward(tower: Any, pooling: str, before: int, spec: Spec) -> Callable[[Any], Any]:
    def forward(batch: Any) -> Any:
        output = tower(pixel_values=batch)
        if pooling == "pooled":
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise UserError(
                    f"--encoder {spec.text}: pooling pooled: the model has no pooled output",
                    possible="cls, mean",
                )
            return pooled
        states = output.last_hidden_state
        if pooling == "cls":
            return states[:, 0]
        return states.mean((2, 3)) if states.ndim == 4 else states[:, before:].mean(1)

    return forward
