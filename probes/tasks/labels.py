"""The task of labels alone, for features that were computed elsewhere: ``labels:TRAIN,TEST[,OOD ...]``.

A file is csv, tsv or Parquet with a column of labels, or ``.npy`` [N]; its rows are those of the features.
There is nothing to read an encoder's input from, and nothing that a shift could be made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nml.errors import UserError
from nml.labels import Target, class_value, label_applies, number_value
from probes.spec import Spec, check_options
from probes.tasks.assembling import RawSplit, SplitName, assemble, check_paths, check_values
from probes.tasks.own_data import read_split
from probes.tasks.targets import OPTIONS as TARGET_OPTIONS
from probes.tasks.targets import declared
from probes.tasks.task import Task, TaskRecord

OPTIONS = ("name", "validation", "mask", "label", "key", "header", *TARGET_OPTIONS)
TABLES = ("csv", "tsv", "parquet")


class LabelsTask:
    """A task whose samples nobody reads: labels in the order of the features' rows."""

    record = TaskRecord(
        name="labels",
        modality="features",
        num_classes=0,
        ood=("every further one",),
        source="your own labels: labels:TRAIN,TEST[,OOD], for --encoder features:; label=, key= name columns",
        revision="hash of the content",
        licence="yours",
        note="csv, tsv, parquet or npy, rows in the order of the features; there are no samples to shift",
    )

    def check(self, spec: Spec) -> None:
        """Refuse options that cannot be meant."""
        check_options(spec, OPTIONS, where="--task")
        check_paths(spec)
        check_values(spec, "features")

    def open(self, spec: Spec, root: Path) -> Task:  # noqa: ARG002 - the protocol's signature
        """Return the task."""
        self.check(spec)
        return assemble(spec, lambda path, part: _read(path, spec, part))


def _read(path: str, spec: Spec, part: SplitName) -> RawSplit:
    kind = Path(path).suffix[1:]
    if kind in TABLES:
        header = {"header": spec.options["header"]} if "header" in spec.options and kind != "parquet" else {}
        named = ("label", "key", *TARGET_OPTIONS)
        columns = {role: spec.options[role] for role in named if role in spec.options}
        return read_split(kind, path, columns | header, usual_split=part, labels_alone=True)
    if kind == "npy":
        where = f"--task {spec.text}:"
        return _read_array(Path(path), where, declared(spec.options, where).target)
    raise UserError(
        f"--task {spec.text}: {path}",
        possible=f"files with {', '.join(f'.{name}' for name in TABLES)} or .npy",
    )


def _read_array(path: Path, where: str, target: Target) -> RawSplit:
    several = target == "multilabel"
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        what = "no such file" if not path.exists() else f"cannot be read: {error}"
        shape = "[N, K]" if several else "[N]"
        raise UserError(f"{where} {path}: {what}", possible=f"labels {shape}") from error
    kinds = "iufb" if target != "classification" else "iufUb"
    if not isinstance(array, np.ndarray) or array.ndim != 1 + several or array.dtype.kind not in kinds:
        shown = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "several arrays"
        possible = {
            "classification": "numbers or names [N], one a sample",
            "multilabel": "0 and 1 [N, K], a column a class",
            "regression": "numbers [N], one a sample",
        }
        raise UserError(f"{where} {path} holds {shown}", possible=possible[target])
    names = tuple(map(str, range(array.shape[1]))) if several else None
    labels: list[Any] = []
    for row, value in enumerate(array.tolist()):
        try:
            if names:
                cells = zip(names, value, strict=True)
                labels.append(tuple(name for name, cell in cells if label_applies(cell)))
            else:
                labels.append(class_value(value) if target == "classification" else number_value(value))
        except ValueError as error:
            raise UserError(f"{where} row {row} of {path} has {error}", mend="repair the labels") from error
    return RawSplit([f"{row:08d}" for row in range(len(labels))], labels, names, [])


LABELS = LabelsTask()
