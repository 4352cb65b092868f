"""Verification holds levels to their counts, their values and to nesting, whoever wrote the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml.files import sha256_file, write_json
from shards import relabel, verify
from shards.layout import ShardLimits
from shards.shardset import ShardSet
from tests.shards.small_sources import make_tar


def wrong(folder: Path, level: str, values: list[Any], **changes: Any) -> list[str]:
    """Put other values into a level of the manifest, all else of the set in accord; return what is found."""
    info = ShardSet.open(folder).info
    changed = replace(info.levels[level], **changes)
    table = pq.read_table(folder / "manifest.parquet")
    column = table.column_names.index(changed.column)
    array = pa.array(values, table.schema.field(column).type)
    pq.write_table(table.set_column(column, changed.column, array), folder / "manifest.parquet")
    digest = sha256_file(folder / "manifest.parquet")
    levels = {**info.levels, level: changed}
    write_json(folder / "set.json", replace(info, levels=levels, manifest_sha256=digest).as_json())
    # The index and the statistics still have what was written.
    return [
        f"{found.name}: {found.problem}"
        for found in verify.verify(folder, images=False)
        if found.problem and found.name not in ("index content", "statistics")
    ]


def labels(folder: Path) -> tuple[np.ndarray, ...]:
    index = ShardSet.open(folder).index
    return tuple(index.column(name).to_numpy().copy() for name in ("label", "label_n10", "label_n20"))


def test_a_set_as_written_is_right(copied: Path) -> None:
    assert wrong(copied, "n10", labels(copied)[1].tolist()) == []


def test_a_sample_that_is_clean_again_at_a_higher_level_is_found(copied: Path) -> None:
    clean, low, high = labels(copied)
    flipped, untouched = np.flatnonzero(low != clean)[0], np.flatnonzero(high == clean)[0]
    low[flipped], low[untouched] = clean[flipped], (clean[untouched] + 1) % 10
    assert wrong(copied, "n10", low.tolist()) == [
        "n10 nested in n20: 1 samples altered at n10 are clean at n20"
    ]


def test_a_sample_that_is_wrong_in_another_way_at_a_higher_level_is_found(copied: Path) -> None:
    clean, low, _ = labels(copied)
    flipped = np.flatnonzero(low != clean)[0]
    low[flipped] = next(c for c in range(10) if c not in (clean[flipped], low[flipped]))
    assert wrong(copied, "n10", low.tolist()) == [
        "n10 nested in n20: 1 samples are wrong in another way at n20"
    ]


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A noise model that another distribution registers."""
    about = tmp_path / "site" / "theirs-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Name: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[nml.noise]\ntheirs = shards.noise.symmetric:Symmetric\n")
    monkeypatch.syspath_prepend(about.parent)
    return "theirs"


def one_flip_less(folder: Path, model: str) -> list[str]:
    clean, low, _ = labels(folder)
    count = int((low != clean).sum())
    low[np.flatnonzero(low != clean)[0]] = clean[np.flatnonzero(low != clean)[0]]
    return wrong(folder, "n10", low.tolist(), flipped=count - 1, model=model)


@pytest.mark.parametrize("model", ["symmetric", "theirs"])
def test_a_count_that_is_not_the_ratio_s_is_found_though_it_is_the_recorded_one(
    copied: Path, theirs: str, model: str
) -> None:
    assert one_flip_less(copied, model) == ["n10 count: 125 samples altered, round(0.1 * 1259) is 126"]


@pytest.mark.parametrize("model", ["from-file", "paper-released", "not-installed-here"])
def test_a_model_that_promises_no_count_is_held_to_the_recorded_one(copied: Path, model: str) -> None:
    assert one_flip_less(copied, model) == []


def test_a_count_that_is_not_the_recorded_one_is_found(copied: Path) -> None:
    [found] = wrong(copied, "n10", labels(copied)[1].tolist(), flipped=125)
    assert found == "n10 count: 126 samples differ from clean, set.json says 125"


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class_is_found(copied: Path, label: int) -> None:
    clean, low, _ = labels(copied)
    low[np.flatnonzero(low != clean)[0]] = label
    assert any(line.startswith("n10 values: labels from") for line in wrong(copied, "n10", low.tolist()))


@pytest.fixture
def captions(tmp_path: Path, written: Callable, requested: Callable) -> Path:
    """Twelve captions, four of them swapped and, in a ring, five."""
    make_tar(tmp_path / "source.tar", "txt", [f"caption {number}" for number in range(12)])
    request = requested(f"webdataset:{tmp_path / 'source.tar'}", "0", "0.34", limits=ShardLimits(10**9, 100))
    folder = Path(written(tmp_path / "set", request).path)
    relabel.relabel(folder, [Fraction("0.42"), Fraction("0.67")], None, None, None)
    assert [level.moved for level in ShardSet.open(folder).info.levels.values()] == [4, 5, 8]
    return folder


def test_swapped_captions_are_nested_but_for_the_ring_of_three(captions: Path) -> None:
    assert [finding for finding in verify.verify(captions) if finding.problem] == []


def test_captions_that_are_used_twice_or_swapped_elsewhere_are_found(captions: Path) -> None:
    index = ShardSet.open(captions).index
    clean, low, high = (index.column(name).to_pylist() for name in ("caption", "caption_n34", "caption_n67"))
    altered = [row for row in range(12) if low[row] != clean[row]]
    untouched = [row for row in range(12) if high[row] == clean[row]]
    twice = list(low)
    twice[altered[0]] = clean[untouched[0]]
    assert "n34 values: the captions are not the clean ones in another order" in wrong(captions, "n34", twice)
    elsewhere = list(clean)
    for a, b in ((altered[0], untouched[0]), (altered[1], untouched[1])):
        elsewhere[a], elsewhere[b] = clean[b], clean[a]
    found = wrong(captions, "n34", elsewhere)
    assert any("n34 nested in n42: 2 samples altered at n34 are clean at n42" in line for line in found), (
        found
    )
