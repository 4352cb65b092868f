from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from nml.errors import UserError
from nml.untrusted import Untrusted
from slurm import states, table
from slurm.entry import main
from slurm.logs import choose
from slurm.progress import describe_seconds, read_progress
from slurm.states import JobState


def write_metrics(run: Path, *lines: dict[str, object], tail: str = "") -> None:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def test_progress_is_read_from_the_metrics(tmp_path: Path) -> None:
    lines = [
        {"step": step, "epoch": step / 5, "loss": 1 / step, "time": 100.0 + step} for step in range(1, 5)
    ]
    (tmp_path / "config.yaml").write_text("recipe: {epochs: 2}\n")
    write_metrics(tmp_path, *lines, tail='{"step": 5, "lo')
    progress = read_progress(tmp_path)
    assert (progress.step, progress.total, progress.loss, progress.done) == (4, 10, 0.25, False)
    assert progress.eta_seconds == pytest.approx(6.0)


def test_a_run_that_has_written_nothing_has_no_progress(tmp_path: Path) -> None:
    assert read_progress(tmp_path).step == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (42, "42s"), (190, "3m10s"), (18120, "5h02m"), (183600, "2d03h")]
)
def test_durations_are_told_as_people_do(seconds: float | None, text: str) -> None:
    assert describe_seconds(seconds) == text


def test_nothing_launched_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 0
    assert "nothing was launched from here" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "resume"])
def test_a_folder_that_is_no_run_is_one_line(refused, verb: str) -> None:
    assert refused(verb, "/nonexistent").startswith("error: /nonexistent: ")


def test_what_was_launched_from_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run" / "launch").mkdir(parents=True)
    said = {"words": ["pretrain"], "cwd": str(tmp_path / "gone")}
    (tmp_path / "run" / "launch" / "command.json").write_text(json.dumps(said))
    with pytest.raises(
        UserError, match=r"it was launched from .*gone, which cannot be entered: No such file"
    ):
        main(["resume", str(tmp_path / "run")])


def written(folder: Path, *submissions: dict[str, object]) -> list[table.Launched]:
    """Return what a folder's journal says was submitted."""
    (folder / "launch").mkdir(parents=True)
    lines = [json.dumps({"event": "submitted", "token": "nml-0", "time": 0.0, **one}) for one in submissions]
    (folder / "launch" / "jobs.jsonl").write_text("\n".join(lines) + "\n")
    return table.launched_under(folder)


def test_a_run_whose_records_do_not_read_hides_no_other(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("good", "spoilt"):
        launch = tmp_path / "runs" / name / "launch"
        launch.mkdir(parents=True)
        (launch / "command.json").write_text("{}")
    (launch / "jobs.jsonl").write_text("nonsense\n")
    (tmp_path / "sweeps" / "old").mkdir(parents=True)
    (tmp_path / "sweeps" / "old" / "sweep.json").write_text("{}")
    for verb in ("status", "usage"):
        assert main([verb]) == 1
        shown = capsys.readouterr()
        assert "good" in shown.out
        assert "spoilt" not in shown.out
        named = [line.split(": ")[1] for line in shown.err.splitlines() if line.startswith("left out: ")]
        assert named == [str(tmp_path / folder) for folder in ("sweeps/old", "runs/spoilt")]
    with pytest.raises(Untrusted, match="Expecting value"):
        main(["status", "runs/spoilt"])


def test_of_all_that_was_launched_each_part_of_a_sweep_is_told_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "alone" / "launch").mkdir(parents=True)
    (tmp_path / "runs" / "alone" / "launch" / "command.json").write_text("{}")
    for name, noise in (("first", "0.1"), ("second", "0.2")):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
        said = {"noise": [noise], "options": {}, "name": name, "base": str(tmp_path)}
        (tmp_path / "sweeps" / name / "sweep.json").write_text(json.dumps(said))
    assert main(["status", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert {(one["sweep"], one["name"]) for one in parts if one["stage"] == "pretrain"} == {
        ("sweeps/first", "quickstart-n10-seed0"),
        ("sweeps/second", "quickstart-n20-seed0"),
        (None, "alone"),
    }
    assert main(["status"]) == 0
    assert capsys.readouterr().out.startswith("sweep ")
    # Of one that is named, it is the same for all, and not told.
    assert main(["status", "sweeps/first"]) == 0
    assert capsys.readouterr().out.startswith("stage ")


def test_a_record_that_a_power_cut_damaged_is_named_instead_of_ending_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = written(tmp_path / "run", {"stage": "pretrain", "members": ["pretrain run"], "jobs": ["12"]})
    attempt = tmp_path / "run" / "launch" / "attempts" / "12-000"
    attempt.mkdir(parents=True)
    (attempt / "close.json").write_bytes(bytes(100))
    monkeypatch.setattr(states, "job_states", lambda jobs, tries: dict.fromkeys(jobs, JobState("FAILED")))
    [row] = table.make_rows(launched)
    assert row.state == "FAILED"
    assert row.why.startswith("the record of its end cannot be read: ")


def test_a_job_that_failed_without_a_word_is_not_told_to_have_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = written(tmp_path / "run", {"stage": "pretrain", "members": ["pretrain run"], "jobs": ["12"]})
    monkeypatch.setattr(states, "job_states", lambda jobs, tries: dict.fromkeys(jobs, JobState("FAILED")))
    log = tmp_path / "run" / "launch" / "12_0_log.out"
    for write, why in (
        (lambda: None, "no record and no log"),
        (log.touch, f"it said nothing: its log {log}"),
    ):
        write()
        [row] = table.make_rows(launched)
        assert row.why.startswith(why)


def test_a_program_reads_the_table_as_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    written(run, {"stage": "pretrain", "members": ["pretrain run"], "jobs": ["12"]})
    write_metrics(run, {"step": 3, "epoch": 0.5, "loss": float("nan"), "time": 1.0})
    running = lambda jobs, tries: {job: JobState("RUNNING") for job in jobs}  # noqa: E731
    monkeypatch.setattr(states, "job_states", running)
    assert main(["status", str(run), "--json"]) == 0
    [part] = json.loads(capsys.readouterr().out)["parts"]
    told = {
        "state": "RUNNING",
        "active": True,
        "job": "12",
        "step": 3,
        "loss": None,
        "eta": None,
        "attempt": 0,
    }
    assert part.items() >= told.items()


def test_what_waited_for_a_step_of_a_set_that_failed_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = written(
        tmp_path / "jobs",
        {"stage": "shards-plan", "members": ["a plan"], "jobs": ["1"]},
        {"stage": "shards-pack", "members": ["a pack 1/2", "a pack 2/2"], "jobs": ["2_0", "2_1"]},
        {"stage": "shards-finish", "members": ["a finish"], "jobs": ["3"]},
    )
    found = {"1": JobState("FAILED"), **dict.fromkeys(["2_0", "2_1", "3"], JobState("CANCELLED"))}
    monkeypatch.setattr(states, "job_states", lambda jobs, tries: {job: found[job.id] for job in jobs})
    rows = table.make_rows(launched)
    assert [row.state for row in rows] == ["FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]
    assert [row.why for row in rows[1:3]] == ["shards a plan failed"] * 2
    assert rows[3].why == "shards a pack 1/2 was cancelled"


def test_what_waits_here_for_a_part_that_failed_says_which(tmp_path: Path) -> None:
    close = tmp_path / "local-000" / "close.json"
    close.parent.mkdir()
    close.write_text('{"outcome": "failed", "reason": "exit status 1"}')
    run = table.Launched("pretrain", "a", tmp_path, None, complete=False, logs=tmp_path)
    probe = run._replace(stage="probes", name="a digits", record=tmp_path / "no", parents=("pretrain a",))
    rows = table.make_rows([run, probe])
    assert [(row.state, row.why) for row in rows] == [
        ("FAILED", "exit status 1"),
        ("TO DO", "pretrain a failed"),
    ]


def test_a_sweep_of_a_thousand_members_is_asked_for_one_in_a_line_that_can_be_read(tmp_path: Path) -> None:
    names = [f"pretrain r{number}" for number in range(1006)]
    submission = {"stage": "pretrain", "members": names, "jobs": [f"7_{number}" for number in range(1006)]}
    launched = written(tmp_path / "jobs", submission)
    with pytest.raises(UserError) as refused:
        choose(launched, None)
    said = str(refused.value)
    assert said.startswith("--member: a sweep has many logs; possible: 'pretrain pretrain r0', ")
    assert "and 994 more; see: " in said
    assert len(said) < 500


@pytest.mark.slurm
class TestOnSlurm:
    def test_status_says_state_step_and_why_it_waits(self, project, cluster, waiting) -> None:
        said = project.launch("sweep", "--noise", "0.2", "--plugins", "lp", "--recipe.hold", "6")
        run = project.work / "runs" / "quickstart-n20-seed0"
        metrics = run / "metrics.jsonl"
        waiting(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 6, "step 6")
        said_of = project.launch("status", "sweeps/sweep")
        rows = {row.split()[0]: row for row in said_of.splitlines()[1:]}
        assert re.search(r"RUNNING +\d+ +1 +6/12", rows["pretrain"])
        assert "PENDING" in rows["probes"]
        assert "waits for an earlier part" in rows["probes"]
        follower = project.start(
            "logs", "sweeps/sweep", "--member", "pretrain quickstart-n20-seed0", "--follow"
        )
        (run / "go").touch()
        waiting(lambda: (project.work / "sweeps" / "sweep" / "report" / "report.html").exists(), said)
        followed, _ = follower.communicate(timeout=60)
        assert "v1 from" in followed
        assert "done: complete" in followed

    def test_watching_ends_with_the_last_job(self, project, cluster) -> None:
        project.launch("pretrain", "--noise", "0.2")
        said = project.launch("status", "--watch")
        assert said.strip().splitlines()[-1].split()[2] == "COMPLETED"

    def test_a_failed_run_says_why(self, project, cluster, waiting) -> None:
        project.launch("pretrain", "--recipe.fail", "3")
        waiting(lambda: "FAILED" in project.launch("status"), "the failure")
        waiting(lambda: "exit status" in project.launch("status"), "its reason")
        assert "the toy was told to fail" in project.launch("logs", "runs/quickstart-n00-seed0")

    def test_accounting_tells_what_the_controller_has_forgotten(
        self, project, cluster, waiting, tmp_path
    ) -> None:
        project.launch("pretrain", "--recipe.fail", "3")
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "squeue").write_text("#!/bin/sh\n")
        (folder / "squeue").chmod(0o755)
        path = f"{folder}:{cluster.environment['PATH']}"
        waiting(lambda: "FAILED" in project.launch("status", PATH=path), "sacct's word")


@pytest.mark.slurm
class TestWithoutAccounting:
    def test_there_is_no_accounting(self, bare_cluster) -> None:
        assert not bare_cluster.call("sacct", "--noheader", check=False).strip()

    def test_a_run_completes_and_is_known_to_be(self, project, bare_cluster, waiting) -> None:
        project.launch("pretrain", "--nodes", "2")
        waiting(lambda: "COMPLETED" in project.launch("status"), "the end")

    def test_a_cancelled_job_is_known_to_be(self, project, bare_cluster, waiting) -> None:
        said = project.launch("pretrain", "--recipe.hold", "2")
        bare_cluster.call("scancel", *re.findall(r"submitted job (\d+)", said))
        waiting(lambda: "CANCELLED" in project.launch("status"), "the cancelled job")

    def test_what_slurm_forgot_is_told_by_the_markers(self, project, bare_cluster, waiting, tmp_path) -> None:
        project.launch("pretrain", "--recipe.fail", "3")
        waiting(lambda: "FAILED" in project.launch("status"), "the failure")
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "squeue").write_text("#!/bin/sh\n")
        (folder / "squeue").chmod(0o755)
        said = project.launch("status", PATH=f"{folder}:{os.environ['PATH']}")
        assert "FAILED" in said
        assert "exit status" in said
