"""Ranks in containers: what is mounted, and how srun, the agent and the programs between them are told."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from nml.errors import UserError
from slurm.cluster import Resources
from slurm.container import command_inside, enter, srun_words
from slurm.executor import on_the_nodes
from slurm.job import agents_command
from slurm.members import Container, Member, Submission
from slurm.snapshot import take_snapshot
from tests.slurm.supervised import SupervisedJob, python

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def submission(tmp_path: Path) -> Submission:
    for name in ("code", "work/run/launch", "sets"):
        (tmp_path / name).mkdir(parents=True)
    words = ("-m", "pretrain.run", "--shards", str(tmp_path / "sets/not/yet"), f"--x={tmp_path / 'work/run'}")
    member = Member(
        name="pretrain run",
        argv=(sys.executable, *words),
        record=str(tmp_path / "work/run/launch/attempts"),
        cwd=str(tmp_path / "work"),
    )
    return Submission(
        stage="pretrain",
        token="nml-0",
        snapshot=str(tmp_path / "code"),
        members=(member,),
        max_idle_attempts=5,
    )


def test_the_code_the_run_and_its_data_are_mounted_and_what_else_the_user_says(
    submission: Submission, tmp_path: Path
) -> None:
    asked = Resources(
        container="torch.sqsh", container_mounts=("/scratch:/scratch",), python="/env/bin/python"
    )
    inside = on_the_nodes(submission, asked, tmp_path / "work/run/launch")
    assert inside.container is not None
    own = [f"{tmp_path}/{name}:{tmp_path}/{name}" for name in ("code", "sets", "work")]
    assert inside.container.mounts == (*own, "/scratch:/scratch")
    # The container has an interpreter of its own.
    assert inside.members[0].argv[0] == "python3"
    assert srun_words(inside.container, inside.snapshot) == [
        "--container-image=torch.sqsh",
        f"--container-mounts={','.join(inside.container.mounts)}",
        f"--container-workdir={tmp_path}/code",
    ]
    command = agents_command(inside, Path("s.json"), 2)
    assert command[-5:] == ["python3", "-u", "-m", "slurm.agent", "s.json"]
    assert (
        on_the_nodes(submission, Resources(python="/env/python"), tmp_path).members[0].argv[0]
        == "/env/python"
    )


def test_a_path_that_no_container_can_mount_is_refused(submission: Submission, tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    member = dataclasses.replace(submission.members[0], cwd=str(tmp_path / "a:b"))
    submission = dataclasses.replace(submission, members=(member,))
    with pytest.raises(UserError, match="cannot mount a path"):
        enter(submission, Container(image="i", runtime="pyxis", python="python3"), tmp_path / "code")


def test_apptainer_is_told_of_gpus_mounts_and_the_working_folder() -> None:
    container = Container(image="t.sif", runtime="apptainer", python="python3", mounts=("/a:/a",), gpus=True)
    assert command_inside(container, ["python3", "x"], "/a/b") == [
        *("apptainer", "exec", "--nv", "--bind", "/a:/a", "--pwd", "/a/b", "t.sif", "python3", "x"),
    ]
    assert srun_words(container, "/code") == []


def test_a_rank_that_is_killed_in_its_container_is_started_again_in_place(
    tmp_path: Path, monkeypatch
) -> None:
    job = SupervisedJob(tmp_path, take_snapshot(tmp_path / "snapshots", ROOT))
    # As apptainer: it stays, passes everything on, and ends as its command did.
    (job.bin / "apptainer").write_text(
        '#!/bin/bash\nwhile [ "$1" != IMAGE ]; do shift; done\nshift\n"$@"\nstatus=$?\nexit $status\n'
    )
    (job.bin / "apptainer").chmod(0o755)
    container = Container(image="IMAGE", runtime="apptainer", python=sys.executable)
    write = Submission.write
    monkeypatch.setattr(
        Submission, "write", lambda own, file: write(dataclasses.replace(own, container=container), file)
    )
    script = "if once('first') and rank == 0: os.kill(os.getpid(), signal.SIGKILL)\nPath('DONE.json').touch()"
    try:
        ended = job.run(python(script), nodes=1)
    finally:
        job.kill()
    assert ended["outcome"] == "done", ended
    [restart] = job.restarts()
    assert "killed" in restart["reason"] or "SIGKILL" in restart["reason"], json.dumps(restart)
