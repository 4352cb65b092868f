"""The copy of the code and the journal after a power cut at any moment of writing them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from slurm.journal import Journal
from slurm.members import Member, Submission
from slurm.snapshot import RECORD, take_snapshot
from tests.power_cut import Recorder


def test_a_snapshot_is_never_taken_for_whole_with_code_that_never_reached_the_disk(tmp_path: Path) -> None:
    code, disk = tmp_path / "code", tmp_path / "disk"
    disk.mkdir()
    for name in ("nml/errors.py", "probes/tasks/digits.py", "setup.cfg"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(f"# {name}")

    def content(snapshot: Path) -> dict[str, str]:
        files = (path for path in snapshot.rglob("*") if path.is_file() and path.name != RECORD)
        return {str(path.relative_to(snapshot)): path.read_text() for path in files}

    with Recorder(disk).on() as recorder:
        target = take_snapshot(disk / "launch" / "snapshots", code)
    expected = content(target)
    assert len(expected) == 3
    for state in (recorder.final(), *recorder.states()):
        state.lay(disk)
        assert not (target / RECORD).exists() or content(target) == expected, state.name
        assert content(take_snapshot(disk / "launch" / "snapshots", code)) == expected, state.name
    assert (recorder.final().lay(disk) / target.relative_to(disk) / RECORD).exists()


def test_a_line_of_the_journal_is_on_the_disk_before_anything_else_happens(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    journal = Journal(disk / "sweep" / "launch")
    member = Member(name="run", argv=("true",), record="r", cwd="/")
    submission = Submission(
        stage="pretrain", token="nml-0", snapshot="s", members=(member,), max_idle_attempts=5
    )
    with Recorder(disk).on() as recorder:
        journal.note("submitting", submission)
        first = recorder.final()
        journal.note("submitted", submission, jobs=["12"])
    first.lay(disk)
    assert journal.unanswered() == ["nml-0"]
    recorder.final().lay(disk)
    assert journal.jobs()["run"].id == "12"


def test_a_line_that_was_cut_short_spoils_no_line_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    member = Member(name="run", argv=("true",), record="r", cwd="/")
    first = Submission(stage="pretrain", token="nml-0", snapshot="s", members=(member,), max_idle_attempts=5)
    journal.note("submitted", first, jobs=["12"])
    with journal.file.open("a") as file:
        file.write('{"event": "submi')
    assert journal.jobs()["run"].id == "12"
    journal.note("submitting", dataclasses.replace(first, token="nml-1"))
    assert journal.unanswered() == ["nml-1"]
    assert journal.jobs()["run"].id == "12"
