"""Labels from elsewhere are joined by evidence, and what they really hold is told."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from nml.errors import UserError
from shards import audit
from shards.noise import Population
from shards.noise.from_file import FromFile
from shards.noise.label_file import read_labels
from tests.shards.small_sources import LABELS, NAMES
from tests.shards.test_noise_models import human_labels, population


def named(size: int = 30) -> Population:
    people = replace(population(size, 3), classes=("cat", "dog", "7"))
    return replace(
        people, names=[f"{people.classes[label]}/{n}.jpg" for n, label in enumerate(people.labels)]
    )


def plan(text: str, people: Population) -> list[int]:
    [flips] = FromFile(text).plan(people, [], 0)
    return flips.rows.tolist()


def test_rows_in_another_order_are_refused_by_the_clean_labels_in_the_file(tmp_path: Path) -> None:
    people = population()
    labels = human_labels(people)
    # All but two rows in place: agreement alone would tell nothing.
    order = np.arange(len(people))
    first, second = 0, int(np.flatnonzero(people.labels != people.labels[0])[0])
    order[[first, second]] = second, first
    torch.save({"clean_label": people.labels[order], "worse_label": labels[order]}, tmp_path / "n.pt")
    with pytest.raises(UserError, match=r"2 of its 5,000 clean labels are not the source's.*another order"):
        plan(f"{tmp_path / 'n.pt'}:worse_label", people)


def test_labels_in_any_order_are_refused_without_offering_their_rate(tmp_path: Path) -> None:
    people = population()
    np.save(tmp_path / "l.npy", np.random.default_rng(1).permutation(human_labels(people)))
    with pytest.raises(UserError, match="no more than in any order") as refused:
        FromFile(str(tmp_path / "l.npy")).plan(people, [Fraction("0.2")], 0)
    assert "--noise" not in str(refused.value)


@pytest.mark.parametrize("called", ["keys", "names"])
def test_a_csv_names_samples_by_key_or_source_and_classes_by_number_or_name(
    tmp_path: Path, called: str
) -> None:
    people = named()
    given = people.labels.copy()
    given[4] = (given[4] + 1) % 3
    spelled = [["cat", "dog", "7"][label] if row % 2 else str(label) for row, label in enumerate(given)]
    rows = list(zip(getattr(people, called), people.labels, spelled, strict=True))
    lines = [
        "file,clean_label,noisy_label",
        *(f"{name},{clean},{label}" for name, clean, label in rows[::-1]),
    ]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines))
    assert plan(str(path), people) == [4]
    lines[3] = lines[3].replace(f",{rows[-3][1]},", f",{(rows[-3][1] + 1) % 3},")
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="1 of its 30 clean labels are not the source's"):
        plan(str(path), people)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [*lines, lines[2]], "line 31 has the key 'sample-2' a second time"),
        (lambda lines: [*lines, "sample-99,0"], "names 1 that there are not, the first in line 31"),
        (lambda lines: lines[1:], "has no label of 1 samples, 'sample-0' the first"),
        (
            lambda lines: [*lines[:-1], "sample-29,bird"],
            "line 30 has class 'bird'; possible: 0 to 2, or the name",
        ),
        (lambda lines: ["a,b,c", *lines], "does not name a key and a label"),
    ],
)
def test_keys_and_classes_that_there_are_not_are_one_line(tmp_path: Path, change: object, told: str) -> None:
    people = named()
    lines = [f"{key},{label}" for key, label in zip(people.keys, people.labels, strict=True)]
    (tmp_path / "l.csv").write_text("\n".join(change(lines)))
    with pytest.raises(UserError, match=told):
        plan(str(tmp_path / "l.csv"), people)


def test_a_number_that_is_the_name_of_another_class_is_refused(tmp_path: Path) -> None:
    people = replace(named(), classes=("1", "dog", "cat"))
    lines = [f"{key},{label}" for key, label in zip(people.keys, people.labels, strict=True)]
    (tmp_path / "l.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match="1, which is class 0 by its name and 1 by its number"):
        read_labels(str(tmp_path / "l.csv"), people)


def drawn(people: Population, kind: str, rate: float) -> np.ndarray:
    chance = np.random.default_rng(3)
    hit = chance.random(len(people)) < rate
    clean = people.labels
    given = {
        "all": chance.integers(0, 10, len(people)),
        "others": (clean + chance.integers(1, 10, len(people))) % 10,
        "pairs": (clean + 1) % 10,
        "some classes": np.where(clean < 5, (clean + chance.integers(1, 10, len(people))) % 10, clean),
    }[kind]
    return np.where(hit, given, clean)


@pytest.mark.parametrize(
    ("kind", "rate", "lines"),
    [
        ("all", 0.4, ["which is what is realised", "drawn from   all classes", "symmetric    not ruled out"]),
        (
            "others",
            0.4,
            ["which is what is realised", "drawn from   the other classes", "symmetric    not ruled out"],
        ),
        (
            "others",
            0.24,
            ["claimed      0.4, WRONG: that would realise 0.4000 or 0.3600", "symmetric    not ruled"],
        ),
        ("pairs", 0.4, ["which is what is realised", "symmetric    no: p 0.002"]),
        ("some classes", 0.4, ["WRONG", "symmetric    no"]),
    ],
)
def test_an_audit_tells_rate_source_and_symmetry(
    tmp_path: Path, kind: str, rate: float, lines: list[str]
) -> None:
    people = population(20_000)
    given = drawn(people, kind, rate)
    (tmp_path / "l.json").write_text(json.dumps(given.tolist()))
    found = audit.audit(str(tmp_path / "l.json"), people)
    assert found.flipped == (given != people.labels).sum()
    told = "\n".join(audit.describe(found, tuple(map(str, range(10))), Fraction("0.4")))
    for line in lines:
        assert line in told, told


def test_the_command_reads_sources_and_sets_and_tells_another_order(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*LABELS]
    order = sorted(range(12), key=lambda number: (NAMES[LABELS[number]], number))
    (tmp_path / "right.json").write_text(json.dumps([given[number] for number in order]))
    (tmp_path / "wrong.json").write_text(json.dumps(given))
    against = ["--against", f"imagefolder:{image_folder}"]
    assert audit.main([str(tmp_path / "right.json"), *against]) == 0
    assert "realised     0.0000" in capsys.readouterr().out
    assert audit.main([str(tmp_path / "wrong.json"), *against]) == 1
    assert "ORDER" in capsys.readouterr().out
    (tmp_path / "short.json").write_text("[0, 1]")
    with pytest.raises(UserError, match=r"^/.*short\.json: holds 2 labels"):
        audit.main([str(tmp_path / "short.json"), *against])
