"""What a run of many ranks reads and saves, simulated: none of it grows faster than the ranks do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import scale


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
    # No sample is read by two ranks, and each node reads its share.
    assert table["GB of a node and epoch"]["8"] == pytest.approx(8 * table["GB of a node and epoch"]["64"])
    # A plan has the ranks' own tensors as one each, and of what they have alike every tensor once.
    assert table["plan of all, MB"]["64"] < 1.5 * table["plan of all, MB"]["8"]
    assert table["tensors of the rank with most"]["64"] < table["tensors of the rank with most"]["8"] / 4
    counted = [name for name in table if name.endswith(("MB", "kB", "GB"))]
    assert len(counted) == 3
    assert all(table[name]["growth"] <= 1.01 for name in counted)
