from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nml.locking import held_alone

SWEEP = ("sweep", "--noise", "0", "0.1", "0.2", "--plugins", "lp", "mlp")


def computed(work: Path) -> list[str]:
    return sorted((work / "results" / "computed.txt").read_text().splitlines())


def journal(work: Path) -> list[dict[str, Any]]:
    file = work / "sweeps" / "sweep" / "launch" / "jobs.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def without_squeue(folder: Path, path: str) -> str:
    """Return a PATH whose squeue has forgotten every job."""
    folder.mkdir()
    (folder / "squeue").write_text("#!/bin/sh\n")
    (folder / "squeue").chmod(0o755)
    return f"{folder}:{path}"


def started_since(before: set[int]) -> list[str]:
    """Return the command lines of processes that are new."""
    found = []
    for process in psutil.process_iter():
        if process.pid not in before:
            with contextlib.suppress(psutil.Error):
                found.append(" ".join([process.cwd(), *process.cmdline()]))
    return found


def test_a_sweep_with_local_processes_computes_each_part_once(project) -> None:
    words = ("sweep", "--cluster", "local", "--noise", "0", "0.2", "--plugins", "lp", "mlp")
    project.launch(*words)
    runs = [f"quickstart-{level}-seed0" for level in ("n00", "n20")]
    assert computed(project.work) == sorted(f"{run} digits {head}" for run in runs for head in ("lp", "mlp"))
    assert (project.work / "sweeps" / "sweep" / "report" / "report.html").read_text() == "4"

    (project.work / "results" / "computed.txt").unlink()
    project.launch(*words)
    assert not (project.work / "results" / "computed.txt").exists()

    (project.work / "results" / "rows" / "quickstart-n20-seed0-digits-mlp.parquet").unlink()
    project.launch(*words)
    assert computed(project.work) == ["quickstart-n20-seed0 digits mlp"]

    rows = project.launch("status").splitlines()[1:]
    assert [row.split()[0] for row in rows] == [*["shards"] * 2, *["pretrain"] * 2, *["probes"] * 2, "report"]
    assert all("COMPLETED" in row for row in rows)


def test_a_deleted_result_of_a_task_in_files_is_computed_again_and_nothing_else(project) -> None:
    # A row does not call the task and the run what its user typed, least of all where runs/ is a link.
    (project.work / "disk").mkdir()
    (project.work / "runs").symlink_to("disk")
    words = (
        "sweep",
        "--cluster",
        "local",
        "--noise",
        "0",
        "--plugins",
        "lp",
        "mlp",
        "--tasks",
        "tsv:a/b,a/c",
    )
    project.launch(*words)
    (project.work / "results" / "computed.txt").unlink()
    project.launch(*words)
    assert not (project.work / "results" / "computed.txt").exists()
    (project.work / "results" / "rows" / "quickstart-n00-seed0-tsv:a_b,a_c-mlp.parquet").unlink()
    project.launch(*words)
    assert computed(project.work) == ["quickstart-n00-seed0 tsv:a/b,a/c mlp"]


def test_a_failed_run_leaves_its_children_out_and_the_others_go_on(project) -> None:
    words = ("sweep", "--cluster", "local", "--noise", "0.2", "--plugins", "lp", "--recipe.fail", "3")
    said = project.launch(*words, status=1)
    assert "failed: pretrain quickstart-n20-seed0" in said
    assert "failed: probes quickstart-n20-seed0 digits" in said
    assert (project.work / "sweeps" / "sweep" / "report" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--noise", "0", "1.5"), "--noise 1.5: not a noise ratio"),
        (("--noise", "0.1", "0.1"), "--noise 0.1: given twice"),
        (("--plugins", "nmtun"), "did you mean nmtune"),
        (("--tasks", "digits", "flowers"), "did you mean flowers102?"),
        (("--recipes", "quickstrat"), "did you mean quickstart?"),
        (("--name", "a/b"), "--name a/b: not a folder name"),
        (("--shards", "nowhere"), "no shard set there"),
        (
            ("--", "--results", "other"),
            "-- --results: the sweep sets it for every probe; say sweep --results",
        ),
        (("--", "--task=dtd"), "-- --task: the sweep sets it for every probe; say sweep --tasks"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(refused, words, error) -> None:
    assert error in refused("sweep", "--cluster", "local", *words)


@pytest.mark.parametrize(
    ("words", "folder"), [(("sweep",), "sweeps/sweep"), (("pretrain",), "runs/quickstart-n20-seed0")]
)
def test_two_launchers_of_one_folder_do_not_both_launch(project, words, folder) -> None:
    launch = project.work / folder / "launch"
    with held_alone(launch, busy=""):
        said = project.launch(*words, "--cluster", "local", "--noise", "0.2", status=2)
    assert f"{launch}: another command launches it; wait for it, or end it" in said
    assert not (project.work / "results").exists()
    project.launch(*words, "--cluster", "local", "--noise", "0.2")


@pytest.mark.slurm
class TestOnSlurm:
    def drained(self, cluster) -> bool:
        return not cluster.call("squeue", "--noheader").strip()

    def jobs_of(self, said: str) -> list[str]:
        found = re.search(r"submitted \d+ members as jobs ([\d, ]+)", said)
        assert found, said
        return found[1].split(", ")

    def test_a_sweep_completes_with_no_process_on_the_login_side(self, project, cluster, waiting) -> None:
        cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
        before = {process.pid for process in psutil.process_iter()}
        said = project.launch(*SWEEP)
        assert len(self.jobs_of(said)) == 4
        # The whole sweep waits, and all of it that lives is in the queue and on disk.
        assert not [process for process in started_since(before) if str(project.work) in process]
        cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
        waiting(lambda: self.drained(cluster), "an empty queue")
        assert (project.work / "sweeps" / "sweep" / "report" / "report.html").read_text() == "6"
        assert "nothing to submit" in project.launch(*SWEEP)

        (project.work / "results" / "computed.txt").unlink()
        (project.work / "results" / "rows" / "quickstart-n10-seed0-digits-mlp.parquet").unlink()
        said = project.launch(*SWEEP)
        assert "probes: 2 complete, 1 to do" in said
        waiting(lambda: self.drained(cluster), "an empty queue")
        assert computed(project.work) == ["quickstart-n10-seed0 digits mlp"]
        assert "nothing to submit" in project.launch(*SWEEP)

    def test_arrays_are_cut_to_the_size_that_the_cluster_allows(self, project, bare_cluster, waiting) -> None:
        words = (*SWEEP, "--tasks", "digits", "dtd")
        assert "submitted 13 members" in project.launch(*words)
        arrays = [line["members"] for line in journal(project.work) if line["event"] == "submitted"]
        # 3 sets, 3 runs, 2 x 3 probes, 1 report.
        assert [len(members) for members in arrays] == [2, 1, 2, 1, 2, 1, 2, 1, 1]
        waiting(lambda: self.drained(bare_cluster), "an empty queue")
        assert computed(project.work) == sorted(
            f"quickstart-{level}-seed0 {task} {head}"
            for level in ("n00", "n10", "n20")
            for task in ("digits", "dtd")
            for head in ("lp", "mlp")
        )
        assert (project.work / "sweeps" / "sweep" / "report" / "report.html").read_text() == "12"

    def test_a_queue_that_takes_no_more_is_filled_and_the_rest_follows(
        self, project, cluster, waiting
    ) -> None:
        def allow(count: int) -> None:
            cluster.call("sacctmgr", "--immediate", "modify", "user", "root", "set", f"MaxSubmitJobs={count}")

        cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
        allow(4)
        try:
            said = project.launch(*SWEEP, status=75)
        finally:
            allow(-1)
        # 3 sets, and of the array of 3 runs the first.
        assert "submitted 4 members" in said
        assert "6 members are left" in said
        assert "you may have no more jobs in the queue (" in said
        cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
        said = project.launch(*SWEEP)
        waiting(lambda: self.drained(cluster), "an empty queue")
        assert (project.work / "sweeps" / "sweep" / "report" / "report.html").read_text() == "6"
        assert len(computed(project.work)) == 6

    def test_a_sweep_that_slurm_refuses_half_way_leaves_nothing_in_the_queue(
        self, project, cluster, waiting: Callable[..., None]
    ) -> None:
        # The probes ask for what the cluster does not have; sets and runs are in the queue by then.
        (project.work / "cluster.yaml").write_text("stages: {probes: {constraint: h100}}\n")
        said = project.launch(*SWEEP, "--cluster-file", "cluster.yaml", status=2)
        assert said.strip().splitlines()[-1].startswith("error: sbatch refused probes: ")
        assert "Traceback" not in said
        waiting(lambda: self.drained(cluster), "an empty queue")
        events = [(line["stage"], line["event"]) for line in journal(project.work)]
        assert events[-2:] == [("probes", "submitting"), ("probes", "refused")]

    def test_what_is_in_the_queue_is_not_submitted_again(self, project, cluster) -> None:
        words = ("sweep", "--noise", "0", "0.2", "--recipe.hold", "2")
        project.launch(*words)
        assert "nothing to submit" in project.launch(*words)
        lines = journal(project.work)
        assert [line["event"] for line in lines] == ["submitting", "submitted"] * 4
        assert [line["stage"] for line in lines[::2]] == ["shards", "pretrain", "probes", "report"]

    def test_a_member_of_an_array_is_requeued_alone(self, project, cluster, waiting) -> None:
        said = project.launch("sweep", "--noise", "0", "0.2", "--plugins", "lp", "--recipe.hold", "6")
        array = self.jobs_of(said)[1]
        runs = [project.work / "runs" / f"quickstart-{level}-seed0" for level in ("n00", "n20")]
        for run in runs:
            waiting(lambda run=run: (run / "metrics.jsonl").exists(), "the first step")

        def field(member: int, name: str) -> str:
            shown = cluster.call("scontrol", "show", "job", f"{array}_{member}", "--oneliner")
            return re.search(rf"\b{name}=(\S+)", shown)[1]

        cluster.call("scancel", "--signal=USR2", f"{array}_1")
        waiting(lambda: field(1, "Restarts") == "1" and field(1, "JobState") == "PENDING", "the requeue")
        assert (field(0, "Restarts"), field(0, "JobState")) == ("0", "RUNNING")
        cluster.call("scontrol", "update", f"JobId={array}_1", "StartTime=now+2")
        for run in runs:
            (run / "go").touch()
        # What waited for the array went on waiting for the member that came back.
        waiting(lambda: self.drained(cluster), "an empty queue")
        assert (project.work / "sweeps" / "sweep" / "report" / "report.html").read_text() == "2"

    def test_children_of_a_failed_run_do_not_wait_for_ever(
        self, project, cluster, waiting: Callable[..., None], tmp_path: Path
    ) -> None:
        words = ("sweep", "--noise", "0", "0.2", "--plugins", "lp")
        project.launch(*words, "--recipe.fail", "3")
        waiting(lambda: self.drained(cluster), "an empty queue")
        # The report, which waits for the end of its parents, good or bad, has run.
        assert (project.work / "sweeps" / "sweep" / "report").exists()
        forgetful = without_squeue(tmp_path / "bin", cluster.environment["PATH"])
        for said in (project.launch("status"), project.launch("status", PATH=forgetful)):
            rows = {" ".join(row.split()[:2]): row for row in said.splitlines()[1:]}
            assert re.search(
                r"FAILED .* rank 0 on n\d: exit status 1: ValueError: the toy was told to fail$",
                rows["pretrain quickstart-n20-seed0"],
            )
            assert re.search(
                r"CANCELLED .* pretrain quickstart-n20-seed0 failed$", rows["probes quickstart-n20-seed0"]
            )
            assert rows["report report"].endswith("parts are missing from it")
        said = project.launch(*words)
        assert "pretrain: 2 to do" in said
        assert "shards: 2 complete" in said
        waiting(lambda: self.drained(cluster), "an empty queue")
        assert (project.work / "sweeps" / "sweep" / "report" / "report.html").read_text() == "2"
