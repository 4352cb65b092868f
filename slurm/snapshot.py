"""The code as it was at submission, kept beside the run.

A job may start days after it was submitted, and again after a preemption. It must not then run
what happens to be on disk: it runs this copy, whole and unchanged, and refuses to run anything else. Changes
that were never committed are part of the copy, and are named in its SNAPSHOT.json.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from nml.errors import UserError, some
from nml.files import fsync_folder, make_folder, sha256_file, sync_tree, temporary_beside, write_json
from nml.untrusted import read_json
from slurm.code_files import ROOMS, CodeFiles, code_files, run_git
from slurm.rooms import CODE

RECORD = "SNAPSHOT.json"
_LINK = "link to "
# Above this something is in the code that is none, and jobs copy it with every change.
_LARGE = 20 << 20
_SHOWN = 5


def take_snapshot(folder: Path, code: Path = CODE) -> Path:
    """Copy the rooms into ``folder``/CONTENT-HASH, say what was copied, and return that path.

    The same code gives the same path, so that a second submission shares the first one's copy; one that was
    changed since is made anew.

    Raises:
        UserError: If it cannot be copied, or a link leads out of the code.
    """
    found = code_files(code)
    hashes = {name: _hash(code / name) for name in found.names}
    digest = _digest(hashes)
    target = folder / digest[:16]
    there = (target / RECORD).exists()
    if changed := snapshot_changes(target) if there else ():
        print(f"code: {target} is made anew, as it was changed: {some(changed, _SHOWN)}", flush=True)
    if changed or not there:
        temporary = temporary_beside(target)
        try:
            make_folder(folder)
            temporary.mkdir()
            _copy(code, temporary, hashes)
            # A record on the disk beside code that never reached it would be taken for the code.
            sync_tree(temporary)
            record = {"sha256": digest, "files": hashes, "source": str(code), **_revision(code)}
            write_json(temporary / RECORD, record)
            if target.exists():
                shutil.rmtree(target)
            temporary.replace(target)
            fsync_folder(folder)
        except OSError as error:
            raise UserError(f"{folder}: the code cannot be copied there: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    _tell(code, found, target)
    return target


def check_snapshot(snapshot: Path) -> None:
    """Check that a snapshot holds what was copied into it, and nothing else that Python would import.

    Raises:
        RuntimeError: If not; names the files.
    """
    if changed := snapshot_changes(snapshot):
        raise RuntimeError(
            f"the code in {snapshot} is not what was submitted: {some(changed, _SHOWN)}; "
            "the launch command, said again, submits the code anew"
        )


def snapshot_changes(snapshot: Path) -> tuple[str, ...]:
    """Return what of a snapshot is not as it was copied: its changed, missing and added files."""
    try:
        hashes = dict(read_json(snapshot / RECORD)["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return (f"{RECORD} does not read",)
    changes = [] if _digest(hashes)[:16] == snapshot.name else [f"{RECORD} is changed"]
    for name, expected in hashes.items():
        try:
            if _hash(snapshot / name) != expected:
                changes.append(f"{name} is changed")
        except OSError:
            changes.append(f"{name} is missing")
    changes += [f"{name} was not there" for name in _importable(snapshot) if name not in hashes]
    return tuple(changes)


def _importable(snapshot: Path) -> Iterator[str]:
    """Yield the files that an import would find, but for what Python keeps of those it has compiled."""
    suffixes = tuple(importlib.machinery.all_suffixes())
    for place, folders, files in os.walk(snapshot):
        folders[:] = [folder for folder in folders if folder != "__pycache__"]
        yield from (
            Path(place, file).relative_to(snapshot).as_posix() for file in files if file.endswith(suffixes)
        )


def _hash(path: Path) -> str:
    return _LINK + str(path.readlink()) if path.is_symlink() else sha256_file(path)


def _digest(hashes: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(hashes, key=lambda name: name.split("/")):
        digest.update(json.dumps([name, hashes[name]]).encode())
    return digest.hexdigest()


def _copy(code: Path, target: Path, hashes: Mapping[str, str]) -> None:
    """Copy files, none of them more open to others than it is in ``code``.

    Raises:
        OSError: Also if a file changed since it was hashed.
    """
    _like(target, code)
    for name, expected in hashes.items():
        source, copy = code / name, target / name
        for parent in reversed(Path(name).parents[:-1]):
            if not (target / parent).exists():
                (target / parent).mkdir()
                _like(target / parent, code / parent)
        if expected.startswith(_LINK):
            copy.symlink_to(expected.removeprefix(_LINK))
            continue
        copy.touch(mode=0o600)
        copy.write_bytes(source.read_bytes())
        copy.chmod(stat.S_IMODE(source.stat().st_mode) & 0o777)
        if sha256_file(copy) != expected:
            raise OSError(f"{source} was changed while it was copied")


def _like(folder: Path, source: Path) -> None:
    folder.chmod(stat.S_IMODE(source.stat().st_mode) & 0o777 | stat.S_IRWXU)


def _tell(code: Path, found: CodeFiles, target: Path) -> None:
    """Say what is in a snapshot."""
    sizes = {name: (code / name).lstat().st_size for name in found.names}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    total = sum(sizes.values())
    line = f"code: {len(sizes)} files, {total / 1e6:.1f} MB: {target}"
    if total > _LARGE:
        line += f"; the largest is {largest} ({sizes[largest] / 1e6:.1f} MB)"
    print(line, flush=True)
    if found.left_out:
        print(
            f"code: left out, as by their names they hold secrets: {some(found.left_out, _SHOWN)}", flush=True
        )
    for warning in found.warnings:
        print(f"code: {warning}", flush=True)


def _revision(code: Path) -> dict[str, object]:
    """Return the commit the code stands on and the files that differ from it."""
    rooms = [room for room in ROOMS if (code / room).exists()]
    status = run_git(code, "status", "--porcelain", "--", *rooms)
    commit = run_git(code, "rev-parse", "HEAD")
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
        if name.partition(".")[0] in ROOMS and (origin is None or not origin.is_relative_to(root)):
            raise RuntimeError(f"this job would run {name} from {origin}, not from the snapshot {root}")
