"""A tuned network on disk, and as the encoder that it is: ``tuned:FOLDER``.

::

    tune-lora-1f0c.../
      tuned.safetensors    what was trained of the network, by the names of its parameters
      tuned.json           how, of which encoder; with the hash of the weights
      head.safetensors     its classifier, a linear head on the tuned features (plugins.saved)
      head.json            written last

Nothing in it is pickled. The encoder that it was tuned from is opened as it was then, and must have the hash
that is recorded.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml.errors import UserError, unknown_name
from nml.files import json_bytes, write_bytes
from nml.layout import CHECKPOINTS, step_name
from nml.saved_weights import read_saved
from nml.untrusted import check_object
from plugins.head import hyper_parameters
from probes.encoders.encoder import Encoder, EncoderInfo, Settings
from probes.encoders.registry import open_encoder
from probes.results.row import TUNED
from probes.spec import Spec, check_options, split_spec
from probes.tuning.choosing import METHODS
from probes.tuning.methods import Tuning
from probes.tuning.network import check_encoder

FORMAT = "nml-tuned/1"
"""Name of the format, in the record."""
WEIGHTS = "tuned.safetensors"
RECORD = "tuned.json"
# Kinds of encoders that are networks here. A record from elsewhere must not have another one asked.
_KINDS = ("checkpoint", "timm", "open_clip", "transformers", TUNED)


def save_tuned(folder: Path, method: Tuning, state: Mapping[str, Any], info: EncoderInfo) -> None:
    """Write what was trained of a network; its head is written after, by :func:`plugins.saved.save_head`.

    Args:
        folder: Where; made if it is missing.
        method: How it was tuned.
        state: What was trained, tensors by name.
        info: The encoder that it was tuned from.
    """
    from safetensors.torch import save

    weights = save({name: value.cpu().contiguous() for name, value in state.items()})
    record = {
        "format": FORMAT,
        "method": method.method,
        "hyper_parameters": hyper_parameters(method),
        "base": _named(info),
        "base_hash": info.hash,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    write_bytes(folder / WEIGHTS, weights)
    write_bytes(folder / RECORD, json_bytes(record))


def open_tuned(spec: Spec, settings: Settings) -> Encoder:
    """Return the encoder of ``tuned:FOLDER``.

    ``base=SPEC`` says where the one that it came from is now; options after it are of that one.

    Raises:
        UserError: If the folder holds none, its files are damaged, or the other encoder is not to be had.
    """
    return _open(spec, settings, ())


def _open(spec: Spec, settings: Settings, above: tuple[Path, ...]) -> Encoder:
    """Return a tuned encoder; ``above`` are the folders of those that were tuned from it."""
    from safetensors.torch import load

    if "base" not in spec.options:
        check_options(spec, ("base",), where="--encoder")
    if len(spec.arguments) != 1:
        raise UserError(f"--encoder {spec.text}: names no single folder", possible="tuned:FOLDER")
    folder = Path(spec.arguments[0])
    if folder.resolve() in above:
        raise UserError(f"--encoder {spec.text}: was tuned from itself", mend="save it again")
    record, weights = _read(folder)
    base_text = _base(spec) or record["base"]
    base_spec = split_spec(base_text)
    if base_spec.kind not in _KINDS:
        raise unknown_name(f"--encoder {spec.text}: base: kind", base_spec.kind, _KINDS)
    settings = dataclasses.replace(settings, keys=frozenset())
    if base_spec.kind == TUNED:
        base = check_encoder(_open(base_spec, settings, (*above, folder.resolve())))
    else:
        base = check_encoder(open_encoder(base_text, settings))
    if base.info.hash != record["base_hash"]:
        raise UserError(
            f"--encoder {spec.text}: {base_text} is not the encoder that it was tuned from",
            mend=f"name that one: tuned:{folder},base=SPEC",
        )
    try:
        make = METHODS[record["method"]]
        make(**record["hyper_parameters"]).put(base.module, load(weights))
    # What a method says to values that it never had, and peft to layers that are none, is of any type.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"--encoder {spec.text}: {base_text} cannot take what was saved: {type(error).__name__} {reason}",
            mend="tune it again with --save",
        ) from error
    base.info = dataclasses.replace(
        base.info,
        name=spec.text,
        kind=TUNED,
        identity={
            "tuned": record["base_hash"],
            "method": record["method"],
            "hyper_parameters": record["hyper_parameters"],
            "weights_sha256": record["weights_sha256"],
        },
    )
    return base


def _base(spec: Spec) -> str:
    """Return the encoder of ``base=`` with its options; empty where none is named."""
    named = [value if name == "base" else f"{name}={value}" for name, value in spec.options.items()]
    return ",".join(named)


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    return read_saved(
        folder / RECORD,
        folder / WEIGHTS,
        FORMAT,
        lambda record: check_object(
            record, method=str, hyper_parameters=dict, base=str, base_hash=str, weights_sha256=str
        ),
        missing="no tuned encoder",
        mend="save one: python -m probes.tune --save FOLDER",
        again="save it again",
    )


def _named(info: EncoderInfo) -> str:
    """Return the specification that opens an encoder again."""
    run, step = info.provenance.run_path, info.provenance.step
    if info.kind != "checkpoint" or run is None:
        return info.name
    if "@" in info.name and step is not None:
        return f"checkpoint:{Path(run) / CHECKPOINTS / step_name(step)}"
    return f"checkpoint:{run}"
