"""What the labels of a user's own data are: one class a sample, several, or a number; it is said, not
guessed.

``target=regression`` or ``target=multilabel`` says that they are no single classes; ``separator=`` what
stands between several in one column; ``metric=`` by which of its metrics a head is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from nml.errors import UserError, unknown_name
from nml.labels import Target, label_applies, label_names, number_value
from nml.sources import Example
from probes.tasks.task import Metric

OPTIONS = ("target", "metric", "separator")
METRICS: dict[Target, tuple[Metric, ...]] = {
    "classification": ("accuracy",),
    "multilabel": ("map",),
    "regression": ("spearman", "pearson"),
}
"""What heads may be chosen by, the default first."""
SEPARATORS = {"bar": "|", "comma": ",", "semicolon": ";", "space": " ", "tab": "\t"}
"""Names of what cannot stand in a specification or on a command line as it is."""
_MENDS: dict[Target, str] = {
    "classification": "",
    "multilabel": "name what stands between them, separator=bar or another of "
    f"{', '.join(SEPARATORS)}; or a column of 0 and 1 for each class, label=CAT+DOG",
    "regression": "name another column with label=",
}


class Declared(NamedTuple):
    """What a user says of labels.

    Attributes:
        target: What they are.
        metric: What heads are chosen by.
        separator: What stands between several in one text; empty for nothing.
    """

    target: Target = "classification"
    metric: Metric = "accuracy"
    separator: str = ""


def declared(options: Mapping[str, str], where: str) -> Declared:
    """Return what options say of labels.

    Raises:
        UserError: If a value is unknown, or does not go with the target.
    """
    target = cast(Target, options.get("target", "classification"))
    if target not in METRICS:
        raise unknown_name(f"{where} target", target, METRICS)
    metric = cast(Metric, options.get("metric", METRICS[target][0]))
    if metric not in METRICS[target]:
        raise unknown_name(f"{where} metric of {target}", metric, METRICS[target])
    separator = options.get("separator", "")
    if separator and target != "multilabel":
        raise UserError(f"{where} separator={separator}", possible="with target=multilabel")
    if target != "classification" and "mask" in options:
        raise UserError(f"{where} mask={options['mask']}", possible="where labels are single classes")
    return Declared(target, metric, SEPARATORS.get(separator, separator))


def label_of(example: Example, said: Declared, columns: Sequence[str]) -> Any:
    """Return the label of a sample: a class, a number, or the names of its classes.

    Args:
        example: The sample.
        said: What its label is.
        columns: Names of the columns that each say whether one class applies; empty for one column of names.

    Raises:
        UserError: If it is none.
    """
    if said.target == "classification":
        return example.checked("class", "--task")
    try:
        if said.target == "regression":
            return number_value(example.supervision)
        if columns:
            cells = zip(columns, example.supervision, strict=True)
            return tuple(name for name, cell in cells if label_applies(cell))
        return label_names(example.supervision, said.separator)
    except ValueError as error:
        raise UserError(
            f"--task: sample {example.name!r} has {error}",
            mend="write 0 or 1 in every row" if columns else _MENDS[said.target],
        ) from error


def classes_of(labels: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the classes that several labels a sample name, sorted."""
    return tuple(sorted({name for names in labels for name in names}))


def as_array(
    labels: Sequence[Any], target: Target, classes: tuple[str, ...], path: str
) -> npt.NDArray[np.generic]:
    """Return numbers as float64 [N], several classes a sample as bool [N, K].

    Raises:
        UserError: If a class is not one of the training data.
    """
    if target == "regression":
        return np.array(labels, dtype=np.float64)
    place = {name: number for number, name in enumerate(classes)}
    found = np.zeros((len(labels), len(classes)), dtype=bool)
    for row, names in enumerate(labels):
        for name in names:
            if name not in place:
                raise UserError(
                    f"--task: class {name!r} of {path} does not occur in the training data",
                    possible=", ".join(classes[:20]) + (", ..." if len(classes) > 20 else ""),
                )
            found[row, place[name]] = True
    return found
