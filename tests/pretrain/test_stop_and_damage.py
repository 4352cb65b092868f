"""Stop signals, damaged checkpoints, full disks: saved together, told clearly, never started over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nml.errors import UserError
from pretrain.checkpoints import complete, newest_checkpoint, retire, verify
from pretrain.stopping import STOPPED_STATUS


def words(recipe: Path, shards: Path, run: Path, *more: str) -> list[str]:
    return ["--recipe", str(recipe), "--shards", str(shards), "--noise", "0.25", "--run-dir", str(run), *more]


def wait_for_steps(run: Path, number: int, process: subprocess.Popen[str]) -> None:
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
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


@pytest.fixture(scope="module")
def stopped(
    work: Path, image_set: Path, long_recipe: Path, start_ranks: Callable[..., Any]
) -> list[tuple[Path, int, str]]:
    """The same run stopped twice: SIGUSR2 to rank 1, then SIGTERM to rank 0."""
    run = work / "stopped"
    ends = []
    for number, (rank, stop) in enumerate(((1, signal.SIGUSR2), (0, signal.SIGTERM))):
        ranks = start_ranks(2, words(long_recipe, image_set, run), cwd=work)
        wait_for_steps(run, 4 + (ends[-1][1] if ends else 0), ranks.process)
        os.kill(ranks.pids[rank], stop)
        status, out = ranks.end()
        newest = newest_checkpoint(run)
        assert newest is not None
        ends.append((newest.folder, newest.step, out))
        assert status == STOPPED_STATUS, out
        assert number == 0 or ends[1][1] > ends[0][1]
    return ends


def test_a_stop_signal_to_one_rank_saves_all_at_one_step(stopped: list[tuple[Path, int, str]]) -> None:
    for _, step, out in stopped:
        assert f"stopped at step {step} of" in out
        assert "Traceback" not in out


def test_a_stopped_run_continues_where_it_was_saved(stopped: list[tuple[Path, int, str]]) -> None:
    assert f"resuming at step {stopped[0][1]} of" in stopped[1][2]


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


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A run with three complete checkpoints, of made-up bytes."""
    for step in (10, 20, 30):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        (folder / "state").mkdir(parents=True)
        for name in ("state/__0_0.distcp", "state/__1_0.distcp"):
            (folder / name).write_bytes(bytes([step]) * 1000)
        complete(folder, {"step": step, "world_size": 2})
    return tmp_path


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


def test_a_full_disk_ends_in_one_line_and_keeps_the_good_checkpoint(
    small_disk: Path,
    work: Path,
    image_set: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
) -> None:
    recipe = make_recipe("full", checkpoints={"every_steps": 2, "keep_last": 99})
    run = small_disk / "run"
    out = run_ranks(2, words(recipe, image_set, run), cwd=work, status=2)
    assert "could not be written" in out
    assert "No space left" in out
    newest = newest_checkpoint(run)
    assert newest is not None
    assert verify(newest.folder).step == newest.step
    shutil.rmtree(newest.folder / "export")
    assert json.loads((newest.folder / "COMPLETE.json").read_text())["step"] == newest.step
