from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from nml.errors import UserError
from probes.tasks import open_task
from probes.tasks.registry import check_task
from tests.probes.own_files import png, write_folder, write_tar


def test_folders_and_further_folders_as_ood(tmp_path: Path) -> None:
    train, test, sketch = (
        write_folder(tmp_path / name, {"cat": 3, "dog": 2}) for name in ("train", "test", "sketch")
    )
    task = open_task(f"imagefolder:{train},{test},{sketch},name=pets")
    assert task.classes == ("cat", "dog")
    assert [(part.name, part.domain) for part in task.evaluations] == [("pets", "id"), ("pets-sketch", "ood")]
    assert task.train.labels.tolist() == [0, 0, 0, 1, 1]


def test_variants_of_one_file_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = ["train", "test", "sketch/test", "clipart/test", "a/b/test", "c/b/test", "art"]
    for number, path in enumerate(paths):
        write_folder(tmp_path / path, {"cat": number + 2, "dog": number + 2})
    places = ",".join(str(tmp_path / path) for path in paths)
    task = open_task(f"imagefolder:{places},name=pets")
    assert [(part.name, len(part.samples.keys)) for part in task.evaluations] == [
        ("pets", 6),
        ("pets-sketch-test", 8),
        ("pets-clipart-test", 10),
        ("pets-a-b-test", 12),
        ("pets-c-b-test", 14),
        ("pets-art", 16),
    ]


def test_two_evaluations_of_one_name_are_refused(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    with pytest.raises(UserError, match=r"2 evaluations are called pets-.*train; possible: a name for each"):
        open_task(f"imagefolder:{train},{train},{train},{train},name=pets")
    digits = open_task("digits")
    again = dataclasses.replace(digits, evaluations=(*digits.evaluations, digits.evaluations[1]))
    with pytest.raises(UserError, match="2 evaluations are called digits-inverted"):
        check_task(again)


def test_variants_with_fewer_classes_are_masked_and_numbered_folders_understood(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", {"n01": 2, "n02": 2, "n03": 2})
    fewer = write_folder(tmp_path / "fewer", {"n01": 1, "n03": 2})
    numbered = write_folder(tmp_path / "v2", {"0": 1, "1": 1, "2": 1})
    task = open_task(f"imagefolder:{train},{train},{fewer},{numbered},mask=present")
    assert [part.classes for part in task.evaluations] == [None, (0, 2), (0, 1, 2)]
    assert task.evaluations[1].samples.labels.tolist() == [0, 2, 2]


def test_tars_with_cls_and_with_a_field_of_json(tmp_path: Path) -> None:
    samples = [
        {
            "png": png(n),
            "cls": str(n % 2).encode(),
            "json": json.dumps({"label": n % 2, "label_n20": 1 - n % 2}).encode(),
        }
        for n in range(6)
    ]
    tar = write_tar(tmp_path / "a.tar", samples)
    assert open_task(f"wds:{tar},{tar},shifts=none").train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    noisy = open_task(f"wds:{tmp_path},{tar},shifts=none,label=label_n20")
    assert noisy.train.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert noisy.train.read(4).getpixel((0, 0)) == (4, 4, 0)


def test_tars_that_each_count_from_zero_keep_their_own_labels(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        samples = [{"png": png(10 * number + n), "cls": str(number).encode()} for n in range(3)]
        write_tar(tmp_path / "train" / f"{name}.tar", samples)
    train = open_task(f"wds:{tmp_path}/train,{tmp_path}/train,shifts=none").train
    assert list(train.keys) == [f"{name}.tar/s0000{n}" for name in "ab" for n in range(3)]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [train.read(n).getpixel((0, 0))[0] for n in range(6)] == [0, 1, 2, 10, 11, 12]
    alone = open_task(f"wds:{tmp_path}/train,{tmp_path}/train/b.tar,shifts=none").evaluations[0].samples
    assert list(alone.keys) == [f"s0000{n}" for n in range(3)]


def test_tars_of_a_folder_are_read_whatever_dots_its_path_holds(tmp_path: Path) -> None:
    samples = [{"png": png(n), "cls": str(n % 2).encode()} for n in range(4)]
    tar = write_tar(tmp_path / "a.tar", samples, folder="./v1.0/")
    assert open_task(f"wds:{tar},{tar},shifts=none").train.labels.tolist() == [0, 1, 0, 1]
    tar = write_tar(tmp_path / "b.tar", samples, folder="./")
    assert list(open_task(f"wds:{tar},{tar},shifts=none").train.keys) == [f"s0000{n}" for n in range(4)]
