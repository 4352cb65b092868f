"""A save that fails says so in the words of what was raised first, and leaves what was good."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from nml.errors import UserError
from nml.recipe import Checkpoints
from pretrain.checkpoints import Saver
from pretrain.engines import Engine

pytestmark = pytest.mark.usefixtures("process_group")

Save = Callable[[Path], "Future[Any] | None"]


class Disk:
    """An engine of which only the writing is left."""

    def __init__(self, save: Save) -> None:
        self._save = save

    def save(self, folder: Path, shared: Any, own: Any) -> Future[Any] | None:
        folder.mkdir()
        (folder / "part").write_bytes(b"x")
        return self._save(folder)


def start(saver: Saver, step: int, save: Save) -> None:
    export = {"w": torch.zeros(2)}, {"step": step}
    saver.start(cast(Engine, Disk(save)), step=step, record={"step": step}, shared={}, own={}, export=export)


def name(step: int) -> str:
    return f"step-{step:08d}"


def saved(run: Path) -> dict[str, bool]:
    """Return the checkpoints' folders, and whether each is complete."""
    folders = sorted((run / "checkpoints").iterdir())
    return {folder.name: (folder / "COMPLETE.json").exists() for folder in folders}


def full(folder: Path) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("good", [False, True])
def test_a_save_that_fails_at_once_names_the_step_the_cause_and_the_newest_good_one(
    tmp_path: Path, good: bool
) -> None:
    saver = Saver(tmp_path, Checkpoints())
    if good:
        start(saver, 10, lambda folder: None)
    with pytest.raises(UserError, match=r"step 20\) could not be written: .*No space left") as raised:
        start(saver, 20, full)
    assert f"newest complete one: {name(10) if good else 'none'}" in str(raised.value)
    # Its room is given back; what was good stays.
    assert saved(tmp_path) == ({name(10): True} if good else {})
    assert saver.failed
    with pytest.raises(UserError, match="No space left"):
        saver.wait()


def test_a_save_goes_on_beside_the_training_and_counts_once_it_is_whole(tmp_path: Path) -> None:
    saver = Saver(tmp_path, Checkpoints(keep_last=1))
    for step in (10, 20):
        writing: Future[Any] = Future()
        start(saver, step, lambda folder, writing=writing: writing)
        # Whoever is about to end waits a little, and not for ever.
        saver.linger(0.01)
        assert not saved(tmp_path)[name(step)]
        writing.set_result(None)
        saver.linger(60)
        assert saved(tmp_path) == {name(step): True}
        assert json.loads((tmp_path / "export" / "meta.json").read_text())["step"] == step
    saver.wait()
    assert not saver.failed


class Collected(Exception):
    """What torch raises where ranks fail: each one's error, with where it came from."""

    def __init__(self, failures: dict[int, Any]) -> None:
        super().__init__("many lines of no use")
        self.failures = failures


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("plain"), "plain"),
        (caused(RuntimeError("outer"), OSError("inner")), "inner"),
        (Collected({3: (OSError("of rank 3"), "traceback"), 5: (OSError("of rank 5"), "")}), "of rank 3"),
        (Collected({0: caused(RuntimeError("outer"), OSError("deepest"))}), "deepest"),
        (Collected({}), "many lines of no use"),
        (OSError("first line\nsecond line"), "first line"),
        (OSError("x" * 1000), "x" * 300),
    ],
)
def test_a_save_that_fails_in_the_background_is_told_by_its_first_cause(
    tmp_path: Path, error: Exception, told: str
) -> None:
    saver = Saver(tmp_path, Checkpoints())
    writing: Future[Any] = Future()
    start(saver, 10, lambda folder: writing)
    writing.set_exception(error)
    saver.linger(60)
    # The first error is the one that is told.
    saver.note(OSError("of later"))
    with pytest.raises(UserError) as raised:
        saver.wait()
    words = str(raised.value).split("could not be written: ")[1]
    assert words.split("; newest")[0].split("\n")[0] == told
    assert saved(tmp_path) == {}


def test_an_error_before_the_first_save_is_told_of_no_step(tmp_path: Path) -> None:
    saver = Saver(tmp_path, Checkpoints())
    saver.note(OSError("no quota"))
    with pytest.raises(UserError, match=r"last save: step 0\) could not be written: no quota"):
        saver.wait()
