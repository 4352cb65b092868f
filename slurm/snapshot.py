"""The code as it was at submission, kept beside the run.

A job may start days after it was submitted, and again after a preemption. It must not then run
what happens to be on disk: it runs this copy, and refuses to run anything else. Changes that were
never committed are part of the copy, and are named in its SNAPSHOT.json.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from nml.errors import UserError
from nml.files import fsync_folder, make_folder, sync_tree, temporary_beside, write_json
from slurm.rooms import CODE

RECORD = "SNAPSHOT.json"
_ROOMS = ("nml", "shards", "pretrain", "plugins", "probes", "slurm", "recipes")
_FILES = ("setup.cfg", "pyproject.toml")
_SKIP = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def take_snapshot(folder: Path, code: Path = CODE) -> Path:
    """Copy the rooms into ``folder``/CONTENT-HASH and return that path.

    The same code gives the same path, so that a second submission shares the first one's copy.
    """
    files = sorted(_code_files(code))
    content = {str(file.relative_to(code)): file.read_bytes() for file in files}
    digest = hashlib.sha256()
    for name, data in content.items():
        digest.update(json.dumps([name, hashlib.sha256(data).hexdigest()]).encode())
    target = folder / digest.hexdigest()[:16]
    if (target / RECORD).exists():
        return target
    temporary = temporary_beside(target)
    try:
        make_folder(folder)
        for name, data in content.items():
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
        # A record on the disk beside code that never reached it would be taken for the code.
        sync_tree(temporary)
        write_json(temporary / RECORD, {"sha256": digest.hexdigest(), "source": str(code), **_revision(code)})
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
        fsync_folder(folder)
    except OSError as error:
        raise UserError(f"{folder}: the code cannot be copied there: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _code_files(code: Path) -> Iterator[Path]:
    for room in _ROOMS:
        for folder, names, files in os.walk(code / room):
            names[:] = [name for name in names if name not in _SKIP]
            yield from (Path(folder, name) for name in files)
    yield from (code / name for name in _FILES if (code / name).is_file())


def _revision(code: Path) -> dict[str, object]:
    """Return the commit the code stands on and the files that differ from it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(code), *words], capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    status = git("status", "--porcelain", "--", *(room for room in _ROOMS if (code / room).exists()))
    commit = git("rev-parse", "HEAD")
    return {
        "commit": commit.strip() if commit else None,
        "uncommitted": None if status is None else [line[3:] for line in status.splitlines()],
    }


def check_running_from(snapshot: Path, module: str) -> None:
    """Check that this process, and ``python -m module`` started from it, run the snapshot.

    Raises:
        RuntimeError: If they would run other code.
    """
    root = snapshot.resolve()
    for name in (__name__, module):
        found = importlib.util.find_spec(name.partition(".")[0])
        origin = Path(found.origin).resolve() if found and found.origin else None
        # A package of the user's own lives elsewhere; the rooms may not.
        if name.partition(".")[0] in _ROOMS and (origin is None or not origin.is_relative_to(root)):
            raise RuntimeError(f"this job would run {name} from {origin}, not from the snapshot {root}")
