"""The exported encoder: model.safetensors and meta.json, all that probes and other programs need.

It loads without this project::

    meta = json.load(open("export/meta.json"))
    model = timm.create_model(meta["architecture"], **meta["model_kwargs"])
    model.load_state_dict(safetensors.torch.load_file("export/model.safetensors"))
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nml import layout
from nml.files import (
    fsync_folder,
    link_or_copy,
    make_folder,
    sha256_file,
    sync_tree,
    temporary_beside,
    write_json,
)
from nml.initial_weights import InitialWeights
from pretrain.models import Architecture
from pretrain.options import Options
from shards.shardset import ShardSet

_SCALARS = ("logit_scale", "logit_bias")
_VERSIONS = ("noisy-model-learning", "torch", "timm", "open_clip_torch", "deepspeed", "numpy")


def write_export(folder: Path, weights: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Write an export into a folder that does not count yet; whoever makes it count makes it durable."""
    # open_clip builds scalars; they were [1] because sharding refuses scalars.
    plain = {name: tensor.reshape(()) if name in _SCALARS else tensor for name, tensor in weights.items()}
    make_folder(folder)
    save_file({name: tensor.contiguous() for name, tensor in plain.items()}, folder / layout.WEIGHTS)
    stamped = {**meta, "weights_sha256": sha256_file(folder / layout.WEIGHTS)}
    write_json(folder / layout.META, {"format": layout.EXPORT_FORMAT, **stamped})


def publish(source: Path, target: Path) -> None:
    """Make ``target`` a copy of the export ``source``, replaced in one step as far as a reader can tell."""
    temporary = temporary_beside(target)
    shutil.copytree(source, temporary, copy_function=link_or_copy)
    sync_tree(temporary)
    old = temporary_beside(target)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def describe_run(
    options: Options,
    architecture: Architecture,
    shard_set: ShardSet,
    *,
    world_size: int,
    start: InitialWeights | None = None,
) -> dict[str, Any]:
    """Return the part of meta.json that stays the same for a whole run."""
    resolved = options.recipe.resolved()
    digest = hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()
    data, level = options.recipe.data, shard_set.level(options.level)
    return {
        "objective": options.recipe.objective,
        "library": architecture.library,
        "architecture": architecture.name,
        "model_kwargs": architecture.kwargs,
        "preprocessing": {
            "input_size": [3, data.test_size, data.test_size],
            "mean": list(data.mean),
            "std": list(data.std),
            "interpolation": data.interpolation,
            "crop_pct": data.crop_pct,
        },
        "recipe": {"name": options.recipe_name, "sha256": digest, "resolved": resolved},
        "init": start.as_json() if start else None,
        "engine": options.engine,
        "world_size": world_size,
        "seed": options.seed,
        "noise": {
            "level": level.name,
            "asked": level.asked,
            "realised": level.realised,
            "model": level.model,
            "seed": level.seed,
            "flipped": level.flipped,
            "num_samples": shard_set.num_samples,
            "manifest_sha256": shard_set.manifest_sha256,
            "set_fingerprint": shard_set.fingerprint,
            "set_path": str(shard_set.path),
        },
        "classes": list(shard_set.classes) if shard_set.classes is not None else None,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that shape the result."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
