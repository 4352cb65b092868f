"""Encoders that this project pre-trained, read from the files of their export.

An export is a folder ``export/`` with ``model.safetensors`` and ``meta.json`` (format
``nml-export/1``); a run folder holds the newest one, every checkpoint folder holds its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.files import sha256_file
from nml.layout import (
    EXPORT,
    EXPORT_FORMAT,
    META,
    SIGNATURE,
    SIGNED,
    WEIGHTS,
    is_export,
    run_of_export,
)
from nml.model_arguments import check_model_arguments
from nml.signatures import check_signature
from nml.untrusted import Untrusted, read_json, shown, typed
from probes.encoders.encoder import Encoder, EncoderInfo, Provenance, Settings
from probes.encoders.registry import newest_run
from probes.encoders.text_tower import TwoTowerEncoder
from probes.encoders.torch_images import TorchImageEncoder, checked, image_transform
from probes.encoders.weights import weights_to_come
from probes.spec import Spec, check_options


def open_export(spec: Spec, settings: Settings) -> Encoder:
    """Return the encoder of ``checkpoint:PATH``; without a path the newest finished run.

    Raises:
        UserError: If there is no export at the path, or it is damaged.
    """
    check_options(spec, (), where="--encoder")
    path = Path(spec.arguments[0]) if spec.arguments else newest_run()
    return read_export(path, settings).open(settings)


@dataclass(frozen=True)
class Export:
    """A checked export, whose network is not built yet.

    Attributes:
        path: What the user named.
        folder: Where its files lie.
        meta: What its meta.json says.
        info: The encoder it is.
    """

    path: Path
    folder: Path
    meta: dict[str, Any]
    info: EncoderInfo

    def open(self, settings: Settings) -> TorchImageEncoder:
        """Return the encoder, its weights loaded.

        Raises:
            UserError: If the weights do not fit what meta.json says.
        """
        model, forward = _LIBRARIES[self.meta["library"]](self.meta, self.folder, self.path)
        transform = image_transform(self.info.identity["preprocessing"], str(self.path))
        if self.meta["library"] == "open_clip":
            return TwoTowerEncoder(
                self.info, model, transform, settings, architecture=self.meta["architecture"]
            )
        return TorchImageEncoder(self.info, model, forward, transform, settings)


def read_export(path: Path, settings: Settings) -> Export:
    """Return the export of a run, a checkpoint or an export folder, its files checked.

    Raises:
        UserError: If there is none, or it is damaged or not signed as it has to be.
    """
    export = find_export(path)
    if settings.signed_by is not None:
        check_signature(export, SIGNED, SIGNATURE, settings.signed_by)
    meta = read_meta(export)
    weights_sha256 = sha256_file(export / WEIGHTS)
    recorded = meta.get("weights_sha256")
    if recorded and recorded != weights_sha256:
        raise UserError(
            f"--checkpoint {path}: {export / WEIGHTS} does not have the hash that {META} records",
            mend="the export is damaged or was edited; export or copy it again",
        )
    preprocessing = checked(meta["preprocessing"], f"{export / META}: preprocessing")
    info = EncoderInfo(
        name=_display_name(export, path, meta),
        kind="checkpoint",
        modality="image",
        identity={
            "library": meta["library"],
            "architecture": meta["architecture"],
            "model_kwargs": meta["model_kwargs"],
            "weights_sha256": weights_sha256,
            "preprocessing": preprocessing,
        },
        provenance=_provenance(meta, export),
        versions={name: metadata.version(name) for name in ("torch", "timm", "pillow")},
    )
    return Export(path, export, meta, info)


def find_export(path: Path) -> Path:
    """Return the export folder of a run, a checkpoint or an export itself.

    Raises:
        UserError: If ``path`` is none of the three.
    """
    for folder in (path, path / EXPORT):
        if is_export(folder):
            return folder
    what = "no such folder" if not path.exists() else "holds no exported encoder"
    raise UserError(
        f"--checkpoint {path}: {what}",
        possible=f"a run, a checkpoint or an export folder with {META} and {WEIGHTS}",
        mend="leave --checkpoint out for the newest run in runs/",
    )


def read_meta(export: Path) -> dict[str, Any]:
    """Return the checked content of an export's ``meta.json``.

    Raises:
        UserError: If it is no JSON, of another format, or lacks a field.
    """
    file = export / META
    try:
        meta = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}", mend="export the encoder again") from error
    if not isinstance(meta, dict) or meta.get("format") != EXPORT_FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise UserError(f"{file}: format {found!r}", possible=repr(EXPORT_FORMAT))
    missing = [
        name for name in ("library", "architecture", "model_kwargs", "preprocessing") if name not in meta
    ]
    if missing:
        raise UserError(f"{file}: lacks {', '.join(missing)}", mend="export the encoder again")
    library = meta["library"]
    if not isinstance(library, str) or library not in _LIBRARIES:
        raise UserError(f"{file}: library {shown(library)}", possible=", ".join(sorted(_LIBRARIES)))
    # A name with a scheme, such as local-dir:, would have the library look elsewhere.
    if not _is_model(library, meta["architecture"]):
        raise UserError(f"{file}: {library} has no model {shown(meta['architecture'])}")
    check_model_arguments(library, meta["model_kwargs"], f"{file}: model_kwargs")  # type: ignore[arg-type]
    try:
        _provenance(meta, export)
    except Untrusted as error:
        raise UserError(f"{file}: {error}", mend="export the encoder again") from error
    return meta


def _is_model(library: str, name: Any) -> bool:
    if not isinstance(name, str):
        return False
    if library == "timm":
        import timm

        return bool(timm.is_model(name))
    import open_clip

    return name in open_clip.list_models()


def _display_name(export: Path, path: Path, meta: dict[str, Any]) -> str:
    folder, is_checkpoint = run_of_export(export)
    if is_checkpoint:
        return f"{folder.parent.parent.name}@{meta.get('step', folder.name)}"
    return folder.name or str(path)


def _provenance(meta: dict[str, Any], export: Path) -> Provenance:
    folder, is_checkpoint = run_of_export(export)
    run = folder.parent.parent if is_checkpoint else folder
    noise = meta.get("noise") or {}
    if not isinstance(noise, dict):
        raise Untrusted(f"noise is {shown(noise)}")
    told = {
        "run_path": str(run),
        "step": meta.get("step"),
        "epoch": meta.get("epoch"),
        "objective": meta.get("objective"),
        "noise_ratio": noise.get("realised"),
        "noise_level": noise.get("level"),
        "noise_model": noise.get("model"),
        "manifest_sha256": noise.get("manifest_sha256"),
        "set_fingerprint": noise.get("set_fingerprint"),
        "set_path": noise.get("set_path"),
    }
    return typed(Provenance, told)


def _load_timm(meta: dict[str, Any], export: Path, path: Path) -> tuple[Any, Callable[[Any], Any]]:
    import timm

    def make(device: str) -> Any:  # noqa: ARG001 - not every model of timm takes one
        return timm.create_model(meta["architecture"], **meta["model_kwargs"])

    model = _build(make, meta, export, path)

    def forward(batch: Any) -> Any:
        return model.forward_head(model.forward_features(batch), pre_logits=True)

    return model, forward


def _load_open_clip(meta: dict[str, Any], export: Path, path: Path) -> tuple[Any, Callable[[Any], Any]]:
    import open_clip

    def make(device: str) -> Any:
        with weights_to_come():
            return open_clip.create_model(
                meta["architecture"], device=device, pretrained_text=False, **meta["model_kwargs"]
            )

    model = _build(make, meta, export, path)
    return model, model.encode_image


def _build(make: Callable[[str], Any], meta: dict[str, Any], export: Path, path: Path) -> Any:
    """Return the model with the weights of the export, built only if these are as many as it has."""
    import torch
    from safetensors import safe_open

    try:
        with safe_open(export / WEIGHTS, "pt") as file:
            stored = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    # safetensors raises its own type, which derives from Exception alone.
    except Exception as error:
        raise UserError(
            f"--checkpoint {path}: {WEIGHTS} cannot be read: {error}", mend="export the encoder again"
        ) from error
    try:
        # Shapes alone: a few words of meta.json can ask for more memory than there is.
        with torch.device("meta"):
            wanted = sum(value.numel() for value in make("meta").state_dict().values())
        if wanted != stored:
            raise UserError(
                f"--checkpoint {path}: {meta['architecture']} as {META} describes it has {wanted:,} values, "
                f"{WEIGHTS} {stored:,}",
                mend="export the encoder again",
            )
        model = make("cpu")
    except UserError:
        raise
    # Blocks of sizes that do not go together fail each in its own way.
    except Exception as error:
        raise UserError(
            f"--checkpoint {path}: {meta['library']} cannot build {meta['architecture']}: {error}"
        ) from error
    _load_weights(model, export, path)
    return model


def _load_weights(model: Any, export: Path, path: Path) -> None:
    from safetensors.torch import load_file

    try:
        weights = load_file(export / WEIGHTS)
        # FSDP2 refuses scalars, so a run of its may have saved logit_scale as [1].
        expected = model.state_dict()
        weights = {
            name: tensor.reshape(expected[name].shape)
            if name in expected and tensor.numel() == expected[name].numel() == 1
            else tensor
            for name, tensor in weights.items()
        }
        model.load_state_dict(weights)
    # safetensors raises its own type, which derives from Exception alone.
    except Exception as error:
        raise UserError(
            f"--checkpoint {path}: the weights do not fit: {error}", mend="export the encoder again"
        ) from error


_LIBRARIES = {"timm": _load_timm, "open_clip": _load_open_clip}
