"""Tables, folders and tars as people have them: read as they are meant, or one line, and no silent change."""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from nml.errors import UserError
from nml.labels import caption_value, class_value
from shards import index, relabel, verify, write
from shards.noise.transition_matrix import TransitionMatrix
from shards.shardset import ShardSet
from tests.shards.small_sources import IMAGES, LABELS, make_tar, run
from tests.shards.test_noise_models import population

CAPTIONS = ['A "big" dog', "two\nlines", "caf\u00e9", *(f"caption {number}" for number in range(9))]


def table(
    folder: Path, name: str, values: list[str], column: str, *, encoding: str = "utf-8", **dialect: str
) -> Path:
    """Write a table of the twelve images of a folder, as Python's csv and pandas write one."""
    for number, image in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(image)
    with (folder / name).open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, lineterminator="\n", **dialect)
        writer.writerow(["key", "filepath", column])
        writer.writerows([f"k{number}", f"{number}.jpg", value] for number, value in enumerate(values))
    return folder / name


def supervision(out: Path, column: str) -> dict[str, object]:
    rows = ShardSet.open(out).index
    return dict(zip(rows.column("key").to_pylist(), rows.column(column).to_pylist(), strict=True))


def test_quotes_and_newlines_between_tabs_are_read_as_csv_and_refused_as_tsv(tmp_path: Path) -> None:
    path = table(tmp_path, "captions.tsv", CAPTIONS, "caption", delimiter="\t")
    run(f"csv:{path}", tmp_path / "set")
    assert supervision(tmp_path / "set", "caption") == {f"k{n}": text for n, text in enumerate(CAPTIONS)}
    with pytest.raises(UserError, match=r"line 2 has a value in quotes.*name it csv:.*which reads tabs too"):
        run(f"tsv:{path}", tmp_path / "other")
    path = table(tmp_path, "lines.tsv", [*CAPTIONS[1:], "end"], "caption", delimiter="\t")
    with pytest.raises(UserError, match=r"line 2 has 3 columns|has 1 columns; possible: 3; .*name it csv:"):
        run(f"tsv:{path}", tmp_path / "other")


def test_an_encoding_is_named_not_guessed(tmp_path: Path) -> None:
    path = table(tmp_path, "latin.csv", CAPTIONS, "caption", encoding="latin-1")
    with pytest.raises(UserError, match=r"cannot be read as UTF-8: .*0xe9"):
        run(f"csv:{path}", tmp_path / "set")
    with pytest.raises(UserError, match=r"encoding latin-99: unknown"):
        run(f"csv:{path}", tmp_path / "set", "--encoding", "latin-99")
    run(f"csv:{path}", tmp_path / "set", "--encoding", "latin-1")
    assert supervision(tmp_path / "set", "caption")["k2"] == "caf\u00e9"


def test_bytes_that_are_no_text_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tar(tmp_path / "a.tar", "txt", [f"c{number}" for number in range(12)])
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(
        content.replace(b"c7\0", b"\xe97\0").replace(b"c8\0", b"\xe98\0")
    )
    run(f"webdataset:{tmp_path / 'tars'}", tmp_path / "set")
    assert "2 captions hold U+FFFD" in capsys.readouterr().err
    index.main([str(tmp_path / "tars")])
    assert "2 captions hold U+FFFD" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["table", "tars"])
def test_class_numbers_with_gaps_make_no_classes_that_nobody_has(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = [str((1, 500, 9999)[label]) for label in LABELS]
    if kind == "table":
        out = tmp_path / "set"
        run(f"csv:{table(tmp_path, 'labels.csv', numbers, 'label')}", out)
    else:
        out = tmp_path / "tars"
        make_tar(tmp_path / "a.tar", "cls", numbers)
        out.mkdir()
        (tmp_path / "a.tar").rename(out / "a.tar")
        index.main([str(out)])
        relabel.main([str(out), "--noise", "0.25"])
    assert "class numbers from 1 to 9,999 are 3 classes" in capsys.readouterr().err
    assert ShardSet.open(out).classes == ("1", "500", "9999")
    assert sorted(supervision(out, "label").values()) == sorted(LABELS)
    assert set(supervision(out, "label_n25").values()) <= {0, 1, 2}
    assert not [finding for finding in verify.verify(out) if finding.problem]


def test_half_a_character_is_no_text() -> None:
    for value, of in ((caption_value, "caption"), (class_value, "class")):
        with pytest.raises(ValueError, match=f"the {of} .* which holds half a character"):
            value("a \ud83d dog")
        assert value("a \U0001f415 dog") == "a \U0001f415 dog"


def test_a_link_to_a_folder_above_is_named_once_and_one_to_another_is_followed(
    image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    (image_folder / "cat" / "00.jpg").rename(tmp_path / "more" / "00.jpg")
    (image_folder / "cat" / "more").symlink_to(tmp_path / "more")
    with pytest.raises(UserError, match=r"more is a link to .*/more, outside of .*; .*--image-root FOLDER"):
        run(f"imagefolder:{image_folder}", tmp_path / "set")
    elsewhere = ("--image-root", str(tmp_path / "more"))
    run(f"imagefolder:{image_folder}", tmp_path / "set", *elsewhere)
    assert "cat_more_00" in supervision(tmp_path / "set", "label")
    (tmp_path / "more" / "self").symlink_to(image_folder / "cat")
    with pytest.raises(UserError, match=r"train/cat/more/self is a link to a folder above itself"):
        run(f"imagefolder:{image_folder}", tmp_path / "other", *elsewhere)


def test_what_a_folder_holds_beside_images_of_classes_is_told(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "bird").mkdir()
    (image_folder / "alone.jpg").write_bytes(IMAGES[0])
    run(f"imagefolder:{image_folder}", tmp_path / "set")
    told = capsys.readouterr().err
    assert "passed over 1 images directly in" in told
    assert "no image of 1 classes, which noise may give all the same: bird" in told
    assert ShardSet.open(tmp_path / "set").num_samples == len(IMAGES)


def test_a_level_that_alters_nothing_says_so(image_folder: Path, tmp_path: Path, capsys) -> None:
    write.main(["--source", f"imagefolder:{image_folder}", "--noise", "0.01", "--out", str(tmp_path / "set")])
    assert "0 flipped); no label is altered" in capsys.readouterr().out


def test_a_matrix_is_applied_at_its_own_rate(image_folder: Path, tmp_path: Path) -> None:
    matrix = np.array([[0.5, 0.25, 0.25], [0, 0.75, 0.25], [0, 0, 1]])
    np.savetxt(tmp_path / "m.csv", matrix, delimiter=",")
    options = ["--model", "transition-matrix", "--model-file", str(tmp_path / "m.csv")]
    out = tmp_path / "set"
    source = ["--source", f"imagefolder:{image_folder}", "--out", str(out)]
    write.main([*source, "--noise", "own", *options])
    # Four samples a class: two of the first and one of the second.
    [level] = ShardSet.open(out).info.levels.values()
    assert (level.name, level.flipped) == ("n25", 3)
    write.main([*source, "--noise", "own", *options])
    run(f"imagefolder:{image_folder}", tmp_path / "clean", "--noise", "0")
    relabel.main([str(tmp_path / "clean"), "--noise", "own", *options])
    assert supervision(tmp_path / "clean", "label_n25") == supervision(out, "label_n25")
    with pytest.raises(UserError, match="the symmetric model has no rate of its own"):
        relabel.main([str(out), "--noise", "own"])


@pytest.mark.parametrize("seed", range(4))
def test_the_ratio_that_is_offered_is_taken(tmp_path: Path, seed: int) -> None:
    people = population(997)
    matrix = np.random.default_rng(seed).random((10, 10))
    np.save(tmp_path / "m.npy", matrix / matrix.sum(axis=1, keepdims=True))
    model = TransitionMatrix(str(tmp_path / "m.npy"))
    with pytest.raises(UserError, match=r"possible: up to [\d.]+ with this matrix") as refused:
        model.plan(people, [Fraction("0.999")], 0)
    most = Fraction(str(refused.value).split("up to ")[1].split()[0])
    assert len(model.plan(people, [most], 0)) == 1
