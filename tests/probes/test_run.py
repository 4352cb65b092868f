from __future__ import annotations

import copy
import dataclasses
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from nml.errors import UserError
from plugins.registry import HEADS
from probes.encoders import open_checkpoint
from probes.features import FeatureStore
from probes.heads import choose_heads
from probes.options import build_parser
from probes.probing import Plan, probes_of
from probes.results import Row, read_rows
from probes.results.rowfiles import claim, read_ids
from probes.run import main
from probes.tasks import Task, open_task
from probes.tasks.samplesets import Selected
from tests.commands import Command, run_command


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("probes.run", *arguments, cwd=folder)


def measure(
    task: Task,
    run: Path,
    folder: Path,
    hyper: tuple[str, ...] = (),
    *,
    heads: str = "lp,nmtune",
    epochs: int = 2,
    seeds: int = 2,
) -> list[Row]:
    plan = Plan(
        heads=choose_heads(heads, [f"epochs={epochs}", *hyper], task.modality, tries=1),
        fractions=[Fraction(1, 2), Fraction(1)],
        seeds=range(seeds),
        noises=[Fraction(0), Fraction(1, 5)],
        results=folder,
        store=FeatureStore(folder / "features"),
    )
    (probe,) = probes_of([open_checkpoint(run)], task, plan)
    probe.run(wait=True)
    return read_rows(folder)


def test_the_newest_run_is_probed_on_the_bundled_digits(
    tmp_path: Path, make_export: Callable[..., Path]
) -> None:
    old = make_export(tmp_path / "runs" / "old", seed=1)
    make_export(tmp_path / "runs" / "new", seed=2, realised=0.2)
    os.utime(old / "DONE.json", (1, 1))
    done = run(tmp_path, "--plugin", "lp,nmtune", "--hyper", "epochs=3")
    assert done.returncode == 0, done.stderr
    assert "runs/new" in done.stdout
    assert "bundled digits" in done.stdout
    assert done.stdout.splitlines()[-1] == "results: results"
    # In a log, where no bar shows it, each finished piece of the work has a line.
    pieces = [line.split(": ")[0] for line in done.stderr.splitlines()]
    assert pieces[0] == "features of digits train by new"
    assert pieces[-2:] == ["lp on new, digits", "nmtune on new, digits"]
    rows = read_rows(tmp_path / "results")
    assert {(row.head, row.dataset) for row in rows} == {
        (head, dataset)
        for head in ("lp", "nmtune")
        for dataset in (
            "digits",
            *(f"digits-{shift}" for shift in ("inverted", "rotated", "thick", "textured")),
        )
    }
    assert {row.noise_level for row in rows} == {"n20"}
    assert all(len(row.singular_values) == row.dim for row in rows)
    files = sorted((tmp_path / "results" / "rows").iterdir())
    # What a command stands for it tells also where all of it was there before.
    again = run(tmp_path, "--plugin", "lp,nmtune", "--hyper", "epochs=3", "--receipt", "new/ids.json")
    assert again.stdout == done.stdout
    assert again.stderr == ""
    assert sorted((tmp_path / "results" / "rows").iterdir()) == files
    run(tmp_path, "--plugin", "lp", "--hyper", "epochs=3", "--receipt", "lp.json")
    ids = {head: sorted(row.row_id for row in rows if row.head == head) for head in ("lp", "nmtune")}
    assert json.loads((tmp_path / "new" / "ids.json").read_text()) == ids
    assert json.loads((tmp_path / "lp.json").read_text()) == {"lp": ids["lp"]}


SMALL = "timm:test_resnet,weights=random"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plugin", "nmtun"], "did you mean nmtune"),
        (["--checkpoint", "/nonexistent"], "--checkpoint /nonexistent: no such folder"),
        (["--plugin", "nmtune"], "no finished pre-training run"),
        (["--task", "digit"], "did you mean digits"),
        (["--fractions", "1", "1.5"], "--fractions 1.5; possible: above 0 to 1"),
        (["--seeds", "0"], "--seeds 0; possible: 1 or more"),
        (["--batch-size", "0"], "--batch-size 0; possible: 1 or more"),
        (["--views", "-1"], "--views -1; possible: 0 or more"),
        (["--downstream-noise", "1.2"], "--downstream-noise 1.2"),
        (["--hyper", "lr2=1"], "did you mean lr"),
        (["--hyper", "mlp.layers=0"], "--hyper: mlp: layers 0; possible: 1 or more"),
        (["--hyper", "lr=fast"], "--hyper: lp: lr 'fast'; possible: a finite number or None"),
        (["--plugin", "nmtune-topk", "--hyper", "grid=[1,0]"], "--hyper: nmtune-topk: grid [1, 0]"),
        (["--plugin", "sce", "--hyper", "alpha=0", "beta=0"], "--hyper: sce: alpha 0 and beta 0"),
        (
            ["--plugin", "forward", "--hyper", "matrix=[[1,0],[0,1]]", "--encoder", SMALL],
            "--hyper: forward: matrix has 2 rows, for task digits; possible: 10, one a class",
        ),
        (["--downstream-model", "pair-flip"], "--downstream-model pair-flip: no label is flipped"),
        (["--require-signature", "k", "--encoder", SMALL], "--require-signature k: no checkpoint is asked"),
        (["--device", "warp"], "--device warp"),
        (["--results", __file__], "is a file; possible: a folder"),
        (["--encoder", "timm:resnet5O"], "did you mean"),
        (["--encoder", "timm:test_resnet,weights=random", "--task", "parquet:a,b"], "no file a"),
        (["--encoder", "api:m"], "export OPENAI_API_KEY"),
        (["--encoder", "transformers:/nonexistent"], "download it on a machine with network"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError) as error:
        main(arguments)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--svd", "centred"],
            "--svd centred: not a possible value; possible: raw, row-centred",
        ),
        (["--seed", "2"], "unknown option --seed 2; did you mean --seeds?"),
        (["--views", "two"], "--views two: not a possible value; possible: int"),
    ],
)
def test_an_option_that_does_not_read_is_told_with_what_does(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_mistake_on_the_command_line_shows_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "probes.run", "--plugin", "nmtun"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --plugin: unknown name 'nmtun'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("published", [False, True])
def test_scrambled_test_labels_change_nothing_but_the_test_metrics(
    tmp_path: Path, make_export: Callable[..., Path], published: bool
) -> None:
    export = make_export(tmp_path / "run")
    digits = open_task("digits")
    train, validation = (Selected(digits.train, np.arange(start, start + 240)) for start in (0, 240))
    evaluations = tuple(
        part._replace(samples=Selected(part.samples, np.arange(120))) for part in digits.evaluations[:2]
    )
    task = dataclasses.replace(
        digits, train=train, validation=validation if published else None, evaluations=evaluations
    )
    for part in evaluations:
        scrambled = copy.copy(part.samples)
        scrambled.labels = np.random.default_rng(0).permutation(scrambled.labels)
        evaluations = tuple(
            other._replace(samples=scrambled) if other is part else other for other in evaluations
        )
    # Two learning rates, so that selection has something to do; nmtune-topk also chooses its k.
    # This encoder has no text tower, which lp++ asks for.
    names = ["lp", "nmtune-topk"] if published else [name for name in HEADS.names() if name != "lp++"]
    heads, search = ",".join(names), ("lr=0.0001,0.1", "nmtune-topk.k=auto")
    # Two heads need more than an epoch until either names several classes on every shift.
    epochs = 8 if published else 1
    plain = measure(task, export, tmp_path / "plain", search, heads=heads, epochs=epochs, seeds=1)
    other_task = dataclasses.replace(task, evaluations=evaluations)
    mixed = measure(other_task, export, tmp_path / "mixed", search, heads=heads, epochs=epochs, seeds=1)
    metrics = {"accuracy", "macro_f1", "metric", "nll", "ece"}
    timing = {"fit_seconds", "predict_seconds", "feature_seconds", "created"}
    by_id = {row.row_id: dataclasses.asdict(row) for row in mixed}
    assert {row.head for row in plain} == set(names)
    assert {row.row_id for row in plain} == by_id.keys()
    for row in plain:
        other = by_id[row.row_id]
        assert {
            name for name, value in dataclasses.asdict(row).items() if value != other[name]
        } <= metrics | timing
    for domain in ("id", "ood"):
        assert any(row.accuracy != by_id[row.row_id]["accuracy"] for row in plain if row.domain == domain)
    selections = [(row.head, json.loads(row.selection)) for row in plain]
    assert any(len(set(selection["validation"])) > 1 for _, selection in selections)
    assert all(found["outcome"]["k"] in (1, 2, 5, 10) for head, found in selections if head == "nmtune-topk")


def test_what_a_killed_study_left_out_is_all_that_is_computed(
    tmp_path: Path, make_export: Callable[..., Path]
) -> None:
    export = make_export(tmp_path / "run")
    rows = measure(open_task("digits"), export, tmp_path / "results")
    files = sorted((tmp_path / "results" / "rows").iterdir())
    files[0].unlink()
    again = measure(open_task("digits"), export, tmp_path / "results")
    assert set(files[1:]) < set((tmp_path / "results" / "rows").iterdir())
    assert {row.row_id: row.accuracy for row in again} == {row.row_id: row.accuracy for row in rows}


def test_head_spectra_that_were_left_out_are_computed_when_asked_for(
    tmp_path: Path, make_export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_export(tmp_path / "runs" / "a")
    command = ["--plugin", "lp,mlp", "--hyper", "epochs=1"]

    def measure(*more: str) -> dict[str, list[tuple[str, float, bool]]]:
        main([*command, *more])
        found: dict[str, list[tuple[str, float, bool]]] = {"lp": [], "mlp": []}
        for row in sorted(read_rows("results"), key=lambda row: row.dataset):
            found[row.head].append((row.row_id, row.accuracy, row.head_sve is not None))
        return found

    without = measure("--head-spectra", "false")
    assert {whole for _, _, whole in without["mlp"]} == {False}
    with_them = measure()
    assert with_them["mlp"] == [(row, accuracy, True) for row, accuracy, _ in without["mlp"]]
    # lp leaves the features as they are: nothing was missing of it.
    assert with_them["lp"] == without["lp"]
    files = sorted(Path("results", "rows").iterdir())
    assert measure() == measure("--head-spectra", "false") == with_them
    assert sorted(Path("results", "rows").iterdir()) == files


def test_two_commands_at_once_share_the_work(tmp_path: Path, make_export: Callable[..., Path]) -> None:
    make_export(tmp_path / "runs" / "a")
    words = ("probes.run", "--plugin", "lp,mlp", "--hyper", "epochs=2")
    both = [Command(*words, cwd=tmp_path) for _ in range(2)]
    ends = [command.end() for command in both]
    assert [done.returncode for done in ends] == [0, 0]
    assert ends[0].stdout == ends[1].stdout
    import pyarrow.parquet as pq

    from probes.results.rowfiles import row_files

    ids = [i for file in row_files(tmp_path / "results") for i in pq.read_table(file)["row_id"].to_pylist()]
    assert len(ids) == len(set(ids)) == 10


def hold(results: str, work: str, held: str) -> None:
    with claim(Path(results), work, wait=True):
        Path(held).touch()
        signal.pause()


def test_what_another_process_works_on_is_passed_over_until_all_else_is_done(
    tmp_path: Path, make_export: Callable[..., Path]
) -> None:
    paths = [make_export(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))]
    first = open_checkpoint(paths[0]).info.hash
    work = f"{first} digits lp 0"
    arguments = (str(tmp_path / "results"), work, str(tmp_path / "held"))
    holder = multiprocessing.get_context("fork").Process(target=hold, args=arguments)
    holder.start()
    while not (tmp_path / "held").exists():
        assert holder.is_alive()
        time.sleep(0.01)
    words = ("probes.run", "--plugin", "lp,mlp", "--hyper", "epochs=1", "--checkpoint", *map(str, paths))
    command = Command(*words, cwd=tmp_path)
    while len(read_ids(tmp_path / "results")) < 15:
        assert command.running()
        time.sleep(0.05)
    found = {(row.encoder, row.head) for row in read_rows(tmp_path / "results")}
    assert found == {("a", "mlp"), ("b", "lp"), ("b", "mlp")}
    holder.kill()
    holder.join()
    assert command.end().returncode == 0
    assert len(read_rows(tmp_path / "results")) == 20


def test_the_study_file_of_the_documentation_is_understood(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "probes.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", document, flags=re.DOTALL)
    (tmp_path / "study.yaml").write_text(block)
    arguments = build_parser().parse_args(["--config", str(tmp_path / "study.yaml"), "--seeds", "2"])
    assert arguments.checkpoint == ["runs/noise-0", "runs/noise-0.3"]
    assert arguments.task[0] == "parquet:cifar10_train.parquet,cifar10_test.parquet"
    assert arguments.seeds == 2
    choices = choose_heads(arguments.plugin, arguments.hyper, "image")
    assert [len(choice.candidates) for choice in choices] == [4, 4, 4]


def test_the_study_that_is_measured_has_1600_fits() -> None:
    study = Path(__file__).parents[2] / "benchmarks" / "probes_study.yaml"
    options = build_parser().parse_args(["--config", str(study)])
    heads = choose_heads(options.plugin, options.hyper, "image")
    labellings = len(options.downstream_model) * len(options.downstream_noise)
    assert len(options.task) * len(options.encoder) * labellings * len(heads) * options.seeds == 1600


def test_a_study_in_a_file(tmp_path: Path, make_export: Callable[..., Path]) -> None:
    for seed, noise in ((1, 0.0), (2, 0.2)):
        make_export(tmp_path / f"e{seed}", seed=seed, realised=noise)
    (tmp_path / "study.yaml").write_text(
        "plugin: lp\ncheckpoint: [e1, e2]\nseeds: 2\nfractions: [0.1, 1.0]\nhyper: [epochs=1]\n"
    )
    done = run(tmp_path, "--config", "study.yaml")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "results")
    assert len(rows) == 2 * 2 * 2 * 5
    assert {row.noise_ratio for row in rows} == {0.0, 0.2}
    assert {(row.fraction, row.n_train) for row in rows} == {(0.1, 126), (1.0, 1259)}
