"""Any two features of data that may meet: a set holds the images and labels that definitions give it.

The rows are those of tests/crossings.yaml. Images, keys and clean labels are known before anything is
written; noise, order in storage and order of reading come from tests/shards/by_definition.py.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nml import cli
from nml.levels import level_name
from shards import index, relabel, write
from shards.dataset import ShardDataset
from shards.reader import ShardReader
from shards.sampler import ElasticBatchSampler
from shards.shardset import ShardSet
from tests.crossings import Crossings, Refusal, Row, label
from tests.shards import by_definition

CROSSINGS = Crossings("data")
CLASSES, SAMPLES, HELD_OUT = 4, 64, 16
BATCH, EPOCH = 8, 1
REMOTE = "memory://crossings/set"


class Known:
    """Samples known beforehand, in the order of their source.

    Args:
        first: Number of the first.
        count: How many.
        by_class: Whether the source has them class by class.
    """

    def __init__(self, first: int, count: int, *, by_class: bool) -> None:
        generator = np.random.default_rng(first)
        labels = [min(number % 7, CLASSES - 1) for number in range(count)]
        order = list(range(count))
        if by_class:
            order.sort(key=lambda number: (labels[number], number))
        pixels = generator.integers(0, 256, (count, 8, 8, 3), np.uint8)
        features = generator.normal(size=(count, 3)) * [1, 10, 0.1]
        self.keys = [f"class{labels[number]}_{first + number:04d}" for number in order]
        self.labels = [labels[number] for number in order]
        # A third of the captions are one text.
        self.captions = [f"caption {number if number % 3 else 0}" for number in order]
        # One to three an image, where there are several; here and there one is another's, too.
        self.lists = [
            [f"{text} {place}" for place in range(1 + number % 3)]
            for number, text in zip(order, self.captions, strict=True)
        ]
        self.images = [png(pixels[number]) for number in order]
        self.features = features[order]
        # Every fourth is another class.
        self.annotated = [
            (value + 1) % CLASSES if place % 4 == 1 else value for place, value in enumerate(self.labels)
        ]

    def texts(self, kind: str) -> list[str]:
        """Return the captions one after another."""
        return [text for texts in self.lists for text in texts] if kind == "captions" else self.captions

    def pairs(self, kind: str, model: str, count: int, seed: int) -> by_definition.Pairs:
        """Return what a level alters: samples and the class, or captions and the one that each becomes."""
        hashes = [by_definition.key_hash(key) for key in self.keys]
        owners = None
        if kind == "captions":
            places = [
                (number, place) for number, texts in enumerate(self.lists) for place in range(len(texts))
            ]
            owners = [number for number, _ in places]
            own = [self.keys[number] + (f"/{place}" if place else "") for number, place in places]
            hashes = [by_definition.key_hash(key) for key in own]
        texts = [self.texts(kind).index(caption) for caption in self.texts(kind)]
        following = {number: (number + 1) % CLASSES for number in range(CLASSES)}
        if model == "symmetric":
            return by_definition.symmetric(hashes, self.labels, CLASSES, count, seed)
        if model == "pair-flip":
            return by_definition.pair_flip(hashes, self.labels, following, CLASSES, count, seed)
        if model == "transition-matrix":
            return by_definition.transition_matrix(hashes, self.labels, MATRIX.tolist(), count, seed)
        if model == "instance-dependent":
            features = self.features.tolist()
            return by_definition.instance_dependent(hashes, self.labels, features, CLASSES, count, seed)
        if model == "from-file":
            return [
                (row, given)
                for row, (given, clean) in enumerate(zip(self.annotated, self.labels, strict=True))
                if given != clean
            ]
        if model == "caption-swap":
            return by_definition.caption_swap(hashes, texts, count, seed, owners)
        assert model == "paper-released"
        return by_definition.paper_released(hashes, count, seed)

    def supervision(self, kind: str, model: str, ratio: str, seed: int) -> dict[str, Any]:
        """Return the label, caption or captions of every key at a level."""
        clean: list[Any] = self.labels if kind == "class" else self.texts(kind)
        found = list(clean)
        if Fraction(ratio):
            for row, value in self.pairs(kind, model, round(Fraction(ratio) * len(clean)), seed):
                found[row] = value if kind == "class" else clean[value]
        if kind == "captions":
            rest = iter(found)
            found = [[next(rest) for _ in texts] for texts in self.lists]
        return dict(zip(self.keys, found, strict=True))


MATRIX = np.array([[0.6, 0.4, 0, 0], [0, 0.5, 0.25, 0.25], [0.1, 0.1, 0.7, 0.1], [0.3, 0, 0.1, 0.6]])


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def known(row: Row) -> Known:
    by_class = row["source"] == "folder"
    held_out = row["split"].endswith("test")
    return Known(SAMPLES, HELD_OUT, by_class=by_class) if held_out else Known(0, SAMPLES, by_class=by_class)


def make_source(folder: Path, source: str, split: str, samples: Known) -> None:
    """Write samples as a source has them; ``split`` is the name of theirs, or ``all``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(zip(samples.keys, samples.images, samples.labels, samples.captions, strict=True))
    if source == "captions-lists":
        table = pa.table({"id": samples.keys, "image": samples.images, "caption": samples.lists})
        pq.write_table(table, folder / f"{split}.parquet")
    elif source == "captions-rows":
        (folder / "images").mkdir(exist_ok=True)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["image_id", "path", "caption_number", "caption"])
            for key, image, texts in zip(samples.keys, samples.images, samples.lists, strict=True):
                (folder / "images" / f"{key}.png").write_bytes(image)
                numbered = list(enumerate(texts))
                lines.writerows([key, f"images/{key}.png", place, text] for place, text in reversed(numbered))
    elif source == "folder":
        root = folder if split == "all" else folder / split
        for key, image, _, _ in rows:
            name, _, number = key.partition("_")
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / f"{number}.png").write_bytes(image)
    elif source == "csv":
        (folder / "images").mkdir(exist_ok=True)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["id", "path", "label"])
            for key, image, number, _ in rows:
                (folder / "images" / f"{key}.png").write_bytes(image)
                lines.writerow([key, f"images/{key}.png", number])
    elif source.endswith("parquet"):
        column = {"caption": samples.captions} if source.startswith("captions") else {"label": samples.labels}
        table = pa.table({"id": samples.keys, "image": samples.images, **column})
        pq.write_table(table, folder / f"{split}.parquet")
    else:
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            for key, image, number, caption in rows:
                told = ("txt", caption) if source.startswith("captions") else ("cls", str(number))
                for ending, content in (("png", image), (told[0], told[1].encode())):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every source, once with the samples of one split and once with two."""
    folder = tmp_path_factory.mktemp("crossings") / "sources"
    for source in CROSSINGS.features["source"]:
        train, held_out = (
            known({"source": source, "split": split, "model": ""}) for split in ("train", "test")
        )
        make_source(folder / source / "plain", source, "all", train)
        make_source(folder / source / "parts", source, "train", train)
        make_source(folder / source / "parts", source, "test", held_out)
    return folder


@pytest.fixture
def commands_of(sources: Path, tmp_path: Path) -> Callable[[Row], list[tuple[Any, list[str]]]]:
    """Return the commands that make a row's set, each as its main function and its words."""

    def commands(row: Row) -> list[tuple[Any, list[str]]]:
        samples = known(row)
        np.save(tmp_path / "matrix.npy", MATRIX)
        np.save(tmp_path / "features.npy", samples.features)
        np.save(tmp_path / "labels.npy", samples.annotated)
        part = CROSSINGS.value("split", row["split"])
        places = {"sources": sources, "part": part["part"], "files": tmp_path}
        places |= {"here": tmp_path / "set", "remote": REMOTE}
        model = CROSSINGS.words({"model": row["model"]}, **places)
        ratios = CROSSINGS.value("levels", row["levels"])["ratios"]
        others = {name: value for name, value in row.items() if name != "model"}
        words = CROSSINGS.words(others, **places)
        if row["place"] == "remote":
            words += ["--staging", str(tmp_path / "staging")]
        if row["naming"] == "name" and (names := [name_of(row, ratio) for ratio in ratios if ratio != "0"]):
            model += ["--name", *names]
        if row["noise"] == "written":
            return [(write.main, [*words, *model, "--noise", *ratios])]
        place = REMOTE if row["place"] == "remote" else str(tmp_path / "set")
        added = [ratio for ratio in ratios if ratio != "0"]
        more = part.get("force", "").split()
        return [
            (write.main, [*words, "--noise", "0"]),
            (relabel.main, [place, *model, "--noise", *added, *more]),
        ]

    return commands


@pytest.mark.parametrize("row", CROSSINGS.rows, ids=label)
def test_a_set_holds_what_definitions_give_it(
    row: Row, commands_of: Callable[[Row], list[tuple[Any, list[str]]]], tmp_path: Path
) -> None:
    for main, words in commands_of(row):
        main(words)
    samples, seed = known(row), int(row["seed"])
    kind = CROSSINGS.value("source", row["source"]).get("kind", "class")
    ratios = CROSSINGS.value("levels", row["levels"])["ratios"]
    shard_set = opened(row, tmp_path)
    expected = {ratio: samples.supervision(kind, row["model"], ratio, seed) for ratio in ratios}

    # As they lie: by the hash of their keys, with their own bytes.
    stored = sorted(
        samples.keys, key=lambda key: by_definition.word(by_definition.key_hash(key), seed, "write order")
    )
    images = dict(zip(samples.keys, samples.images, strict=True))
    reader = ShardReader(shard_set)
    found = [reader.image(number) for number in range(shard_set.num_samples)]
    assert [place.key for place, _ in found] == stored
    assert [data for _, data in found] == [images[key] for key in stored]
    primary = expected[ratios[0] if row["noise"] == "written" else "0"]
    first = {key: value[0] if kind == "captions" else value for key, value in primary.items()}
    assert loose_supervision(shard_set, kind) == first

    for ratio, of_key in expected.items():
        level = shard_set.level(name_of(row, ratio) if row["naming"] == "name" else ratio)
        assert level.name == name_of(row, ratio)
        assert level.flipped == sum(different(expected["0"][key], of_key[key]) for key in stored)
        assert read_epoch(row, shard_set, level.name) == [
            [(stored[number], turn(stored[number], of_key[stored[number]])) for number in rank]
            for rank in epoch(row, shard_set)
        ]


def name_of(row: Row, ratio: str) -> str:
    """Return the name of a level."""
    own = row["naming"] == "name" and ratio != "0"
    return f"level-{ratio.replace('.', '_')}" if own else level_name(Fraction(ratio))


def different(clean: Any, given: Any) -> int:
    """Return how many labels or captions of a sample are not the clean ones."""
    if isinstance(clean, list):
        return sum(a != b for a, b in zip(clean, given, strict=True))
    return int(clean != given)


def turn(key: str, given: Any) -> Any:
    """Return what is read of a sample: of several captions the one whose turn it is."""
    if not isinstance(given, list):
        return given
    return given[(by_definition.word(by_definition.key_hash(key), 0, "caption") + EPOCH) % len(given)]


def opened(row: Row, folder: Path) -> ShardSet:
    place = REMOTE if row["place"] == "remote" else folder / "set"
    if row["reading"] == "sidecar":
        if not (folder / "sidecar").exists():
            index.main([str(place), "--out", str(folder / "sidecar")])
        place = folder / "sidecar"
    return ShardSet.open(place, cache=folder / "cache")


def loose_supervision(shard_set: ShardSet, kind: str) -> dict[str, Any]:
    """Return what a foreign reader finds in the tars."""
    ending = ".cls" if kind == "class" else ".txt"
    found: dict[str, Any] = {}
    for shard in shard_set.info.shards:
        with tarfile.open(shard_set.storage.local(shard.name)) as tar:
            for member in tar.getmembers():
                if member.name.endswith(ending):
                    content = tar.extractfile(member)
                    assert content is not None
                    text = content.read().decode()
                    found[member.name.removesuffix(ending)] = int(text) if kind == "class" else text
    return found


def read_epoch(row: Row, shard_set: ShardSet, ratio: str) -> list[list[tuple[str, Any]]]:
    """Return key and supervision of what each rank reads."""
    dataset = ShardDataset(shard_set, ratio, lambda image: image.size)
    keys = shard_set.index.column("key").to_pylist()
    told = []
    for rank in range(int(row["ranks"])):
        sampler = ElasticBatchSampler(
            shard_set,
            global_batch=BATCH,
            seed=3,
            streams=int(row["streams"]),
            shuffle=row["order"] == "shuffled",
            rank=rank,
            world=int(row["ranks"]),
        )
        sampler.set_epoch(EPOCH)
        read = [dataset[ref] for batch in sampler for ref in batch]
        told.append([(keys[sample.index], sample.target) for sample in read])
    return told


def epoch(row: Row, shard_set: ShardSet) -> list[list[int]]:
    """Return the samples that each rank is to read."""
    streams, ranks = int(row["streams"]), int(row["ranks"])
    ends = np.cumsum([shard.samples for shard in shard_set.info.shards]).tolist()
    expected = by_definition.epoch_order(ends, streams, 3, EPOCH, shuffle=row["order"] == "shuffled")
    places = range(ends[-1] // BATCH * BATCH)
    samples = [expected[place % streams][place // streams] for place in places]
    return [samples[rank::ranks] for rank in range(ranks)]


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NML_SHARD_CACHE", str(tmp_path / "shard-cache"))
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("refusal", CROSSINGS.refused, ids=lambda refusal: label(refusal.values))
def test_what_cannot_meet_is_refused_in_one_line(
    refusal: Refusal,
    commands_of: Callable[[Row], list[tuple[Any, list[str]]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = CROSSINGS.completed(refusal)
    *before, (main, words) = commands_of(row)

    def write_and_read() -> None:
        main(words)
        read_epoch(row, opened(row, tmp_path), "0")

    for earlier, arguments in before:
        earlier(arguments)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.run(write_and_read)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert refusal.says in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1, told
