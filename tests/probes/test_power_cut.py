"""Features, rows and saved heads are whole or absent after a power cut at any moment of writing them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from nml.errors import UserError
from plugins.lp import LinearProbe
from plugins.registry import HEADS
from plugins.saved import is_saved, load_head, save_head
from probes.features.store import Entry, FeatureKey, FeatureStore, is_whole
from probes.results.row import Row
from probes.results.rowfiles import read_rows, row_files, write_rows
from tests.power_cut import Recorder, State

ARRAY = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
CHUNKS = 3
KEY = FeatureKey({"count": len(ARRAY)}, {"encoder": "one", "dataset": "ten samples"})


def compute(entry: Entry) -> None:
    """Compute what is missing of an entry, as a feature pass does."""
    entry.begin()
    for chunk in range(CHUNKS):
        with entry.claim(chunk, wait=True):
            if not entry.has_chunk(chunk):
                entry.write_chunk(chunk, ARRAY[4 * chunk : 4 * chunk + 4], 1.5)
    entry.join(CHUNKS)


def test_features_are_whole_or_absent_and_the_same_pass_ends_them(tmp_path: Path) -> None:
    entry = FeatureStore(tmp_path / "disk" / "features").entry(KEY)
    (tmp_path / "disk").mkdir()
    with Recorder(tmp_path / "disk").on() as recorder:
        compute(entry)

    def read() -> list[list[float]] | None:
        found = entry.open()
        assert found is None or found.seconds == 4.5
        return None if found is None else found.array.tolist()

    recorder.final().lay(tmp_path / "disk")
    assert read() == ARRAY.tolist(), "features that were told complete are gone"
    states = list(recorder.states())
    assert len(states) > 15
    for state in states:
        state.lay(tmp_path / "disk")
        assert read() in (None, ARRAY.tolist()), state.name
        assert is_whole(entry.folder), state.name
        compute(entry)
        assert read() == ARRAY.tolist(), state.name


def row(number: int) -> Row:
    return Row(
        encoder="one",
        encoder_kind="timm",
        encoder_hash="1",
        task="digits",
        task_revision="1",
        split_hash="1",
        domain="id",
        dataset="digits",
        head="lp",
        head_distribution="own",
        head_version="1",
        seed=number,
        created=f"2026-01-01T00:00:0{number}",
        n_train=1,
        n_validation=1,
        n_test=1,
        dim=1,
        num_classes=2,
        accuracy=0.5,
        macro_f1=0.5,
        metric=0.5,
        sve=1.0,
        lsvr=1.0,
        singular_values=(3.0, 1.0),
    )


def test_rows_are_all_there_or_none_of_a_file(tmp_path: Path) -> None:
    disk, batches = tmp_path / "disk", [[row(0), row(1)], [row(2)]]
    everything = [*batches[0], *batches[1]]
    disk.mkdir()
    with Recorder(disk).on() as recorder:
        for batch in batches:
            write_rows(disk / "results", batch)

    def read() -> Iterable[Row]:
        return read_rows(disk / "results") if row_files(disk / "results") else []

    recorder.final().lay(disk)
    assert read() == everything, "rows that were told written are gone"
    states = list(recorder.states())
    assert len(states) > 6
    for state in states:
        state.lay(disk)
        assert read() in ([], batches[0], batches[1], everything), state.name
        for batch in batches:
            write_rows(disk / "results", batch)
        assert read() == everything, state.name


def test_a_saved_head_is_the_one_that_was_saved_or_none(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    features = torch.randn(20, 3)
    head = LinearProbe(epochs=1).fit(features, torch.arange(20) % 2)
    expected = head.predict_logits(features)

    def save() -> None:
        save_head(disk / "heads" / "lp", head, HEADS.find("lp"), dim=3, classes=("a", "b"), about={})

    with Recorder(disk).on() as recorder:
        save()

    def check(state: State) -> None:
        try:
            found = load_head(disk / "heads" / "lp").head.predict_logits(features)
        except UserError:
            assert not is_saved(disk / "heads" / "lp"), state.name
        else:
            assert torch.equal(found, expected), state.name

    final = recorder.final()
    final.lay(disk)
    assert is_saved(disk / "heads" / "lp"), "a head that was told saved is gone"
    check(final)
    for state in recorder.states():
        state.lay(disk)
        check(state)
        save()
        check(state)
