"""Which files are the code that a job is to run: what git tracks or does not ignore, and no secrets.

Where there is no git, as in an installed package, they are all the files of the rooms.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nml.errors import UserError
from nml.files import is_utf8

ROOMS = ("nml", "shards", "pretrain", "plugins", "probes", "slurm", "recipes")
_FILES = ("setup.cfg", "pyproject.toml")
_SKIP = {"__pycache__", ".mypy_cache", ".ruff_cache", ".git"}
# By the last part of its name or the folder it lies in, this is what a key or a password is kept in.
_SECRET = re.compile(
    r"\.env(rc|\..+)?|.+\.env|[._]netrc|\.(pgpass|htpasswd|git-credentials|npmrc|pypirc|ssh|aws|gnupg|kube)"
    r"|id_(rsa|dsa|ecdsa|ed25519)(\..+)?|.+\.(pem|key|p12|pfx|ppk|jks|keystore|kdbx)"
    r"|(.*[._-])?(credentials?|secrets?|passwords?|passwd|passphrases?|(api|access|private)[._-]?keys?)([._-].+)?"
    # Of the tokens of a language there are files, too.
    r"|(.*[._-])?token(\.[a-z]+)?|service.?account.*\.json",
    re.IGNORECASE,
)
# Code and documents have such names, too.
_NO_SECRET = (".py", ".pyi", ".md", ".rst")
_GIT_SECONDS = 60


class CodeFiles(NamedTuple):
    """The files of the code.

    Attributes:
        names: Relative paths with ``/``, in the order of their parts.
        left_out: Those that are not to be copied, as by their names they hold secrets.
        warnings: What is to be said of them, a line each.
    """

    names: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


def code_files(code: Path) -> CodeFiles:
    """Return which files below ``code`` are its code.

    Raises:
        UserError: If one of them is a link that leads out of ``code``, or no file at all.
    """
    rooms = [name for name in (*ROOMS, *_FILES) if (code / name).exists()]
    told = list(_told_by_git(code, *rooms))
    warnings: list[str] = []
    # In an environment that lies in a checkout, git ignores the code itself.
    if not any((code / name).exists() for name in told):
        told = rooms
        if (code / ".git").exists():
            warnings.append("git does not answer for it, so that what git ignores is part of it")
    found = {
        name for path in told for name in _below(code, path.rstrip("/")) if not _SKIP & {*name.split("/")}
    }
    secret = {name for name in found if _is_secret(name)}
    names = sorted(found - secret, key=lambda name: name.split("/"))
    for name in names:
        _check(code, name)
        if not (code / name).exists():
            warnings.append(f"{name} is a link that leads nowhere ({(code / name).readlink()})")
    return CodeFiles(tuple(names), tuple(sorted(secret)), tuple(warnings))


def _told_by_git(repository: Path, *below: str) -> Iterator[str]:
    """Yield what git tracks or does not ignore; in a repository inside of another its own rules hold."""
    words = ("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--")
    for name in filter(None, (run_git(repository, *words, *below) or "").split("\0")):
        inner = repository / name
        within = [*_told_by_git(inner)] if not inner.is_symlink() and (inner / ".git").exists() else []
        # Of one for which git does not answer, all.
        yield from (f"{name.rstrip('/')}/{one}" for one in within) if within else (name,)


def run_git(code: Path, *words: str) -> str | None:
    """Return what ``git -C code WORDS`` prints, or None where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(code), *words],
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _below(code: Path, name: str) -> Iterator[str]:
    """Yield a file, or the files of a folder."""
    path = code / name
    if path.is_symlink() or path.is_file():
        yield name
        return
    for place, folders, files in os.walk(path):
        folders[:] = [folder for folder in folders if folder not in _SKIP]
        # A link to a folder counts as one, and is not followed.
        links = [folder for folder in folders if Path(place, folder).is_symlink()]
        yield from (Path(place, file).relative_to(code).as_posix() for file in (*files, *links))


def _is_secret(name: str) -> bool:
    return not name.endswith(_NO_SECRET) and any(_SECRET.fullmatch(part) for part in name.split("/"))


def _check(code: Path, name: str) -> None:
    path = code / name
    if not is_utf8(name):
        raise UserError(f"{path}: the name is no UTF-8", mend="rename it, or let git ignore it")
    if path.is_symlink():
        target = path.readlink()
        inside = (path.parent / target).resolve().is_relative_to(code.resolve())
        if target.is_absolute() or not inside:
            raise UserError(
                f"{path}: a link out of the code ({target}), to what may change until a job starts",
                mend="put a copy in its place, or let git ignore it",
            )
    elif not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path}: is no file", mend="take it out of the code, or let git ignore it")
