from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

SWEEP = ("sweep", "--noise", "0", "0.1", "0.2", "--plugins", "lp", "mlp")


def computed(work: Path) -> list[str]:
    return sorted((work / "results" / "computed.txt").read_text().splitlines())


def test_a_sweep_with_local_processes_computes_each_part_once(project) -> None:
    project.launch(*SWEEP, "--cluster", "local")
    runs = [f"quickstart-{level}-seed0" for level in ("n00", "n10", "n20")]
    assert computed(project.work) == sorted(f"{run} {head}" for run in runs for head in ("lp", "mlp"))
    assert (project.work / "sweeps" / "sweep" / "report" / "report.html").read_text() == "6"
    (project.work / "results" / "computed.txt").unlink()
    project.launch(*SWEEP, "--cluster", "local")
    assert not (project.work / "results" / "computed.txt").exists()


def test_a_deleted_result_is_computed_again_and_nothing_else(project) -> None:
    project.launch(*SWEEP, "--cluster", "local")
    (project.work / "results" / "computed.txt").unlink()
    (project.work / "results" / "rows" / "quickstart-n10-seed0-mlp.parquet").unlink()
    project.launch(*SWEEP, "--cluster", "local")
    assert computed(project.work) == ["quickstart-n10-seed0 mlp"]


def test_a_failed_run_leaves_its_children_out_and_the_others_go_on(project) -> None:
    words = (*SWEEP[:3], "0.2", "--plugins", "lp", "--cluster", "local", "--recipe.fail", "3")
    said = project.launch(*words, status=1)
    assert "failed: pretrain quickstart-n00-seed0" in said
    assert "failed: probes quickstart-n20-seed0 digits" in said


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--noise", "0", "1.5"), "--noise 1.5: not a noise ratio"),
        (("--noise", "0.1", "0.1"), "--noise 0.1: given twice"),
        (("--plugins", "nmtun"), "did you mean nmtune?"),
        (("--recipes", "quickstrat"), "did you mean quickstart?"),
        (("--name", "a/b"), "--name a/b: not a folder name"),
        (("--shards", "nowhere"), "not a complete shard set"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(project, words, error) -> None:
    said = project.launch("sweep", "--cluster", "local", *words, status=2)
    assert error in said
    assert len(said.strip().splitlines()) == 1
    assert not list(project.work.iterdir())


@pytest.mark.slurm
class TestOnSlurm:
    def drained(self, cluster) -> bool:
        return not cluster.call("squeue", "--noheader").strip()

    def jobs_of(self, said: str) -> list[str]:
        found = re.search(r"submitted \d+ members as jobs ([\d, ]+)", said)
        assert found, said
        return found[1].split(", ")

    def test_a_sweep_completes_with_no_process_on_the_login_side(self, project, cluster, waiting) -> None:
        said = project.launch(*SWEEP)
        assert len(self.jobs_of(said)) == 4
        waiting(lambda: self.drained(cluster), "an empty queue")
        assert (project.work / "sweeps" / "sweep" / "report" / "report.html").read_text() == "6"
        assert "nothing to submit" in project.launch(*SWEEP)

        (project.work / "results" / "computed.txt").unlink()
        (project.work / "results" / "rows" / "quickstart-n10-seed0-mlp.parquet").unlink()
        said = project.launch(*SWEEP)
        assert "probes: 2 complete, 1 to do" in said
        waiting(lambda: self.drained(cluster), "an empty queue")
        assert computed(project.work) == ["quickstart-n10-seed0 mlp"]
        assert "nothing to submit" in project.launch(*SWEEP)

    def test_what_is_in_the_queue_is_not_submitted_again(self, project, cluster) -> None:
        hold = ("--recipe.hold", "2")
        project.launch(*SWEEP, *hold)
        assert "nothing to submit" in project.launch(*SWEEP, *hold)

    def test_children_of_a_failed_run_do_not_wait_for_ever(
        self, project, cluster, waiting: Callable[..., None]
    ) -> None:
        project.launch(*SWEEP, "--recipe.fail", "3")
        waiting(lambda: self.drained(cluster), "an empty queue")
        # The report, which waits for the end of its parents, good or bad, has run.
        assert (project.work / "sweeps" / "sweep" / "report").exists()
        said = project.launch(*SWEEP)
        assert "pretrain: 3 to do" in said
        assert "shards: 3 complete" in said
        waiting(lambda: self.drained(cluster), "an empty queue")
        assert (project.work / "sweeps" / "sweep" / "report" / "report.html").read_text() == "6"

    def test_each_submission_leaves_a_line_before_and_after(self, project, cluster, waiting) -> None:
        project.launch(*SWEEP)
        journal = project.work / "sweeps" / "sweep" / "launch" / "jobs.jsonl"
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        assert [line["event"] for line in lines] == ["submitting", "submitted"] * 4
        assert [line["stage"] for line in lines[::2]] == ["shards", "pretrain", "probes", "report"]
