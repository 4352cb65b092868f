"""Node- and GPU-hours: what accounting and the records tell, and what became of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slurm.entry import main
from slurm.local_attempt import attempt_here
from slurm.spans import read_span

LOST = {"startup": 30.0, "redone": 20.0, "checkpoint": 10.0, "down": 500.0}


def attempt(record: Path, number: int, *, began: int, **closed: Any) -> None:
    folder = record / f"7-{number:03d}"
    folder.mkdir(parents=True)
    had = {"nodes": 3, "cores": 24, "gpus": 12, "spare": 1, "began": began}
    (folder / "open.json").write_text(json.dumps({"job": "7", "step": 0, "had": had, "time": began + 5}))
    (folder / "close.json").write_text(json.dumps({"reason": "", **closed}))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two attempts on three nodes, one of them a spare one, with a minute in the queue between."""
    monkeypatch.chdir(tmp_path)
    # No cluster is here.
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    folder = tmp_path / "runs" / "one"
    launch = folder / "launch"
    attempt(launch / "attempts", 0, began=1000, outcome="requeue", time=1100)
    attempt(launch / "attempts", 1, began=1160, outcome="done", time=1260)
    (launch / "command.json").write_text("{}")
    line = {"event": "submitted", "stage": "pretrain-n00", "token": "nml-0", "time": 900.0}
    (launch / "jobs.jsonl").write_text(
        json.dumps({**line, "members": ["pretrain one"], "jobs": ["7"]}) + "\n"
    )
    books = {"step": 9, "useful_s": 100.0, "lost_s": LOST, "time": 1255.0}
    (folder / "metrics.jsonl").write_text(json.dumps(books) + "\n")
    return folder


def usage(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["usage", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_hours_are_useful_or_lost_by_cause_and_add_up(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = usage(capsys, str(run))["total"]
    # 200 s on three nodes, of which one stood by; 40 s are in nobody's books.
    nodes = {"all": 600, "useful": 200, "startup": 60, "redone": 40, "checkpoint": 20, "launching": 80}
    nodes["spare"] = 200
    assert {name: round(hours * 3600) for name, hours in total["node_hours"].items()} == nodes
    assert round(total["gpu_hours"]["all"] * 3600) == 12 * 200
    assert round(total["gpu_hours"]["useful"] * 3600) == 4 * 200
    assert round(total["requeued_hours"] * 3600) == 60
    assert total["attempts"] == 2
    assert main(["usage", str(run)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"pretrain +one +2 +0\.167 +1\.333 +0\.667 +33% +spare 33%, launching 13%.* 1m00s", said)


def test_accounting_is_believed_where_there_is_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sacct = tmp_path / "bin" / "sacct"
    sacct.parent.mkdir()
    lines = [
        "7|REQUEUED|1970-01-01T00:16:40|101|3|24|billing=24,cpu=24,gres/gpu:a100=12,gres/gpu=12,node=3",
        "7|COMPLETED|1970-01-01T00:19:20|102|3|24|billing=24,cpu=24,gres/gpu:a100=12,gres/gpu=12,node=3",
        "8|COMPLETED|1970-01-01T00:19:20|999|3|24|cpu=24,node=3",
        "7|COMPLETED|1970-01-01T00:30:20|999|3|24|cpu=24,node=3",
    ]
    # The last one is another's, from a controller that began its numbers anew.
    places = [run / "launch" / "snapshots" / "0"] * 3 + [Path("/elsewhere")]
    told = [f"{line}|{place}" for line, place in zip(lines, places, strict=True)]
    sacct.write_text("#!/bin/sh\necho '" + "\n".join(told) + "'\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    total = usage(capsys, str(run))["total"]
    assert total["counted_by"] == ["accounting"]
    assert round(total["node_hours"]["all"] * 3600) == 3 * 203
    assert sum(total["node_hours"].values()) == pytest.approx(2 * total["node_hours"]["all"], abs=1e-4)
    assert round(total["node_hours"]["spare"] * 3600) == 203
    assert round(total["requeued_hours"] * 3600) == 59


@pytest.mark.parametrize(
    ("state", "tres", "gpus", "outcome"),
    [
        ("NODE_FAIL", "cpu=4,gres/gpu:a100=2,gres/gpu:h100=1,node=2", 3, "requeue"),
        ("CANCELLED by 1000", "cpu=2,node=1", 0, "failed"),
        ("RUNNING", "", 0, "running"),
    ],
)
def test_a_line_of_sacct_is_read(state: str, tres: str, gpus: int, outcome: str) -> None:
    span = read_span(f"7_3|{state}|2026-11-30T12:00:00|61|2|4|{tres}|/a")
    assert span is not None
    assert (span.job, span.seconds, span.gpus, span.outcome) == ("7_3", 61, gpus, outcome)


@pytest.mark.parametrize(
    "line", ["7|PENDING|Unknown|0|0|0||/a", "7_[3-9]|PENDING|None|0|2|4||/a", "sacct: error"]
)
def test_what_has_not_begun_took_nothing(line: str) -> None:
    assert read_span(line) is None


def test_what_ran_on_this_machine_is_counted_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = tmp_path / "runs" / "one" / "launch" / "attempts"
    launcher = [sys.executable, str(Path(__file__).parents[2] / "slurm" / "launch.py")]
    told: dict[str, str] = {}

    def looked_at() -> int:
        for words in (("usage", "--json"), ("status",)):
            argv = [*launcher, words[0], "runs/one", *words[1:]]
            told[words[0]] = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        return 0

    for status in (75, 2):
        # The second one refuses its options.
        assert attempt_here(record, lambda status=status: status, cores=2, gpus=1) == status
    assert attempt_here(record, looked_at, cores=2, gpus=1) == 0
    # What runs has not failed.
    assert set(json.loads(told["usage"])["total"]["gpu_hours"]) == {"all", "useful", "redone"}
    assert json.loads(told["usage"])["total"]["unclosed_attempts"] == 0
    assert " RUNNING " in told["status"]
    total = usage(capsys, "runs/one")["total"]
    assert total["attempts"] == 2
    assert total["counted_by"] == ["records"]
    assert set(total["gpu_hours"]) == {"all", "useful", "redone"}


def test_an_attempt_whose_end_nobody_saw_lasted_until_its_last_sign(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "launch" / "attempts" / "7-001" / "close.json").unlink()
    total = usage(capsys, str(run))["total"]
    assert total["unclosed_attempts"] == 1
    since = (run / "metrics.jsonl").stat().st_mtime
    assert total["hours"] * 3600 == pytest.approx(100 + since - 1160, abs=1)


def test_a_run_from_before_there_were_records_is_told_by_its_books(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    books = {"step": 9, "useful_s": 100.0, "lost_s": LOST, "time": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(books) + "\n")
    total = usage(capsys, str(folder))["total"]
    assert total["counted_by"] == ["metrics"]
    assert round(total["node_hours"]["all"] * 3600) == 160


@pytest.mark.slurm
def test_a_sweep_with_three_requeues_agrees_with_accounting(project, cluster, waiting, stand_in) -> None:
    (project.work / "cluster.yaml").write_text(f"notify: [tee, {project.code / 'told'!s}]\n")
    words = ("--noise", "0.2", "--plugins", "lp", "--recipe.hold", "4", "--nodes", "2")
    said = project.launch("sweep", "--cluster-file", "cluster.yaml", *words)
    run = project.work / "runs" / "quickstart-n20-seed0"
    [job] = [
        line.split()[0]
        for line in cluster.call("squeue", "--noheader", "--format=%F %j").splitlines()
        if line.split()[1].startswith("pretrain")
    ]
    for count in range(1, 4):
        attempts = run / "launch" / "attempts"
        held = [run / "metrics.jsonl", attempts / f"{job}-{count - 1:03d}" / "open.json"]
        waiting(lambda held=held: all(file.exists() for file in held), f"attempt {count}")
        cluster.call("scontrol", "requeue", job)
        cluster.let_come_back(job, count)
    (run / "go").touch()
    waiting(lambda: (project.work / "sweeps" / "sweep" / "report" / "report.html").exists(), "the report")
    waiting(lambda: not cluster.call("squeue", "--noheader").strip(), "the end")

    ended = (project.work / "sweeps" / "sweep" / "launch" / "ended.txt").read_text()
    assert "sweep sweep: complete, 3 parts; report: " in ended
    assert (project.code / "told").read_text() == ended

    def accounted() -> dict[str, list[int]]:
        form = "--format=JobName,ElapsedRaw,AllocNodes"
        found: dict[str, list[int]] = {}
        for line in cluster.call("sacct", "-X", "-D", "-n", "-P", form, f"--jobs={jobs}").splitlines():
            name, seconds, nodes = line.split("|")
            found.setdefault(name.partition("-")[0], []).append(int(seconds) * int(nodes))
        return found

    jobs = ",".join(re.findall(r"\d+", said.partition("as jobs ")[2].splitlines()[0]))
    waiting(lambda: len(accounted().get("pretrain", ())) >= 4, "accounting")
    told = json.loads(project.launch("usage", "sweeps/sweep", "--json"))
    assert told["total"]["counted_by"] == ["accounting"]
    for part in told["parts"]:
        assert part["node_hours"]["all"] * 3600 == pytest.approx(sum(accounted()[part["stage"]]), rel=0.01)
    # The records tell the same but for the moments before the first line of the script and after the last.
    path = f"{stand_in('sacct', 'exit 1')}:{cluster.environment['PATH']}"
    told = json.loads(project.launch("usage", "sweeps/sweep", "--json", PATH=path))
    assert told["total"]["counted_by"] == ["records"]
    for part in told["parts"]:
        nodes = 2 if part["stage"] == "pretrain" else 1
        most = 4 * nodes * part["attempts"]
        assert part["node_hours"]["all"] * 3600 == pytest.approx(sum(accounted()[part["stage"]]), abs=most)
