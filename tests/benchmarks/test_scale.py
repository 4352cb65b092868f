"""What a run of many ranks reads and saves, simulated: none of it grows faster than the ranks do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import scale
from nml.errors import UserError


def test_what_ranks_read_and_save_is_no_more_than_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "GLOBAL_BATCH", 128)
    command = ["--ranks", "8", "64", "--samples", "20000", "--per-shard", "500", "--steps", "1"]
    monkeypatch.setattr(
        sys, "argv", ["scale.py", *command, "--model", "resnet18", "--json", str(tmp_path / "it")]
    )
    scale.main()
    table = json.loads((tmp_path / "it").read_text())
    # No sample is read by two nodes, and each node reads its share.
    whole, most = table["GB of the file system and epoch"], table["GB of the node with most and epoch"]
    assert most["8"] == pytest.approx(whole["8"]) == pytest.approx(whole["64"])
    assert 1 < 8 * most["64"] / whole["64"] < 1.05
    # A plan has the ranks' own tensors as one each, and of what they have alike every tensor once.
    assert table["plan of all, MB"]["64"] < 1.5 * table["plan of all, MB"]["8"]
    assert table["tensors of the rank with most"]["64"] < table["tensors of the rank with most"]["8"] / 4
    counted = [name for name in table if name.endswith(("MB", "kB"))]
    assert len(counted) == 3
    assert all(table[name]["growth"] <= 1.01 for name in counted)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "3"], "world size 3"),
        (["--ranks", "0"], "world 0"),
        (["--samples", "1000"], "1000 samples"),
        (["--per-shard", "0"], "--per-shard 0"),
        (["--steps", "0"], "--steps 0"),
        (["--model", "resnet99"], "--model resnet99"),
        (["--json", "nowhere/it.json"], "--json nowhere/it.json"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["scale.py", *words])
    with pytest.raises(UserError, match=said):
        scale.main()
