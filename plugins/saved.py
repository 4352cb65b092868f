"""A fitted head on disk, to be used where no study is run.

::

    nmtune-1f0c.../
      head.safetensors    what state_dict() returned
      head.json           the head's name and owner, hyper-parameters, classes; written last, with the
                          hash of the weights

    saved = load_head("heads/nmtune-1f0c...")
    logits = saved.head.predict_logits(features)         # [N, D] -> [N, K]
    names = [saved.classes[row] for row in logits.argmax(dim=1)]

Nothing in it is pickled, and the class is looked up in the registry, so a folder from elsewhere runs no
code but that of heads that are installed here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nml.errors import UserError
from nml.files import json_bytes, write_bytes
from nml.labels import TARGETS, Target
from nml.registry import Plugin
from nml.saved_weights import read_saved
from nml.untrusted import check_object
from plugins.head import Head, hyper_parameters
from plugins.registry import HEADS

FORMAT = "nml-head/1"
"""Name of the format, in the record."""
WEIGHTS = "head.safetensors"
"""The file with the tensors."""
RECORD = "head.json"
"""The file that says what they are."""


class SavedHead(NamedTuple):
    """A fitted head and what it is for.

    Attributes:
        head: The head, ready to predict.
        dim: D, the width of the features that it takes.
        classes: Names of the K classes, in the order of its logits; empty of a head that predicts numbers.
        about: Where it came from, as JSON-like values: the encoder, the task, the result.
        temperature: What its logits are divided by before softmax makes probabilities of them
            (:mod:`plugins.calibration`).
        name: The name under which the head is registered.
        target: What it predicts, which says what its scores are (:class:`plugins.head.Head`).
        thresholds: Of ``multilabel`` the probability from which on each class is named.
    """

    head: Head
    dim: int
    classes: tuple[str, ...]
    about: Mapping[str, Any]
    temperature: float = 1.0
    name: str = ""
    target: Target = "classification"
    thresholds: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """How many scores it gives a sample."""
        return 1 if self.target == "regression" else len(self.classes)


def is_saved(folder: Path) -> bool:
    """Whether a head was saved there to the end."""
    return (folder / RECORD).exists()


def save_head(
    folder: Path,
    head: Head,
    plugin: Plugin,
    *,
    dim: int,
    classes: Sequence[str],
    about: Mapping[str, Any],
    temperature: float | None = 1.0,
    target: Target = "classification",
    thresholds: Sequence[float] = (),
) -> None:
    """Write a fitted head.

    Args:
        folder: Where; made if it is missing.
        head: The head.
        plugin: Under which name it is registered, and whose it is.
        dim: D, the width of its features.
        classes: Names of the K classes.
        about: Where it came from, as JSON-like values.
        temperature: What its logits are divided by before softmax or sigmoid; None where there are none.
        target: What it predicts.
        thresholds: Of ``multilabel`` the probability from which on each class is named.
    """
    from safetensors.torch import save

    weights = save({name: value.contiguous() for name, value in head.state_dict().items()})
    record = {
        "format": FORMAT,
        "head": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "hyper_parameters": hyper_parameters(head),
        "dim": dim,
        "classes": list(classes),
        "target": target,
        "temperature": temperature,
        **({"thresholds": list(thresholds)} if thresholds else {}),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "about": dict(about),
    }
    # Before anything is written: what is no JSON must not cost the head that lies here.
    described = json_bytes(record)
    write_bytes(folder / WEIGHTS, weights)
    write_bytes(folder / RECORD, described)


def _of_one_head(folder: Path) -> Path:
    """Return the folder of the one head in a folder of heads."""
    if is_saved(folder) or not folder.is_dir():
        return folder
    found = sorted(inner for inner in folder.iterdir() if is_saved(inner))
    if len(found) > 1:
        raise UserError(
            f"{folder}: holds {len(found)} heads",
            possible=", ".join(map(str, found)),
            mend="name one of them",
        )
    return found[0] if found else folder


def _check_record(record: dict[str, Any]) -> None:
    check_object(
        record, head=str, distribution=str, version=str, hyper_parameters=dict, dim=int, classes=list
    )
    check_object(record, about=dict, weights_sha256=str, temperature=float | int | None)
    check_object({"target": "", "thresholds": [], **record}, target=str, thresholds=list)


def load_head(folder: str | Path) -> SavedHead:
    """Read a head that :func:`save_head` wrote.

    Args:
        folder: Its folder, or one that holds this folder and no other head's.

    Raises:
        UserError: If the folder holds none or several, its weights are not those that were written, its
            temperature is none, or the head is not installed here or is of another distribution.
    """
    from safetensors.torch import load

    folder = _of_one_head(Path(folder))
    record, weights = read_saved(
        folder / RECORD,
        folder / WEIGHTS,
        FORMAT,
        _check_record,
        missing="no saved head",
        mend="save one: python -m probes.run --save-heads FOLDER",
        again="save the head again",
    )
    where = f"{folder / RECORD}: head"
    plugin = HEADS.find(record["head"], where=where)
    if plugin.distribution != record["distribution"]:
        raise UserError(
            f"{folder}: head {record['head']} of {record['distribution']} {record['version']}; here it is "
            f"{plugin.owner}'s",
            mend=f"install {record['distribution']}",
        )
    make = HEADS.load(record["head"], where=where)
    try:
        head: Head = make(**record["hyper_parameters"])
        head.load_state_dict(load(weights))
    # What a head says to values that it never had, and safetensors to a file that is none, is of any type.
    except Exception as error:
        raise UserError(
            f"{folder}: {plugin.owner} cannot take what {record['version']} saved: {error}",
            mend=f"install {record['distribution']}=={record['version']}",
        ) from error
    # A head saved before temperatures were fitted has none.
    temperature = float(1.0 if record.get("temperature") is None else record["temperature"])
    if not 0 < temperature < math.inf:
        raise UserError(
            f"{folder / RECORD}: temperature {temperature:g}",
            possible="a finite number above 0",
            mend="save the head again",
        )
    target, thresholds = _target(record, folder)
    classes = tuple(map(str, record["classes"]))
    return SavedHead(
        head, record["dim"], classes, record["about"], temperature, plugin.name, target, thresholds
    )


def _target(record: Mapping[str, Any], folder: Path) -> tuple[Target, tuple[float, ...]]:
    """Return what a saved head predicts, and its thresholds; without a word of it, classes."""
    target: Target = record.get("target", "classification")
    if target not in TARGETS:
        raise UserError(f"{folder / RECORD}: target {target!r}", possible=", ".join(sorted(TARGETS)))
    thresholds = record.get("thresholds", [])
    wanted = len(record["classes"]) if target == "multilabel" else 0
    if len(thresholds) != wanted or not all(isinstance(one, float) and 0 <= one <= 1 for one in thresholds):
        raise UserError(
            f"{folder / RECORD}: {len(thresholds)} thresholds",
            possible=f"{wanted}, each 0.0 to 1.0",
            mend="save the head again",
        )
    return target, tuple(thresholds)
