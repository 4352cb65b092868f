"""A finished run of the right name is not yet the one that is asked for."""

from __future__ import annotations

import json
import shutil

import pytest


def test_a_finished_run_is_not_taken_for_one_with_other_settings(project) -> None:
    sweep = ("sweep", "--cluster", "local", "--noise", "0", "--plugins", "lp")
    project.launch(*sweep)
    shutil.copytree(project.work / "data" / "shards" / "digits-n00", project.work / "other")
    run = project.work / "runs" / "quickstart-n00-seed0"
    held = f"{project.work}/data/shards/digits-n00"
    for words, error in (
        (("--epochs", "7"), f"recipe.epochs 7: {run} holds a run with 1; sweep in another folder"),
        (
            ("--recipe.steps", "9", "--dry-run"),
            f"recipe.steps 9: {run} holds a run with 12; sweep in another folder",
        ),
        (("--shards", "other"), f"--shards other: {run} holds a run with {held}; sweep"),
    ):
        said = project.launch(*sweep, *words, status=2).strip().splitlines()
        assert said[-1].startswith(f"error: {error}")
        assert "Traceback" not in "".join(said)
    project.launch(*sweep)


def test_a_run_is_known_by_its_samples_where_its_set_has_moved(project) -> None:
    sweep = ("sweep", "--cluster", "local", "--noise", "0", "0.2", "--plugins", "lp")
    (project.work / "old").mkdir()
    record = {
        "format": "nml-shards/1",
        "levels": {"n20": {}},
        "fingerprint": "f",
        "manifest_sha256": "m",
    }
    (project.work / "old" / "set.json").write_text(json.dumps(record))
    project.launch(*sweep, "--shards", "old")
    for run in (project.work / "runs").iterdir():
        noise = {"set_fingerprint": "f", "manifest_sha256": "m"}
        (run / "export" / "meta.json").write_text(json.dumps({"noise": noise}))
    (project.work / "old").rename(project.work / "new")
    project.launch(*sweep, "--shards", "new")
    record["manifest_sha256"] = "of other flips"
    (project.work / "new" / "set.json").write_text(json.dumps(record))
    said = project.launch(*sweep, "--shards", "new", status=2)
    assert f"--shards new: {project.work}/runs/quickstart-n20-seed0 holds a run with" in said


@pytest.mark.slurm
@pytest.mark.parametrize("words", [("pretrain",), ("sweep", "--noise", "0")])
def test_a_run_in_the_queue_is_not_taken_for_one_with_other_settings(project, cluster, words) -> None:
    cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        project.launch(*words, "--epochs", "2")
        said = project.launch(*words, "--epochs", "7", status=2)
        assert "--epochs 7: pretrain" in said
        assert " is in the queue as job " in said
        assert said.strip().endswith(" with 2; cancel it first, or wait for its end")
        # What was refused is not what resume would say.
        folder = "sweeps/sweep" if words[0] == "sweep" else "runs/quickstart-n00-seed0"
        assert "--epochs 2" in project.launch("resume", folder).splitlines()[0]
    finally:
        cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
