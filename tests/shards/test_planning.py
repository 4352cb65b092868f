"""A plan: made once, read back as it was made, and refused where noise must not be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from nml.errors import UserError
from shards import index, relabel
from shards.catalogue import Catalogue
from shards.destination import LocalDestination
from shards.ladder import Level, PlannedLevel, refuse_noise
from shards.noise import Flips
from shards.plan_rows import PlanRows
from shards.planning import plan_once
from shards.sample_sizes import sample_sizes
from shards.sources import Source, open_source
from shards.writing import WriteRequest
from tests.shards.small_sources import IMAGES, LABELS, NAMES, make_tar, run


def nobody() -> Source:
    raise AssertionError("the source is read again")


def classes(folder: Path) -> str:
    make_tar(folder / "a.tar", "cls", list(map(str, LABELS)))
    return f"webdataset:{folder / 'a.tar'}"


def captions(folder: Path) -> str:
    make_tar(folder / "a.tar", "txt", [f"caption {number}" for number in range(12)])
    return f"webdataset:{folder / 'a.tar'}"


@pytest.mark.parametrize(
    ("source_of", "ratios", "primary", "names"),
    [
        (classes, ("0", "0.25"), "n00", ["n25"]),
        (classes, ("0.25", "0"), "n25", ["n25"]),
        (captions, ("0.5",), "n50", ["n50"]),
        (captions, ("0",), "n00", []),
    ],
)
def test_a_plan_is_made_once_and_read_back_as_it_was_made(
    tmp_path: Path,
    requested: Callable[..., WriteRequest],
    source_of: Callable[[Path], str],
    ratios: tuple[str, ...],
    primary: str,
    names: list[str],
) -> None:
    request = requested(source_of(tmp_path), *ratios)
    files = LocalDestination(tmp_path / "set")
    files.work.mkdir(parents=True)
    (files.work / "catalogue.arrow").write_bytes(b"of a plan that was cut short")
    made = plan_once(files, request, lambda: open_source(request.source))
    assert plan_once(files, request, nobody) == made
    kind = "caption" if source_of is captions else "class"
    assert (made.kind, made.primary, made.shards) == (kind, primary, 1)
    assert (made.parent, made.held_out) == (None, False)
    assert made.classes == (None if kind == "caption" else ("0", "1", "2"))
    assert list(made.levels) == names
    # Each column is the clean supervision, but for as many samples as the level says.
    rows = PlanRows(files).read(0)
    clean = rows["caption" if kind == "caption" else "label"].to_pylist()
    for name, level in made.levels.items():
        assert level.name == name
        altered = sum(a != b for a, b in zip(rows[level.column].to_pylist(), clean, strict=True))
        assert altered == round(float(level.asked) * 12) == level.flipped
    assert sorted(rows["source_row"].to_pylist()) == list(range(12))
    assert {path.name for path in files.work.iterdir()} == {"plan.json", "rows.bin", "rows.npy"}
    other = requested(request.source, *ratios, seed=1)
    with pytest.raises(UserError, match="an interrupted write with other options is there"):
        plan_once(files, other, nobody)


class Lengths:
    """An encoder whose only feature is how long an image is."""

    identity: ClassVar[dict[str, str]] = {"encoder": "lengths"}

    def __init__(self, read: list[int]) -> None:
        self._read = read

    def is_the_one(self, identity: dict[str, object]) -> bool:
        return identity == self.identity

    def features(
        self, image: Callable[[int], bytes], numbers: Sequence[int], done: Callable[[int], object]
    ) -> np.ndarray:
        found = [len(image(number)) for number in numbers]
        self._read += found
        done(len(found))
        return np.array(found, np.float32)[:, None]


def test_a_named_encoder_reads_the_images_of_the_source(
    tmp_path: Path, requested: Callable[..., WriteRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr("shards.planning.open_encoder", lambda *_: Lengths(read))
    request = requested(classes(tmp_path), "0", "0.25", model="instance-dependent", encoder="timm:lengths")
    files = LocalDestination(tmp_path / "set")
    files.work.mkdir(parents=True)
    made = plan_once(files, request, lambda: open_source(request.source))
    assert read == [len(image) for image in IMAGES]
    assert made.levels["n25"].flipped == 3


class Samples(NamedTuple):
    held_out: bool
    parent: dict[str, str] | None


CLEAN, NOISY = {"level": "n00"}, {"level": "n20"}


@pytest.mark.parametrize(
    ("samples", "chain", "force", "refused"),
    [
        (Samples(False, None), False, False, None),
        (Samples(True, None), False, False, "which noise must not touch"),
        # What allows the one does not allow the other.
        (Samples(True, None), True, False, "which noise must not touch"),
        (Samples(True, None), False, True, None),
        (Samples(False, CLEAN), False, False, None),
        (Samples(False, NOISY), False, False, "already noisy"),
        (Samples(False, NOISY), False, True, "already noisy"),
        (Samples(False, NOISY), True, False, None),
        (Samples(True, NOISY), True, True, None),
    ],
)
def test_noise_on_held_out_or_noisy_samples_is_refused_unless_asked_for(
    samples: Samples, chain: bool, force: bool, refused: str | None
) -> None:
    if refused is None:
        refuse_noise(samples, "x", chain=chain, force=force)
        return
    with pytest.raises(UserError, match=refused):
        refuse_noise(samples, "x", chain=chain, force=force)


def blocks(size: int) -> int:
    return 512 + -(-size // 512) * 512


def level(name: str) -> Level:
    return Level(
        name=name, asked="0.5", realised=0.5, model="caption-swap", flipped=2, column=f"caption_{name}"
    )


def test_a_sample_counts_with_the_longest_caption_of_its_levels_and_all_of_them_in_its_record() -> None:
    texts = ["a" * 10, "b" * 600, '"' * 400, "\n" * 300]
    table = pa.table(
        {"key": ["k" * 5, "k" * 700, "k", "k"], "size": [1, 512, 513, 2000], "caption": pa.array(texts)}
    )
    catalogue = Catalogue(table, np.arange(4, dtype=np.uint64), "caption", None, np.empty(0, np.int64))
    planned = [
        PlannedLevel(level("n50"), Flips(np.array([0, 1]), np.array([1, 0]))),
        PlannedLevel(level("n51"), Flips(np.array([0, 2]), np.array([2, 0]))),
    ]
    escaped = [len(text) + 5 * sum(letter in '"\n' for letter in text) for text in texts]
    given = [[1, 0, 2, 3], [2, 1, 0, 3]]
    expected = []
    for row in range(4):
        longest = max(len(texts[row]), *(len(texts[source[row]]) for source in given))
        # The clean caption, once for itself; then every level's.
        record = len(table["key"][row].as_py()) + 64 * 4 + escaped[row]
        record += sum(escaped[source[row]] for source in given)
        expected.append(blocks(table["size"][row].as_py()) + blocks(longest) + blocks(record))
    assert sample_sizes(catalogue, planned).tolist() == expected


def test_a_class_takes_eight_bytes_at_most_and_a_place_a_level_in_the_record() -> None:
    table = pa.table({"key": ["k" * 300, "k"], "size": [len(IMAGES[0]), 0]})
    catalogue = Catalogue(table, np.arange(2, dtype=np.uint64), "class", tuple(NAMES), np.array([0, 1]))
    planned = [PlannedLevel(level("n50"), Flips(np.array([0]), np.array([1])))]
    assert sample_sizes(catalogue, planned).tolist() == [
        blocks(len(IMAGES[0])) + blocks(8) + blocks(300 + 64 * 3),
        blocks(0) + blocks(8) + blocks(1 + 64 * 3),
    ]


def test_a_set_that_nobody_would_read_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = classes(tmp_path)
    run(source, tmp_path / "set", "--max-shard-count", "6")
    before = {path: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    monkeypatch.setattr("shards.finishing.MOST_BYTES", 1000)
    refused = {
        r"12 shards make a set\.json of about [\d,]+ bytes.*ask for shards 4 times as large": (
            lambda: run(source, tmp_path / "other", "--max-shard-count", "1")
        ),
        r"2 shards make a set\.json.*write the set anew": (
            lambda: relabel.main([str(tmp_path / "set"), "--noise", "0.5"])
        ),
        "20 shards make.*index some at a time": (
            lambda: index.main([f"{tmp_path}/{{00..19}}.tar", "--out", str(tmp_path / "sidecar")])
        ),
    }
    for number in range(20):
        make_tar(tmp_path / f"{number:02d}.tar", "cls", ["0"] * 12)
    for told, command in refused.items():
        with pytest.raises(UserError, match=told):
            command()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"set"}
    assert {path: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before
