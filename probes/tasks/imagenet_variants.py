"""The out-of-domain sets of ImageNet, each in the layout it is published in.

Every reader takes the name of the set, its folder, the names of the training classes (WordNet ids, sorted:
their order is the usual numbering of ImageNet) and a limit, and returns the test data with the classes that
can win.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nml.errors import UserError
from nml.sources import whole_file
from nml.stored_images import StoredImages
from nml.untrusted import read_json
from probes.hashing import rank_by_hash
from probes.tasks.assembling import codes_of
from probes.tasks.own_data import ANYWHERE, read_split
from probes.tasks.samplesets import ImageBytes, Shifted, limited
from probes.tasks.task import Evaluation, Perturbations

Classes = tuple[str, ...]

NUM_CLASSES = 1000
# ObjectNet's photographs have a red frame, so that nobody trains on them by accident.
OBJECTNET_BORDER = 2


def read_named(name: str, folder: Path, classes: Classes, limit: int | None) -> Evaluation:
    """Read a folder for each WordNet id: validation data, ImageNet-R, -A and -Sketch.

    Raises:
        UserError: If no folder is named as a training class.
    """
    raw = read_split("imagefolder", str(folder), ANYWHERE)
    number = {wnid: code for code, wnid in enumerate(classes)}
    present = sorted(set(raw.labels))
    known = [wnid for wnid in present if wnid in number]
    if not known:
        raise UserError(
            f"{name}: no folder of {folder} is named as a training class, for example {present[0]}",
            possible=f"{classes[0]} and the like",
        )
    if len(known) < len(present):
        print(
            f"{name}: {len(present) - len(known)} of its {len(present)} classes are not among the training "
            "classes and are left out",
            file=sys.stderr,
        )
    kept = [row for row, wnid in enumerate(raw.labels) if wnid in number]
    samples = raw.select(kept).build(np.array([number[raw.labels[row]] for row in kept], dtype=np.int64))
    mask = tuple(number[wnid] for wnid in known)
    everything = len(mask) == len(classes)
    return Evaluation(name, "ood", limited(samples, limit), None if everything else mask)


def read_numbered(name: str, folder: Path, classes: Classes, limit: int | None) -> Evaluation:
    """Read ImageNet-V2: folders 0 to 999, numbered as the sorted WordNet ids are.

    Raises:
        UserError: If the training data is not all of ImageNet, or a folder is no such number.
    """
    _need_all(name, classes)
    raw = read_split("imagefolder", str(folder), ANYWHERE)
    return Evaluation(name, "ood", limited(raw.build(codes_of(raw.labels, classes, str(folder))), limit))


def read_objectnet(name: str, folder: Path, classes: Classes, limit: int | None) -> Evaluation:
    """Read ObjectNet: the photographs of its classes that ImageNet has, too.

    An ObjectNet class is one or more classes of ImageNet (a chair is a barber chair, a folding chair or a
    rocking chair), so a prediction is scored by the class of ObjectNet it belongs to. The mappings are those
    that ObjectNet comes with.

    Raises:
        UserError: If the training data is not all of ImageNet, or a mapping is missing.
    """
    _need_all(name, classes)
    groups = _objectnet_groups(name, folder / "mappings")
    order = sorted(groups)
    raw = read_split("imagefolder", str(folder / "images"), ANYWHERE)
    kept = [row for row, label in enumerate(raw.labels) if label in groups]
    if not kept:
        raise UserError(f"{name}: no folder of {folder / 'images'} is in its mappings", possible=order[0])
    codes = np.array([order.index(raw.labels[row]) for row in kept], dtype=np.int64)
    samples = raw.select(kept).build(codes)
    cropped = Shifted(samples, "without border", OBJECTNET_BORDER, _without_border)
    return Evaluation(name, "ood", limited(cropped, limit), groups=tuple(groups[label] for label in order))


def _objectnet_groups(name: str, mappings: Path) -> dict[str, tuple[int, ...]]:
    """Return the numbers of the ImageNet classes that each folder of ObjectNet stands for."""
    labels_2012 = _lines(mappings / "imagenet_to_label_2012_v2")
    # The position of a label in that list is its ImageNet 2012 id; PyTorch counts the sorted WordNet ids.
    pytorch_of_2012 = {
        int(id_2012): int(id_pytorch)
        for id_pytorch, id_2012 in _json(mappings / "pytorch_to_imagenet_2012_id.json").items()
    }
    folders = _json(mappings / "folder_to_objectnet_label.json")
    folder_of = {label: folder for folder, label in folders.items()}
    try:
        number = {label: pytorch_of_2012[position] for position, label in enumerate(labels_2012)}
        return {
            folder_of[label]: tuple(number[part] for part in parts.split("; "))
            for label, parts in _json(mappings / "objectnet_to_imagenet_1k.json").items()
        }
    except KeyError as error:
        raise UserError(
            f"{name}: {error} is in one of the files of {mappings} and not in another",
            mend="unpack the set as it is published",
        ) from error


def read_vid_robust(name: str, folder: Path, classes: Classes, limit: int | None) -> Evaluation:
    """Read ImageNet-Vid-Robust: frames of videos, in sets of an anchor and the frames around it.

    Its 30 classes are groups of ImageNet's. Frames may hold several objects; each of their labels is right.
    With a limit, whole sets are left out.

    Raises:
        UserError: If a file of its metadata is missing, or a class has no training class.
    """
    sets: dict[str, list[str]] = _json(folder / "metadata" / "pmsets.json")
    labels: dict[str, list[int]] = _json(folder / "metadata" / "labels.json")
    index: dict[str, list[str]] = _json(folder / "misc" / "imagenet_vid_class_index.json")
    members: dict[str, list[str]] = _json(folder / "misc" / "rev_wnid_map.json")
    number = {wnid: code for code, wnid in enumerate(classes)}
    groups = []
    for code in range(len(index)):
        wnid, title = index[str(code)]
        groups.append(tuple(number[member] for member in members.get(wnid, ()) if member in number))
        if not groups[-1]:
            raise UserError(
                f"{name}: no training class belongs to its class {title}",
                mend="train on all of ImageNet, or leave this variant out",
            )
    kept = _some_sets(sets, limit)
    frames = sorted({frame for anchor, around in kept.items() for frame in (anchor, *around)})
    unlabelled = next((frame for frame in frames if not labels.get(frame)), None)
    if unlabelled is not None:
        raise UserError(f"{name}: no label of {unlabelled} in its metadata", mend="unpack the set again")
    position = {frame: row for row, frame in enumerate(frames)}
    try:
        images = StoredImages([whole_file(folder / frame) for frame in frames])
    except OSError as error:
        raise _missing(Path(error.filename), error) from error
    samples = ImageBytes(frames, np.array([labels[frame][0] for frame in frames], dtype=np.int64), images)
    perturbations = Perturbations(
        metric="pm-10",
        sets=tuple(tuple(position[frame] for frame in (anchor, *around)) for anchor, around in kept.items()),
        accepted=tuple(frozenset(labels[frame]) for frame in frames),
    )
    return Evaluation(name, "ood", samples, groups=tuple(groups), perturbations=perturbations)


def _some_sets(sets: dict[str, list[str]], limit: int | None) -> dict[str, list[str]]:
    anchors = sorted(sets)
    if limit is None:
        return {anchor: sets[anchor] for anchor in anchors}
    kept: dict[str, list[str]] = {}
    frames = 0
    for row in rank_by_hash(anchors, "nml-limit/1"):
        anchor = anchors[row]
        frames += 1 + len(sets[anchor])
        if kept and frames > limit:
            break
        kept[anchor] = sets[anchor]
    return dict(sorted(kept.items()))


def _without_border(image: Image.Image, key: str) -> Image.Image:  # noqa: ARG001 - the signature of shifts
    border = OBJECTNET_BORDER
    return image.crop((border, border, image.width - border, image.height - border))


def _need_all(name: str, classes: Sequence[str]) -> None:
    if len(classes) != NUM_CLASSES:
        raise UserError(
            f"{name}: its classes are numbered as the {NUM_CLASSES} of ImageNet, "
            f"the training folder has {len(classes)}",
            mend="train on all of ImageNet, or leave this variant out",
        )


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise _missing(path, error) from error


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise _missing(path, error) from error


def _missing(path: Path, error: Exception) -> UserError:
    return UserError(f"--task: {path} cannot be read: {error}", mend="unpack the set as it is published")
