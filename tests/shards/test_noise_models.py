"""The noise models beside symmetric: what each flips, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nml.errors import UserError
from shards.hashing import hash_keys
from shards.ladder import plan_ladder
from shards.noise import NOISE_MODELS, Flips, NoiseModel, Population
from shards.noise.caption_swap import CaptionSwap
from shards.noise.from_file import FromFile
from shards.noise.instance_dependent import InstanceDependent
from shards.noise.pair_flip import PairFlip
from shards.noise.paper_released import PaperReleased
from shards.noise.symmetric import Symmetric
from shards.noise.transition_matrix import TransitionMatrix

RATIOS = [Fraction(5, 100), Fraction(2, 10)]


def population(size: int = 5000, classes: int = 10) -> Population:
    keys = [f"sample-{number}" for number in range(size)]
    labels = np.random.default_rng(0).integers(0, classes, size)
    return Population(
        kind="class",
        hashes=hash_keys(keys),
        labels=labels,
        num_classes=classes,
        texts=np.empty(0, np.uint64),
        keys=keys,
    )


def counts(people: Population, flips: Flips) -> np.ndarray:
    matrix = np.zeros((people.num_classes,) * 2, np.int64)
    np.add.at(matrix, (people.labels[flips.rows], flips.values), 1)
    return matrix


def test_every_model_is_registered() -> None:
    ours = [plugin for plugin in NOISE_MODELS.discover() if plugin.distribution == "noisy-model-learning"]
    assert [plugin.name for plugin in ours] == [
        "caption-swap",
        "from-file",
        "instance-dependent",
        "pair-flip",
        "paper-released",
        "symmetric",
        "transition-matrix",
    ]


def test_labels_of_a_file_with_very_few_flips_are_a_level_of_their_own(tmp_path: Path) -> None:
    people = population(50_000)
    labels = people.labels.copy()
    labels[7] = (labels[7] + 1) % 10
    np.save(tmp_path / "labels.npy", labels)
    planned = plan_ladder(FromFile(str(tmp_path / "labels.npy")), "from-file", people, [], 0)
    assert [(level.level.name, level.level.flipped) for level in planned] == [("n00p002", 1)]


def test_pair_flip_follows_a_map_and_leaves_other_classes_alone(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("from,to\n9,1\n2,0\n")
    people = population()
    flips = PairFlip(str(tmp_path / "map.csv")).plan(people, [Fraction(1, 10)], 0)[0]
    assert len(flips.rows) == 500
    assert set(zip(people.labels[flips.rows].tolist(), flips.values.tolist(), strict=True)) == {
        (9, 1),
        (2, 0),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,1\n", "maps 1 to itself"),
        ("", "maps no class"),
        ("1,2\n1,3\n", "maps a class twice"),
        ("one,two\n", "maps no class"),
        ("1\n", "not a map of classes"),
    ],
)
def test_a_map_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        PairFlip(str(tmp_path / "map.csv"))


def test_a_map_that_cannot_reach_the_ratio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("9,1\n")
    with pytest.raises(UserError, match="the mapped classes have"):
        PairFlip(str(tmp_path / "map.csv")).plan(population(), [Fraction(1, 2)], 0)


def matrix_of(classes: int = 10) -> np.ndarray:
    matrix = np.random.default_rng(1).random((classes, classes))
    matrix[np.arange(classes), np.arange(classes)] += 8
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_a_matrix_gives_the_pattern_and_the_ratio_the_amount(tmp_path: Path, suffix: str) -> None:
    matrix, people = matrix_of(), population(200_000)
    path = tmp_path / f"matrix{suffix}"
    np.save(path, matrix) if suffix == ".npy" else np.savetxt(path, matrix, delimiter=",", fmt="%.17g")
    for ratio, flips in zip(RATIOS, TransitionMatrix(str(path)).plan(people, RATIOS, 0), strict=True):
        assert len(flips.rows) == ratio * 200_000
        off = matrix * (1 - np.eye(10)) * people.class_sizes[:, None]
        expected = off / off.sum() * len(flips.rows)
        found = counts(people, flips)
        assert np.abs(found.sum(axis=1) - expected.sum(axis=1)).max() < 1.01
        assert np.abs(found - expected).max() < 2.5


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (matrix_of().T, "transpose it"),
        (np.eye(4), "10x10"),
        (np.eye(10), "flips nothing"),
        (np.eye(10) * 2 - 1 / 9 + np.eye(10) / 9, "negative"),
        (np.where(np.arange(10)[:, None] == 0, np.eye(10)[1], np.eye(10)), "more than class 0 has samples"),
    ],
)
def test_a_matrix_that_cannot_be_is_refused(tmp_path: Path, matrix: np.ndarray, message: str) -> None:
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(UserError, match=message):
        TransitionMatrix(str(tmp_path / "m.npy")).plan(population(), [Fraction(1, 5)], 0)


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        TransitionMatrix(str(tmp_path / "m.npy"))


def test_features_by_key_equal_features_by_order(tmp_path: Path) -> None:
    people = population(500)
    features = np.random.default_rng(2).normal(size=(500, 4))
    np.save(tmp_path / "f.npy", features)
    turn = np.random.default_rng(3).permutation(500)
    table = pa.table(
        {
            "key": [list(people.keys)[row] for row in turn],
            "features": [features[row].tolist() for row in turn],
        }
    )
    pq.write_table(table, tmp_path / "f.parquet")
    by_order, by_key = (
        InstanceDependent(str(tmp_path / name)).plan(people, RATIOS, 0)[1] for name in ("f.npy", "f.parquet")
    )
    assert np.array_equal(by_order.rows, by_key.rows)


def test_a_single_feature_is_read_from_a_csv_as_from_an_array(tmp_path: Path) -> None:
    feature = np.random.default_rng(1).normal(size=(500, 1))
    np.save(tmp_path / "f.npy", feature)
    np.savetxt(tmp_path / "f.csv", feature, fmt="%.17g")
    one, other = (
        InstanceDependent(str(tmp_path / f"f.{kind}")).plan(population(500), RATIOS, 0)[1]
        for kind in ("npy", "csv")
    )
    assert np.array_equal(one.rows, other.rows)
    assert np.array_equal(one.values, other.values)


def test_features_of_another_set_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.zeros((4, 4)))
    with pytest.raises(UserError, match="5000 rows"):
        InstanceDependent(str(tmp_path / "f.npy")).plan(population(), RATIOS, 0)


def human_labels(people: Population) -> np.ndarray:
    labels = people.labels.copy()
    labels[:617] = (labels[:617] + 3) % 10
    return labels


@pytest.mark.parametrize("kind", ["csv", "npy", "pt"])
def test_labels_from_a_file_become_a_level_named_by_its_rate(tmp_path: Path, kind: str) -> None:
    people = population()
    labels = human_labels(people)
    path = tmp_path / f"labels.{kind}"
    name = str(path)
    if kind == "csv":
        path.write_text("".join(f"{key},{label}\n" for key, label in zip(people.keys, labels, strict=True)))
    elif kind == "npy":
        np.save(path, labels)
    else:
        # As CIFAR-N stores them: a dictionary of NumPy arrays.
        torch.save({"clean_label": people.labels, "worse_label": labels}, path)
        name += ":worse_label"
    planned = plan_ladder(FromFile(name), "from-file", people, [], 0)
    assert [level.level.name for level in planned] == ["n12p34"]
    assert planned[0].level.flipped == 617
    assert np.array_equal(planned[0].flips.rows, np.arange(617))


def test_a_ratio_that_the_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", human_labels(population()))
    with pytest.raises(UserError, match=r"ask for --noise 0\.1234"):
        FromFile(str(tmp_path / "labels.npy")).plan(population(), [Fraction(1, 5)], 0)


class Payload:
    """What a hostile file would run when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("unpickled"),))


def test_a_hostile_label_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"worse_label": Payload()}, tmp_path / "labels.pt")
    with pytest.raises(UserError, match="cannot be read safely"):
        FromFile("labels.pt:worse_label").plan(population(), [], 0)
    assert not (tmp_path / "unpickled").exists()


class Broken:
    """A model whose plans, or whose own words, another function spoils."""

    kind, nested, own_ratio = "class", True, False

    def __init__(self, spoil: Callable[[Flips, Population], list[Flips]]) -> None:
        self.spoil = spoil

    def plan(self, people: Population, ratios: list[Fraction], seed: int) -> list[Flips]:
        return self.spoil(Symmetric().plan(people, ratios, seed)[0], people)


def exits(flips: Flips, people: Population) -> list[Flips]:
    sys.exit(0)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda flips, people: [Flips(flips.rows, people.labels[flips.rows])], "flips a label to itself"),
        (lambda flips, people: [Flips(flips.rows[1:], flips.values[1:])], "alters .* at 0.2, not"),
        (lambda flips, people: [Flips(flips.rows, flips.values[1:])], "a sample twice, or without a value"),
        (lambda flips, people: [Flips(flips.rows - len(people), flips.values)], "a sample outside 0"),
        (lambda flips, people: [Flips(flips.rows, flips.values + 0.0)], "values of float64, not int64"),
        (lambda flips, people: [], "planned 0 levels of 1"),
        (lambda flips, people: people.owners[0], "raised TypeError"),
        (exits, "raised SystemExit: 0"),
    ],
)
def test_a_model_that_breaks_its_contract_is_stopped_by_its_name(
    spoil: Callable[[Flips, Population], list[Flips]], told: str
) -> None:
    with pytest.raises(
        UserError, match=rf"--model symmetric: the noise model of noisy-model-learning .*{told}"
    ):
        plan_ladder(Broken(spoil), "symmetric", population(), [Fraction(1, 5)], 0)


def test_no_ratio_is_no_level(tmp_path: Path) -> None:
    people = population(60)
    np.save(tmp_path / "m.npy", np.eye(10))
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(60, 3)))
    models = Symmetric(), PairFlip(), TransitionMatrix(str(tmp_path / "m.npy"))
    for model in (*models, InstanceDependent(str(tmp_path / "f.npy"))):
        assert model.plan(people, [], 0) == []
    captions = replace(people, kind="caption", texts=people.hashes)
    assert CaptionSwap().plan(captions, [], 0) == PaperReleased().plan(captions, [], 0) == []
    nobody = replace(captions, hashes=people.hashes[:0], texts=people.hashes[:0])
    assert [flips.rows.tolist() for flips in CaptionSwap().plan(nobody, [Fraction(0)], 0)] == [[]]
    # Level zero is a level, of no flips.
    for model in models:
        [flips] = model.plan(people, [Fraction(0)], 0)
        assert (len(flips.rows), len(flips.values)) == (0, 0)


@pytest.mark.parametrize("classes", [0, 1])
def test_a_flip_needs_two_classes(tmp_path: Path, classes: int) -> None:
    people = replace(population(20), labels=np.zeros(20, np.int64), num_classes=classes)
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(20, 3)))
    for model in (Symmetric(), PairFlip(), InstanceDependent(str(tmp_path / "f.npy"))):
        with pytest.raises(UserError, match=r"class(es)?"):
            model.plan(people, [Fraction(1, 2)], 0)
    two = replace(people, num_classes=2)
    for model in (Symmetric(), PairFlip(), InstanceDependent(str(tmp_path / "f.npy"))):
        [flips] = model.plan(two, [Fraction(1, 2)], 0)
        assert (len(flips.rows), set(flips.values.tolist())) == (10, {1})


@pytest.mark.parametrize("text", ["10,1\n", "1,10\n"])
def test_a_map_of_classes_that_there_are_not_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(UserError, match=r"maps class 10? to 10?; possible: 0 to 9"):
        PairFlip(str(tmp_path / "map.csv")).plan(population(100), [Fraction(0)], 0)


def test_every_sample_of_the_mapped_classes_may_flip(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("\n0,9\n")
    people = replace(population(100), labels=np.arange(100) % 10)
    [flips] = PairFlip(str(tmp_path / "map.csv")).plan(people, [Fraction(1, 10)], 0)
    assert sorted(flips.rows.tolist()) == list(range(0, 100, 10))


@pytest.mark.parametrize("wrong", [-1, 10])
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, wrong: int) -> None:
    people = population(100)
    np.save(tmp_path / "l.npy", np.append(people.labels[:-1], wrong))
    with pytest.raises(UserError, match=f"class {wrong}; possible: 0 to 9"):
        FromFile(str(tmp_path / "l.npy")).plan(people, [], 0)


def test_labels_that_are_not_of_these_samples_are_refused(tmp_path: Path) -> None:
    people = population(3)
    np.save(tmp_path / "l.npy", np.zeros(4, np.int64))
    (tmp_path / "l.csv").write_text("sample-0,1\nsample-1,2\n\n")
    (tmp_path / "m.csv").write_text("sample-0,1\nsample-1,x\nsample-2,1\n")
    torch.save({"a": torch.zeros(3)}, tmp_path / "l.pt")
    for name, message in (
        ("l.npy", "holds 4 labels; possible: 3, one a sample"),
        ("l.csv", "has no label of 1 samples, 'sample-2' the first"),
        ("m.csv", "line 2 has class 'x'; possible: 0 to 9, or the name of a class"),
        ("none.csv", "cannot be read"),
        ("l.pt:b", "no such labels; possible: .*l.pt:a"),
    ):
        with pytest.raises(UserError, match=message):
            FromFile(str(tmp_path / name)).plan(people, [], 0)


def test_a_ratio_near_the_file_s_own_is_taken_for_it(tmp_path: Path) -> None:
    people = population(1000)
    np.save(tmp_path / "l.npy", np.where(np.arange(1000) < 200, (people.labels + 1) % 10, people.labels))
    model = FromFile(str(tmp_path / "l.npy"))
    for ratio in ("0.195", "0.2", "0.205"):
        [flips] = model.plan(people, [Fraction(ratio)], 0)
        assert flips.rows.tolist() == list(range(200))
        assert flips.values.tolist() == ((people.labels[:200] + 1) % 10).tolist()
    for ratios in (["0.194"], ["0.206"], ["0.2", "0.2"]):
        with pytest.raises(UserError, match=r"0\.2000 are not the clean"):
            model.plan(people, list(map(Fraction, ratios)), 0)


@pytest.mark.parametrize(
    ("model", "name"),
    [(Symmetric, "symmetric"), (CaptionSwap, "caption-swap"), (PaperReleased, "paper-released")],
)
def test_a_model_that_reads_no_file_refuses_one(model: type[NoiseModel], name: str) -> None:
    with pytest.raises(UserError, match=f"x.csv: the {name} model takes no file"):
        model("x.csv")
