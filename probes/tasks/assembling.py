"""From the splits in a user's files to a task: one list of classes, limits, shifted test versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nml.errors import UserError, unknown_name
from nml.sources import Place
from nml.stored_images import StoredImages
from probes.hashing import hash_value
from probes.samples import Labels, Modality, SampleSet
from probes.spec import Spec
from probes.tasks.samplesets import ImageBytes, Shifted, Texts, Unread, limited
from probes.tasks.shifts import SHIFTS, VERSION
from probes.tasks.targets import as_array, classes_of, declared
from probes.tasks.task import Evaluation, Metric, Task

OPTIONS = ("limit", "ood_limit", "shifts", "name", "validation", "mask")
# What names a variant: ood.sketch=PATH.
OOD = "ood."

SplitName = Literal["train", "validation", "test"]


class RawSplit(NamedTuple):
    """One split as a source holds it.

    Attributes:
        keys: N names.
        labels: N labels as found: all integers or all strings; or numbers, or the names of several classes.
        names: Class names, if the source knows them.
        places: Where N images lie; empty where the samples are texts, or labels alone.
        texts: N texts, or pairs of them; empty where the samples are images, or labels alone.
        spool: The file that images without a path lie in.
    """

    keys: Sequence[str]
    labels: Sequence[Any]
    names: tuple[str, ...] | None
    places: Sequence[Place]
    texts: Sequence[tuple[str, ...]] = ()
    spool: IO[bytes] | None = None

    @property
    def modality(self) -> Modality:
        """What the samples are."""
        return "text" if self.texts else "image" if self.places else "features"

    def select(self, rows: Sequence[int]) -> RawSplit:
        """Return some of a split's images."""
        return self._replace(
            keys=[self.keys[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            places=[self.places[row] for row in rows],
        )

    def build(self, codes: Labels) -> SampleSet:
        """Return the samples, given their labels."""
        if self.texts:
            texts = [text[0] if len(text) == 1 else text for text in self.texts]
            return Texts(self.keys, codes, texts)
        if not self.places:
            return Unread(self.keys, codes)
        return ImageBytes(self.keys, codes, StoredImages(self.places, self.spool))


def assemble(spec: Spec, read: Callable[[str, SplitName], RawSplit]) -> Task:
    """Return the task of ``KIND:TRAIN,TEST[,OOD ...]``.

    Every further path is an out-of-domain variant: ``ood.NAME=PATH`` names it, else it is named after its
    file, and after its folders as well where another variant would have the same name. Without one, shifted
    versions of the test samples are: all of the modality's, ``shifts=none``, or some as
    ``shifts=rotated+noisy``.
    ``validation=PATH`` names validation data; ``limit=N`` keeps N samples of each split and
    ``ood_limit=N`` N of each variant, chosen by the hash of their keys;
    ``mask=present`` scores each variant among the classes that occur in it (ImageNet-A, -R, ObjectNet).

    Raises:
        UserError: If paths or options are wrong, or classes differ between the splits.
    """
    check_paths(spec)
    target, metric, _ = declared(spec.options, f"--task {spec.text}:")
    train_path, test_path, *others = spec.arguments
    train = read(train_path, "train")
    classes: tuple[str, ...] = ()
    if target == "classification":
        classes = train.names or _class_names(train.labels, train_path)
    elif target == "multilabel":
        classes = train.names or classes_of(train.labels)
    # Where the training data has no names, numbers are all that files have in common.
    named = bool(train.names) or not isinstance(train.labels[0], int)

    def codes(path: str, raw: RawSplit) -> Labels:
        if target != "classification":
            return as_array(raw.labels, target, classes, path)
        return codes_of(_by_name(raw, classes, path) if named else raw.labels, classes, path)

    limit = parse_limit(spec)
    ood_limit = parse_limit(spec, "ood_limit") or limit

    def build(path: str, raw: RawSplit, limit: int | None = limit) -> SampleSet:
        return limited(raw.build(codes(path, raw)), limit)

    name = spec.options.get("name") or _display_name(train_path)
    test = build(test_path, read(test_path, "test"))
    evaluations = [Evaluation(name, "id", test)]
    masked = _masked(spec)
    shifts = _shifts(spec, train.modality, default=not others)
    for variant, path in _variants(others, taken=shifts):
        raw = read(path, "test")
        samples = build(path, raw, ood_limit)
        # Of the whole variant: a limit may have left classes of it out.
        present = tuple(np.unique(codes(path, raw)).tolist()) if masked else None
        evaluations.append(Evaluation(f"{name}-{variant}", "ood", samples, present))
    evaluations += [
        Evaluation(
            f"{name}-{shift}",
            "ood",
            Shifted(limited(test, ood_limit), shift, VERSION, SHIFTS[train.modality][shift]),
        )
        for shift in shifts
    ]
    validation_path = spec.options.get("validation")
    validation = build(validation_path, read(validation_path, "validation")) if validation_path else None
    train_samples = build(train_path, train)
    return Task(
        name=name,
        modality=train.modality,
        classes=classes,
        target=target,
        metric=metric,
        revision=content_revision(train_samples, validation, evaluations, metric),
        train=train_samples,
        validation=validation,
        evaluations=tuple(evaluations),
    )


def content_revision(
    train: SampleSet,
    validation: SampleSet | None,
    tests: Sequence[Evaluation],
    metric: Metric = "accuracy",
) -> str:
    """Return the hash of all that a task's results follow from: samples, labels and how tests are scored."""
    parts = [train, *([validation] if validation else []), *(test.samples for test in tests)]
    content: list[Any] = [[part.fingerprint, part.labels.tolist()] for part in parts]
    for test in tests:
        frames = test.perturbations
        content.append([test.classes, test.groups, frames and [frames.sets, [*map(sorted, frames.accepted)]]])
    # What chooses a head where there is a choice; results by accuracy keep the hash that they had.
    return hash_value([*content, metric] if metric != "accuracy" else content)[:16]


def _variants(others: Sequence[str], taken: Sequence[str]) -> list[tuple[str, str]]:
    """Return the name and the path of each variant, those last whose name was given."""
    named = [part.removeprefix(OOD).partition("=") for part in others if part.startswith(OOD) and "=" in part]
    given = [(name, path) for name, _, path in named]
    for name, path in given:
        if not name:
            raise UserError(f"--task: {OOD}={path} names no variant", possible=f"{OOD}NAME=PATH")
    paths = [part for part in others if not (part.startswith(OOD) and "=" in part)]
    unnamed = _variant_names(paths, taken=[*taken, *(name for name, _ in given)])
    return [*zip(unnamed, paths, strict=True), *given]


def _variant_names(paths: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Return what each variant is called; those that nothing tells apart keep one name, to be refused."""
    places = [Path(path) for path in paths]
    folders = [[part for part in place.parent.parts if part not in (place.anchor, "..")] for place in places]
    depths = [0] * len(paths)
    while True:
        names = [
            "-".join([*above[len(above) - depth :], place.stem])
            for place, above, depth in zip(places, folders, depths, strict=True)
        ]
        alike = [
            number
            for number, name in enumerate(names)
            if (names.count(name) > 1 or name in taken) and depths[number] < len(folders[number])
        ]
        if not alike:
            return names
        for number in alike:
            depths[number] += 1


def _class_names(labels: Sequence[Any], path: str) -> tuple[str, ...]:
    if not len(labels):
        raise UserError(f"--task: no samples in {path}")
    if isinstance(labels[0], str):
        return tuple(sorted(set(labels)))
    return tuple(str(number) for number in range(max(labels) + 1))


def _by_name(raw: RawSplit, classes: tuple[str, ...], path: str) -> Sequence[Any]:
    """Return the labels of a file, as names where its own list of classes is not that of the task.

    Where all classes are called by numbers, a number without such a list is a name that lost its type: 10 in
    a csv is the class "10" of a Parquet file, and not its eleventh.
    """
    if raw.names is None and len(raw.labels) and all(name.isdecimal() for name in classes):
        return [str(label) for label in raw.labels]
    if not raw.names or raw.names == classes or not len(raw.labels) or isinstance(raw.labels[0], str):
        return raw.labels
    if max(raw.labels) >= len(raw.names):
        raise UserError(
            f"--task: label {max(raw.labels)} of {path}, whose list of classes has {len(raw.names)}",
            possible=f"0 to {len(raw.names) - 1}",
        )
    names = [raw.names[label] for label in raw.labels]
    twice = next(
        (name for name in sorted(set(names)) if max(raw.names.count(name), classes.count(name)) > 1), None
    )
    if twice is not None:
        raise UserError(
            f"--task: {path} numbers its classes in its own way, and two are called {twice!r}",
            mend="give the file the training data's list of classes",
        )
    return names


def codes_of(labels: Sequence[Any], classes: tuple[str, ...], path: str) -> npt.NDArray[np.int64]:
    """Return the classes of labels, int64 [N]; names that are all numbers are numbers of classes.

    Raises:
        UserError: If one is no class of the training data.
    """
    if not len(labels) or not isinstance(labels[0], str):
        return np.asarray(labels, dtype=np.int64)
    code = {name: number for number, name in enumerate(classes)}
    strange = sorted(set(labels) - code.keys())
    # ImageNet-V2 names its folders by the number of the class.
    if len(strange) == len(set(labels)) and all(n.isdecimal() and int(n) < len(classes) for n in strange):
        return np.array([int(label) for label in labels], dtype=np.int64)
    if strange:
        raise UserError(
            f"--task: class {strange[0]!r} of {path} does not occur in the training data",
            possible=", ".join(classes[:20]) + (", ..." if len(classes) > 20 else ""),
        )
    return np.array([code[label] for label in labels], dtype=np.int64)


def check_paths(spec: Spec) -> None:
    """Refuse what names fewer than two files or folders.

    Raises:
        UserError: Saying how many it names.
    """
    if len(spec.arguments) < 2:
        raise UserError(
            f"--task {spec.text}: names {len(spec.arguments)} of the two files or folders it needs",
            possible=f"{spec.kind}:TRAIN,TEST or {spec.kind}:TRAIN,TEST,OOD",
        )


def check_values(spec: Spec, *modalities: Modality) -> None:
    """Refuse values that :func:`assemble` would refuse after it has read the data.

    Args:
        spec: What the user typed.
        modalities: What its samples may be.

    Raises:
        UserError: Naming the first, and what is possible.
    """
    declared(spec.options, f"--task {spec.text}:")
    parse_limit(spec)
    parse_limit(spec, "ood_limit")
    _masked(spec)
    _check_shifts(spec, [shift for modality in modalities for shift in SHIFTS.get(modality, ())])


def parse_limit(spec: Spec, option: str = "limit") -> int | None:
    """Return the option that limits samples; None where it is not set."""
    text = spec.options.get(option)
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--task {spec.text}: {option} {text}", possible="1 or more")
    return int(text)


def _masked(spec: Spec) -> bool:
    value = spec.options.get("mask", "none")
    if value not in ("none", "present"):
        raise UserError(f"--task {spec.text}: mask {value}", possible="none, present")
    return value == "present"


def _shifts(spec: Spec, modality: Modality, *, default: bool) -> list[str]:
    text = spec.options.get("shifts", "all" if default else "none")
    if text == "none" or modality not in SHIFTS:
        return []
    if text == "all":
        return list(SHIFTS[modality])
    _check_shifts(spec, list(SHIFTS[modality]))
    return text.split("+")


def _check_shifts(spec: Spec, known: Sequence[str]) -> None:
    text = spec.options.get("shifts", "none")
    for shift in text.split("+") if known and text not in ("all", "none") else ():
        if shift not in known:
            raise unknown_name(f"--task {spec.text}: shifts", shift, ["all", "none", *known])


def _display_name(path: str) -> str:
    place = Path(path)
    stem = place.name.partition(".")[0] or place.parent.name
    for word in ("train", "training"):
        # /data/sst2/train.tsv is known by its folder, cifar10_train.parquet by its own name.
        if stem == word:
            return place.resolve().parent.name
        stem = stem.removesuffix(f"_{word}").removesuffix(f"-{word}")
    return stem
