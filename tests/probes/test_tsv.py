from __future__ import annotations

from pathlib import Path

import pytest

from nml.errors import UserError
from probes.tasks import Task, open_task


def open_text(folder: Path, text: str, options: str = "") -> Task:
    (folder / "a.tsv").write_text(text)
    return open_task(f"tsv:{folder}/a.tsv,{folder}/a.tsv,shifts=none{options}")


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


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("review\tlabel", "film {n}\t{c}"),
        ("label\treview", "{c}\tfilm {n}"),
        ("Text\tLabel", "film {n}\t{c}"),
        ("\ufeffreview\ttarget", "film {n}\t{c}"),
    ],
)
@pytest.mark.parametrize("classes", [("0", "1"), ("bad", "good")])
def test_one_known_name_makes_a_header(
    tmp_path: Path, header: str, line: str, classes: tuple[str, ...]
) -> None:
    lines = [line.format(n=n, c=classes[n % 2]) for n in range(6)]
    task = open_text(tmp_path, "\n".join([header, *lines]) + "\n")
    assert task.classes == classes
    assert task.train.labels.tolist() == [0, 1] * 3
    assert [task.train.read(n) for n in range(6)] == [f"film {n}" for n in range(6)]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("a\ttarget\nb\tother\nc\ttarget\n", ("other", "target")),
        ("class\t1\nb\t0\nc\t1\n", ("0", "1")),
        ("class\tnoun\ngo\tverb\nred\tadjective\n", ("adjective", "noun", "verb")),
    ],
)
def test_a_sample_whose_text_or_class_is_a_known_name_stays_one(
    tmp_path: Path, text: str, classes: tuple[str, ...]
) -> None:
    task = open_text(tmp_path, text)
    assert len(task.train.keys) == 3
    assert task.classes == classes


@pytest.mark.parametrize("classes", ["0011", "yynn"])
def test_what_may_be_a_header_is_refused_until_the_user_says(tmp_path: Path, classes: str) -> None:
    text = "review\tsentiment\n" + "".join(f"film {n}\t{label}\n" for n, label in enumerate(classes))
    with pytest.raises(UserError, match=r"line 1 of .* may be a header: .*'sentiment'; .* header=no"):
        open_text(tmp_path, text)
    assert len(open_text(tmp_path, text, ",label=sentiment").train.keys) == 4
    assert open_text(tmp_path, text, ",header=no").classes[-1] in ("sentiment", "y")
    with pytest.raises(UserError, match=r"columns: review, sentiment; name it: label=COLUMN"):
        open_text(tmp_path, text, ",header=yes")
    with pytest.raises(UserError, match="leave out one"):
        open_text(tmp_path, text, ",header=no,label=sentiment")


def test_a_named_column_is_found_as_it_is_written(tmp_path: Path) -> None:
    text = "Id\tText\tTitle\tLabel\n0\ta\tb\tx\n1\tc\td\ty\n"
    assert open_text(tmp_path, text, ",label=Label,text=Title,pair=Text").train.read(1) == ("d", "c")
    with pytest.raises(UserError, match="did you mean Title"):
        open_text(tmp_path, text, ",pair=Titel")


def test_texts_may_be_long(tmp_path: Path) -> None:
    long = "word " * 100_000
    assert open_text(tmp_path, f"{long}\t1\nshort\t0\n").train.read(0) == long
