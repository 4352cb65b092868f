"""Who shares a run shares its job: sweeps, the command of the run itself, and another user."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm


def jobs_in(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "launch" / "jobs.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "submitted"]


def test_two_sweeps_submit_what_they_share_once_and_both_complete(project, cluster, waiting) -> None:
    cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        project.launch("sweep", "--name", "a", "--noise", "0", "0.1", "0.2", "--plugins", "lp")
        said = project.launch("sweep", "--name", "b", "--noise", "0.1", "0.2", "--plugins", "mlp")
        assert "pretrain: 2 in the queue" in said
        assert "submitted 3 members" in said
        [job] = jobs_in(project.work / "runs" / "quickstart-n10-seed0")
        assert job["folder"] == f"{project.work}/sweeps/a/launch"
        said = project.launch("pretrain", "--noise", "0.1")
        assert f"already submitted as job {job['jobs'][0]}" in said
        assert re.search(rf"n10-seed0 +PENDING +{job['jobs'][0]}", project.launch("status", "sweeps/b"))
        # The first sweep is taken out of the queue, but for what the second one waits for: runs and sets.
        said = project.launch("cancel", "sweeps/a")
        assert len(re.findall(r"left job \d+_[12]: job \d+(?:_\d)? of root waits for it", said)) == 4, said
    finally:
        cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
    project.launch("resume", "sweeps/a")
    waiting(lambda: not cluster.call("squeue", "--noheader").strip(), "an empty queue")
    for name in "ab":
        assert "nothing to submit" in project.launch("resume", f"sweeps/{name}")
    assert not re.search("FAILED|CANCELLED|TO DO", project.launch("status"))
    # One start of each run, and one of each set.
    assert len(list(project.work.glob("runs/*/launch/attempts/*"))) == 3
    assert len(list(project.work.glob("jobs/shards-*/launch/attempts/*"))) == 3


def test_what_another_user_trains_is_not_submitted_again(project, bare_cluster) -> None:
    words = ("--hold", "--comment=nml-ab12", "--output=/dev/null", "--chdir=/", "--wrap=true")
    theirs = subprocess.run(["sbatch", "--parsable", *words], user="nobody", capture_output=True, check=True)
    job = theirs.stdout.decode().strip()
    launch = project.work / "runs" / "quickstart-n20-seed0" / "launch"
    launch.mkdir(parents=True)
    line = {"event": "submitted", "time": 1.0, "stage": "pretrain", "token": "nml-ab12", "user": "nobody"}
    line |= {
        "members": ["pretrain quickstart-n20-seed0"],
        "jobs": [job],
        "folder": "/home/nobody/sweep/launch",
    }
    (launch / "jobs.jsonl").write_text(json.dumps(line) + "\n")
    assert f"runs as job {job} of nobody" in project.launch("pretrain", "--noise", "0.2")
    said = project.launch("sweep", "--noise", "0.2", "--plugins", "lp")
    assert f"pretrain quickstart-n20-seed0 runs as job {job} of nobody" in said
    assert "pretrain: 1 in the queue" in said
    assert f"afterok:{job}(" in bare_cluster.call("squeue", "--noheader", "--me", "--format=%E")
    assert "left job" in project.launch("cancel", "sweeps/sweep")
    assert bare_cluster.call("squeue", "--noheader", "--format=%A").split() == [job]
    # A job of that number without the word is another one.
    (launch / "jobs.jsonl").write_text(json.dumps(line | {"token": "nml-cd34"}) + "\n")
    assert "submitted job" in project.launch("pretrain", "--noise", "0.2")
    bare_cluster.call("scancel", job)
