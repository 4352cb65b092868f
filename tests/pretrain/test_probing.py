"""``--probe``: the encoder is measured beside the run, which trains as it would without."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nml import layout
from nml.errors import UserError
from nml.lifeline import BEATS
from pretrain import probing
from pretrain.checkpoints import retire
from pretrain.ending import STOPPED_STATUS
from pretrain.probing import Probing, tell_marked
from pretrain.world import World
from probes.along import Along, AlongOptions, split_probe
from probes.results import read_rows
from tests.commands import run_command

# It answers as probes.along does, without its imports; a step of 3 kills it, and of 7 it never answers.
STAND_IN = """
import json, os, signal, sys
print(json.dumps({"ready": ["task with knn, 9 samples"]}), flush=True)
for line in sys.stdin:
    if int(line) == 3:
        os.kill(os.getpid(), 9)
    if int(line) == 7:
        signal.pause()
    told = {"failed": ["lp on task: diverged"]} if int(line) == 2 else {"told": ["task knn: 50 %"]}
    print(json.dumps({"step": int(line), "cpu_s": 1.5} | told), flush=True)
"""


@pytest.fixture(scope="module")
def task(work: Path) -> str:
    """16 images of two classes to train on and 8 to test on, without shifted ones."""
    generator = np.random.default_rng(2)
    for split, count in (("train", 16), ("test", 8)):
        for number in range(count):
            folder = work / "probed" / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 128, (32, 32, 3), np.uint8) + 64 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return f"imagefolder:{work}/probed/train,{work}/probed/test,shifts=none,name=probed"


@pytest.fixture(scope="module")
def recipe(make_recipe: Callable[..., Path]) -> Path:
    return make_recipe("probed", epochs=3, checkpoints={"every_epochs": 2, "keep_last": 1})


def test_a_run_that_is_probed_trains_as_without_and_has_the_rows_of_its_checkpoints(
    work: Path,
    few_images: Path,
    task: str,
    recipe: Path,
    run_ranks: Callable[..., str],
    losses: Callable[[Path], list[float]],
) -> None:
    common = ["--recipe", str(recipe), "--shards", str(few_images), "--recipe.global_batch", "8"]
    common += ["--recipe.ema", "0.9", "--recipe.checkpoints.keep_every", "1"]
    plain, probed = work / "plain", work / "probed-run"
    run_ranks(1, [*common, "--run-dir", str(plain)], cwd=work)
    out = run_ranks(1, [*common, "--run-dir", str(probed), "--probe", task, f"{task},logreg"], cwd=work)
    assert losses(probed) == losses(plain)
    assert "probing averaged weights every epoch on " in out
    # Every epoch, between the checkpoints of the recipe too.
    assert list(layout.kept_steps(probed)) == [2, 4, 6]
    assert all(f"step {step}: probed knn: accuracy " in out for step in (2, 4, 6)), out
    # The task has no shifted data, and nothing is told of them.
    assert "% in-domain, SVE " in out
    rows = read_rows(work / "results")
    assert Counter((row.step, row.head) for row in rows) == dict.fromkeys(
        ((step, head) for step in (2, 4, 6) for head in ("knn", "logreg")), 1
    )
    assert not (probed / layout.PROBING).exists()
    # Afterwards there is nothing left to measure, for the averaged weights that were exported are the same.
    words = ["--checkpoint", str(probed), "--steps", "all", "--plugin", "knn,logreg"]
    again = run_command("probes.run", *words, "--task", f"{task},limit=500", cwd=work)
    assert (again.returncode, again.stderr) == (0, "")
    assert sorted(row.row_id for row in read_rows(work / "results")) == sorted(row.row_id for row in rows)


def test_killed_between_a_checkpoint_and_its_probe_every_row_is_there_once(
    work: Path, few_images: Path, task: str, recipe: Path, start_ranks: Callable[..., Any]
) -> None:
    run = work / "probed-fsdp"
    words = ["--recipe", str(recipe), "--shards", str(few_images), "--recipe.global_batch", "8"]
    words += ["--run-dir", str(run), "--engine", "fsdp", "--recipe.engine.shard_group", "1"]
    words += ["--probe", task, "--probe-results", "once"]
    ranks = start_ranks(2, words, cwd=work)
    deadline = time.monotonic() + 200
    while not (2 in layout.kept_steps(run) and (run / layout.PROBING / layout.step_name(2)).exists()):
        assert ranks.running()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    ranks.kill()
    # On one process less, and so without the copy that the other had of the weights.
    status, out = start_ranks(1, words, cwd=work).end()
    assert status == 0, out
    assert sorted(row.step or 0 for row in read_rows(work / "once")) == [2, 4, 6]
    # What waited for its probe is retired as the recipe says.
    assert list(layout.kept_steps(run)) == [6]


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str = STAND_IN) -> Probing:
    monkeypatch.setattr(probing, "_START", program)
    recipe: Any = SimpleNamespace(
        objective="classify", epochs=9, ema=0.0, checkpoints=SimpleNamespace(keep_last=1, keep_every=0)
    )
    options: Any = SimpleNamespace(
        recipe=recipe,
        run_dir=folder,
        probe=("task",),
        probe_every=4,
        probe_results=None,
        probe_tasks_root=None,
        probe_device="cpu",
    )
    return Probing(options, World())


def test_a_probe_that_fails_is_told_and_the_next_one_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = stand_in(tmp_path, monkeypatch)
    probes.start()
    probes.wait_ready()
    # What waits behind the third is measured by another process.
    for step in (1, 2, 3, 4):
        probes.mark(step)
        probes.ask(step)
    reader, writer = os.pipe()
    monkeypatch.setenv(BEATS, str(writer))
    assert probes.finish() == 0
    os.close(writer)
    # An agent of the launcher hears that the rank, which waits, is alive.
    assert json.loads(os.read(reader, 1 << 16).splitlines()[0])["phase"] == "probing"
    os.close(reader)
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if "step" in line] == [
        "step 1: task knn: 50 %",
        "step 4: task knn: 50 %",
    ]
    assert err.splitlines()[0] == "warning: probe of step 2: lp on task: diverged"
    assert err.splitlines()[1].startswith("warning: probe of step 3: the process that measures ended")
    assert "probes: 4.5 s of processor time" in out
    assert probes.marked() == set()


def test_what_is_marked_is_measured_where_the_run_goes_on_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = stand_in(tmp_path, monkeypatch)
    for step in (1, 4, 5, 8):
        probes.mark(step)
        folder = tmp_path / layout.CHECKPOINTS / layout.step_name(step)
        folder.mkdir(parents=True)
        # The save of the fifth was cut short; the eighth is damaged, so that the run goes on from the fourth.
        if step != 5:
            (folder / layout.MARKER).write_text("{}")
    probes.start()
    probes.resume(4)
    assert probes.marked() <= {1, 4}
    probes.finish()
    out = capsys.readouterr().out
    assert [line.partition(":")[0] for line in out.splitlines() if "knn" in line] == ["step 1", "step 4"]
    assert probes.marked() == set()
    assert [epoch for epoch in range(1, 10) if probes.due(epoch)] == [4, 8, 9]


def test_a_run_that_goes_on_without_probes_keeps_what_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = stand_in(tmp_path, monkeypatch)
    for step in (1, 2, 3):
        folder = tmp_path / layout.CHECKPOINTS / layout.step_name(step)
        folder.mkdir(parents=True)
        (folder / layout.MARKER).write_text("{}")
    probes.mark(1)
    retire(tmp_path, keep_last=1, keep_every=0)
    assert list(layout.kept_steps(tmp_path)) == [1, 3]
    tell_marked(tmp_path)
    assert capsys.readouterr().out == "1 checkpoint of it waits to be measured, and is kept for --probe\n"
    assert probes.catch_up() == 0
    assert "step 1: task knn: 50 %" in capsys.readouterr().out
    # And a run of which none waits says what measures the others.
    assert probes.catch_up() == 0
    assert f"--checkpoint {tmp_path} --steps all" in capsys.readouterr().out
    tell_marked(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_stop_signal_ends_the_wait_for_probes_and_leaves_their_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = stand_in(tmp_path, monkeypatch)
    probes.start()
    for step in (7, 8):
        probes.mark(step)
        probes.ask(step)
    stop: Any = SimpleNamespace(signal=signal.SIGTERM, name="SIGTERM")
    probes.heed(stop)
    assert probes.finish() == STOPPED_STATUS
    assert probes.marked() == {7, 8}
    told = "stopped (SIGTERM) with 2 checkpoints to measure; the same command continues\n"
    assert capsys.readouterr().err == told


def test_what_cannot_be_measured_is_refused_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = 'print(\'{"refused": "--probe task: unknown name"}\', flush=True)'
    for program, told in ((words, "--probe task: unknown name"), ("raise SystemExit(3)", "ended without an")):
        probes = stand_in(tmp_path, monkeypatch, program)
        probes.start()
        with pytest.raises(UserError, match=told):
            probes.wait_ready()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digit", "--probe digit: --task: unknown name 'digit'; .*did you mean digits"),
        ("digits,lpp", "--probe digits,lpp: --plugin: unknown name 'lpp'; .*did you mean lp"),
        ("digits:limit=9", "--probe digits:limit=9: --task digits:limit=9: option"),
        ("csv:texts.csv,texts.csv", "holds texts; possible: tasks of images"),
        ("digits,lp++", "lp.. asks for text embeddings of the classes"),
    ],
)
def test_a_task_that_a_run_cannot_be_measured_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.csv").write_text("text,label\n" + "".join(f"word {n},{n % 2}\n" for n in range(20)))
    with pytest.raises(UserError, match=message):
        Along(AlongOptions(probe=[text], results=str(tmp_path / "results")))
    assert not (tmp_path / "results").exists()


def test_heads_are_what_ends_the_words_of_a_probe() -> None:
    assert split_probe("digits") == ("digits", "knn")
    assert split_probe("digits,lp,mlp") == ("digits", "lp,mlp")
    assert split_probe("csv:train.csv,lp,limit=9,logreg") == ("csv:train.csv,lp,limit=9", "logreg")
