"""Headers of foreign tars: whatever stands in them, walking them ends, in members or in one line."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nml.errors import UserError
from shards.tarwalk import walk

BLOCK = 512


def two_members(**pax: str) -> bytearray:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.png", "b.png"):
            member = tarfile.TarInfo(name)
            member.size = 1000
            member.pax_headers = dict(pax) if name == "b.png" else {}
            tar.addfile(member, io.BytesIO(bytes(1000)))
    return bytearray(file.getvalue())


def with_size(field: bytes, header: int) -> bytearray:
    """Put a size field into a header, under a right checksum."""
    content = two_members()
    content[header + 124 : header + 136] = field
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + BLOCK])
    return content


@pytest.mark.parametrize("header", [0, 3 * BLOCK], ids=["first", "second"])
@pytest.mark.parametrize(
    "field",
    [b"-00000001000", b"-00000003000", b"0o0000001750", b"0_0000001750", b"+00000001750", b"\xff" * 12],
)
@pytest.mark.timeout(20)
def test_a_size_that_is_no_number_of_bytes_is_named(tmp_path: Path, field: bytes, header: int) -> None:
    (tmp_path / "x.tar").write_bytes(with_size(field, header))
    with pytest.raises(UserError, match=r"x\.tar: damaged at byte .*: the size of '[ab]\.png' is no number"):
        list(walk(tmp_path / "x.tar"))


@pytest.mark.parametrize("size", ["-1000", "-2560", "1_000", "ten", "", "9" * 5000])
@pytest.mark.timeout(20)
def test_an_extended_size_that_is_no_number_of_bytes_is_named(tmp_path: Path, size: str) -> None:
    (tmp_path / "x.tar").write_bytes(two_members(size=size))
    with pytest.raises(UserError, match=r"x\.tar: damaged at byte .*: an extension header's size is"):
        list(walk(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    "record", [b"0 size=1000\n", b"99 path=x\n", b"size=1000\n", b"9" * 5000 + b" a=b\n"]
)
@pytest.mark.timeout(20)
def test_an_extended_header_whose_records_do_not_add_up_is_named(tmp_path: Path, record: bytes) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        header = tarfile.TarInfo("x")
        header.type, header.size = tarfile.XHDTYPE, len(record)
        tar.addfile(header, io.BytesIO(record))
        tar.addfile(tarfile.TarInfo("a.png"))
    (tmp_path / "x.tar").write_bytes(file.getvalue())
    with pytest.raises(UserError, match=r"x\.tar: damaged at byte 512: an extension header's record"):
        list(walk(tmp_path / "x.tar"))


@pytest.mark.timeout(60)
@given(field=st.binary(min_size=12, max_size=12))
def test_walking_ends_whatever_a_size_field_holds(
    field: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tar"
    path.write_bytes(with_size(field, 3 * BLOCK))
    try:
        offsets = [member.offset for member in walk(path)]
    except UserError:
        return
    assert offsets == sorted(set(offsets))


def test_a_long_name_and_a_binary_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(with_size(b"\x80" + (1000).to_bytes(11, "big"), 3 * BLOCK))
    assert [member.size for member in walk(tmp_path / "x.tar")] == [1000, 1000]
    (tmp_path / "y.tar").write_bytes(two_members(path="n" * 200 + ".png", size="1000"))
    assert [member.name for member in walk(tmp_path / "y.tar")] == ["a.png", "n" * 200 + ".png"]
