"""The end of a sweep, told in a file and by a command of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm import ending
from slurm.ending import tell_end


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ending, "_outcome", lambda sweep: "complete, 3 parts")
    (tmp_path / "s" / "launch").mkdir(parents=True)
    return tmp_path / "s"


def test_the_line_is_an_argument_and_standard_input(sweep: Path, tmp_path: Path) -> None:
    tell_end(sweep, ["sh", "-c", 'cat > "$1"; echo "$2" >> "$1"', "x", str(tmp_path / "told"), "<{line}>"])
    told = (sweep / "launch" / "ended.txt").read_text()
    assert told.endswith(" sweep s: complete, 3 parts\n")
    assert (tmp_path / "told").read_text() == f"{told}<{told[:-1]}>\n"


@pytest.mark.parametrize("notify", [["false"], ["/no/such/command"], ["sh", "-c", "sleep 60"]])
def test_a_command_that_fails_is_said_and_no_more(
    sweep: Path, notify: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ending, "_NOTIFY_SECONDS", 0.2)
    tell_end(sweep, notify)
    assert capsys.readouterr().err.startswith("notify: ")
    assert (sweep / "launch" / "ended.txt").exists()


def test_a_local_sweep_that_lacks_a_part_says_which(project, no_controller) -> None:
    words = ("sweep", "--noise", "0", "0.2", "--plugins", "lp", "--recipe.fail", "3")
    project.launch(*words, status=1, SLURM_CONF=no_controller)
    ended = (project.work / "sweeps" / "sweep" / "launch" / "ended.txt").read_text()
    assert "sweep sweep: 2 of 6 parts are complete, not pretrain quickstart-n00-seed0, " in ended
    # There was nothing to do any more but what failed; a sweep that is complete ends once.
    assert len(ended.splitlines()) == 1
