"""Sources that cannot be used, or not wholly: one line that says what to do, and doing it helps."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml.errors import UserError
from shards import write
from tests.shards.small_sources import IMAGES, check, make_tar, run


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        ({"a": [1]}, [], "no image column found; possible: columns: a; name it: --image-column"),
        ({"image": [b"x"], "b": [1]}, [], "no label or caption column found"),
        ({"image": [b"x"], "label": [1], "text": ["t"]}, [], "choose with --label-column label or"),
        (
            {"image": [b"x"], "label": [1]},
            ["--label-column", "lab"],
            r"--label-column lab: column of .*: unknown name 'lab'; possible: image, label; did you mean",
        ),
        ({"image": ["gone.jpg"], "label": [1]}, [], "names the image .*gone.jpg: No such file"),
        ({"image": [b"x"], "label": [-1]}, [], "has the class -1, below 0, which marks hidden labels"),
        ({"image": [b"<html>"], "label": [0]}, ["--noise", "0"], "is not an image of a known format"),
        ({"image": [], "label": []}, [], "holds no sample"),
        ({"image": [b"x"], "label": [2.5]}, [], "has the class 2.5, which is neither a whole number nor"),
        ({"image": [b"x"], "label": [2**40]}, [], "has the class 1099511627776, which is too large"),
        ({"image": [b"x"], "label": [[1]]}, [], r"has the class \[1\], which is neither"),
        (
            {"image": [b"x"], "text": [[["a dog", "pup"]]]},
            [],
            r"the caption \['a dog', 'pup'\], which is no text",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(
    tmp_path: Path, table: dict, arguments: list[str], message: str
) -> None:
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    arguments = [
        "--source",
        f"parquet:{tmp_path / 'data.parquet'}",
        "--out",
        str(tmp_path / "out"),
        *arguments,
    ]
    with pytest.raises(UserError, match=message):
        write.main(arguments)


def test_an_unreadable_image_stops_the_write_and_mending_it_continues(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards import packshards

    pack = packshards.pack_all
    victim = image_folder / "cat" / "00.jpg"

    def unlink_first(*arguments: object) -> int:
        victim.unlink()
        return pack(*arguments)

    monkeypatch.setattr("shards.writing.pack_all", unlink_first)
    with pytest.raises(UserError, match=r"00\.jpg: cannot be read: No such file"):
        run(f"imagefolder:{image_folder}", tmp_path / "out")
    monkeypatch.setattr("shards.writing.pack_all", pack)
    victim.write_bytes(IMAGES[0] + b"more")
    victim.write_bytes(IMAGES[0])
    run(f"imagefolder:{image_folder}", tmp_path / "out")
    check(tmp_path / "out")


def test_what_is_no_image_is_found_before_anything_is_written(image_folder: Path, tmp_path: Path) -> None:
    bad = image_folder / "cat" / "bad.jpg"
    bad.write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"is not an image .* remove it from the source; or leave it out"):
        run(f"imagefolder:{image_folder}", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.bad.csv").exists()
    bad.unlink()
    run(f"imagefolder:{image_folder}", tmp_path / "out")
    check(tmp_path / "out")
    assert not (tmp_path / "out.bad.csv").exists()


def test_a_link_to_nothing_among_images_is_one_line(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(
        UserError, match=r"cat/gone\.jpg is a link to nothing: No such file .* mend it or remove"
    ):
        run(f"imagefolder:{image_folder}", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_name_twice_in_one_tar_is_one_line(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", "cls", ["0"], IMAGES[:1])
    members = (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    whole = members + bytes(-len(members) % 512)
    (tmp_path / "a.tar").write_bytes(whole + whole + bytes(1024))
    with pytest.raises(
        UserError, match="both named '00000'; give each tar a name of its own, and each sample"
    ):
        run(f"webdataset:{tmp_path / 'a.tar'}", tmp_path / "out")
