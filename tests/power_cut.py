"""What a disk may hold after the power was cut, at any moment of a piece of work.

While a :class:`Recorder` is on, every rename, link, removal, new folder and fsync of this process below one
folder is noted, together with what the files then hold. From that follow the states that a file system may
be found in after a cut at each moment. What a write without fsync left in the cache is lost, and so is a name
whose folder was not fsynced, but neither has to be: the kernel may have written any of it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Each call with how many of its first arguments are paths.
_CALLS = {"rename": 2, "replace": 2, "link": 2, "unlink": 1, "remove": 1, "rmdir": 1, "mkdir": 1, "fsync": 1}
# What may be left of data that were never fsynced: a name without content, a part, or zeros in its place.
LOSSES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "torn": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
}


class Moment(NamedTuple):
    """The disk after one operation.

    Attributes:
        name: The operation.
        now: Every folder's entries, folder -> name -> (number of the file or folder, whether a folder).
        kept: The same as of each folder's last fsync.
        data: What each file holds.
        synced: What each held at its last fsync; none of one that never was.
    """

    name: str
    now: dict[int, dict[str, tuple[int, bool]]]
    kept: dict[int, dict[str, tuple[int, bool]]]
    data: dict[int, bytes]
    synced: dict[int, bytes]


class State(NamedTuple):
    """One state that the disk may be found in: a file's path below the folder -> its content; None: a folder.

    Attributes:
        number: Operations done before the cut.
        name: The moment of the cut and what it took.
        files: The content.
    """

    number: int
    name: str
    files: tuple[tuple[str, bytes | None], ...]

    def lay(self, folder: Path) -> Path:
        """Write the state into ``folder``, which is emptied first, and return that."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in self.files:
            path = folder / name
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return folder


class Recorder:
    """Notes what happens below ``folder``, which exists; what is in it already is on the disk for good."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.moments: list[Moment] = []
        self._numbers = itertools.count()
        # A removed file's inode number is given out again, so files are numbered here.
        self._number_of: dict[int, int] = {}
        self._kept: dict[int, dict[str, tuple[int, bool]]] = {}
        self._synced: dict[int, bytes] = {}
        self._lock = threading.RLock()
        self._root = self._number(self.folder.stat().st_ino)

    @contextlib.contextmanager
    def on(self) -> Iterator[Recorder]:
        """Record during a block."""
        now, data = self._look()
        self._kept, self._synced = dict(now), dict(data)
        self._note("before the first operation")
        with pytest.MonkeyPatch.context() as patch:
            # Paths instead of names relative to descriptors.
            patch.setattr(shutil, "_use_fd_functions", False)
            for name, paths in _CALLS.items():
                patch.setattr(os, name, self._recorded(name, paths, getattr(os, name)))
            yield self
        self._note("after the last operation")

    def _recorded(self, name: str, paths: int, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                if name in ("unlink", "remove", "rmdir", "rename", "replace"):
                    self._forget_target(args[paths - 1])
                result = call(*args, **kwargs)
                touched = [path for path in map(self._below, args[:paths]) if path is not None]
                if touched:
                    if name == "fsync":
                        self._sync(args[0])
                    self._note(f"{name} {' '.join(touched)}")
                return result

        return recorded

    def _below(self, argument: Any) -> str | None:
        """Return an argument's path below the folder, as text; None if it is none."""
        if isinstance(argument, int):
            argument = Path(f"/proc/self/fd/{argument}").readlink()
        path = os.path.abspath(os.fspath(argument))  # noqa: PTH100 - a link is itself what is renamed
        if path == str(self.folder):
            return "."
        return path.removeprefix(f"{self.folder}/") if path.startswith(f"{self.folder}/") else None

    def _forget_target(self, path: Any) -> None:
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            if found.st_nlink < 2 or stat.S_ISDIR(found.st_mode):
                self._number_of.pop(found.st_ino, None)

    def _sync(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        number = self._number(found.st_ino)
        now, data = self._look()
        if stat.S_ISDIR(found.st_mode):
            self._kept = {**self._kept, number: now[number]}
        else:
            self._synced = {**self._synced, number: data[number]}

    def _number(self, inode: int) -> int:
        if inode not in self._number_of:
            self._number_of[inode] = next(self._numbers)
        return self._number_of[inode]

    def _look(self) -> tuple[dict[int, dict[str, tuple[int, bool]]], dict[int, bytes]]:
        now: dict[int, dict[str, tuple[int, bool]]] = {}
        data: dict[int, bytes] = {}
        for place, folders, files in os.walk(self.folder):
            own = self._number(Path(place).stat().st_ino)
            now[own] = {}
            for name in (*folders, *files):
                path = Path(place, name)
                number = self._number(path.stat().st_ino)
                now[own][name] = (number, path.is_dir())
                if not path.is_dir():
                    data[number] = path.read_bytes()
        return now, data

    def _note(self, name: str) -> None:
        now, data = self._look()
        self.moments.append(Moment(name, now, self._kept, data, self._synced))

    def states(self) -> Iterator[State]:
        """Yield every state that a cut may leave, each once, in the order of the moments."""
        seen: set[int] = set()
        for number, moment in enumerate(self.moments):
            for what, entries in _names(moment):
                for loss, lost in LOSSES.items():
                    files = tuple(sorted(_tree(self._root, "", entries, moment, lost)))
                    if hash(files) not in seen:
                        seen.add(hash(files))
                        yield State(
                            number, f"cut {number} after {moment.name}; names: {what}; data: {loss}", files
                        )

    def final(self) -> State:
        """Return the least that is on the disk by now."""
        last = self.moments[-1]
        return State(
            len(self.moments),
            "after all",
            tuple(sorted(_tree(self._root, "", last.kept, last, LOSSES["empty"]))),
        )


def _names(moment: Moment) -> Iterator[tuple[str, dict[int, dict[str, tuple[int, bool]]]]]:
    """Yield which names may be there: all, those of fsynced folders, and with them those of one more."""
    pending = [folder for folder, entries in moment.now.items() if moment.kept.get(folder, {}) != entries]
    yield "all", moment.now
    if pending:
        yield "fsynced", moment.kept
    if len(pending) > 1:
        for folder in pending:
            yield "fsynced and one folder's", {**moment.kept, folder: moment.now[folder]}


def _tree(
    folder: int,
    path: str,
    entries: dict[int, dict[str, tuple[int, bool]]],
    moment: Moment,
    lost: Callable[[bytes], bytes],
) -> Iterator[tuple[str, bytes | None]]:
    for name, (number, is_folder) in entries.get(folder, {}).items():
        if is_folder:
            yield path + name, None
            yield from _tree(number, f"{path}{name}/", entries, moment, lost)
        elif number in moment.synced:
            yield path + name, moment.synced[number]
        else:
            yield path + name, lost(moment.data.get(number, b""))
