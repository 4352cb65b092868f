"""Images made smaller: which, to what, by whom, and what is kept of what they were."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nml.errors import UserError
from nml.files import write_json
from nml.set_file import SET_FILE
from shards import planning, relabel, writing
from shards.decode import decode_pixels
from shards.packing import ORIGINAL_SHA256
from shards.partial_jpeg import Box, cut_out, sequential_frame
from shards.reader import ShardReader
from shards.resize import Resize
from shards.shardset import ShardSet
from shards.verify import verify
from tests.shards.small_sources import run

SIZES = [(64, 48), (48, 96), (40, 33), (32, 32), (20, 80), (33, 200)]


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, bytes]:
    """Write six pictures of three classes; return them by name."""
    made = {}
    for number, size in enumerate(SIZES):
        file = io.BytesIO()
        steps = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
        Image.fromarray(steps.astype(np.uint8)).save(file, "PNG" if number % 2 else "JPEG")
        name = f"{['cat', 'dog', 'emu'][number % 3]}/{number}.{'png' if number % 2 else 'jpg'}"
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
        made[name] = file.getvalue()
    return made


def test_what_is_longer_than_asked_is_shrunk_and_the_rest_stays_as_it_came(
    pictures: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"imagefolder:{tmp_path / 'pictures'}", tmp_path / "set", "--resize", "32", "--quality", "80")
    assert (
        "4 of 6 images shrunk to a short side of 32, as JPEG of quality 80 (Pillow "
        in capsys.readouterr().out
    )
    relabel.main([str(tmp_path / "set"), "--noise", "0.5"])
    shard_set = ShardSet.open(tmp_path / "set")
    assert {**shard_set.info.resized, "encoder": ""} == {
        **Resize(32, 80).as_json(),
        "images": 4,
        "encoder": "",
    }
    rows = pq.read_table(tmp_path / "set" / "manifest.parquet").to_pylist()
    for sample, row in enumerate(rows):
        original = pictures[row["source_name"]]
        image = ShardReader(shard_set).image(sample)[1]
        assert row[ORIGINAL_SHA256] == hashlib.sha256(original).digest()
        height, width = decode_pixels(original).shape[:2]
        if min(width, height) <= 32:
            assert image == original
            continue
        small = Image.open(io.BytesIO(image))
        scale = 32 / min(width, height)
        assert (small.format, small.size) == ("JPEG", (round(width * scale), round(height * scale)))
        frame = sequential_frame(image)
        assert frame is not None
        assert cut_out(image, frame, *small.size, Box(0, 0, 1, 1)) is not None
        # The same picture: all in all as bright, and with the bright end where it was.
        assert abs(np.asarray(small).mean() - decode_pixels(original).mean()) < 6
        assert np.asarray(small)[-1, -1].mean() > np.asarray(small)[0, 0].mean() + 100
    assert not [finding for finding in verify(tmp_path / "set", decode=True) if finding.problem]


def test_workers_and_interruptions_change_no_byte_and_another_encoder_none_of_a_started_set(
    pictures: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"imagefolder:{tmp_path / 'pictures'}"
    more = ["--resize", "32", "--max-shard-count", "2"]
    run(source, tmp_path / "right", *more, "--workers", "2")
    with monkeypatch.context() as stopped:
        stopped.setattr(writing, "_finish", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            run(source, tmp_path / "set", *more, "--workers", "1")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(planning, "encoder_version", lambda: "Pillow 1")
        with pytest.raises(UserError, match=r"made smaller by Pillow .* and here is Pillow 1"):
            run(source, tmp_path / "set", *more)
    (tmp_path / "set" / "shard-000001.tar").unlink()
    run(source, tmp_path / "set", *more)
    for path in (tmp_path / "right").iterdir():
        assert path.read_bytes() == (tmp_path / "set" / path.name).read_bytes(), path.name
    # Found done, also by another encoder.
    monkeypatch.setattr(planning, "encoder_version", lambda: "Pillow 1")
    run(source, tmp_path / "set", *more)
    with pytest.raises(UserError, match="written with other options"):
        run(source, tmp_path / "set", "--resize", "31")


def test_a_plan_made_before_there_were_restart_markers_is_packed_without_any(
    pictures: dict[str, bytes],
) -> None:
    recorded = Resize(32).as_json()
    former = {name: value for name, value in recorded.items() if name != "restart_markers"}
    for name in ("dog/1.png", "cat/0.jpg"):
        if (small := Resize.from_json(former).smaller(pictures[name])) is not None:
            assert b"\xff\xdd" not in small
            assert b"\xff\xdd" in (Resize.from_json(recorded).smaller(pictures[name]) or b"")


def test_what_cannot_be_decoded_is_found_before_anything_is_shrunk(
    pictures: dict[str, bytes], tmp_path: Path
) -> None:
    source = f"imagefolder:{tmp_path / 'pictures'}"
    (tmp_path / "pictures" / "cat" / "cut.png").write_bytes(pictures["dog/1.png"][:200])
    with pytest.raises(UserError, match=r"cut\.png.* cannot be decoded.*--skip-bad 1"):
        run(source, tmp_path / "set", "--resize", "32")
    run(source, tmp_path / "set", "--resize", "32", "--skip-bad", "1")
    assert ShardSet.open(tmp_path / "set").num_samples == len(pictures)
    for wrong, told in ((["--quality", "80"], "add --resize"), (["--resize", "0"], "no size")):
        with pytest.raises(UserError, match=told):
            run(source, tmp_path / "other", *wrong)


def test_verify_finds_images_that_are_larger_than_the_set_says(
    pictures: dict[str, bytes], tmp_path: Path
) -> None:
    run(f"imagefolder:{tmp_path / 'pictures'}", tmp_path / "set", "--resize", "32")
    info = ShardSet.open(tmp_path / "set").info
    write_json(
        tmp_path / "set" / SET_FILE, replace(info, resized={**info.resized, "short_side": 24}).as_json()
    )
    (finding,) = (finding for finding in verify(tmp_path / "set") if finding.problem)
    assert finding.name == "shard-000000.tar sizes"
    assert "has a short side of 32, set.json says 24" in finding.problem
