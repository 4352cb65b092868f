"""Stop signals, damaged checkpoints, full disks: saved together, told clearly, never started over."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nml.errors import UserError
from nml.locking import held_alone
from pretrain.checkpoints import (
    clear_unfinished,
    complete,
    is_complete,
    newest_checkpoint,
    retire,
    step_folders,
    verify,
)
from pretrain.saving import recover
from pretrain.stopping import STOPPED_STATUS


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
    """Far more steps than a test waits for, with four loader workers on each rank."""
    return make_recipe(
        "long",
        epochs=200,
        data={**tiny_data, "workers": 4},
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


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A run with three complete checkpoints, of made-up bytes."""
    for step in (10, 20, 30):
        make_checkpoint(tmp_path, step)
    return tmp_path


def make_checkpoint(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    (folder / "state").mkdir(parents=True)
    for name in ("state/__0_0.distcp", "state/__1_0.distcp"):
        (folder / name).write_bytes(bytes([step % 256]) * 1000)
    (folder / "export").mkdir()
    (folder / "export" / "meta.json").write_text(f'{{"step": {step}}}')
    complete(folder, {"step": step, "world_size": 2})


def truncate(folder: Path) -> None:
    (folder / "state" / "__0_0.distcp").write_bytes(b"x" * 500)


def delete_shard(folder: Path) -> None:
    (folder / "state" / "__1_0.distcp").unlink()


def flip_bit(folder: Path) -> None:
    (folder / "state" / "__1_0.distcp").write_bytes(bytes([31]) + bytes([30]) * 999)


def lose_marker(folder: Path) -> None:
    (folder / "COMPLETE.json").unlink()


def break_marker(folder: Path) -> None:
    (folder / "COMPLETE.json").write_text('{"format": "nml-')


@pytest.mark.parametrize("damage", [truncate, delete_shard, flip_bit, lose_marker, break_marker])
def test_a_damaged_newest_checkpoint_falls_back(
    three: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(three / "checkpoints" / "step-00000030")
    found = newest_checkpoint(three)
    assert found is not None
    assert found.step == 20
    assert "step-00000030" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [truncate, delete_shard, flip_bit])
def test_a_damaged_checkpoint_makes_way_for_its_step_and_never_outlives_a_good_one(
    three: Path, damage: Callable[[Path], None]
) -> None:
    damage(three / "checkpoints" / "step-00000030")
    found = recover(three)
    assert found is not None
    assert found.step == 20
    aside = three / "checkpoints" / "damaged-step-00000030"
    assert (aside / "COMPLETE.json").exists()
    # Under its own name it would be the newest, and 20 would go.
    retire(three, keep_last=1, keep_every=0)
    assert verify(found.folder).step == 20
    clear_unfinished(three / "checkpoints" / "step-00000030")
    make_checkpoint(three, 30)
    found = recover(three)
    assert found is not None
    assert found.step == 30


def test_an_export_that_a_kill_left_behind_is_published(three: Path) -> None:
    assert recover(three) is not None
    assert (three / "export" / "meta.json").read_text() == '{"step": 30}'
    (three / "export" / "meta.json").unlink()
    (three / "export" / "meta.json").write_text('{"step": 20}')
    (three / ".export.1-ab.tmp").mkdir()
    assert recover(three) is not None
    assert (three / "export" / "meta.json").read_text() == '{"step": 30}'
    assert not list(three.glob(".export.*"))


def test_lost_checkpoints_of_a_run_that_had_some_stop_it(three: Path) -> None:
    recover(three)
    shutil.rmtree(three / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint is whole"):
        recover(three)


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000010" / "state").mkdir(parents=True)
    assert recover(tmp_path) is None


def test_damage_everywhere_stops_instead_of_starting_over(three: Path) -> None:
    for folder in (three / "checkpoints").iterdir():
        truncate(folder)
    with pytest.raises(UserError, match="no checkpoint is whole"):
        newest_checkpoint(three)


def test_retention_keeps_the_last_and_every_nth(three: Path) -> None:
    (three / "checkpoints" / "step-00000015").mkdir()
    (three / "checkpoints" / "step-00000035").mkdir()
    retire(three, keep_last=1, keep_every=10)
    assert len(list((three / "checkpoints").iterdir())) == 4
    retire(three, keep_last=1, keep_every=0)
    left = sorted(folder.name for folder in (three / "checkpoints").iterdir())
    # An unfinished newer one may be being written.
    assert left == ["step-00000030", "step-00000035"]


def keep_saving(run: Path, step: int) -> None:
    while True:
        step += 1
        clear_unfinished(run / "checkpoints" / f"step-{step:08d}")
        make_checkpoint(run, step)
        retire(run, keep_last=1, keep_every=0)


def test_retention_under_kill_never_loses_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    draws = random.Random(0)
    kept = 0
    for _ in range(8):
        child = os.fork()
        if child == 0:
            try:
                keep_saving(tmp_path, kept)
            finally:
                os._exit(1)
        # Long enough for a first one, and then some part of the next.
        until = time.monotonic() + 20
        while time.monotonic() < until and not any(
            int(marker.parent.name[5:]) > kept for marker in tmp_path.glob("checkpoints/step-*/COMPLETE.json")
        ):
            os.sched_yield()
        time.sleep(draws.random() / 100)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it stopped by itself"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = newest_checkpoint(tmp_path)
        assert found is not None
        assert found.step > kept
        kept = found.step


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
