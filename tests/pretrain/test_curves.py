"""The curves of runs as pictures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nml.curves import Value, read_curves, thinned
from nml.errors import UserError
from pretrain.curves import draw_at_end, main
from pretrain.curves_picture import looks_of

STEPS, PER_EPOCH = 40, 10


def make_run(run: Path, noise: str = "0.2", *, validated: bool = True, cut: str = "") -> Path:
    """Write what a run of four epochs leaves: one step is not finite, and it was started again once."""
    (run / "logs").mkdir(parents=True)
    (run / "config.yaml").write_text(f"recipe_name: toy\nnoise: '{noise}'\nengine: fsdp\n")
    lost = {"startup": 3.0, "waiting": 0.0, "down": 0.0, "validation": 0.0, "a_new_cause": 0.0}
    lines: list[dict[str, Any]] = []
    for step in range(1, STEPS + 1):
        lost["down"] = 7.0 if step > 25 else 0.0
        lost["a_new_cause"] += 0.1
        loss = None if step == 13 else 3 / step + float(noise)
        books = {"useful_s": 0.5 * step, "lost_s": dict(lost)}
        values = {"epoch": step / PER_EPOCH, "loss": loss, "lr": 0.1 / step, "samples_per_s": 100 + step}
        lines.append({"event": "step", "step": step, **values, **books})
        if validated and step % PER_EPOCH == 0:
            lost["validation"] += 1.0
            accuracy = {"top1": step / 50, "top5": step / 45}
            lines.append({"event": "validation", "step": step, **accuracy, **books, "lost_s": dict(lost)})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + cut)
    (run / "DONE.json").write_text("{}")
    return run


def texts(file: Path) -> list[str]:
    """Return the texts of a picture, which stay text in it."""
    return [
        "".join(element.itertext()).strip()
        for element in ET.fromstring(file.read_bytes()).iter()
        if element.tag.endswith("}text")
    ]


def test_a_run_is_read_as_it_was(tmp_path: Path) -> None:
    run = read_curves(make_run(tmp_path / "run", cut='{"event": "step", "ste'))
    assert (run.name, run.noise, run.steps, run.complete) == ("run", "0.2", STEPS, True)
    assert len(run.loss) == STEPS - 1
    assert run.left_out == (1.3,)
    assert run.restarts == (2.6,)
    assert run.lr[0] == Value(0.1, 0.1)
    assert [value.epoch for value in run.top1] == [1, 2, 3, 4]
    assert run.goodput == pytest.approx(20 / run.wall_s)
    assert run.wall_s == pytest.approx(20 + 3 + 7 + 4 + 4)


def test_one_run_is_drawn_with_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "toy-n20")
    main([str(run)])
    assert capsys.readouterr().out == f"curves: {run}/curves.svg\ncurves: {run}/curves.png\n"
    said = texts(run / "curves.svg")
    assert {"toy-n20", "Training loss", "Learning rate", "Samples per second", "Epoch"} <= set(said)
    assert {"top-1 80.0", "top-5 88.9", "Where 38 s went"} <= set(said)
    assert {"training", "down", "a new cause", "7.0 s, 18 %"} <= set(said)
    assert "recipe toy  ·  noise 20 %  ·  fsdp  ·  40 steps in 38 s  ·  goodput 0.53" in said
    with Image.open(run / "curves.png") as image:
        assert image.width > 1000
    first = (run / "curves.svg").read_bytes()
    main([str(run), "--out", str(tmp_path / "again.svg")])
    assert (tmp_path / "again.svg").read_bytes() == first


def test_several_runs_are_told_apart_in_one_picture(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"toy-{number}", f"0.{number}") for number in range(5)]
    runs.append(make_run(tmp_path / "not-validated", validated=False))
    (runs[0] / "DONE.json").unlink()
    main([*map(str, runs), "--out", str(tmp_path / "all")])
    said = set(texts(tmp_path / "all.svg"))
    assert {"6 pre-training runs", "toy-0 (step 40)", "toy-4", "not-validated"} <= said
    assert (tmp_path / "all.png").exists()
    read = [read_curves(run) for run in runs]
    assert len(set(looks_of(read))) == len(read)
    assert len(set(looks_of(read[:1] * 20))) == 20


def test_a_run_without_validation_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", validated=False)
    main([str(run)])
    assert "no validation: --validation names a set" in texts(run / "curves.svg")


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"nowhere: has no step in a metrics\.jsonl"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"--out x\.pdf: a picture of another kind"):
        main([str(run), "--out", "x.pdf"])
    (run / "metrics.jsonl").write_text('{"event": "step", "step": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: does not read: KeyError"):
        main([str(run)])


def test_a_picture_that_fails_does_not_fail_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")

    def fail(*_: object) -> bytes:
        raise RuntimeError("no\nfont")

    monkeypatch.setattr("nml.palette.rendered", fail)
    draw_at_end(run)
    assert capsys.readouterr().err == "note: the curves were not drawn: no font\n"
    assert not list(run.glob("curves*"))


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(1, 20))
def test_thinning_overlooks_no_value(heights: list[float], most: int) -> None:
    values = [Value(float(place), height) for place, height in enumerate(heights)]
    few = thinned(values, most)
    assert len(few) == min(most, len(values))
    if heights:
        assert min(heights) - 1e-6 <= min(few, key=lambda value: value.value).value
    # A single outlier shows, however far apart the points are.
    if len(values) > most:
        spiked = [values[0]._replace(value=1e12), *values[1:]]
        assert max(value.value for value in thinned(spiked, most)) >= 1e9


def test_a_run_draws_its_curves_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrain import run

    monkeypatch.setattr(run, "train", lambda options, *_: 0 if make_run(options.run_dir) else 1)
    assert run.main(["--run-dir", str(tmp_path / "run")]) == 0
    assert {file.name for file in (tmp_path / "run").glob("curves.*")} == {"curves.svg", "curves.png"}
