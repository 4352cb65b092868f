"""Tasks whose labels are numbers, or several classes a sample: from files to rows, predictions and ONNX."""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml.errors import UserError
from plugins.saved import load_head
from probes.export import main as export
from probes.predict import main as predict
from probes.results import read_rows
from probes.results.row import Row
from probes.run import main
from probes.scoring import score
from probes.splits import carve, subset_of
from probes.tasks import open_task
from tests.probes.own_files import png, write_tar

ENCODER = "features:train=train.npy,test=test.npy"
TAGS = ("ant", "bee", "cow")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: features of two splits, and labels of every kind that a linear function tells."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, count in (("train", 200), ("test", 100)):
        features = generator.normal(size=(count, 6)).astype(np.float32)
        np.save(f"{name}.npy", features)
        numbers = 2000 + 100 * (features[:, 0] + features[:, 1] + 0.1 * generator.normal(size=count))
        Path(f"{name}.csv").write_text("\n".join(["score", *map(str, numbers)]) + "\n")
        applies = features[:, :3] > (0, 0.5, 1.5)
        tags = ["|".join(tag for tag, there in zip(TAGS, row, strict=True) if there) for row in applies]
        pq.write_table(pa.table({"tags": tags}), f"{name}-tags.parquet")
        flags = {tag: applies[:, place].astype(int) for place, tag in enumerate(TAGS)}
        pq.write_table(pa.table(flags), f"{name}-flags.parquet")
    return tmp_path


def measure(task: str, *more: str, plugin: str = "lp") -> dict[str, Row]:
    words = [
        "--plugin",
        plugin,
        "--encoder",
        ENCODER,
        "--task",
        task,
    ]
    words += ["--hyper", "least_steps=200", "lr=0.03", "--tries", "1"]
    assert main([*words, "--save-heads", "heads", *more]) == 0
    return {row.head: row for row in read_rows("results")}


def test_numbers_are_predicted_from_files_to_onnx(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    task = "labels:train.csv,test.csv,label=score,target=regression,name=sts"
    rows = measure(task, plugin="lp,mlp,nmtune")
    assert rows.keys() == {"lp", "mlp", "nmtune"}
    for row in rows.values():
        assert (row.metric_name, row.accuracy, row.macro_f1, row.num_classes) == ("spearman", None, None, 0)
        assert (row.temperature, row.nll, row.ece) == (None, None, None)
        assert row.metric > 0.9
    assert "ID spearman" in capsys.readouterr().out
    [saved] = Path("heads").glob("lp-*")
    predict([str(saved), "--features", "test.npy"])
    with Path("predictions.csv").open() as file:
        found = np.array([float(line["value"]) for line in csv.DictReader(file)])
    truth = np.loadtxt("test.csv", skiprows=1)
    told = json.loads(rows["lp"].measures)
    assert told["rmse"] == pytest.approx(np.sqrt(np.mean((found - truth) ** 2)), rel=1e-4)
    assert told["rmse"] < 40
    assert told["pearson"] == pytest.approx(np.corrcoef(found, truth)[0, 1], abs=1e-6)
    export([str(saved), "--onnx", "lp.onnx"])
    session = onnxruntime.InferenceSession("lp.onnx")
    [values] = session.run(None, {"features": np.load("test.npy")})
    np.testing.assert_allclose(values[:, 0], found, rtol=1e-5)
    # Which correlation chooses is part of what a result follows from.
    main(["--plugin", "lp", "--encoder", ENCODER, "--task", f"{task},metric=pearson"])
    assert {row.metric_name for row in read_rows("results")} == {"spearman", "pearson"}


def test_several_classes_are_named_from_files_to_onnx(folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    measure(
        "labels:train-tags.parquet,test-tags.parquet,label=tags,target=multilabel,separator=bar,name=tags"
    )
    task = "labels:train-flags.parquet,test-flags.parquet,label=ant+bee+cow,target=multilabel,name=flags"
    measure(task, plugin="lp,mlp,nmtune")
    rows = {(row.task, row.head): row for row in read_rows("results")}
    of_flags = rows["flags", "lp"]
    # One column of names and a column a class say the same.
    assert rows["tags", "lp"].metric == of_flags.metric
    assert all((row.metric_name, row.accuracy, row.num_classes) == ("map", None, 3) for row in rows.values())
    assert all(row.metric > 0.8 and row.ece is not None and row.ece < 0.1 for row in rows.values())
    precisions = json.loads(of_flags.measures)["average_precision"]
    assert list(precisions) == list(TAGS)
    assert np.mean(list(precisions.values())) == pytest.approx(of_flags.metric)
    [place] = [saved for saved in Path("heads").glob("lp-*") if load_head(saved).about["task"] == "flags"]
    saved = load_head(place)
    predict([str(place), "--features", "test.npy"])
    with Path("predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    truth = np.column_stack([pq.read_table("test-flags.parquet")[tag].to_numpy() for tag in TAGS])
    named = np.array([[tag in line["classes"].split("|") for tag in TAGS] for line in lines])
    shares = np.array([[float(line[tag]) for tag in TAGS] for line in lines])
    assert np.mean(named == truth) > 0.9
    assert (named == (shares >= saved.thresholds)).all()
    export([str(place), "--onnx", "lp.onnx"])
    session = onnxruntime.InferenceSession("lp.onnx")
    _, probabilities = session.run(None, {"features": np.load("test.npy")})
    np.testing.assert_allclose(probabilities, shares, rtol=1e-4, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["thresholds"]) == pytest.approx(saved.thresholds)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--plugin", "lp,knn"],
            "--plugin knn: does not take regression, which task sts is; possible: lp, mlp, ",
        ),
        (
            ["--plugin", "lp", "--downstream-noise", "0.2"],
            "noise models flip single classes, and task sts is reg",
        ),
    ],
)
def test_heads_and_noise_of_classes_are_refused_before_anything_is_computed(
    folder: Path, words: list[str], told: str
) -> None:
    task = "labels:train.csv,test.csv,label=score,target=regression,name=sts"
    with pytest.raises(UserError, match=re.escape(told)):
        main([*words, "--encoder", ENCODER, "--task", task])
    assert not Path("results").exists()


def write_pairs(path: Path, scores: list[str]) -> None:
    lines = [f"a sentence {number},another {number},{score}" for number, score in enumerate(scores)]
    path.write_text("\n".join(["sentence1,sentence2,score", *lines]) + "\n")


def tagged_tar(path: Path, tags: list[Any]) -> None:
    samples = [
        {"png": png(number), "json": json.dumps({"tags": tag}).encode()} for number, tag in enumerate(tags)
    ]
    write_tar(path, samples)


def test_every_format_holds_such_labels(folder: Path) -> None:
    write_pairs(Path("a.csv"), ["0", "2.5", "5", "-1e-1"])
    pairs = open_task("csv:a.csv,a.csv,label=score,target=regression,shifts=none")
    assert pairs.train.read(0) == ("a sentence 0", "another 0")
    assert pairs.train.labels.tolist() == [0.0, 2.5, 5.0, -0.1]
    tagged_tar(Path("a.tar"), [["x", "y"], [], ["y"], ["x"]])
    expected = [[True, True], [False, False], [False, True], [True, False]]
    tars = open_task("wds:a.tar,a.tar,label=tags,target=multilabel,shifts=none")
    assert (tars.classes, tars.train.labels.tolist()) == (("x", "y"), expected)
    images = [{"bytes": png(number), "path": None} for number in range(4)]
    pq.write_table(pa.table({"image": images, "y": [1, 0, 1, 0], "x": [1.0, 0.0, 0.0, 1.0]}), "a.parquet")
    table = open_task("parquet:a.parquet,a.parquet,label=x+y,target=multilabel,shifts=none")
    assert (table.classes, table.train.labels.tolist()) == (("x", "y"), expected)
    assert table.train.read(3).getpixel((0, 0)) == (3, 3, 0)  # type: ignore[union-attr]
    np.save("flags.npy", np.array(expected))
    array = open_task("labels:flags.npy,flags.npy,target=multilabel")
    assert (array.classes, array.train.labels.tolist()) == (("0", "1"), expected)


@pytest.mark.parametrize(
    ("write", "spec", "told"),
    [
        (lambda: None, "target=ranking", "target: unknown name 'ranking'"),
        (lambda: None, "target=regression,metric=accuracy", "metric of regression: unknown name 'accuracy'"),
        (lambda: None, "separator=bar", "separator=bar; possible: with target=multilabel"),
        (lambda: None, "target=multilabel,mask=present", "mask=present; possible: where labels are single"),
        (
            lambda: write_pairs(Path("a.csv"), ["1", "two"]),
            "target=regression",
            "'two', which is no finite number",
        ),
        (
            lambda: write_pairs(Path("a.csv"), ["1", "nan"]),
            "target=regression",
            "'nan', which is no finite number",
        ),
        (lambda: write_pairs(Path("a.csv"), ["1", "1"]), "target=regression", "all labels are 1"),
        (
            lambda: write_pairs(Path("a.csv"), ["1", "1_5"]),
            "target=regression",
            "'1_5', which is no finite number",
        ),
        *(
            (functools.partial(write_pairs, Path("a.csv"), numbers), "target=regression", "labels from ")
            for numbers in (
                ["1000000001", "1000000002"],
                ["1e30", "2e30"],
                ["1e-300", "2e-300"],
                ["1e308", "-1e308"],
            )
        ),
        (
            lambda: write_pairs(Path("a.csv"), ["x", "x"]),
            "target=multilabel,separator=bar",
            "every sample has all",
        ),
        (lambda: write_pairs(Path("a.csv"), ["1.5", "2"]), "", "or say target=regression"),
        (lambda: write_pairs(Path("a.csv"), ["x", "y"]), "target=multilabel", "no separator is named"),
        (
            lambda: write_pairs(Path("a.csv"), ["x;x", "y"]),
            "target=multilabel,separator=semicolon",
            "one of them twice",
        ),
    ],
)
def test_what_labels_are_is_said_and_not_guessed(
    folder: Path, write: Callable[[], None], spec: str, told: str
) -> None:
    write_pairs(Path("a.csv"), ["0", "1"])
    write()
    with pytest.raises(UserError, match=re.escape(told)):
        open_task(f"csv:a.csv,a.csv,label=score,shifts=none,{spec}")


def test_a_cell_that_is_missing_is_named_by_its_column(folder: Path) -> None:
    pq.write_table(pa.table({"x": [1, 0], "y": [1, None]}), "a.parquet")
    with pytest.raises(UserError, match="row 1 has no y"):
        open_task("labels:a.parquet,a.parquet,label=x+y,target=multilabel")


@pytest.mark.parametrize(
    ("cell", "told"), [("-1", "'-1', which is neither 0 nor 1"), ("", "'', which is nei")]
)
def test_a_column_of_a_class_says_yes_or_no_in_every_row(folder: Path, cell: str, told: str) -> None:
    Path("a.csv").write_text(f"x,y\n1,0\n0,{cell}\n1,1\n")
    with pytest.raises(UserError, match=re.escape(told)):
        open_task("labels:a.csv,a.csv,label=x+y,target=multilabel")


def test_a_class_that_no_test_sample_has_is_left_out_of_the_mean() -> None:
    logits = np.array([[0.9, 0.5], [0.1, 0.2]], np.float32)
    found = score(logits, np.array([[False, False], [True, False]]), "map")
    assert (found.metric, found.average_precision) == (0.5, (0.5, None))


def test_rare_classes_are_in_every_part() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random((400, 3)) < (0.5, 0.05, 0.01)
    carving = carve([f"{row}" for row in range(400)], labels, published=False)
    assert labels[carving.validation].any(axis=0).all()
    part = subset_of(np.arange(len(carving.fit)), labels[carving.fit], 1 / 100)  # type: ignore[arg-type]
    assert labels[carving.fit][part].any(axis=0).all()
