"""How what a stranger may send is made in a folder: good files, changed."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from probes.results import read_rows, write_rows
from tests.hostile import good
from tests.hostile.sets import with_index, with_record

Make = Callable[[Path, Path], object]
DEEP = b"[" * 100_000 + b"]" * 100_000
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(3 << 30)}
ESCAPE = "enc\x1b[2J\x1b]52;c;ZWNobyBoaQ==\x07\x9b31m"


def a_set(change: Callable[[Path], object]) -> Make:
    def make(at: Path, goods: Path) -> None:
        shutil.copytree(goods / "set", at / "set")
        change(at / "set")

    return make


def recorded(**values: Any) -> Make:
    return a_set(lambda folder: with_record(folder, lambda record: record.update(values)))


def first_shard(**values: Any) -> Make:
    return a_set(lambda folder: with_record(folder, lambda record: record["shards"][0].update(values)))


def level(**values: Any) -> Make:
    return a_set(lambda folder: with_record(folder, lambda record: record["levels"]["n20"].update(values)))


def set_file(content: bytes, name: str = "set.json") -> Make:
    return a_set(lambda folder: (folder / name).write_bytes(content))


def indexed(change: Callable[[str, pa.Array], pa.Array]) -> Make:
    return a_set(lambda folder: with_index(folder, change))


def of(name: str, change: Callable[[pa.Array], pa.Array]) -> Make:
    return indexed(lambda column, array: change(array) if column == name else array)


def a_pipe(name: str) -> Make:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return a_set(change)


def manifest(change: Callable[[pa.Table], pa.Table]) -> Make:
    def change_it(folder: Path) -> None:
        table = change(pq.read_table(folder / "manifest.parquet"))
        stored_once(table, folder / "manifest.parquet")

    return a_set(change_it)


def stored_once(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, store_schema=False, dictionary_pagesize_limit=1 << 30)


def repeated(table: pa.Table, name: str) -> pa.Table:
    """Return a table of 1,500 rows in which one text of a megabyte repeats, which a file stores once."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1500, np.int32)), ["x" * (1 << 20)])
    many = table.take(pa.array(np.zeros(1500, np.int64)))
    place = table.schema.get_field_index(name)
    return many.set_column(place, pa.field(name, texts.type), texts)


def a_tar(**members: bytes) -> Make:
    def make(at: Path, goods: Path) -> None:
        good.foreign_tar(at / "tars", **members)
        shutil.copytree(goods / "run", at / "run")

    return make


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", **pax: str) -> Make:
    """Make a tar with a member of another kind, or with an extension header, after its samples."""

    def make(at: Path, goods: Path) -> None:
        a_tar()(at, goods)
        body = b"1\n3221225467\n5\n".ljust(512, b"\0") + b"12345"
        with tarfile.open(at / "tars/x.tar", "a", format=tarfile.PAX_FORMAT) as archive:
            for found, data in ((name.replace("json", "png"), good.png()), (name, body)):
                info = tarfile.TarInfo(found)
                info.type, info.linkname = (kind, target) if found == name else (tarfile.REGTYPE, "")
                info.pax_headers = pax if found == name else {}
                info.size = len(data) if info.type == tarfile.REGTYPE else 0
                archive.addfile(info, io.BytesIO(data))

    return make


def broken_tar(change: Callable[[bytes], bytes]) -> Make:
    def make(at: Path, goods: Path) -> None:
        a_tar()(at, goods)
        path = at / "tars/x.tar"
        path.write_bytes(change(path.read_bytes()))

    return make


def negative(data: bytes) -> bytes:
    header = bytearray(data[:512])
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def an_image(content: Callable[[], bytes]) -> Make:
    def make(at: Path, goods: Path) -> None:
        for name in ("cat", "dog"):
            for number in range(12):
                path = at / "pets" / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (9 * number, 0, 0)).save(path)
        (at / "pets/cat/0.png").write_bytes(content())
        shutil.copytree(goods / "run", at / "run")

    return make


def linked_image(name: str) -> Make:
    """Make an image folder in which a link leads to a private picture, or to its folder."""

    def make(at: Path, goods: Path) -> None:
        an_image(good.png)(at, goods)
        private = at / "home" / "private.png"
        private.parent.mkdir()
        private.write_bytes(good.png())
        (at / name).symlink_to(private if name.endswith(".png") else private.parent)

    return make


def eps() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n"


def huge_png() -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def many_scans() -> bytes:
    file = io.BytesIO()
    Image.new("L", (1000, 1000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    places = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    return data[: places[2]] + data[places[1] : places[2]] * 5000 + data[places[2] :]


def a_table(path: Callable[[Path], str], form: str = "parquet") -> Make:
    """Make a table whose first image is named by a path, and a private picture beside its folder."""

    def make(at: Path, goods: Path) -> None:
        shutil.copytree(goods / "run", at / "run")
        private = at / "home" / "private.png"
        private.parent.mkdir()
        private.write_bytes(good.png())
        tables = at / "tables"
        tables.mkdir()
        for number in range(5):
            (tables / f"{number}.png").write_bytes(good.png())
        (tables / "link.png").symlink_to(private)
        paths = [path(private), *(f"{number}.png" for number in range(1, 5))]
        if form == "parquet":
            pq.write_table(pa.table({"image": paths, "label": [0, 1, 0, 1, 0]}), tables / "a.parquet")
        else:
            lines = [f"{name},{number % 2}" for number, name in enumerate(paths)]
            (tables / "a.csv").write_text("\n".join(["image,label", *lines]))

    return make


def meta(**values: Any) -> Make:
    def make(at: Path, goods: Path) -> None:
        shutil.copytree(goods / "run", at / "run")
        path = at / "run/export/meta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return make


def preprocessed(**values: Any) -> Make:
    def make(at: Path, goods: Path) -> None:
        stored = json.loads((goods / "run/export/meta.json").read_text())["preprocessing"]
        meta(preprocessing=stored | values)(at, goods)

    return make


def export_file(name: str, content: bytes) -> Make:
    def make(at: Path, goods: Path) -> None:
        meta(weights_sha256=None)(at, goods)
        (at / "run/export" / name).write_bytes(content)

    return make


def a_head(content: bytes | None = None, **values: Any) -> Make:
    def make(at: Path, goods: Path) -> None:
        import numpy as np

        shutil.copytree(goods / "head", at / "head")
        path = at / "head/head.json"
        path.write_bytes(content or json.dumps(json.loads(path.read_text()) | values).encode())
        np.save(at / "features.npy", np.zeros((4, 6), np.float32))

    return make


def pickled_head(at: Path, goods: Path) -> None:
    a_head()(at, goods)
    (at / "head/head.safetensors").write_bytes(pickle.dumps(os.system))
    good.fit_head(at / "head")


def a_file(name: str, content: str) -> Make:
    return lambda at, _: (at / name).write_text(content)


def rows(**values: Any) -> Make:
    def make(at: Path, goods: Path) -> None:
        changed = [dataclasses.replace(row, **values, row_id="") for row in read_rows(goods / "results")]
        write_rows(at / "results", changed)

    return make


def row_table(change: Callable[[pa.Table], pa.Table]) -> Make:
    def make(at: Path, goods: Path) -> None:
        shutil.copytree(goods / "results", at / "results")
        path = at / "results/rows/r.parquet"
        stored_once(change(pq.read_table(path)), path)

    return make


def linked_lock(at: Path, goods: Path) -> None:
    shutil.copytree(goods / "set", at / "set")
    (at / "run").mkdir()
    (at / "run/.lock").symlink_to(at.parent / "thesis.tex")


BOMB = "\n".join(
    ["x0: &s0 [x,x,x,x,x,x,x,x,x,x]"]
    + [f"x{n}: &s{n} [{','.join([f'*s{n - 1}'] * 10)}]" for n in range(1, 9)]
    + ["noise: *s8"]
)
RECIPE = "objective: clip\nloss: {name: infonce}\nmodel:\n  name: RN50\n  kwargs: {%s}\n"


def a_run(name: str, content: bytes | str, *, complete: bool = False) -> Make:
    """Make a run in which one file is another; with a marker that fits, if it shall be ``complete``."""

    def make(at: Path, goods: Path) -> None:
        shutil.copytree(goods / "trained", at / "run")
        path = at / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        if complete:
            good.fit_checkpoint(at / "run/checkpoints/step-00000002")

    return make


def unfinished(make: Make) -> Make:
    """Let a run be one that goes on."""

    def unfinish(at: Path, goods: Path) -> None:
        make(at, goods)
        (at / "run/DONE.json").unlink()

    return unfinish


def launched(file: str, content: bytes | str = b"", **values: Any) -> Make:
    """Make what the launcher keeps of a run and a sweep, one of its files another, or with other values.

    Of a journal, the last line is changed.
    """

    def make(at: Path, goods: Path) -> None:
        for folder in ("run", "sweeps"):
            shutil.copytree(goods / "launched" / folder, at / folder)
        path = at / file
        if values:
            *lines, last = path.read_text().splitlines() if file.endswith("l") else [path.read_text()]
            content_now = "\n".join([*lines, json.dumps(json.loads(last) | values), ""]).encode()
        else:
            content_now = content.encode() if isinstance(content, str) else content
        path.write_bytes(content_now)

    return make
