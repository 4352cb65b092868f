"""Stop signals, other data, kills and full disks: saved together, told clearly, never started over."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nml.errors import UserError
from nml.layout import is_complete, step_folders
from nml.locking import held_alone
from pretrain.checkpoints import newest_checkpoint, recover, verify
from pretrain.ending import STOPPED_STATUS
from pretrain.run import main
from shards.write import main as write_shards


def words(recipe: Path, shards: Path, run: Path, *more: str) -> list[str]:
    return ["--recipe", str(recipe), "--shards", str(shards), "--noise", "0.25", "--run-dir", str(run), *more]


def wait_for_steps(run: Path, number: int, ranks: Any) -> None:
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while ranks.running() and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count('"event": "step"') >= number:
            return
        time.sleep(0.002)
    raise AssertionError("the run did not get that far")


@pytest.fixture(scope="module")
def long_recipe(make_recipe: Callable[..., Path], tiny_data: dict[str, Any]) -> Path:
    """Far more steps than a test waits for, with loader workers on each rank."""
    return make_recipe(
        "long",
        epochs=200,
        data={**tiny_data, "workers": 2},
        checkpoints={"every_epochs": 0, "every_steps": 7},
    )


@pytest.fixture(scope="module", params=["ddp", "fsdp", "deepspeed"])
def stopped(
    request: pytest.FixtureRequest,
    work: Path,
    image_set: Path,
    long_recipe: Path,
    start_ranks: Callable[..., Any],
) -> list[tuple[Path, int, str]]:
    """The same run stopped twice: SIGUSR2 to rank 1, then SIGTERM to rank 0."""
    run = work / f"stopped-{request.param}"
    ends: list[tuple[Path, int, str]] = []
    for rank, stop in ((1, signal.SIGUSR2), (0, signal.SIGTERM)):
        command = words(long_recipe, image_set, run, "--engine", request.param)
        ranks = start_ranks(2, command, cwd=work)
        wait_for_steps(run, 4 + (ends[-1][1] if ends else 0), ranks)
        os.kill(ranks.pids[rank], stop)
        status, out = ranks.end()
        assert status == STOPPED_STATUS, out
        newest = newest_checkpoint(run)
        assert newest is not None
        ends.append((newest.folder, newest.step, out))
    return ends


def test_a_stop_signal_to_one_rank_saves_all_at_one_step(stopped: list[tuple[Path, int, str]]) -> None:
    for _, step, out in stopped:
        assert f"stopped at step {step} of" in out
        assert "Traceback" not in out
        for rank in (0, 1):
            assert f"rank {rank} ended with {STOPPED_STATUS}" in out
    assert stopped[1][1] > stopped[0][1]


def test_a_stopped_run_continues_where_it_was_saved(stopped: list[tuple[Path, int, str]]) -> None:
    assert f"resuming at step {stopped[0][1]} of" in stopped[1][2]


@pytest.mark.parametrize("stopped", ["ddp"], indirect=True)
def test_a_run_folder_refuses_another_run(
    stopped: list[tuple[Path, int, str]], work: Path, image_set: Path, long_recipe: Path
) -> None:
    from pretrain.options import parse_options
    from pretrain.same_run import check_same_run

    run = stopped[0][0].parents[1]
    for more, named in (
        (["--seed", "3"], "--seed 3"),
        (["--recipe.optimizer.lr", "0.5"], "recipe.optimizer.lr"),
    ):
        options, text = parse_options(words(long_recipe, image_set, run, *more))
        with pytest.raises(UserError, match=named):
            check_same_run(options.run_dir, text)


def test_a_run_folder_takes_one_process_at_a_time(
    work: Path, image_set: Path, long_recipe: Path, run_ranks: Callable[..., str]
) -> None:
    run = work / "held"
    with held_alone(run, busy=""):
        said = run_ranks(2, words(long_recipe, image_set, run), cwd=work, status=2)
    assert f"error: {run}: another process trains in it; wait for it, or end it" in said
    assert [file.name for file in run.iterdir()] == [".lock"]


def test_a_finished_run_is_no_answer_for_other_data(
    work: Path, image_set: Path, make_recipe: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    shards, run = work / "set-to-change", work / "of-a-set"
    shutil.copytree(image_set, shards)
    arguments = words(make_recipe("one-epoch", epochs=1), shards, run)
    run_ranks(1, arguments, cwd=work)
    assert main(arguments) == 0

    # As if the level had been taken out of the set and added again under its name.
    data = json.loads((run / "data.json").read_text())
    before = data | {"level": data["level"] | {"model": "pair-flip"}}
    (run / "data.json").write_text(json.dumps(before))
    said = f"--shards {shards}: model symmetric of its level n25, but {run} holds a run on one with pair-flip"
    with pytest.raises(UserError, match=re.escape(said)):
        main(arguments)
    (run / "data.json").write_text(json.dumps(data))
    shutil.rmtree(shards)
    source = ["--source", f"imagefolder:{work / 'image-set-images'}", "--noise", "0.25", "--out", str(shards)]
    write_shards([*source, "--workers", "1", "--seed", "1"])
    with pytest.raises(UserError, match=re.escape(f"--shards {shards}: {run} holds a run on another set")):
        main(arguments)
    # What is gone cannot be compared: the export is still there to be used.
    shutil.rmtree(shards)
    assert main(arguments) == 0


def test_a_run_killed_while_it_saves_has_the_checkpoint_before(
    work: Path, image_set: Path, make_recipe: Callable[..., Path], start_ranks: Callable[..., Any]
) -> None:
    # Wide enough that a save takes a while in the background of the steps.
    model = {"name": "resnet18", "kwargs": {"channels": [64, 64, 64, 64]}}
    recipe = make_recipe("saving", epochs=200, model=model, checkpoints={"every_steps": 1, "keep_last": 2})
    run = work / "killed-saving"
    ranks = start_ranks(2, words(recipe, image_set, run), cwd=work)
    wait_for_steps(run, 2, ranks)
    deadline = time.monotonic() + 200
    caught = None
    while caught is None and time.monotonic() < deadline:
        folders = step_folders(run)
        if len(folders) > 1 and is_complete(folders[1]) and not is_complete(folders[0]):
            caught = folders[0]
    ranks.kill()
    assert caught is not None
    # It may have been completed between the look and the kill.
    expected = caught if is_complete(caught) else step_folders(run)[1]
    found = recover(run)
    assert found is not None
    assert found.folder == expected
    assert json.loads((run / "export" / "meta.json").read_text())["step"] == found.step


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_a_full_disk_ends_in_one_line_and_keeps_the_good_checkpoint(
    engine: str,
    small_disk: Path,
    work: Path,
    image_set: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
) -> None:
    recipe = make_recipe("full", checkpoints={"every_steps": 2, "keep_last": 99})
    run = small_disk / "run"
    out = run_ranks(2, words(recipe, image_set, run, "--engine", engine), cwd=work, status=2)
    assert "Traceback" not in out
    assert "could not be written" in out
    assert "No space left" in out
    newest = newest_checkpoint(run)
    assert newest is not None
    assert verify(newest.folder).step == newest.step
    shutil.rmtree(newest.folder / "export")
    assert json.loads((newest.folder / "COMPLETE.json").read_text())["step"] == newest.step
