"""The files that a source names, and which of them belong together, by the words of their names.

Hugging Face's ``train-00000-of-00001.parquet``, timm's ``imagenet1k-validation-07.tar`` and
``imagenet/val/0.tar`` all say what they are; read as one set, a test split would leak into training.
"""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from nml.errors import UserError
from nml.sources import SourceSpec

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "eval",
}
_TRAIN = "train"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# A folder's longer name is a title, such as test_of_the_new_loader, where the last word alone counts.
_MOST_WORDS = 3


class Chosen(NamedTuple):
    """The files of a source that are read.

    Attributes:
        files: In the order given.
        held_out: Whether one of them is of a validation or test split.
    """

    files: list[Path]
    held_out: bool


def looks_held_out(path: str) -> bool:
    """Return whether a path's last two parts, or the name of a split, tell of a validation or test split."""
    return split_of(path) not in ("", _TRAIN)


def split_of(path: str | PurePath, folders: int = 1) -> str:
    """Return the split that a path's name tells, else the nearest of the ``folders`` above it that tells one.

    Returns:
        ``train``, ``validation``, ``test`` or ``eval``; empty if none is told.
    """
    *above, name = PurePath(path).parts or ("",)
    named = [_words(name)]
    for folder in list(reversed(above))[:folders]:
        words = _words(folder)
        named.append(words if len(words) <= _MOST_WORDS else words[-1:])
    for words in named:
        told = {_split(word) for word in words} - {""}
        # A name with both, such as train_eval, is protected like a held-out one.
        if told:
            return min(told - {_TRAIN}, default=_TRAIN)
    return ""


def files_of(spec: SourceSpec, below: str) -> Chosen:
    """Return the files of one split that a source's argument names, sorted within each pattern.

    Args:
        spec: Names a file, a folder, a pattern with ``*``, or a range such as ``cc12m-{0000..0099}.tar``.
        below: Pattern of the files of a folder.

    Raises:
        UserError: If there is none, one of a range is missing, or the split is not clear.
    """
    ending = PurePath(below).suffix
    argument = str(Path(spec.require_argument("file", f"{spec.name}:/data/train{ending}")).expanduser())
    root = Path(argument) if Path(argument).is_dir() else None
    if root:
        found = sorted(root.glob(below))
    else:
        patterns = [(pattern, sorted(glob.glob(pattern, recursive=True))) for pattern in expand(argument)]  # noqa: PTH207 - absolute patterns
        found = [Path(name) for pattern, names in patterns for name in names or [pattern]]
    missing = [f"file {path}" for path in found if not path.is_file()]
    if missing or not found:
        what = missing[0] if missing else f"{below} in {argument}"
        raise UserError(f"{spec.shown}: there is no {what}", mend="check the path")
    return _choose_split(spec, found, root)


def expand(pattern: str) -> list[str]:
    """Expand ranges: ``x-{00..02}.tar`` gives three names."""
    match = _RANGE.search(pattern)
    if not match:
        return [pattern]
    first, last = match.groups()
    names = [
        pattern[: match.start()] + str(number).zfill(len(first)) + pattern[match.end() :]
        for number in range(int(first), int(last) + 1)
    ]
    return [name for partly in names for name in expand(partly)]


def _choose_split(spec: SourceSpec, files: Sequence[Path], root: Path | None = None) -> Chosen:
    """Return the files of one split: the one asked for, else the usual one; all if no name tells of any.

    Args:
        spec: Says which split was asked for, and which is usual.
        files: What the source names.
        root: The folder that was searched for them; folders below it tell splits too.

    Raises:
        UserError: If the split asked for has no file, or none was asked for and the choice is not clear.
    """
    asked, usual = spec.split, _split(spec.usual_split)
    splits = [split_of(file.absolute(), len(file.relative_to(root).parts) if root else 1) for file in files]
    named = list(zip(files, splits, strict=True))
    there = sorted(set(splits) - {""})
    if asked:
        wanted = _split(asked) or asked.lower()
        chosen = [
            file for file, split in named if split == wanted or (not split and wanted in _words(file.name))
        ]
        if not chosen:
            raise UserError(
                f"{spec.flag('split')}{asked}: no file of {spec.shown} is of this split by its name",
                possible=", ".join(there),
                mend="choose one of these" if there else "leave it out to read them all",
            )
        return Chosen(chosen, wanted in there and wanted != _TRAIN)
    if len(set(splits)) <= 1:
        return Chosen(list(files), bool(there) and there != [_TRAIN])
    if usual not in there:
        raise UserError(
            f"{spec.shown}: holds files of {' and '.join(there)}"
            + (" and others that tell no split" if "" in splits else ""),
            mend=f"choose with {spec.flag('split')}{there[0]}, or name the files with a pattern",
        )
    chosen = [file for file, split in named if split == usual]
    print(
        f"read {len(chosen)} of {len(files)} files: the split {usual} ({spec.flag('split')}... names others)",
        file=sys.stderr,
    )
    return Chosen(chosen, held_out=usual != _TRAIN)


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without digits that end them: ``val2017`` is ``val``."""
    return [word.rstrip("0123456789").lower() for word in re.split(r"[\W_]+", name) if word]


def _split(word: str) -> str:
    return _SPLITS.get(word.rstrip("0123456789").lower(), "")
