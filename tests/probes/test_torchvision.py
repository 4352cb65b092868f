"""The paper's vision sets, from small folders laid out as torchvision leaves its downloads."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nml.errors import UserError
from probes.tasks import vision
from probes.tasks.prepared import Part, PreparedTask
from probes.tasks.registry import TASKS
from tests.probes.published_sets import image_bytes, opened, write_cifar

pytest.importorskip("datasets")


def write_files(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, "JPEG" if path.suffix == ".jpg" else "PNG"))


def lines(path: Path, *content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in content))


def write_cifar_batches(folder: Path, files: tuple[str, ...], meta: str, names: str, labels: str) -> None:
    folder.mkdir(parents=True)
    pixels = np.arange(4 * 3072, dtype=np.int64).reshape(4, 3072).astype(np.uint8)
    for file in files:
        (folder / file).write_bytes(pickle.dumps({"data": pixels, labels: [0, 1, 0, 1]}))
    (folder / meta).write_bytes(pickle.dumps({names: ["cat", "dog"]}))


def cifar10(root: Path) -> None:
    batches = tuple(f"data_batch_{n}" for n in range(1, 6))
    folder = root / "cifar-10-batches-py"
    write_cifar_batches(folder, (*batches, "test_batch"), "batches.meta", "label_names", "labels")


def cifar100(root: Path) -> None:
    write_cifar_batches(
        root / "cifar-100-python", ("train", "test"), "meta", "fine_label_names", "fine_labels"
    )


def flowers102(root: Path) -> None:
    from scipy.io import savemat

    folder = root / "flowers-102"
    write_files(folder / "jpg", *(f"image_{n:05d}.jpg" for n in range(1, 7)))
    savemat(folder / "imagelabels.mat", {"labels": np.array([1, 2, 1, 2, 1, 2])})
    savemat(folder / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})


def food101(root: Path) -> None:
    folder = root / "food-101"
    write_files(folder / "images", *(f"{kind}/{n}.jpg" for kind in ("pie", "soup") for n in range(3)))
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        content = {kind: [f"{kind}/{n}" for n in numbers] for kind in ("pie", "soup")}
        lines(folder / "meta" / f"{split}.json", json.dumps(content))


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    write_files(folder / "images", "Abyssinian_1.jpg", "beagle_1.jpg", "Abyssinian_2.jpg", "beagle_2.jpg")
    lines(folder / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1", "beagle_1 2 2 1")
    lines(folder / "annotations" / "test.txt", "Abyssinian_2 1 1 1", "beagle_2 2 2 1")


def cars(root: Path) -> None:
    from scipy.io import savemat

    folder = root / "stanford_cars"
    kind = [("fname", object), ("class", object)]
    annotations = np.array([("00001.jpg", 1), ("00002.jpg", 2)], dtype=kind)
    for part in ("cars_train", "cars_test"):
        write_files(folder / part, "00001.jpg", "00002.jpg")
    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_train_annos.mat", {"annotations": annotations})
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": annotations})
    names = np.array(["AM General Hummer", "Acura RL"], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})


def aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    write_files(data / "images", *(f"{n:07d}.jpg" for n in range(6)))
    lines(data / "variants.txt", "707-320", "A300B4")
    for split, first in (("train", 0), ("val", 2), ("test", 4)):
        labels = (f"{first:07d} 707-320", f"{first + 1:07d} A300B4")
        lines(data / f"images_variant_{split}.txt", *labels)


def svhn(root: Path) -> None:
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(32 * 32 * 3 * 2, dtype=np.int64).reshape(32, 32, 3, 2).astype(np.uint8)
    for split in ("train", "test"):
        # The digit 0 is class 10 in the authors' files.
        savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": np.array([[10], [1]])})


def dtd(root: Path) -> None:
    folder = root / "dtd" / "dtd"
    write_files(folder / "images", *(f"{k}/{k}_{n}.jpg" for k in ("banded", "lined") for n in range(3)))
    for number, split in enumerate(("train", "val", "test")):
        lines(folder / "labels" / f"{split}1.txt", *(f"{k}/{k}_{number}.jpg" for k in ("banded", "lined")))


def caltech101(root: Path) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    names = [f"{k}/image_{n:04d}.jpg" for k in ("ant", "chair", "BACKGROUND_Google") for n in range(1, 34)]
    write_files(folder, *names)


def eurosat(root: Path) -> None:
    names = [f"{k}/{k}_{n}.jpg" for k in ("Forest", "River") for n in range(1603)]
    write_files(root / "eurosat" / "2750", *names)


def rendered_sst2(root: Path) -> None:
    for split in ("train", "valid", "test"):
        write_files(root / "rendered-sst2" / split, "negative/0.png", "positive/0.png")


LAYOUTS = {
    layout.__name__.replace("_", "-"): layout
    for layout in (
        cifar10,
        cifar100,
        flowers102,
        food101,
        pets,
        cars,
        aircraft,
        svhn,
        dtd,
        caltech101,
        eurosat,
        rendered_sst2,
    )
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_sets_are_read_from_torchvisions_folders(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The small files do not have the hashes of the real ones.
    for module in ("cifar", "svhn", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *arguments: True)
    layout: Callable[[Path], None] = LAYOUTS[name]
    layout(tmp_path / "torchvision")
    task: PreparedTask = TASKS.load(name)
    assert task.prepare(tmp_path / "tasks", torchvision=tmp_path / "torchvision") == {}
    result = opened(task, tmp_path / "tasks")
    # Of flowers, torchvision names all classes whatever is there.
    assert len(result.classes) in ((102, 2) if name == "flowers102" else (2,))
    assert set(result.train.labels.tolist()) == {0, 1}
    assert (result.validation is not None) == ("validation" in task.torchvision.splits)  # type: ignore[union-attr]
    assert isinstance(result.train.read(0), Image.Image)
    assert result.revision.startswith("torchvision-")
    expected = {"caltech101": (60, 6), "eurosat": (3200, 6), "cifar10": (20, 4), "cifar100": (4, 4)}
    train, test = expected.get(name, (4 if name == "food101" else 2, 2))
    assert (len(result.train.keys), len(result.evaluations[0].samples.keys)) == (train, test)


def test_torchvision_copies_files_byte_by_byte(tmp_path: Path) -> None:
    dtd(tmp_path)
    vision.DTD.prepare(tmp_path / "tasks", torchvision=tmp_path)
    table = pq.read_table(tmp_path / "tasks" / "dtd" / "train.parquet")
    original = (tmp_path / "dtd" / "dtd" / "images" / "banded" / "banded_0.jpg").read_bytes()
    assert table["image"][0].as_py()["bytes"] == original
    assert opened(vision.DTD, tmp_path / "tasks").classes == ("banded", "lined")


def test_training_and_test_data_never_come_from_two_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    cifar10(tmp_path / "torchvision")
    task, root = write_cifar(tmp_path), tmp_path / "tasks"
    without_test = dataclasses.replace(task, parts=task.parts | {"test": Part()})
    with pytest.raises(UserError, match="not on the hub"):
        without_test.prepare(root)
    task.prepare(root, torchvision=tmp_path / "torchvision")
    facts = json.loads((root / "cifar10" / "task.json").read_text())["files"]
    assert {entry["source"] for entry in facts.values()} == {"torchvision.datasets.CIFAR10"}
    with pytest.raises(UserError, match=r"prepared from torchvision\.datasets\.CIFAR10; remove"):
        task.prepare(root)


def test_what_torchvision_has_not_and_cannot_get_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"StanfordCars is not in .*original URL is broken.*--torchvision FOLDER"
    ):
        vision.CARS.prepare(tmp_path / "tasks", torchvision=tmp_path)
    with pytest.raises(UserError, match="task resisc45: torchvision does not have it"):
        vision.RESISC45.prepare(tmp_path / "tasks", torchvision=tmp_path)
