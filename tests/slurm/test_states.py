"""Slurm's word on jobs, as squeue and sacct print it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from slurm import states
from slurm.controller import NoAnswer, jobs_by_token
from slurm.journal import Job, own_user
from slurm.states import JobState, is_active, job_states


def job(number: str, token: str = "nml-ab") -> Job:
    return Job(number, token, Path("/runs/a/launch"))


QUEUE = """#!{python}
import re, sys
form = next(word.partition("=")[2] for word in sys.argv if word.startswith("--format"))
for job in {jobs}:
    print(re.sub("%(.)", lambda match: job[match[1]], form))
"""


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def answer(tool: str, text: str) -> None:
        (tmp_path / tool).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        (tmp_path / tool).chmod(0o755)

    answer("squeue", "")
    answer("sacct", "")
    return answer


def test_the_queue_knows_elements_of_arrays_and_why_they_wait(answers) -> None:
    answers(
        "squeue",
        "12|N/A|RUNNING|None|n[0-3]|nml-ab\n"
        "13|0|PENDING|Dependency||my | nml-ab\n"
        "13|1|COMPLETED|None|n1|nml-ab",
    )
    assert job_states([job("12"), job("13_0"), job("13_1")]) == {
        job("12"): JobState("RUNNING", "", "n[0-3]"),
        job("13_0"): JobState("PENDING", "Dependency", ""),
        job("13_1"): JobState("COMPLETED", "", "n1"),
    }


def test_a_job_of_the_same_number_without_the_token_is_another_one(answers) -> None:
    answers("squeue", "12|N/A|RUNNING|None|n0|nml-cd")
    answers("sacct", "12|RUNNING|n0|/runs/b/launch/snapshots/0\n13|FAILED|n0|/runs/a/launch/snapshots/0")
    found = job_states([job("12"), job("12", "nml-cd"), job("13")])
    assert [state.state for state in found.values()] == ["UNKNOWN", "RUNNING", "FAILED"]


def test_accounting_is_asked_for_what_the_queue_has_forgotten(answers) -> None:
    lines = ("7|CANCELLED by 0|n1", "8_2|NODE_FAIL|n2", "9|PREEMPTED|n3")
    answers("sacct", "\n".join(f"{line}|/runs/a/launch/snapshots/0" for line in lines))
    found = job_states([job("7"), job("8_2"), job("9"), job("10")])
    assert [state.state for state in found.values()] == [
        *("CANCELLED", "NODE_FAIL", "PREEMPTED", "UNKNOWN"),
    ]
    assert found[job("7")] == JobState("CANCELLED", "", "n1")
    assert not any(state.active for state in found.values())


def test_accounting_is_asked_for_allocations_alone_and_in_the_columns_that_are_read(
    tmp_path: Path, answers
) -> None:
    # Steps of a job would be told as jobs of their own.
    (tmp_path / "sacct").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    job_states([job("7"), job("8_2"), job("8_3")])
    asked = (tmp_path / "asked").read_text().split()
    assert {"--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList,WorkDir"} <= {*asked}
    assert asked[asked.index("--jobs") + 1] == "7,8"


def test_a_preempted_job_is_not_coming_back(answers) -> None:
    # One that is requeued is in no such state, but waits again.
    answers("squeue", "9|N/A|PREEMPTED|None||nml-ab")
    assert not is_active(job("9"))


def test_no_jobs_need_no_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_states([]) == {}
    assert job_states([job("1")])[job("1")].state == "UNKNOWN"


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put jobs into a squeue that prints the columns it is asked for, by Slurm's letters for them."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def put(*jobs: dict[str, str]) -> None:
        (tmp_path / "squeue").write_text(QUEUE.format(python=sys.executable, jobs=jobs))
        (tmp_path / "squeue").chmod(0o755)

    return put


ELEMENT = {"F": "13", "K": "1", "A": "15", "T": "PENDING", "r": "Dependency", "N": "", "k": "own nml-ab"}
SINGLE = {"F": "12", "K": "N/A", "A": "12", "T": "RUNNING", "r": "None", "N": "n[0-3]", "k": "nml-cd"}


def test_every_column_of_the_queue_is_what_it_is_taken_for(queue) -> None:
    queue(ELEMENT, SINGLE)
    assert job_states([job("13_1"), job("12", "nml-cd")]) == {
        job("13_1"): JobState("PENDING", "Dependency", ""),
        job("12", "nml-cd"): JobState("RUNNING", "", "n[0-3]"),
    }
    assert jobs_by_token("nml-ab") == ["13"]
    assert jobs_by_token("nml-cd") == ["12"]


# All states of squeue's and sacct's manuals.
ACTIVE = (
    *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "STAGE_OUT", "STOPPED"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "SPECIAL_EXIT"),
)
ENDED = (
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "UNKNOWN"),
)


def test_a_job_is_active_in_every_state_from_which_it_may_still_run(queue) -> None:
    states_of = {job(str(number), "nml-cd"): state for number, state in enumerate((*ACTIVE, *ENDED))}
    queue(*({**SINGLE, "F": one.id, "T": state} for one, state in states_of.items()))
    found = job_states(states_of)
    assert {states_of[one] for one, state in found.items() if state.active} == set(ACTIVE)
    assert [is_active(one) for one in found] == [True] * len(ACTIVE) + [False] * len(ENDED)


def test_the_queue_is_asked_for_every_element_in_every_state_and_as_often_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "squeue").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit 1\n')
    (tmp_path / "squeue").chmod(0o755)
    with pytest.raises(NoAnswer):
        job_states([job("1")], tries=1)
    with pytest.raises(NoAnswer):
        job_states([job("1"), job("2")._replace(user="ada")], tries=1)
    own, others = (set(line.split()) for line in (tmp_path / "asked").read_text().splitlines())
    assert {"--me", "--states=all", "--array", "--format=%F|%K|%T|%r|%N|%k"} <= own
    assert others - own == {f"--user={','.join(sorted(['ada', own_user()]))}"}


def test_accounting_that_does_not_answer_in_time_knows_nothing(
    tmp_path: Path, answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "_ANSWER_SECONDS", 0.1)
    (tmp_path / "sacct").write_text("#!/bin/sh\nsleep 3\necho '7|COMPLETED|n1|/runs/a/launch'\n")
    assert job_states([job("7")]) == {job("7"): JobState("UNKNOWN")}
