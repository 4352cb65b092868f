"""Encoders of timm, by name: ``timm:resnet50``, ``timm:resnet50,weights=FILE``."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from nml.errors import UserError, unknown_name
from nml.hub import unreachable
from nml.weight_files import load_weights
from probes.encoders.encoder import Encoder, EncoderInfo, Settings
from probes.encoders.torch_images import TorchImageEncoder, image_transform, resolved
from probes.encoders.weights import Weights, hash_model, not_loaded, random_weights
from probes.spec import Spec, check_options


def open_timm(spec: Spec, settings: Settings) -> Encoder:
    """Return the timm model of ``spec`` without its classifier.

    Options: ``weights`` is ``pretrained`` (default), ``random``, or a local file.

    Raises:
        UserError: If timm has no such model, or its weights cannot be had.
    """
    import timm

    check_options(spec, ("weights",), where="--encoder")
    if len(spec.arguments) != 1:
        raise UserError(
            f"--encoder {spec.text}: names no single model", possible="timm:resnet50 and the like"
        )
    name = spec.arguments[0]
    if not timm.is_model(name.partition("/")[2] or name):
        raise unknown_name(f"--encoder {spec.text}", name, timm.list_models(), mend="") from None
    weights = Weights.parse(spec.options.get("weights", "pretrained"), spec.text)
    model = _create(name, weights, spec)
    config = timm.data.resolve_model_data_config(model)
    preprocessing = resolved(config)
    info = EncoderInfo(
        name=spec.text,
        kind="timm",
        modality="image",
        identity={
            "library": "timm",
            "architecture": name,
            "weights_sha256": hash_model(model),
            "preprocessing": preprocessing,
        },
        versions={name: metadata.version(name) for name in ("torch", "timm", "pillow")},
    )
    return TorchImageEncoder(info, model, model, image_transform(preprocessing, spec.text), settings)


def _create(name: str, weights: Weights, spec: Spec) -> Any:
    import timm

    if weights.source == "random":
        with random_weights(spec.text):
            return timm.create_model(name, pretrained=False, num_classes=0)
    if weights.path is not None:
        model = timm.create_model(name, pretrained=False, num_classes=0)
        load_weights(model, weights.path, f"--encoder {spec.text}")
        return model
    unreachable()
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    # The hub, urllib and timm each raise their own types when there is no network.
    except Exception as error:
        raise not_loaded(spec.text, error) from error
