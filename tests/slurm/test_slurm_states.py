"""Slurm's word on jobs, as squeue and sacct print it."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.states import JobState, job_states


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
    answers("squeue", "12|N/A|RUNNING|None|n[0-3]|12\n13|0|PENDING|Dependency||13\n13|1|COMPLETED|None|n1|14")
    assert job_states(["12", "13_0", "13_1"]) == {
        "12": JobState("RUNNING", "", "n[0-3]"),
        "13_0": JobState("PENDING", "Dependency", ""),
        "13_1": JobState("COMPLETED", "", "n1"),
    }


def test_accounting_is_asked_for_what_the_queue_has_forgotten(answers) -> None:
    answers("sacct", "7|CANCELLED by 0|n1\n8_2|NODE_FAIL|n2\n9|PREEMPTED|n3")
    found = job_states(["7", "8_2", "9", "10"])
    assert [found[job].state for job in ("7", "8_2", "9", "10")] == [
        *("CANCELLED", "NODE_FAIL", "CANCELLED", "UNKNOWN"),
    ]
    assert not any(state.active for state in found.values())


def test_a_preempted_job_of_the_queue_is_coming_back(answers) -> None:
    answers("squeue", "9|N/A|PREEMPTED|None||9")
    assert job_states(["9"])["9"].active


def test_no_jobs_need_no_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_states([]) == {}
    assert job_states(["1"])["1"].state == "UNKNOWN"
