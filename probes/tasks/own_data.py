"""Tasks in a user's own data: whatever shards can be written from, under the name that it has there.

``NAME:TRAIN,TEST[,OOD ...]``, where NAME is a source (``python -m shards.write --help`` names them) and TRAIN
and TEST are what follows its colon. One argument alone names data that has its splits inside.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.sources import SOURCES, Place, Source, SourceSpec
from probes.spec import Spec, check_options
from probes.tasks.assembling import OPTIONS, RawSplit, SplitName, assemble, check_paths, check_values
from probes.tasks.shifts import SHIFTS
from probes.tasks.targets import OPTIONS as TARGET_OPTIONS
from probes.tasks.targets import declared, label_of
from probes.tasks.task import Task, TaskRecord

COLUMNS = ("image", "text", "pair", "label", "key")
SPLITS = ("train", "test")
IMAGE_ROOT = "image_root"
MEMBERS = "members"
ANYWHERE = {IMAGE_ROOT: "/"}
"""Options of data that their user has put there by hand, with links to where it lies."""


class OwnDataTask:
    """A task of a user's own data.

    Args:
        name: A registered source.
    """

    def __init__(self, name: str) -> None:
        self.record = TaskRecord(
            name=name,
            modality="text" if name == "tsv" else "image",
            num_classes=0,
            ood=("every further one", "or shifts of the test samples"),
            source=f"your own data: {name}:TRAIN,TEST[,OOD]; {'=, '.join(COLUMNS)}= name columns",
            revision="hash of the content",
            licence="yours",
            note=(SOURCES.load(name).__doc__ or "").partition("\n")[0],
        )

    def check(self, spec: Spec) -> None:
        """Refuse options that cannot be meant."""
        header = ("header",) if spec.kind in ("csv", "tsv") else ()
        known = (*OPTIONS, *TARGET_OPTIONS, *COLUMNS, *SPLITS, IMAGE_ROOT, MEMBERS, *header)
        check_options(spec, known, where="--task")
        if len(spec.arguments) != 1:
            # One may have its splits inside.
            check_paths(spec)
        # What a table holds is not known before it is read.
        check_values(spec, *SHIFTS)

    def open(self, spec: Spec, root: Path) -> Task:  # noqa: ARG002 - the protocol's signature
        """Return the task."""
        self.check(spec)
        if len(spec.arguments) == 1 and not Path(spec.arguments[0]).is_file():
            return self._of_splits(spec)

        def read(path: str, part: SplitName) -> RawSplit:
            split = spec.options.get(part, "") if part in SPLITS else ""
            return read_split(spec.kind, path, spec.options, split=split, usual_split=part)

        return assemble(spec, read)

    def _of_splits(self, spec: Spec) -> Task:
        """Return the task of data that has its splits inside."""
        argument = spec.arguments[0]
        splits = tuple(spec.options.get(part, part) for part in SPLITS)
        name = Path(argument.partition(":")[0]).name.partition(".")[0]
        return assemble(
            spec._replace(arguments=splits, options={"name": name, **spec.options}),
            lambda split, part: read_split(spec.kind, argument, spec.options, split=split, usual_split=part),
        )


def read_split(
    kind: str,
    argument: str,
    columns: Mapping[str, str],
    *,
    split: str = "",
    usual_split: str = "train",
    labels_alone: bool = False,
) -> RawSplit:
    """Read one split of a source.

    Args:
        kind: The source's name.
        argument: What follows the colon.
        columns: Options: the columns of a table, ``header``, and what its labels are.
        split: The split asked for; may be empty.
        usual_split: What to read where none was asked for.
        labels_alone: Whether a table holds labels whose samples lie elsewhere.

    Raises:
        UserError: If the source cannot be read, or its samples have no classes.
    """
    said = declared(columns, f"--task {kind}:{argument}:")
    spec = SourceSpec(
        text=f"{'labels' if labels_alone else kind}:{argument}",
        name=kind,
        argument=argument,
        split=split,
        usual_split=usual_split,
        header=columns.get("header", ""),
        image_root=columns.get(IMAGE_ROOT, ""),
        members=columns.get(MEMBERS, ""),
        end="labels" if labels_alone else "task",
        target=said.target,
        **{f"{role}_column": columns.get(role, "") for role in COLUMNS},  # type: ignore[arg-type]
    )
    source: Source = SOURCES.load(kind)(spec)
    if source.kind != "class":
        raise UserError(
            f"{spec.shown}: its samples have captions, not classes", mend="choose data with classes"
        )
    keys: list[str] = []
    labels: list[Any] = []
    places: list[Place] = []
    texts: list[tuple[str, ...]] = []
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - the split's samples are read from it
    for example in source:
        keys.append(example.name)
        labels.append(label_of(example, said, spec.label_columns))
        if example.texts:
            texts.append(example.texts)
        elif not labels_alone:
            places.append(example.place(spool))
    spool.flush()
    if not keys:
        raise UserError(f"{spec.shown}: no samples in {argument}", mend="check the path and the split")
    if any(isinstance(label, str) for label in labels):
        labels = [_named(label, source.classes) for label in labels]
        names = None
    else:
        names = spec.label_columns or source.classes
    if places and len(set(keys)) < len(keys) and all(place.path.endswith(".tar") for place in places):
        # Tars that each count from 0. Elsewhere keys stay as they are: the carving and the limit follow them.
        keys = [f"{Path(place.path).name}/{key}" for place, key in zip(places, keys, strict=True)]
    return RawSplit(keys, labels, names, places, texts, spool)


def _named(label: int | str, classes: tuple[str, ...] | None) -> str:
    """Return a class as a name: numbers among names are names, too."""
    return classes[label] if classes and isinstance(label, int) else str(label)
