"""Studies in files, and several of their runs at once on this machine."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from tests.slurm.conftest import wait_until

STUDY = """\
about: three arms
name: arms
sets:
  data/a:
    source: digits
    noise: [0, 0.1, 0.2]
    draws:
      - {noise: 0.2, model: pair-flip, name: n20-pair-flip}
shards: data/a
plugins: [lp, mlp]
tasks: [digits, dtd]
tasks_together: true
probes: {seeds: 3, tries: 2}
recipe: {steps: 5}
arms:
  symmetric: {noise: [0, 0.1], probe: [digits, "dtd,lp,mlp"]}
  pairs: {noise: [n20-pair-flip], plugins: [lp], recipe: {steps: 3}, probes: {seeds: 2}}
  more-seeds: {noise: [0], seeds: [1], tasks: [digits], tasks_together: false}
  given: {encoders: ["timm:small", "timm:wide"], plugins: [lp], tasks: [dtd]}
cost:
  seconds_per_sample: {quickstart: 9}
  probe_seconds: {symmetric: 600, pairs: 1200, more-seeds: 1800}
  dims: {"timm:small": 100, "timm:wide": 150}
  samples: {data/a: 100}
  set_bytes: {data/a: 3000000}
"""
ALIKE = 'noise: [0, 0.1], probe: [digits, "dtd,lp,mlp"]}'
RUNS = ("n00-seed0", "n10-seed0", "n20-pair-flip-seed0", "n00-seed1")
COST = [
    "what is left to do:",
    "  sets         2 to write or to add to; 3.0 MB",
    # Four runs of one epoch of a hundred samples.
    "  runs         4 of 4; 0.0 million samples",
    "               1.0 CPU-hours (9e+03 ms a sample of quickstart, as given; "
    "no GPU is asked for: --gpus-per-node N)",
    # A checkpoint and an export of each.
    "  checkpoints  48.0 MB, exports included",
    "  probes       6 of 6",
    "               at least 1.2 CPU-hours (600 s a probe of symmetric, as given; "
    "1,200 s a probe of pairs, as given; 1,800 s a probe of more-seeds, as given; "
    "lacks seconds of a probe of given (cost.probe_seconds))",
    # Two tasks of 200 samples for three runs and one for the fourth, 50 numbers of four bytes each; and one
    # for the encoders, of 100 and 150 numbers.
    "  features     0.5 MB",
    # Two test sets: two runs, two tasks, two heads, three seeds; a run, two tasks, a head, two seeds; a run,
    # a task, two heads, three seeds; and two encoders, a task, a head, three seeds. And after the only
    # epoch of two runs, a task with a head and one with two.
    "  result rows  92, 12 of them while runs train",
]


@pytest.fixture
def study(project) -> tuple[str, ...]:
    (project.work / "arms.yaml").write_text(STUDY)
    return ("sweep", "--cluster", "local", "--config", "arms.yaml")


def computed(work: Path) -> list[str]:
    file = work / "results" / "computed.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line.removeprefix("quickstart-") for line in lines]


def test_a_study_file_does_its_sets_runs_and_probes_and_is_continued(project, study) -> None:
    plan = project.launch(*study, "--dry-run", CUDA_VISIBLE_DEVICES="")
    # What an arm says stands in place of what the study says, option by option.
    assert " --seeds 2 --tries 2 " in next(line for line in plan.splitlines() if "seed0 pairs:" in line)
    assert plan[plan.index("what is left to do:") :].splitlines() == COST
    on_a_gpu = project.launch(*study, "--dry-run", CUDA_VISIBLE_DEVICES="0")
    assert "CPU-hours" not in on_a_gpu
    assert "1.0 GPU-hours (9e+03 ms a sample of quickstart, as given)" in on_a_gpu
    said = project.launch(*study)
    parts = [line.removeprefix("== ") for line in said.splitlines() if line.startswith("== ")]
    # A run is probed before the next one begins, so that what has ended early is a study, too.
    assert parts == [
        "shards a",
        "shards a n20-pair-flip",
        "pretrain quickstart-n00-seed0",
        "probes quickstart-n00-seed0 symmetric",
        "pretrain quickstart-n10-seed0",
        "probes quickstart-n10-seed0 symmetric",
        "pretrain quickstart-n20-pair-flip-seed0",
        "probes quickstart-n20-pair-flip-seed0 pairs",
        "pretrain quickstart-n00-seed1",
        "probes quickstart-n00-seed1 digits more-seeds",
        "probes timm:small given",
        "probes timm:wide given",
        "report",
    ]
    assert [*json.loads((project.work / "data/a/set.json").read_text())["levels"]] == [
        "n10",
        "n20",
        "n20-pair-flip",
    ]
    assert "steps: 3" in (project.work / "runs/quickstart-n20-pair-flip-seed0/config.yaml").read_text()
    assert "steps: 5" in (project.work / "runs/quickstart-n00-seed0/config.yaml").read_text()
    assert sorted(computed(project.work)) == sorted(
        [
            *(f"{run} digits dtd {head}" for run in RUNS[:2] for head in ("lp", "mlp")),
            "n20-pair-flip-seed0 digits dtd lp",
            *(f"n00-seed1 digits {head}" for head in ("lp", "mlp")),
            *(f"timm:{encoder} dtd lp" for encoder in ("small", "wide")),
        ]
    )

    (project.work / "results/rows/quickstart-n10-seed0-digits dtd-mlp.parquet").unlink()
    (project.work / "results/rows/timm:wide-dtd-lp.parquet").unlink()
    project.launch(*study)
    assert computed(project.work) == ["n10-seed0 digits dtd mlp", "timm:wide dtd lp"]

    # Rows and receipts are what is kept of a study.
    for lost in ("runs", "data"):
        shutil.rmtree(project.work / lost)
    said = project.launch(*study)
    assert said.startswith("4 runs are gone, and are taken as done")
    assert "== " not in said
    assert not (project.work / "runs").exists()
    row = project.work / "results/rows/quickstart-n10-seed0-digits dtd-mlp.parquet"
    kept = row.read_bytes()
    row.unlink()
    why = "probes quickstart-n10-seed0 symmetric lacks 1 row, first "
    (line,) = (line for line in project.launch("status", "sweeps/arms").splitlines() if why in line)
    assert line.split()[:4] == ["pretrain", "quickstart-n10-seed0", "TO", "DO"]
    assert f"quickstart-n10-seed0 is gone and is trained again: {why}" in project.launch(*study, "--dry-run")
    row.write_bytes(kept)
    file = project.work / "arms.yaml"
    file.write_text(STUDY.replace("recipe: {steps: 5}", "recipe: {steps: 6}"))
    assert "tells of a run with 5" in project.launch(*study, status=2)
    # A task is added to one of the arms.
    file.write_text(STUDY.replace("seeds: [1], tasks: [digits]", "seeds: [1], tasks: [digits, dtd]"))
    said = project.launch(*study)
    assert "pretrain quickstart-n00-seed1 is gone and is trained again: probes" in said
    parts = [line.removeprefix("== ") for line in said.splitlines() if line.startswith("== ")]
    assert [part for part in parts if part.startswith("pretrain")] == ["pretrain quickstart-n00-seed1"]
    assert computed(project.work) == ["n00-seed1 dtd lp", "n00-seed1 dtd mlp"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("plugins: [lp], ", "heads: [lp], ", "arms.pairs: unknown name 'heads'"),
        ("noise: [n20-pair-flip]", "noise: [0.3]", "noise 0.3: no level of the set"),
        ("noise: [n20-pair-flip]", "noise: [0.2]", "noise 0.2: 2 levels of the set"),
        ("recipe: {steps: 3}", "recipe: 3", "arms.pairs.recipe 3: no fields"),
        ("noise: [0], seeds: [1]", "noise: [0], seeds: [one]", "arms.more-seeds.seeds one: no seed"),
        ("noise: [0], seeds: [1]", "noise: [0, 0]", "arms.more-seeds.noise 0: given twice"),
        (
            "tasks_together: false}",
            'tasks_together: "no"}',
            "arms.more-seeds.tasks_together 'no': not a possible",
        ),
        ('["timm:small", "timm:wide"]', '["tim:small"]', "encoders: unknown name 'tim'"),
        ('["timm:small", "timm:wide"]', "[]", "arms.given.encoders: nothing given"),
        ("plugins: [lp], tasks: [dtd]", "noise: [0]", "arms.given.noise: no effect beside encoders"),
        ("seeds: [1], ", "epochs: many, ", "arms.more-seeds: epochs is 'many'"),
        ("seeds: [1], ", "epochs: 7, ", "two different runs would be called quickstart-n00-seed0"),
        ("draws:\n      - {noise: 0.2, ", "draws:\n      - {", "sets.data/a.draws: one has no noise"),
        ("{noise: 0.2, model", "{noise: [0.2, 0.3], model", "noise [0.2, 0.3]: a draw is one level"),
        ("name: n20-pair-flip}", "name: n20}", "sets.data/a.draws: two levels are called n20"),
        ("model: pair-flip", "model: pair-flop", "draws: model: unknown name 'pair-flop'"),
        ("model: pair-flip", "modl: pair-flip", "--modl"),
        ("noise: [0], seeds: [1]", "noise: [0], seeds: []", "arms.more-seeds.seeds: nothing given"),
        ("name: arms", "name:", "--name None: not a possible value; possible: str"),
        ("probes: {seeds: 2}", "probes: {seeds: }", "arms.pairs.probes.seeds None: not a possible value"),
        ("  pairs: {", "  a/b: {", "arms: 'a/b' names no arm"),
        ("sets:\n", "sets:\n  ./data/a: {source: digits}\n", "two parts of the sweep are called shards a"),
        ("sets:\n", "sets:\n  more/a: {source: digits}\n", "two parts of the sweep are called shards a"),
        ("noise: [0], seeds: [1], tasks: [digits], tasks_together: false}", ALIKE, "ask for the same"),
    ],
)
def test_a_mistake_in_a_study_is_one_line_that_names_its_place(
    refused, tmp_path_factory, before, after, said
) -> None:
    assert before in STUDY
    file = tmp_path_factory.mktemp("studies") / "arms.yaml"
    file.write_text(STUDY.replace(before, after))
    assert said in refused("sweep", "--cluster", "local", "--config", str(file))


HELD = ("sweep", "--cluster", "local", "--noise", "0", "0.1", "--plugins", "lp", "--jobs", "2")


def held(run: Path) -> bool:
    """Whether a run waits at the step at which it was told to."""
    metrics = run / "metrics.jsonl"
    return metrics.exists() and len(metrics.read_text().splitlines()) == 3


def test_two_runs_at_once_share_the_cores_and_one_that_is_killed_does_not_end_the_other(project) -> None:
    launcher = project.start(*HELD, "--recipe.hold", "3")
    runs = project.work / "runs"
    wait_until(lambda: all(held(runs / f"quickstart-{level}-seed0") for level in ("n00", "n10")))
    ranks = [
        one
        for one in psutil.Process(launcher.pid).children(recursive=True)
        if "pretrain.run" in one.cmdline()
    ]
    threads = {one.environ()["OMP_NUM_THREADS"] for one in ranks}
    assert threads == {str(max(1, len(psutil.Process().cpu_affinity()) // 2))}
    clean = next(one for one in ranks if str(runs / "quickstart-n00-seed0") in one.cmdline())
    clean.kill()
    (runs / "quickstart-n10-seed0/go").touch()
    said, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 137, said + errors
    assert "failed: pretrain quickstart-n00-seed0" in said
    assert (runs / "quickstart-n10-seed0/DONE.json").exists()
    assert computed(project.work) == ["n10-seed0 digits lp"]


def test_ctrl_c_has_all_runs_save_and_leaves_no_process(project) -> None:
    launcher = project.start(*HELD, "--recipe.hold", "3")
    runs = [project.work / "runs" / f"quickstart-{level}-seed0" for level in ("n00", "n10")]
    wait_until(lambda: all(map(held, runs)))
    started = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(signal.SIGINT)
    said, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 130, said + errors
    assert all(list(run.glob("checkpoints/step-*/COMPLETE.json")) for run in runs)
    psutil.wait_procs(started, timeout=10)
    assert not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    for run in runs:
        (run / "go").touch()
    project.launch(*HELD, "--recipe.hold", "3")
    assert sorted(computed(project.work)) == ["n00-seed0 digits lp", "n10-seed0 digits lp"]


def test_more_runs_at_once_than_cores_are_refused(refused) -> None:
    assert "1000 processes at once, and this machine has" in refused(
        "sweep", "--cluster", "local", "--jobs", "1000"
    )
