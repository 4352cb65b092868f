from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nml.errors import UserError
from nml.layout import MARKER, step_name
from probes.encoders import open_checkpoint
from probes.encoders.encoder import Settings
from probes.encoders.run_steps import open_steps
from probes.results import read_rows
from probes.run import main
from tests.commands import run_command

STEPS = (20, 40, 60)


def kept_run(run: Path, make_export: Callable[..., Path]) -> Path:
    """Write a run that has kept three checkpoints and a fourth whose save was cut short."""
    for number, step in enumerate((*STEPS, 80)):
        folder = run / "checkpoints" / step_name(step)
        make_export(folder, seed=number, realised=0.2, step=step, epoch=step / 20)
        if step in STEPS:
            (folder / MARKER).write_text("{}")
    return make_export(run, seed=2, realised=0.2, step=60, epoch=3.0)


def test_every_kept_checkpoint_is_an_encoder_with_its_step_and_epoch(
    tmp_path: Path, make_export: Callable[..., Path]
) -> None:
    run = kept_run(tmp_path / "runs" / "a-n20-seed0", make_export)
    words = ["probes.run", "--plugin", "lp", "--hyper", "epochs=1", "--tries", "1", "--checkpoint", str(run)]
    done = run_command(*words, "--steps", "all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_rows(tmp_path / "results") if row.domain == "id"]
    assert {(row.encoder, row.step, row.epoch) for row in rows} == {
        (f"a-n20-seed0@{step}", step, step / 20) for step in STEPS
    }
    assert len({row.sve for row in rows}) == 3
    # The newest is the run's own export: its results are not computed again.
    again = run_command(*words, cwd=tmp_path)
    assert again.stderr == ""
    assert len([row for row in read_rows(tmp_path / "results") if row.domain == "id"]) == 3


def test_one_network_is_in_memory_at_a_time(tmp_path: Path, make_export: Callable[..., Path]) -> None:
    run = kept_run(tmp_path / "run", make_export)
    encoders: Sequence[Any] = open_steps([run], ["60", "20", "20"], Settings(device="cpu"))
    assert [encoder.info.provenance.step for encoder in encoders] == [20, 60]
    from PIL import Image

    image = Image.effect_noise((40, 40), 64)
    seen: list[weakref.ref[Any]] = []
    for encoder in encoders:
        found = encoder.encode([encoder.prepare(image)])
        seen.append(weakref.ref(encoder._shelf._encoder.module))
    gc.collect()
    assert seen[0]() is None
    alone = open_checkpoint(run, Settings(device="cpu"))
    assert np.array_equal(found, alone.encode([alone.prepare(image)]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--checkpoint", "run", "--steps", "70"],
            "--steps 70: run has kept no checkpoint of it; possible: all, ",
        ),
        (["--checkpoint", "run/export", "--steps", "all"], "has kept no checkpoint for --steps"),
        (["--checkpoint", "run", "--steps", "last"], "--steps last; possible: all, or numbers of steps"),
        (
            ["--checkpoint", "run", "--steps", "all", "40"],
            "--steps all 40; possible: all, or numbers of steps",
        ),
        (["--encoder", "timm:test_resnet,weights=random", "--steps", "all"], "--steps all: of no run"),
    ],
)
def test_steps_that_there_are_not_are_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_export: Callable[..., Path],
    words: list[str],
    message: str,
) -> None:
    kept_run(tmp_path / "run", make_export)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        main(words)
    assert message in str(error.value)
