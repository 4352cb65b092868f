from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nml.errors import UserError
from nml.locking import held_alone
from slurm.continuing import main as go_on

COUNTED = 'echo >> "$HERE/calls"\nexec "$REAL" "$@"\n'
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

    rows = project.launch("status", "sweeps/sweep").splitlines()[1:]
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
        (("--plugins", "lp", "--", "--hyper", "nmtune.lr=1"), "head: unknown name 'nmtune'"),
        (("--", "--hyper", "mlp.layers=0"), "--hyper: mlp: layers 0; possible: 1 or more"),
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


def test_where_a_node_may_not_submit_the_command_to_say_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^sbatch is not on the PATH of .*; on a login node: .* resume "):
        go_on(tmp_path / "sweeps" / "sweep")


@pytest.mark.slurm
class TestOnSlurm:
    def drained(self, cluster) -> bool:
        return not cluster.call("squeue", "--noheader").strip()

    def jobs_of(self, said: str) -> list[str]:
        found = re.search(r"submitted \d+ members as jobs ([\d, ]+)", said)
        assert found, said
        return found[1].split(", ")

    def test_a_sweep_completes_with_no_process_on_the_login_side(
        self, project, cluster, waiting, stand_in: Callable[[str, str], Path], tmp_path: Path
    ) -> None:
        cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
        # One of the sets is there.
        there = project.work / "data" / "shards" / "digits-n10" / "set.json"
        there.parent.mkdir(parents=True)
        there.write_text('{"format": "nml-shards/1", "levels": {"n10": {}}}')
        path = f"{stand_in('sbatch', COUNTED)}:{cluster.environment['PATH']}"
        before = {process.pid for process in psutil.process_iter()}
        said = project.launch(*SWEEP, PATH=path)
        # 2 sets; the run that needs none and the 2 that do; the probes of each; the report.
        assert len(self.jobs_of(said)) == 6
        assert len((tmp_path / "bin" / "calls").read_text().splitlines()) == 6
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

    def test_arrays_are_cut_to_the_size_that_the_cluster_allows(self, project, bare_cluster) -> None:
        bare_cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
        try:
            assert "submitted 13 members" in project.launch(*SWEEP, "--tasks", "digits", "dtd")
        finally:
            bare_cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
        arrays = [line["members"] for line in journal(project.work) if line["event"] == "submitted"]
        # 3 sets, 3 runs, the 2 probes of each run, the report.
        assert [len(members) for members in arrays] == [2, 1, 2, 1, 2, 2, 2, 1]

    def test_a_queue_that_takes_no_more_is_filled_again_by_a_job(self, project, cluster, waiting) -> None:
        def allow(count: int) -> None:
            cluster.call("sacctmgr", "--immediate", "modify", "user", "root", "set", f"MaxSubmitJobs={count}")

        cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
        allow(4)
        try:
            said = project.launch("sweep", "--noise", "0", "0.2", "--plugins", "lp")
            # 2 sets and a run, and the one that goes on in the place of the second run.
            assert "submitted 3 members" in said
            assert re.search(r"4 members are left: .*you may have no more jobs in the queue \(", said)
            assert re.search(r"job \d+ submits them, once those before it have ended", said)
            cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
            report = project.work / "sweeps" / "sweep" / "report" / "report.html"
            waiting(report.exists, "a report that nobody submitted from here", 120)
            waiting(lambda: self.drained(cluster), "an empty queue")
        finally:
            allow(-1)
        assert report.read_text() == "2"
        assert len(computed(project.work)) == 2
        assert len(list(project.work.glob("runs/*/launch/attempts/*"))) == 2
        assert not re.search("FAILED|CANCELLED|TO DO|UNKNOWN", project.launch("status"))

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

    def test_one_at_a_time_is_one_at_a_time_over_all_arrays_and_after_a_requeue(
        self, project, cluster, waiting
    ) -> None:
        words = ("sweep", "--noise", "0", "--seeds", "0", "1", "--plugins", "lp", "--recipe.hold", "6")
        words = (*words, "--array-parallelism", "1")
        shown = project.launch(*words, "--dry-run")
        assert not list(project.work.iterdir())
        arrays = self.jobs_of(project.launch(*words))

        # What the dry run has shown is what sbatch was given, but for ids.
        assert shown.count("#!/bin/bash") == len(arrays) == 4
        launch = project.work / "sweeps" / "sweep" / "launch"
        tokens = {
            array: line["token"]
            for line in journal(project.work)
            for array in arrays
            if any(job.startswith(array) for job in line.get("jobs", ()))
        }
        for array in arrays:
            [script] = launch.glob(f"{array}*_submission.sh")
            handed = script.read_text().replace(tokens[array], "TOKEN")
            snapshot = json.loads((launch / f"{tokens[array]}.json").read_text())["snapshot"]
            handed = handed.replace(shlex.quote(snapshot), "SNAPSHOT")
            for number, job in enumerate(arrays, 1):
                handed = re.sub(rf"(?<=:){job}\b", f"JOB{number}", handed)
            assert handed in shown

        runs = [project.work / "runs" / f"quickstart-n00-seed{seed}" for seed in (0, 1)]

        first = f"{arrays[1]}_0"
        waiting((runs[0] / "metrics.jsonl").exists, "the first step")
        # A job that is requeued before accounting has heard of its start has none there.
        waiting(lambda: self.known(cluster, [first]), "accounting", pause=0.3)
        cluster.call("scancel", "--signal=USR2", first)
        waiting((runs[1] / "metrics.jsonl").exists, "the other's first step")
        cluster.let_come_back(first, 1)
        waiting(
            lambda: cluster.field(first, "Reason") == "JobArrayTaskLimit",
            "the one that came back to wait for its turn",
        )
        for run in runs:
            (run / "go").touch()
        waiting(lambda: self.drained(cluster), "an empty queue")
        assert (project.work / "sweeps" / "sweep" / "report" / "report.html").read_text() == "2"
        # A set, two runs of which one ran twice, two probes and the report.
        waiting(lambda: len(self.ended(cluster, arrays)) == 7, "accounting", pause=0.3)
        # What ends in a second makes room for what begins in it.
        for one, other in itertools.combinations(self.ended(cluster, arrays), 2):
            assert one[0] >= other[1] or other[0] >= one[1]

    def ended(self, cluster, jobs: list[str]) -> list[tuple[str, str]]:
        return [(start, end) for start, end in self.known(cluster, jobs) if end[0].isdigit()]

    def known(self, cluster, jobs: list[str]) -> list[tuple[str, str]]:
        """Return the beginnings and ends that accounting knows of jobs, to the second."""
        words = ("--duplicates", "--noheader", "--parsable2", "--allocations", "--format=Start,End")
        rows = [row.split("|") for row in cluster.call("sacct", *words, f"--jobs={','.join(jobs)}").split()]
        return [(start, end) for start, end in rows if start[0].isdigit()]

    def test_children_of_a_failed_run_do_not_wait_for_ever(
        self, project, cluster, waiting: Callable[..., None], tmp_path: Path
    ) -> None:
        words = ("sweep", "--noise", "0", "0.2", "--plugins", "lp")
        project.launch(*words, "--recipe.fail", "3")
        waiting(lambda: self.drained(cluster), "an empty queue")
        # The report, which waits for the end of its parents, good or bad, has run.
        assert (project.work / "sweeps" / "sweep" / "report").exists()
        forgetful = without_squeue(tmp_path / "bin", cluster.environment["PATH"])
        told = ("status", "sweeps/sweep")
        for said in (project.launch(*told), project.launch(*told, PATH=forgetful)):
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
