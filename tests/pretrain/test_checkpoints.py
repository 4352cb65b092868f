"""Checkpoints as folders: what counts as whole, what a damaged one does to a run, what is kept."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nml.errors import UserError
from pretrain.checkpoints import (
    clear_unfinished,
    complete,
    newest_checkpoint,
    recover,
    retire,
    verify,
)


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


def test_a_copy_beside_the_checkpoints_is_none(three: Path) -> None:
    newest = three / "checkpoints" / "step-00000030"
    shutil.copytree(newest, newest.with_name("step-00000030.bak"))
    assert newest_checkpoint(three).folder == newest
    retire(three, keep_last=1, keep_every=7)
    assert newest_checkpoint(three).folder == newest
    assert newest.with_name("step-00000030.bak").exists()
