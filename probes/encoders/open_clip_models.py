"""Image encoders of open_clip: ``open_clip:ViT-L-14/laion2b_s32b_b82k``, or ``...,weights=FILE``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from nml.errors import UserError, unknown_name
from nml.hub import unreachable
from nml.weight_files import load_weights
from probes.encoders.encoder import Encoder, EncoderInfo, Settings
from probes.encoders.text_tower import TwoTowerEncoder
from probes.encoders.torch_images import image_transform, resolved
from probes.encoders.weights import (
    Weights,
    hash_model,
    not_loaded,
    random_weights,
    weights_to_come,
)
from probes.spec import Spec, check_options

# No tag has open_clip's third, "longest", whose padding has another colour than timm's.
CROP_MODES = {"shortest": "center", "squash": "squash"}


def open_open_clip(spec: Spec, settings: Settings) -> Encoder:
    """Return the image tower of ``NAME/TAG``.

    Options: ``weights`` is ``pretrained`` (default; the tag's), ``random``, or a local file. Wherever the
    weights come from, the tag says how images are prepared and which activation its model was trained with.

    Raises:
        UserError: If open_clip has no such model or tag, or the weights cannot be had.
    """
    import open_clip

    check_options(spec, ("weights",), where="--encoder")
    name, _, tag = (spec.arguments[0] if len(spec.arguments) == 1 else "").partition("/")
    if name not in open_clip.list_models():
        raise unknown_name(f"--encoder {spec.text}", name, open_clip.list_models())
    weights = Weights.parse(spec.options.get("weights", "pretrained"), spec.text)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights.source == "pretrained" and tag not in tags:
        raise unknown_name(f"--encoder {spec.text}: tag", tag, tags)
    recipe = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if not recipe and (tag or weights.source == "file"):
        print(
            f"warning: encoder {spec.text}: open_clip has no tag {tag!r} of {name}, so its defaults hold: "
            "mean and deviation of OpenAI's CLIP, bicubic, centre crop, the architecture's activation; "
            f"tags: {', '.join(tags) or 'none'}",
            file=sys.stderr,
        )
    # The architecture may have QuickGELU by itself; then its name says so.
    quick_gelu = bool(recipe.get("quick_gelu")) and not open_clip.get_model_config(name).get("quick_gelu")
    model = _create(name, tag, weights, spec, force_preprocess_cfg=recipe, force_quick_gelu=quick_gelu)
    preprocessing = _preprocessing(open_clip.get_model_preprocess_cfg(model), spec)
    info = EncoderInfo(
        name=spec.text,
        kind="open_clip",
        modality="image",
        identity={
            "library": "open_clip",
            "architecture": name,
            "weights_sha256": hash_model(model.visual),
            "preprocessing": preprocessing,
            **({"quick_gelu": True} if quick_gelu else {}),
        },
        versions={package: metadata.version(package) for package in ("torch", "open_clip_torch", "pillow")},
    )
    transform = image_transform(preprocessing, spec.text)
    return TwoTowerEncoder(info, model, transform, settings, architecture=name)


def _preprocessing(config: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """Return open_clip's preprocessing in timm's terms."""
    size = config["size"] if isinstance(config["size"], list | tuple) else (config["size"], config["size"])
    mode = config.get("resize_mode", "shortest")
    if mode not in CROP_MODES:
        raise UserError(f"--encoder {spec.text}: resize mode {mode}", possible=", ".join(CROP_MODES))
    return resolved(
        {
            "input_size": [3, *size],
            "mean": config["mean"],
            "std": config["std"],
            "interpolation": config.get("interpolation", "bicubic"),
            "crop_pct": 1.0,
            "crop_mode": CROP_MODES[mode],
        }
    )


def _create(name: str, tag: str, weights: Weights, spec: Spec, **options: Any) -> Any:
    import open_clip

    if weights.source == "random":
        with random_weights(spec.text):
            return open_clip.create_model(name, pretrained=None, **options)
    if weights.path is not None:
        with weights_to_come():
            model = open_clip.create_model(name, pretrained=None, **options)
        load_weights(model, weights.path, f"--encoder {spec.text}")
        return model
    unreachable()
    # open_clip logs what it raises, too.
    logging.disable(logging.ERROR)
    try:
        return open_clip.create_model(name, pretrained=tag, **options)
    # The hub and urllib each raise their own types when there is no network.
    except Exception as error:
        raise not_loaded(spec.text, error) from error
    finally:
        logging.disable(logging.NOTSET)
