"""A folder that one process holds, and what others are told."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from nml.errors import UserError
from nml.locking import held_alone

HOLD = """
import signal, sys
from pathlib import Path
from nml.locking import held_alone
with held_alone(Path(sys.argv[1]), busy=""):
    print("held", flush=True)
    signal.pause()
"""


def test_a_folder_is_held_until_its_holder_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "folder")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
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
