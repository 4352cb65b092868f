"""The task of labels alone, for features that were computed elsewhere: ``labels:TRAIN,TEST[,OOD ...]``.

A file is csv, tsv or Parquet with a column of labels, or ``.npy`` [N]; its rows are those of the features.
There is nothing to read an encoder's input from, and nothing that a shift could be made of.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nml.errors import UserError
from nml.labels import class_value
from probes.spec import Spec, check_options
from probes.tasks.assembling import RawSplit, SplitName, assemble
from probes.tasks.own_data import read_split
from probes.tasks.task import Task, TaskRecord

OPTIONS = ("name", "validation", "mask", "label", "key", "header")
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

    def open(self, spec: Spec, root: Path) -> Task:  # noqa: ARG002 - the protocol's signature
        """Return the task."""
        check_options(spec, OPTIONS, where="--task")
        return assemble(spec, lambda path, part: _read(path, spec, part))


def _read(path: str, spec: Spec, part: SplitName) -> RawSplit:
    kind = Path(path).suffix[1:]
    if kind in TABLES:
        header = {"header": spec.options["header"]} if "header" in spec.options and kind != "parquet" else {}
        columns = {role: spec.options[role] for role in ("label", "key") if role in spec.options}
        return read_split(kind, path, columns | header, usual_split=part, labels_alone=True)
    if kind == "npy":
        return _read_array(Path(path), f"--task {spec.text}:")
    raise UserError(
        f"--task {spec.text}: {path}",
        possible=f"files with {', '.join(f'.{name}' for name in TABLES)} or .npy",
    )


def _read_array(path: Path, where: str) -> RawSplit:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        what = "no such file" if not path.exists() else f"cannot be read: {error}"
        raise UserError(f"{where} {path}: {what}", possible="labels [N]") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iufUb":
        shown = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "several arrays"
        raise UserError(f"{where} {path} holds {shown}", possible="numbers or names [N], one a sample")
    labels: list[int | str] = []
    for row, value in enumerate(array.tolist()):
        try:
            labels.append(class_value(value))
        except ValueError as error:
            raise UserError(f"{where} row {row} of {path} has {error}", mend="repair the labels") from error
    return RawSplit([f"{row:08d}" for row in range(len(labels))], labels, None, [])


LABELS = LabelsTask()
