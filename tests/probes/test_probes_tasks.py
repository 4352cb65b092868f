from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nml.errors import UserError
from probes.results import read_rows
from probes.run import main
from probes.tasks import TASKS, open_task
from probes.tasks.shifts import SHIFTS


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, 0)).save(file, "PNG")
    return file.getvalue()


def write_table(path: Path, labels: list[object]) -> Path:
    images = [{"bytes": png(number), "path": None} for number in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": labels}), path)
    return path


def write_folder(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(png(number))
    return root


def write_tar(path: Path, samples: list[dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for suffix, data in sample.items():
                member = tarfile.TarInfo(f"s{number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def test_tables_of_images_with_shifted_versions(tmp_path: Path) -> None:
    train = write_table(tmp_path / "pets_train.parquet", [0, 1] * 6)
    test = write_table(tmp_path / "pets_test.parquet", [0, 1])
    task = open_task(f"parquet:{train},{test}")
    assert [part.name for part in task.evaluations] == [
        "pets",
        *(f"pets-{shift}" for shift in SHIFTS["image"]),
    ]
    assert len({part.samples.fingerprint for part in task.evaluations}) == 5
    assert task.evaluations[1].samples.read(1).getpixel((0, 0)) == (254, 254, 255)
    limited = open_task(f"parquet:{train},{test},limit=8,shifts=rotated+noisy")
    assert (len(limited.train.keys), len(limited.evaluations)) == (8, 3)
    assert limited.revision != task.revision


def test_folders_and_further_folders_as_ood(tmp_path: Path) -> None:
    train, test, sketch = (
        write_folder(tmp_path / name, {"cat": 3, "dog": 2}) for name in ("train", "test", "sketch")
    )
    task = open_task(f"imagefolder:{train},{test},{sketch},name=pets")
    assert task.classes == ("cat", "dog")
    assert [(part.name, part.domain) for part in task.evaluations] == [("pets", "id"), ("pets-sketch", "ood")]
    assert task.train.labels.tolist() == [0, 0, 0, 1, 1]


def test_variants_with_fewer_classes_are_masked_and_numbered_folders_understood(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", {"n01": 2, "n02": 2, "n03": 2})
    fewer = write_folder(tmp_path / "fewer", {"n01": 1, "n03": 2})
    numbered = write_folder(tmp_path / "v2", {"0": 1, "1": 1, "2": 1})
    task = open_task(f"imagefolder:{train},{train},{fewer},{numbered},mask=present")
    assert [part.classes for part in task.evaluations] == [None, (0, 2), (0, 1, 2)]
    assert task.evaluations[1].samples.labels.tolist() == [0, 2, 2]


def test_domainnet_from_the_authors_lists_without_duplicates(tmp_path: Path) -> None:
    root = tmp_path / "domainnet"
    for domain in ("real", "sketch", "clipart", "painting"):
        for part in ("train", "test"):
            write_folder(root / domain / part, {"cat": 2, "dog": 2})
            lines = [
                f"{domain}/{part}/{name}/{n}.png {label}"
                for label, name in enumerate(("cat", "dog"))
                for n in (0, 1)
            ]
            (root / f"{domain}_{part}.txt").write_text("\n".join(lines) + "\n")
    kept = open_task("domainnet:train=sketch", tmp_path)
    assert [part.domain for part in kept.evaluations] == ["id", "ood", "ood", "ood"]
    (root / "duplicates.txt").write_text("sketch/train/cat/0.png\n")
    deduplicated = open_task("domainnet:train=sketch", tmp_path)
    assert (len(kept.train.keys), len(deduplicated.train.keys)) == (4, 3)
    assert "duplicates-kept" in kept.revision != deduplicated.revision
    with pytest.raises(UserError, match="no list"):
        open_task("domainnet", tmp_path / "elsewhere")


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


def test_texts_with_and_without_a_header_and_in_pairs(tmp_path: Path) -> None:
    (tmp_path / "plain.tsv").write_text("good film\t1\nbad film\t0\n")
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\tyes\nc\td\tno\n")
    plain = open_task(f"tsv:{tmp_path}/plain.tsv,{tmp_path}/plain.tsv")
    assert plain.train.read(0) == "good film"
    assert [part.domain for part in plain.evaluations] == ["id", "ood", "ood"]
    pairs = open_task(f"tsv:{tmp_path}/pairs.tsv,{tmp_path}/pairs.tsv,shifts=none")
    assert pairs.train.read(1) == ("c", "d")
    assert pairs.classes == ("no", "yes")


def test_single_texts_beside_pairs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("a\tb\tyes\nc\td\tno\n")
    (tmp_path / "single.tsv").write_text("a\tyes\nc\tno\n")
    pairs, single = tmp_path / "pairs.tsv", tmp_path / "single.tsv"
    with pytest.raises(UserError, match=r"-single has 1 text\(s\) a sample, the training data 2"):
        open_task(f"tsv:{pairs},{pairs},{single}")


@pytest.mark.parametrize("modality", SHIFTS)
def test_shifts_are_the_same_every_time_and_keyed_by_the_sample(modality: str) -> None:
    content = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    sample = content if modality == "image" else " ".join(f"wording{n}" for n in range(30))
    for name, shift in SHIFTS[modality].items():  # type: ignore[index]
        first, again = shift(sample, "a"), shift(sample, "a")
        assert first == again != sample, name


def test_a_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    train = write_table(tmp_path / "train.parquet", ["cat", "dog"] * 3)
    test = write_table(tmp_path / "test.parquet", ["cat", "owl"])
    with pytest.raises(UserError, match=r"class 'owl' of .* does not occur in the training data"):
        open_task(f"parquet:{train},{test}")
    gap = write_table(tmp_path / "gap.parquet", [0, 2] * 3)
    with pytest.raises(UserError, match="no training sample of class 1"):
        open_task(f"parquet:{gap},{gap}")


def test_a_missing_column_names_those_that_are_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"], "kind": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="columns: picture, kind"):
        open_task(f"parquet:{tmp_path}/a.parquet,{tmp_path}/a.parquet")


def test_every_registered_task_has_a_complete_record() -> None:
    for name in TASKS.names():
        record = TASKS.load(name).record
        assert record.name == name
        assert record.source
        assert record.revision
        assert record.licence


def test_a_published_task_that_is_not_prepared_says_how(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="probes.tasks prepare cifar10".replace(".", r"\.")):
        open_task("cifar10", tmp_path)


def test_cifar10_with_fractions_seeds_and_shifts(
    tmp_path: Path, real_data: Path, make_export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(make_export(tmp_path / f"n{noise}", seed=noise, realised=noise / 100)) for noise in (0, 30)]
    task = f"parquet:{real_data}/cifar10_train.parquet,{real_data}/cifar10_test.parquet,limit=150"
    arguments = ["--plugin", "lp,mlp,nmtune", "--checkpoint", *runs, "--task", task]
    main(
        [
            *arguments,
            "--seeds",
            "3",
            "--fractions",
            "0.25",
            "1",
            "--hyper",
            "epochs=2",
            "--head-spectra",
            "false",
        ]
    )
    rows = read_rows("results")
    assert len(rows) == 2 * 3 * 3 * 2 * 5
    assert {row.domain for row in rows} == {"id", "ood"}
