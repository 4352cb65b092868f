"""A run on a level that has a name, and one on a ratio that several levels of its set come to have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from nml.curves import read_curves
from shards import relabel


def test_a_run_takes_a_level_by_name_and_keeps_its_own_when_another_of_its_ratio_is_added(
    image_set: Path, make_recipe: Callable[..., Path], run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    data = shutil.copytree(image_set, tmp_path / "set")
    command = ["--recipe", str(make_recipe("named", epochs=1)), "--shards", str(data)]
    first, other = ["--run-dir", str(tmp_path / "first")], ["--run-dir", str(tmp_path / "other")]
    run_ranks(1, [*command, *first, "--noise", "0.25"], cwd=tmp_path)
    relabel.main([str(data), "--noise", "0.25", "--model", "pair-flip", "--name", "n25-pair-flip"])
    assert "resuming at" in run_ranks(1, [*command, *first, "--noise", "0.25"], cwd=tmp_path)
    told = run_ranks(1, [*command, *other, "--noise", "0.25"], cwd=tmp_path, status=2)
    assert "2 of its levels have the ratio 0.25; possible: n25, n25-pair-flip" in told
    run_ranks(1, [*command, *other, "--noise", "n25-pair-flip"], cwd=tmp_path)
    meta = json.loads((tmp_path / "other" / "export" / "meta.json").read_text())["noise"]
    assert (meta["level"], meta["model"], meta["flipped"], meta["seed"]) == (
        "n25-pair-flip",
        "pair-flip",
        80,
        0,
    )
    curves = read_curves(tmp_path / "other")
    assert (curves.noise, curves.level) == ("0.25", "n25-pair-flip")
    # By the other of its names, the level of the first run is the same.
    assert "resuming at" in run_ranks(1, [*command, *first, "--noise", "n25"], cwd=tmp_path)
