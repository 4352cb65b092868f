"""What is asked of Slurm from 20.11 to 24.11, and what it answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slurm import controller, states
from slurm.journal import Job
from slurm.spans import accounted_spans, read_span
from slurm.table import describe_reason

RECORDED = Path(__file__).parent / "recorded"
# Options and fields that the manuals of 22.05 and of 25.11 both have. --me is of 20.02, and the fields of
# sacct are in the lists that `sacct -e` prints since 18.08.
OF_ALL = {
    "squeue": {"--noheader", "--me", "--user", "--states", "--array", "--format", "--jobs"},
    "sacct": {
        *("--noheader", "--parsable2", "--allocations", "--duplicates", "--starttime", "--format", "--jobs"),
        *(
            "JobID",
            "State",
            "NodeList",
            "WorkDir",
            "Start",
            "ElapsedRaw",
            "AllocNodes",
            "AllocCPUS",
            "AllocTRES",
        ),
    },
}


def lines_of(name: str) -> list[str]:
    return [line for line in (RECORDED / name).read_text().splitlines() if not line.startswith("#")]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, which answer as recorded; what they are asked is in a file."""
    for tool in OF_ALL:
        answer = RECORDED / f"{tool}-22.05.8.txt"
        (tmp_path / tool).write_text(
            f"#!/bin/sh\necho {tool} \"$@\" >> '{tmp_path}/asked'\n"
            f"env | grep -i ^{tool}_ >> '{tmp_path}/asked'\ngrep -v '^#' '{answer}'\n"
        )
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "asked"


def test_only_options_that_all_versions_have_are_used(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a user likes to see is no answer to what is asked here.
    monkeypatch.setenv("SQUEUE_PARTITION", "gpu")
    # Of whom the queue knows nothing, accounting is asked.
    states.job_states([Job("99", "nml-zz", Path("/"))], tries=1)
    controller.show_queue("--format=%F %k", users=["ada"])
    accounted_spans({"1": Path("/")}, 0.0)
    for line in asked.read_text().splitlines():
        tool, *words = line.split()
        assert tool in OF_ALL, line
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        if tool == "sacct":
            [form] = [word for word in words if word.startswith("--format=")]
            used |= set(form.partition("=")[2].split(","))
        assert used <= OF_ALL[tool], line


def test_what_the_queue_has_answered_is_read(asked: Path) -> None:
    tokens = {"1": "nml-aa", "2_1": "nml-bb", "5": "nml-ee", "6": "nml-ff", "8_3": "nml-hh"}
    jobs = {number: Job(number, token, Path("/")) for number, token in tokens.items()}
    found = states.job_states(jobs.values(), tries=1)
    assert {number: found[job].state for number, job in jobs.items()} == {
        **dict.fromkeys(("1", "2_1", "6", "8_3"), "PENDING"),
        "5": "CANCELLED",
    }
    told = {number: describe_reason(found[job].reason) for number, job in jobs.items()}
    assert told["6"] == "waits for nodes that are down or reserved (UnavailableNodes:n1)"
    assert told["8_3"] == "waits for nodes that are down or reserved"
    assert told["1"] == "was requeued; Slurm starts it again within two minutes"


@pytest.mark.parametrize("name", sorted(file.name for file in RECORDED.glob("sacct-*.txt")))
def test_what_accounting_has_answered_is_read(name: str) -> None:
    for line in lines_of(name):
        span, state = read_span(line), line.split("|")[1]
        assert (span is None) == (state == "PENDING"), line
        if span is not None:
            assert span.seconds == int(line.split("|")[3])
            assert span.outcome in ("done", "failed", "requeue", "running")
            typed = re.findall(r"gpu:\w+=(\d+)", line)
            assert span.gpus == max(sum(map(int, typed)), *map(int, re.findall(r"gpu=(\d+)", line) or "0"), 0)


def test_a_folder_with_a_quotation_mark_is_known_as_slurmdbd_writes_it() -> None:
    # Seen with 22.05.8.
    assert states.is_below("/my `work`/launch/snapshots/0", Path('/my "work"/launch'))
    assert not states.is_below("/my work/launch/snapshots/0", Path('/my "work"/launch'))


def test_a_job_that_is_held_since_its_reservation_was_deleted_may_still_run() -> None:
    assert states.JobState("RESV_DEL_HOLD").active
    assert not states.JobState("REVOKED").active
