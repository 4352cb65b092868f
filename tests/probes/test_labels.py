"""Embeddings in a .npy and labels in a file: no samples, no shifts, the same results as of any other task."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml.errors import UserError
from probes.encoders import Settings, open_encoder
from probes.encoders.feature_files import read_features
from probes.results import read_rows
from probes.run import main
from probes.tasks import open_task

NAMES = np.array(["cat", "dog", "eel"])
LABELS = np.arange(60) % 3
ENCODER = "features:train=a.npy,test=b.npy"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with features a, b and c of 60 samples and their labels."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in "abc":
        np.save(f"{name}.npy", generator.normal(size=(60, 4)) + 3 * np.eye(3, 4)[LABELS])
    for name in ("train", "test", "sketch"):
        Path(f"{name}.csv").write_text("\n".join(["label", *NAMES[LABELS]]) + "\n")
    return tmp_path


def run(encoder: str, task: str, *more: str) -> None:
    main(["--plugin", "lp", "--hyper", "epochs=2", "--encoder", encoder, "--task", task, *more])


def test_features_and_labels_are_probed_as_any_task(folder: Path) -> None:
    run(f"{ENCODER},ood.sketch=c.npy", "labels:train.csv,test.csv,sketch.csv,name=pets")
    rows = {row.dataset: row for row in read_rows("results")}
    assert {name: row.domain for name, row in rows.items()} == {"pets": "id", "pets-sketch": "ood"}
    assert all(row.accuracy > 0.5 and row.n_test == 60 and row.num_classes == 3 for row in rows.values())
    # The same features under other names are the same encoder and data; nothing is measured again.
    Path("a.npy").rename("d.npy")
    run("features:train=d.npy,test=b.npy,ood.sketch=c.npy", "labels:train.csv,test.csv,sketch.csv,name=pets")
    assert len(read_rows("results")) == 2


def test_without_variants_there_are_none_and_no_shift_is_made_up(folder: Path) -> None:
    assert [test.name for test in open_task("labels:train.csv,test.csv,name=pets").evaluations] == ["pets"]


def test_variants_are_named_by_hand_for_both(folder: Path) -> None:
    task = open_task("labels:train.csv,test.csv,test.csv,ood.art=sketch.csv,ood.a-test=test.csv,name=pets")
    assert [test.name for test in task.evaluations] == ["pets", "pets-test", "pets-art", "pets-a-test"]
    # Each name means one variant: that of another name that ends alike is not taken for it.
    run(f"{ENCODER},ood.a-test=c.npy", "labels:train.csv,test.csv,test.csv,ood.a-test=test.csv,name=pets")
    assert {row.dataset for row in read_rows("results")} == {"pets", "pets-a-test"}


@pytest.mark.parametrize("file", ["bare.csv", "ids.csv", "two.tsv", "p.parquet", "l.npy", "pandas.csv"])
def test_every_file_of_labels_reads_alike(folder: Path, file: str) -> None:
    names = NAMES[LABELS]
    Path("bare.csv").write_text("\n".join([*names, "", ""]))
    Path("ids.csv").write_text("\n".join(["id,label", *(f"x{n},{name}" for n, name in enumerate(names))]))
    Path("two.tsv").write_text("\n".join(["Category\tsource", *(f"{name}\tweb" for name in names)]))
    Path("pandas.csv").write_text("\n".join([",label", *(f"{n},{name}" for n, name in enumerate(names))]))
    pq.write_table(pa.table({"label": names, "other": LABELS}), "p.parquet")
    np.save("l.npy", names)
    train = open_task(f"labels:{file},test.csv").train
    assert train.labels.tolist() == LABELS.tolist()
    assert list(train.keys[:2]) == ["00000000", "00000001"]


def test_numbers_names_and_columns_of_labels_mean_what_they_mean_elsewhere(folder: Path) -> None:
    Path("n.csv").write_text("\n".join(["species,key", *(f"{label},k{n}" for n, label in enumerate(LABELS))]))
    np.save("n.npy", LABELS.astype(np.uint8))
    task = open_task("labels:n.csv,n.csv,label=species,key=key")
    assert task.classes == ("0", "1", "2")
    assert list(task.train.keys[:2]) == ["k0", "k1"]
    assert open_task("labels:n.npy,n.npy").train.labels.tolist() == LABELS.tolist()
    Path("zeros.csv").write_text("label\n007\n008\n007\n008\n")
    assert open_task("labels:zeros.csv,zeros.csv").classes == ("007", "008")


def test_a_number_in_a_text_is_the_class_that_is_called_so_in_a_typed_file(folder: Path) -> None:
    names = ["1", "2", "10", "2"]
    pq.write_table(pa.table({"label": names}), "typed.parquet")
    np.save("typed.npy", names)
    Path("text.csv").write_text("\n".join(["label", *names]))
    for train, test in itertools.product(["typed.parquet", "typed.npy"], ["typed.parquet", "text.csv"]):
        task = open_task(f"labels:{train},{test}")
        assert [task.classes[label] for label in task.evaluations[0].samples.labels] == names


def test_numbers_that_begin_at_one_are_told_to_begin_at_zero(folder: Path) -> None:
    np.save("one.npy", LABELS + 1)
    with pytest.raises(UserError, match="no training sample of class 0; number classes from 0, or name them"):
        open_task("labels:one.npy,one.npy")


def test_a_head_whose_scores_no_row_can_hold_leaves_the_results_readable(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--encoder", ENCODER, "--task", "labels:train.csv,test.csv,name=pets", "--hyper", "epochs=2"]
    assert main(["--plugin", "lp", *words, "lr=1e30"]) == 1
    told = capsys.readouterr().err
    assert f"lp on {ENCODER}, pets: diverged: predict_logits gave scores up to" in told
    assert "error: no result of some fits of lp, see above" in told
    assert main(["--plugin", "lp,mlp", *words, "lp.lr=1e30"]) == 1
    assert {row.head for row in read_rows("results")} == {"mlp"}


@pytest.mark.parametrize(
    ("encoder", "task", "error"),
    [
        (
            f"{ENCODER},ood.skech=c.npy",
            "sketch.csv",
            r"unknown name 'ood.skech'; .*did you mean ood.sketch\?",
        ),
        (ENCODER, "shifts=typos", "option: unknown name 'shifts'"),
        (ENCODER, "limit=10", "option: unknown name 'limit'"),
        (ENCODER, "lable=x", "option: unknown name 'lable'; .*did you mean label"),
        (ENCODER, "label=x", "unknown name 'x'; possible: label"),
        (ENCODER, "ood.x=y.txt", "y.txt; possible: files with .csv, .tsv, .parquet or .npy"),
        (ENCODER, "ood.x=short.csv,ood.y=odd.csv", "class 'emu' of odd.csv does not occur"),
        (f"{ENCODER},ood.x=c.npy", "ood.x=short.csv", "-x has 60 rows, the task 3 samples"),
        (ENCODER, "ood.x=empty.csv", "line 3 has the class '', which is empty"),
        (ENCODER, "ood.x=bare.csv", "none of the columns 7, cat is a usual name of labels; .*label=COLUMN"),
        (ENCODER, "ood.x=hidden.npy", "row 1 of hidden.npy has the class -1, below 0"),
        (ENCODER, "ood.x=flat.npy", r"flat.npy holds float64 \[2, 2\]; possible: numbers or names"),
        ("features:train=a.npy,test=a.npy", "name=x", "the features of test are those of train; .*--allow-o"),
        ("features:train=a.npy,test=f.npz", "name=x", "f.npz; possible: files with .npy"),
        ("features:train=a.npy,test=s.npy", "name=x", "s.npy holds several arrays"),
        ("features:train=a.npy,test=o.npy", "name=x", "o.npy: cannot be read: .*Python objects"),
        ("features:train=a.npy,test=i.npy", "name=x", r"i.npy holds int64 \[60, 4\]; possible: floats"),
        ("features:train=a.npy,test=h.npy", "name=x", "row 7 of h.npy is not finite in float32"),
        (
            f"{ENCODER},ood.x=c.npy,pets-x=c.npy",
            "ood.x=test.csv,name=pets",
            "ood.x and pets-x are one variant",
        ),
        (f"{ENCODER},train=c.npy", "name=x", "features: train= is given twice; possible: one value"),
        (f"{ENCODER},ood.x=c.npy,ood.x=b.npy", "ood.x=test.csv", "ood.x= is given twice; possible: one file"),
        (ENCODER, "name=x,name=y", "labels: name= is given twice"),
        (f"{ENCODER},validation=b.npy", "validation=test.csv", "features of test are those of validation; "),
        (f"{ENCODER},ood.=c.npy", "name=x", "ood.=c.npy names no variant; possible: ood.NAME=FILE"),
        (ENCODER, "ood.=test.csv", "ood.=test.csv names no variant; possible: ood.NAME=PATH"),
        (f"{ENCODER},ood.x=b.npy", "ood.x=test.csv", "the features of ood.x are those of test; .*--allow-o"),
        (ENCODER, "ood.x=gap.csv", "gap.csv: line 3 is empty; .*; write an empty value as"),
        (ENCODER, "ood.x=none.csv", "--task labels:none.csv: there is no file"),
        ("timm:resnet18,weights=random", "name=x", "reads images, task x is labels alone; .*features:train"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(folder: Path, encoder: str, task: str, error: str) -> None:
    Path("short.csv").write_text("label\ncat\ndog\neel\n")
    Path("odd.csv").write_text("label\ncat\nemu\n")
    Path("empty.csv").write_text("label,key\ncat,1\n,2\n")
    Path("bare.csv").write_text("7,cat\n8,dog\n")
    Path("gap.csv").write_text("label\ncat\n\ndog\n")
    np.save("hidden.npy", [0, -1])
    np.save("flat.npy", np.zeros((2, 2)))
    np.savez("f.npz", np.zeros((60, 4)))
    Path("s.npy").write_bytes(Path("f.npz").read_bytes())
    np.save("o.npy", np.array([{}] * 60), allow_pickle=True)
    np.save("i.npy", np.zeros((60, 4), np.int64))
    huge = np.zeros((60, 4))
    huge[7, 0] = 1e300
    np.save("h.npy", huge)
    with pytest.raises(UserError, match=error) as found:
        run(encoder, f"labels:train.csv,test.csv,{task}")
    assert "\n" not in str(found.value)
    assert not Path("results").exists()


def test_float32_features_stay_in_their_file_and_other_floats_mean_the_same(folder: Path) -> None:
    exact = np.random.default_rng(0).integers(-8, 8, size=(60, 4)) / 4
    for kind in ("<f2", "<f4", "<f8", ">f4"):
        np.save(f"{kind[1:]}.npy", exact.astype(kind))
        assert np.array_equal(read_features(Path(f"{kind[1:]}.npy"), "--features"), exact)
    np.save("f4.npy", exact.astype("<f4"))
    mapped = open_encoder("features:train=f4.npy,test=f8.npy", Settings()).arrays["train"]  # type: ignore[attr-defined]
    owner = mapped
    while owner.base is not None and not isinstance(owner, np.memmap):
        owner = owner.base
    assert isinstance(owner, np.memmap)
