"""A set is whole or absent after a power cut at any moment of writing it or of adding a level to it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from nml.errors import UserError
from shards.layout import ShardLimits
from shards.reader import ShardReader
from shards.relabel import relabel
from shards.shardset import ShardSet
from shards.sources import open_source
from shards.verify import verify
from shards.writing import write_set
from tests.power_cut import Recorder
from tests.shards.conftest import make_request
from tests.shards.small_sources import LABELS, make_tar


def content(folder: Path) -> dict[str, Any]:
    """Return all that a reader gets from a set: every image and every label at every level."""
    shard_set = ShardSet.open(folder)
    reader = ShardReader(shard_set)
    samples, supervision = range(shard_set.num_samples), shard_set.index.supervision
    columns = {name: level.column for name, level in shard_set.info.all_levels().items()}
    return {
        "fingerprint": shard_set.fingerprint,
        "images": [reader.image(sample) for sample in samples],
        **{name: [supervision(s, column) for s in samples] for name, column in columns.items()},
    }


def read(folder: Path) -> dict[str, Any] | None:
    """Return a set's content; None if it is refused in one line."""
    try:
        return content(folder)
    except UserError:
        return None


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    make_tar(tmp_path / "source.tar", "cls", [str(label) for label in LABELS])
    return tmp_path / "disk"


def write(out: Path) -> None:
    """Write twelve images in three shards at one level, in this process."""
    request = make_request(
        f"webdataset:{out.parent.parent / 'source.tar'}", "0", "0.25", limits=ShardLimits(10**9, 5)
    )
    write_set(out, request, lambda: open_source(request.source), workers=1)


def test_a_set_is_whole_or_refused_whenever_the_power_is_cut_and_the_same_command_ends_it(disk: Path) -> None:
    with Recorder(disk).on() as recorder:
        write(disk / "set")
    expected, written = content(disk / "set"), files(disk / "set")
    assert read(recorder.final().lay(disk) / "set") == expected, "a set that was told written is gone"
    states = list(recorder.states())
    assert len(states) > 40
    for state in states:
        found = read(state.lay(disk) / "set")
        assert found in (None, expected), state.name
        assert found or not (disk / "set" / "set.json").exists(), f"a set that does not read: {state.name}"
        write(disk / "set")
        assert files(disk / "set") == written, state.name


def test_levels_read_as_before_or_as_after_whenever_the_power_is_cut(disk: Path) -> None:
    write(disk / "set")
    before = content(disk / "set")

    def add() -> None:
        relabel(disk / "set", [Fraction("0.5")], None, None, None)

    with Recorder(disk).on() as recorder:
        add()
    after = content(disk / "set")
    assert after.keys() == before.keys() | {"n50"}
    assert {name: after[name] for name in before} == before
    assert read(recorder.final().lay(disk) / "set") == after, "a level that was told added is gone"
    states = list(recorder.states())
    assert len(states) >= 9
    for state in states:
        found = read(state.lay(disk) / "set")
        assert found in (before, after), state.name
        if found == before:
            add()
        assert content(disk / "set") == after, state.name
        assert not [finding for finding in verify(disk / "set") if finding.problem], state.name
