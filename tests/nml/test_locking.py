"""A folder that one process holds, and what others are told."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from nml.errors import UserError
from nml.locking import held_alone, made_beside

HOLD = """
import signal, sys
from pathlib import Path
from nml.locking import held_alone
with held_alone(Path(sys.argv[1]), busy=""):
    print("held", flush=True)
    signal.pause()
"""
MAKE = """
import signal, sys
from pathlib import Path
from nml.locking import made_beside
with made_beside(Path(sys.argv[1])) as folder:
    folder.mkdir()
    (folder / "half").touch()
    print("held", flush=True)
    signal.pause()
"""


def holding(script: str, folder: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_what_a_killed_process_left_of_a_folder_is_removed_and_not_what_a_living_one_makes(
    tmp_path: Path,
) -> None:
    holder = holding(MAKE, tmp_path / "hub")
    with pytest.raises(UserError, match="another process is making"), made_beside(tmp_path / "hub"):
        raise AssertionError("made twice")
    assert list(tmp_path.rglob("half"))
    holder.kill()
    holder.communicate()
    with made_beside(tmp_path / "hub") as folder:
        folder.mkdir()
    assert not list(tmp_path.iterdir())
    with made_beside(tmp_path / "hub") as folder:
        folder.mkdir()
        folder.rename(tmp_path / "hub")
    assert list(tmp_path.rglob("*")) == [tmp_path / "hub"]


def test_a_folder_is_held_until_its_holder_dies(tmp_path: Path) -> None:
    holder = holding(HOLD, tmp_path / "folder")
    with (
        pytest.raises(UserError, match="folder: somebody cooks there; wait for it, or end it"),
        held_alone(tmp_path / "folder", busy="somebody cooks there"),
    ):
        raise AssertionError("held twice")
    holder.kill()
    holder.communicate()
    with held_alone(tmp_path / "folder", busy="somebody cooks there"):
        assert (tmp_path / "folder").is_dir()


def test_without_file_locks_work_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with held_alone(tmp_path, busy=""):
        told = capsys.readouterr().err
    assert told.startswith(f"warning: the file system of {tmp_path} has no file locks")
    assert told.count("\n") == 1
