"""ImageNet and its six variants, from small files laid out as the sets are published."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nml.errors import UserError
from probes.results import read_rows
from probes.run import main
from probes.scoring import evaluate
from probes.tasks import Evaluation, Task, open_task
from probes.tasks.samplesets import Texts
from probes.tasks.task import Perturbations

WNIDS = [f"n{10000000 + 7 * number:08d}" for number in range(1000)]


def jpeg(value: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value % 256, 40, 90)).save(file, "PNG")
    return file.getvalue()


def write_images(root: Path, counts: dict[str, int], size: int = 8) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{name}_{index}.JPEG").write_bytes(jpeg(number + index, size))
    return root


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_objectnet(root: Path) -> None:
    write_images(root / "images", {"chair": 2, "banana": 1, "desk_lamp_of_no_class": 1}, size=12)
    folders = {"chair": "Chair", "banana": "Banana", "desk_lamp_of_no_class": "Desk lamp (odd)"}
    write_json(root / "mappings" / "folder_to_objectnet_label.json", folders)
    # As in the original: the labels of ImageNet 2012 have an order of their own.
    labels = [f"label of {(number * 3) % 1000}" for number in range(1000)]
    (root / "mappings" / "imagenet_to_label_2012_v2").write_text("\n".join(labels) + "\n")
    write_json(
        root / "mappings" / "pytorch_to_imagenet_2012_id.json",
        {str((number * 3) % 1000): number for number in range(1000)},
    )
    write_json(
        root / "mappings" / "objectnet_to_imagenet_1k.json",
        {"Chair": "label of 423; label of 559; label of 765", "Banana": "label of 954"},
    )


def write_vid_robust(root: Path) -> None:
    frames = [f"val/ILSVRC2015_val_0000000{video}/{frame:06d}.JPEG" for video in (0, 1) for frame in range(3)]
    for number, frame in enumerate(frames):
        (root / frame).parent.mkdir(parents=True, exist_ok=True)
        (root / frame).write_bytes(jpeg(number))
    write_json(root / "metadata" / "pmsets.json", {frames[1]: [frames[0], frames[2]], frames[4]: [frames[3]]})
    write_json(root / "metadata" / "labels.json", {frame: [n // 3, 1] for n, frame in enumerate(frames)})
    write_json(
        root / "misc" / "imagenet_vid_class_index.json",
        {"0": ["n02691156", "airplane"], "1": ["n02084071", "dog"]},
    )
    write_json(root / "misc" / "rev_wnid_map.json", {"n02691156": [WNIDS[404]], "n02084071": WNIDS[151:155]})


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    write_images(root / "train", dict.fromkeys(WNIDS, 1))
    write_images(root / "val", dict.fromkeys(WNIDS[:3], 1))
    variants = root / "variants"
    write_images(
        variants / "imagenetv2-matched-frequency-format-val", {str(n): 1 for n in (0, 1, 2, 10, 999)}
    )
    write_images(variants / "imagenet-r", {WNIDS[1]: 2, WNIDS[988]: 1})
    write_images(variants / "sketch", dict.fromkeys(WNIDS, 1))
    write_images(variants / "imagenet-a", {WNIDS[6]: 1})
    write_objectnet(variants / "objectnet-1.0")
    write_vid_robust(variants / "imagenet-vid-robust")
    return root


def evaluations(task: Task) -> dict[str, Evaluation]:
    return {evaluation.name: evaluation for evaluation in task.evaluations}


def test_all_six_variants_are_read_as_they_are_published(
    imagenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = open_task(f"imagenet:{imagenet},variants={imagenet / 'variants'}")
    assert capsys.readouterr().err == ""
    assert task.classes == tuple(WNIDS)
    tests = evaluations(task)
    assert {name: test.domain for name, test in tests.items()} == {
        "imagenet": "id",
        "imagenet-v2": "ood",
        "imagenet-r": "ood",
        "imagenet-sketch": "ood",
        "imagenet-a": "ood",
        "objectnet": "ood",
        "imagenet-vid-robust": "ood",
    }
    # Folder 10 of V2 is class 10, though it sorts before 2 as a name.
    assert sorted(tests["imagenet-v2"].samples.labels.tolist()) == [0, 1, 2, 10, 999]
    assert tests["imagenet-v2"].classes is None
    assert tests["imagenet-r"].classes == (1, 988)
    assert tests["imagenet-r"].samples.labels.tolist() == [1, 1, 988]
    assert tests["imagenet-sketch"].classes is None
    assert tests["imagenet-a"].classes == (6,)


def test_objectnet_is_scored_by_its_own_classes_without_its_frame(imagenet: Path) -> None:
    test = evaluations(open_task(f"imagenet:{imagenet},variants={imagenet / 'variants'}"))["objectnet"]
    assert test.groups == ((954,), (423, 559, 765))
    assert test.samples.labels.tolist() == [0, 1, 1]
    assert all("no_class" not in key for key in test.samples.keys)
    image = test.samples.read(0)
    assert isinstance(image, Image.Image)
    assert image.size == (8, 8)
    logits = np.zeros((3, 1000), np.float32)
    logits[:, 5] = 9  # no class of ObjectNet: cannot win
    logits[0, 954] = logits[1, 559] = logits[2, 954] = 1
    assert evaluate(logits, test, "accuracy").accuracy == pytest.approx(2 / 3)


def test_vid_robust_counts_a_set_only_if_every_frame_is_right(imagenet: Path) -> None:
    test = evaluations(open_task(f"imagenet:{imagenet},variants={imagenet / 'variants'}"))[
        "imagenet-vid-robust"
    ]
    assert test.groups == ((404,), (151, 152, 153, 154))
    assert test.perturbations is not None
    assert test.perturbations.sets == ((1, 0, 2), (4, 3))
    logits = np.zeros((5, 1000), np.float32)
    logits[:3, 404] = 1  # airplane
    logits[3:, 151] = 1  # dog
    scores = evaluate(logits, test, "accuracy")
    assert (scores.accuracy, scores.metric, scores.metric_name) == (1.0, 1.0, "pm-10")
    logits[0, 153] = 2  # a neighbour is a dog, which its labels allow, too
    assert evaluate(logits, test, "accuracy").metric == 1.0
    logits[3, 404] = 2  # a neighbour is an airplane, which it may not be
    scores = evaluate(logits, test, "accuracy")
    assert (scores.accuracy, scores.metric) == (1.0, 0.5)


@given(st.data())
def test_pm_k_is_what_the_sets_authors_compute(data: st.DataObject) -> None:
    frames = data.draw(st.integers(1, 12))
    label = st.integers(0, 3)
    predicted = data.draw(st.lists(label, min_size=frames, max_size=frames))
    accepted = data.draw(st.lists(st.frozensets(label, min_size=1), min_size=frames, max_size=frames))
    position = st.integers(0, frames - 1)
    sets = data.draw(st.lists(st.lists(position, min_size=1, max_size=4), min_size=1, max_size=4))
    samples = Texts([str(n) for n in range(frames)], np.zeros(frames, np.int64), ["x"] * frames)
    perturbations = Perturbations("pm-10", tuple(map(tuple, sets)), tuple(accepted))
    test = Evaluation("vid", "ood", samples, perturbations=perturbations)
    scores = evaluate(np.eye(4, dtype=np.float32)[predicted], test, "accuracy")
    benign = whole = 0
    for anchor, *around in sets:
        anchor_right = predicted[anchor] in accepted[anchor]
        benign += anchor_right
        whole += anchor_right and all(predicted[frame] in accepted[frame] for frame in around)
    assert scores.accuracy == pytest.approx(benign / len(sets))
    assert scores.metric == pytest.approx(whole / len(sets))
    assert scores.metric <= scores.accuracy


def test_missing_variants_are_named_and_the_others_measured(
    imagenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = open_task(f"imagenet:{imagenet},a={imagenet / 'variants' / 'imagenet-a'}")
    assert list(evaluations(task)) == ["imagenet", "imagenet-a"]
    line = capsys.readouterr().err
    assert "without imagenet-v2, imagenet-r, imagenet-sketch, objectnet, imagenet-vid-robust" in line


def test_classes_that_training_lacks_are_left_out_or_refused(
    tmp_path: Path, imagenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "train", {WNIDS[1]: 2, WNIDS[2]: 2})
    write_images(tmp_path / "val", {WNIDS[1]: 1, WNIDS[2]: 1})
    variants = imagenet / "variants"
    task = open_task(f"imagenet:{tmp_path},r={variants / 'imagenet-r'}")
    assert evaluations(task)["imagenet-r"].classes == (0,)
    assert "imagenet-r: 1 of its 2 classes are not among the training classes" in capsys.readouterr().err
    for option, folder in (("v2", "imagenetv2-matched-frequency-format-val"), ("objectnet", "objectnet-1.0")):
        with pytest.raises(UserError, match="the training folder has 2"):
            open_task(f"imagenet:{tmp_path},{option}={variants / folder}")
    with pytest.raises(UserError, match=r"no folder of .* is named as a training class"):
        open_task(f"imagenet:{tmp_path},a={variants / 'imagenet-a'}")
    with pytest.raises(UserError, match="no training class belongs to its class airplane"):
        open_task(f"imagenet:{tmp_path},vid_robust={variants / 'imagenet-vid-robust'}")
    with pytest.raises(UserError, match="v2: no folder nowhere"):
        open_task(f"imagenet:{tmp_path},v2=nowhere")


def test_a_mapping_that_is_missing_is_named(tmp_path: Path, imagenet: Path) -> None:
    write_objectnet(tmp_path)
    (tmp_path / "mappings" / "objectnet_to_imagenet_1k.json").unlink()
    with pytest.raises(UserError, match=r"objectnet_to_imagenet_1k\.json cannot be read"):
        open_task(f"imagenet:{imagenet},objectnet={tmp_path}")
    write_json(tmp_path / "mappings" / "objectnet_to_imagenet_1k.json", {"Chair": "no such label"})
    with pytest.raises(UserError, match="'no such label' is in one of the files"):
        open_task(f"imagenet:{imagenet},objectnet={tmp_path}")


def test_a_head_trained_on_imagenet_is_measured_on_all_variants(
    tmp_path: Path, imagenet: Path, make_export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two samples a class, so that one can be set aside for selection.
    root = tmp_path / "imagenet"
    write_images(root / "train", dict.fromkeys(WNIDS, 2))
    (root / "val").symlink_to(imagenet / "val")
    monkeypatch.chdir(tmp_path)
    task = f"imagenet:{root},variants={imagenet / 'variants'}"
    run = str(make_export(tmp_path / "run"))
    main(["--plugin", "lp", "--checkpoint", run, "--task", task, "--hyper", "epochs=1"])
    rows = {row.dataset: row for row in read_rows("results")}
    assert len(rows) == 7
    assert rows["imagenet-vid-robust"].metric_name == "pm-10"
    assert rows["imagenet-vid-robust"].n_test == 5
    assert {row.num_classes for row in rows.values()} == {1000}
