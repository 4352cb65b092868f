"""The files that a source names, and which of them belong together, by the words of their names.

Hugging Face's ``train-00000-of-00001.parquet``, timm's ``imagenet1k-validation-07.tar`` and
``imagenet/val/0.tar`` all say what they are; read as one set, a test split would leak into training.
"""

from __future__ import annotations

import functools
import glob
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from nml.errors import UserError
from nml.remote_files import AnyPath, RemotePath, files_at, is_url
from nml.set_file import SET_FILE, local_folder
from nml.sources import SourceSpec
from nml.urls import take_secret, with_secret

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
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# The innermost: a range, or a list whose parts may be ranges.
_BRACES = re.compile(r"\{(\d+\.\.\d+|[^{},]*(?:,[^{},]*)+)\}")
# A crawl of a billion samples comes in some hundred thousand files.
_MOST_FILES = 1_000_000
# A folder's longer name is a title, such as test_of_the_new_loader, where the last word alone counts.
_MOST_WORDS = 3


class Chosen(NamedTuple):
    """The files of a source that are read.

    Attributes:
        files: In the order given.
        held_out: Whether one of them is of a validation or test split.
    """

    files: list[AnyPath]
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


def files_of(spec: SourceSpec, *below: str) -> Chosen:
    """Return the files of one split that a source's argument names, sorted within each pattern.

    Args:
        spec: Names a file, a folder, a pattern with ``*``, or several by braces, as a shell expands them:
            ``cc12m-{0000..0099}.tar``, ``{train,extra/{00..07}}.tar``.
        below: Patterns of the files of a folder. Where none lies directly in it, those below count.

    Raises:
        UserError: If there is none, one of a range is missing, or the split is not clear.
    """
    endings = " or ".join(PurePath(pattern).name for pattern in below)
    argument = spec.require_argument("file", f"{spec.name}:/data/train{PurePath(below[0]).suffix}")
    if is_url(argument):
        here = local_folder(argument)
        if here is None:
            return _choose_split(spec, _at_url(spec, argument, below))
        argument = str(here)
    argument = str(Path(argument).expanduser())
    root = Path(argument) if Path(argument).is_dir() else None
    if root:
        found = _in_folder(root, below)
    elif Path(argument).is_file():
        found = [Path(argument)]
    else:
        patterns = [(pattern, sorted(glob.glob(pattern, recursive=True))) for pattern in expand(argument)]  # noqa: PTH207 - absolute patterns
        found = [Path(name) for pattern, names in patterns for name in names or [pattern]]
    missing = [f"file {path}" for path in found if not path.is_file()]
    if root and not found and (root / SET_FILE).is_file():
        raise UserError(
            f"{spec.shown}: is a sidecar, whose tars lie elsewhere, and no source",
            mend=f"further levels: python -m shards.relabel {root} --noise RATIO; to write its images anew, "
            "name the tars that its set.json names: wds:URL",
        )
    if missing or not found:
        what = missing[0] if missing else f"{endings} in {argument}"
        raise UserError(f"{spec.shown}: there is no {what}", mend="check the path")
    return _choose_split(spec, found, root)


def _at_url(spec: SourceSpec, argument: str, below: Sequence[str]) -> list[AnyPath]:
    """Return the files that a URL names: of a file, of a folder, with ``*`` or with braces."""
    shown = take_secret(argument)
    endings = tuple(PurePath(pattern).name.lstrip("*") for pattern in below)
    found: list[str] = []
    # A signature is that of the whole URL.
    for url in map(take_secret, expand(with_secret(shown))):
        if "*" in url:
            patterns = [url]
        elif url.endswith(endings):
            found.append(url)
            continue
        else:
            patterns = [f"{url.rstrip('/')}/{pattern}" for pattern in below]
        listed = sorted({name for pattern in patterns for name in files_at(url).find(pattern)})
        if not listed:
            raise UserError(
                f"{spec.shown}: there is no {' or '.join(patterns)}",
                mend="check the URL; if its server lists nothing, name the files by {0000..0099}",
            )
        found += listed
    return [RemotePath(url) for url in found]


def _in_folder(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a folder; those of folders below it where the patterns say so, or it has none."""
    found = {path for pattern in patterns for path in root.glob(pattern)}
    deeper = {path for pattern in patterns for path in root.rglob(PurePath(pattern).name)} - found
    direct = sorted(filter(_is_shown(root), found))
    further = sorted(filter(_is_shown(root), deeper))
    if direct and further:
        print(
            f"passed over {len(further):,} files in folders below {root}, the first of them {further[0]}: "
            f"{len(direct):,} lie in it",
            file=sys.stderr,
        )
    return direct or further


def _is_shown(root: Path) -> Callable[[Path], bool]:
    """Tell files whose names, and those of their folders, begin with no dot: macOS and Jupyter leave such."""
    return lambda path: not any(part.startswith(".") for part in path.relative_to(root).parts)


def expand(pattern: str) -> list[str]:
    """Expand braces as a shell does: ``x-{00..02,07}.tar`` gives four names, ``{a,b{1..2}}`` three.

    Raises:
        UserError: If they are more than a million.
    """
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    names: list[str] = []
    for part in match[1].split(","):
        limits = _RANGE.fullmatch(part)
        if not limits:
            names.append(part)
            continue
        first, last = map(int, limits.groups())
        if last - first >= _MOST_FILES:
            raise UserError(f"{pattern}: names {last - first + 1:,} files", possible=f"up to {_MOST_FILES:,}")
        names += [str(number).zfill(len(limits[1])) for number in range(first, last + 1)]
    # Each once: lists that lie in lists are expanded from within.
    expanded: dict[str, None] = {}
    for name in names:
        expanded |= dict.fromkeys(expand(f"{before}{name}{after}"))
        if len(expanded) > _MOST_FILES:
            raise UserError(f"{pattern}: names too many files", possible=f"up to {_MOST_FILES:,}")
    return list(expanded)


def _choose_split(spec: SourceSpec, files: Sequence[AnyPath], root: Path | None = None) -> Chosen:
    """Return the files of one split: the one asked for, else the usual one; all if no name tells of any.

    Args:
        spec: Says which split was asked for, and which is usual.
        files: What the source names.
        root: The folder that was searched for them; folders below it tell splits too.

    Raises:
        UserError: If the split asked for has no file, or none was asked for and the choice is not clear.
    """
    asked, usual = spec.split, _split(spec.usual_split)
    splits = [_told_by(file, root) for file in files]
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


def _told_by(file: AnyPath, root: Path | None) -> str:
    if not isinstance(file, Path):
        return split_of(str(file).partition("://")[2])
    return split_of(file.absolute(), len(file.relative_to(root).parts) if root else 1)


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without digits that end them: ``val2017`` is ``val``."""
    return [word.rstrip("0123456789").lower() for word in re.split(r"[\W_]+", name) if word]


def _split(word: str) -> str:
    return _SPLITS.get(word.rstrip("0123456789").lower(), "")


@functools.lru_cache(maxsize=4096)
def is_below(folder: Path, roots: tuple[str, ...]) -> bool:
    """Whether a folder lies in one of others, links followed."""
    place = folder.resolve()
    return any(place.is_relative_to(Path(root).expanduser().resolve()) for root in roots)
