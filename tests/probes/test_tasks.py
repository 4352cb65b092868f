from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nml.errors import UserError
from nml.sources import SOURCES
from probes.results import read_rows
from probes.run import main
from probes.tasks import TASKS, open_task, remembered
from probes.tasks.counting import count_samples
from probes.tasks.registry import task_source
from probes.tasks.shifts import SHIFTS, VERSION
from tests.probes.own_files import png, write_folder, write_table

GOLDEN = {
    "version": 2,
    "typos": "the quick borwn foxes jumped over lzay dgos wihtout looking",
    "dropped": "the brown foxes jumped over lazy dogs without looking",
    "noisy": [0, 20, 31, 22, 0, 0, 15, 14],
    "rotated": [(14, 15, 16), (33, 34, 35)],
}


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


@pytest.mark.parametrize("modality", SHIFTS)
def test_shifts_are_the_same_every_time_and_keyed_by_the_sample(modality: str) -> None:
    content = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    sample = content if modality == "image" else " ".join(f"wording{n}" for n in range(30))
    for name, shift in SHIFTS[modality].items():  # type: ignore[index]
        first, again = shift(sample, "a"), shift(sample, "a")
        assert first == again != sample, name
    for name in {"image": ("rotated", "noisy"), "text": ("typos", "dropped")}[modality]:
        shift = SHIFTS[modality][name]  # type: ignore[index]
        assert len({np.asarray(shift(sample, key)).tobytes() for key in "abcdefgh"}) > 1


def test_shifts_give_today_what_they_gave_when_their_version_was_set() -> None:
    """A change of outcome needs another VERSION, or features of the old one would be taken for the new."""
    text = "the quick brown foxes jumped over lazy dogs without looking"
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    found = {
        "version": VERSION,
        "typos": SHIFTS["text"]["typos"](text, "k"),
        "dropped": SHIFTS["text"]["dropped"](text, "k"),
        "noisy": np.asarray(SHIFTS["image"]["noisy"](image, "k")).reshape(-1)[:8].tolist(),
        "rotated": [SHIFTS["image"]["rotated"](image, key).getpixel((0, 2)) for key in "ab"],
    }
    assert found == GOLDEN


@given(key=st.text(), deviation=st.just(0.15 * 255))
@settings(max_examples=20)
def test_noise_has_the_deviation_that_is_documented(key: str, deviation: float) -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    noise = np.asarray(SHIFTS["image"]["noisy"](grey, key), dtype=np.float64) - 128
    assert abs(noise.mean()) < 2
    assert abs(noise.std() - deviation) < 2


@given(text=st.text(st.characters(categories=("L", "Zs")), max_size=80), key=st.text(max_size=5))
def test_texts_keep_their_letters_and_some_words(text: str, key: str) -> None:
    assert sorted(SHIFTS["text"]["typos"](text, key)) == sorted(text)
    dropped = SHIFTS["text"]["dropped"](text, key).split(" ")
    assert 1 <= len(dropped) <= len(text.split(" "))


def test_digits_have_the_same_shifts_every_time() -> None:
    first, again = open_task("digits"), open_task("digits")
    assert [test.samples.fingerprint for test in first.evaluations] == [
        test.samples.fingerprint for test in again.evaluations
    ]
    assert len({test.samples.fingerprint for test in first.evaluations}) == 5
    assert tuple(test.name for test in first.evaluations[1:]) == TASKS.load("digits").record.ood


def test_a_damaged_image_is_named_by_file_and_row(tmp_path: Path) -> None:
    images = [{"bytes": data, "path": None} for data in (png(1), b"no image", png(2), png(3)[:40])]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0, 1]}), tmp_path / "a.parquet")
    task = open_task(f"parquet:{tmp_path}/a.parquet,{tmp_path}/a.parquet,shifts=none")
    for row in (1, 3):
        with pytest.raises(
            UserError, match=rf"image in row {row} of .*a\.parquet cannot be decoded: no image of"
        ):
            task.train.read(row)
    write_folder(tmp_path / "folder", {"a": 1, "b": 1})
    (tmp_path / "folder" / "a" / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"link\.png is a link to nothing: No such file"):
        open_task(f"imagefolder:{tmp_path}/folder,{tmp_path}/folder")


def test_images_of_many_row_groups_are_read_in_any_order(tmp_path: Path) -> None:
    images = [{"bytes": png(number), "path": None} for number in range(40)]
    table = pa.table({"image": images, "label": [number % 2 for number in range(40)]})
    pq.write_table(table, tmp_path / "many.parquet", row_group_size=3)
    pq.write_table(table, tmp_path / "one.parquet")
    many, one = (open_task(f"parquet:{tmp_path}/{n}.parquet,{tmp_path}/{n}.parquet") for n in ("many", "one"))
    assert many.train.fingerprint == one.train.fingerprint
    order = np.random.default_rng(0).permutation(40)
    with ThreadPoolExecutor(8) as pool:
        pixels = list(pool.map(lambda row: many.train.read(row).getpixel((0, 0))[0], order))
    assert pixels == order.tolist()


def test_hashes_of_large_data_are_remembered_until_a_byte_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "WORTH_REMEMBERING", 0)
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0)
    file = tmp_path / "data"
    file.write_bytes(b"abc")
    asked = []

    def compute() -> str:
        asked.append(file.read_bytes())
        return hashlib.sha256(file.read_bytes()).hexdigest()

    first = remembered.remembered_hash([file], "all of it", compute)
    assert remembered.remembered_hash([file], "all of it", compute) == first
    assert asked == [b"abc"]
    assert remembered.remembered_hash([file], "half of it", compute) == first
    before = file.stat()
    file.write_bytes(b"abd")
    # Also where somebody sets the time of the last change back.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert remembered.remembered_hash([file], "all of it", compute) != first
    assert asked == [b"abc", b"abc", b"abd"]


def test_data_that_changed_a_moment_ago_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "WORTH_REMEMBERING", 0)
    (tmp_path / "data").write_bytes(b"abc")
    remembered.remembered_hash([tmp_path / "data"], "", lambda: "0" * 64)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "digits:limit=3"], "option: unknown name 'limit'"),
        (["--task", "cifar10", "cifar100:limit=x"], "limit x; possible: 1 or more"),
        (
            ["--task", "glue-sst2:shifts=rotated"],
            "shifts: unknown name 'rotated'; possible: all, dropped",
        ),
        (["--task", "csv:a,b,shifts=rotatd"], "did you mean rotated"),
        (["--task", "csv:a,b,target=regression,mask=present"], "mask=present"),
        (["--task", "labels:a.npy"], "names 1 of the two files"),
        (["--task", "imagenet:nowhere,limit=0"], "limit 0"),
        (["--task", "domainnet:train=clipart"], "train clipart; possible: real, sketch"),
        (["--fractions", "2"], "--fractions 2"),
        (["--plugin", "nmtun"], "did you mean nmtune"),
        (["--hyper", "lr2=1"], "did you mean lr"),
    ],
)
def test_what_a_job_would_refuse_before_it_reads_data_is_not_printed_as_its_config(
    words: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        main([*words, "--print_config"])


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
    for name in {*TASKS.names(), *SOURCES.names()}:
        record = task_source(name).record
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


def write_named_table(path: Path, names: list[str], labels: list[int]) -> Path:
    """Write a table with the list of class names that Hugging Face datasets leaves in its schema."""
    feature = {"names": names, "_type": "ClassLabel"}
    described = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    texts = [f"a {names[label]}, number {number}" for number, label in enumerate(labels)]
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())], metadata=described)
    pq.write_table(pa.table([texts, labels], schema=schema), path)
    return path


def test_files_that_number_their_classes_otherwise_are_scored_by_class_name(tmp_path: Path) -> None:
    train = write_named_table(tmp_path / "train.parquet", ["airplane", "automobile", "bird"], [0, 1, 2] * 4)
    test = write_named_table(tmp_path / "test.parquet", ["bird", "airplane", "automobile"], [0, 1, 2])
    # The list of a shifted set may hold classes that none of its samples has.
    shifted = write_named_table(tmp_path / "shifted.parquet", ["airplane", "bird", "monkey"], [0, 1])
    task = open_task(f"parquet:{train},{test},{shifted},validation={test},mask=present")
    assert task.validation is not None
    for samples in (task.train, task.validation, *(part.samples for part in task.evaluations)):
        for number, label in enumerate(samples.labels):
            assert task.classes[label] in str(samples.read(number))
    assert task.evaluations[1].classes == (0, 2)


def test_class_names_that_the_training_data_lacks_are_refused(tmp_path: Path) -> None:
    train = write_named_table(tmp_path / "train.parquet", ["airplane", "bird"], [0, 1] * 4)
    test = write_named_table(tmp_path / "test.parquet", ["airplane", "bird"], [0, 1])
    strange = write_named_table(tmp_path / "strange.parquet", ["bird", "monkey"], [0, 1])
    with pytest.raises(
        UserError, match=r"class 'monkey' of .*strange.parquet does not occur.*airplane, bird"
    ):
        open_task(f"parquet:{train},{test},{strange}")
    twice = write_named_table(tmp_path / "twice.parquet", ["bird", "bird"], [0, 1])
    with pytest.raises(UserError, match=r"twice.parquet numbers .*two are called 'bird'"):
        open_task(f"parquet:{train},{test},{twice}")


@pytest.mark.parametrize(
    ("text", "train", "tests"),
    [
        ("digits", 1438, (359, None, None, None, None)),
        ("cifar10:limit=1000,shifts=noisy", 1000, (1000, 1000)),
        # Five variants fewer than its domains: the one that it is trained on is none.
        ("domainnet:train=real", None, (None, None, None, None)),
        ("csv:a.csv,b.csv,shifts=none", None, (None,)),
    ],
)
def test_what_is_known_of_a_task_s_samples_is_counted_without_them(text, train, tests) -> None:
    counted = count_samples(text)
    assert (counted.train, counted.tests) == (train, tests)


def test_samples_in_parquet_files_are_counted_as_the_task_has_them(tmp_path: Path) -> None:
    for name, rows in (("train", 30), ("test", 20), ("other", 10)):
        pq.write_table(pa.table({"image": [b""] * rows, "label": [0] * rows}), tmp_path / f"{name}.parquet")
    train, test, other = (tmp_path / f"{name}.parquet" for name in ("train", "test", "other"))
    assert count_samples(f"parquet:{train},{test},{other},ood.more={other},limit=25,ood_limit=5") == (
        25,
        (20, 5, 5),
    )
