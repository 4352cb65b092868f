"""What a stranger may send: each a function that makes it in a folder, and the commands that may meet it."""

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
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from probes.results import read_rows, write_rows
from tests.hostile import good
from tests.hostile.sets import filled, outside, with_index, with_record

Make = Callable[[Path, Path], object]
DEEP = b"[" * 100_000 + b"]" * 100_000
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(3 << 30)}
ESCAPE = "enc\x1b[2J\x1b]52;c;ZWNobyBoaQ==\x07\x9b31m"


class Input(NamedTuple):
    """Something from elsewhere.

    Attributes:
        make: Makes it in a folder; the second argument holds good folders of each kind.
        commands: Who could meet it; a module and its words each.
        status: How they end; 2 is one line of error.
    """

    make: Make
    commands: tuple[str, ...]
    status: int = 2


VERIFY = "shards.verify set"
INFO = "shards.info set"
PLOT = "shards.info set --plot x.png"
RELABEL = "shards.relabel set --noise 0.3 --force"
REWRITE = "shards.write --source webdataset:set --noise 0 --out out"
TRAIN = (
    "pretrain.run --recipe cifar_resnet18_quick --shards set --noise 0.2 --run-dir run --recipe.epochs 1 "
    "--recipe.data.workers 0 --recipe.data.streams 8 --recipe.global_batch 32"
)
INDEX = "shards.index tars"
WRITE_TAR = "shards.write --source webdataset:tars --noise 0 --out out --workers 1"
TAR_TASK = "probes.run --plugin lp --checkpoint run --task wds:tars/x.tar,tars/x.tar,shifts=none"
WRITE_FOLDER = "shards.write --source imagefolder:pets --noise 0 --out out --workers 1"
TASK = "probes.run --plugin lp --checkpoint run --allow-overlap --task"
FOLDER_TASK = f"{TASK} imagefolder:pets,pets,shifts=none"
WRITE_TABLE = "shards.write --source parquet:tables/a.parquet --noise 0 --out out --workers 1"
TABLE_TASK = f"{TASK} parquet:tables/a.parquet,tables/a.parquet,shifts=none"
PROBE = "probes.run --plugin lp --checkpoint run --task digits"
PREDICT = "probes.predict head --features features.npy"
REPORT = "probes.report results"
SHOW = "probes.results show results"
EXPORT = "probes.results export results"
OPENED = (INFO, VERIFY)


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


def a_pipe(folder: Path) -> None:
    (folder / "set.json").unlink()
    os.mkfifo(folder / "set.json")


def manifest(change: Callable[[pa.Table], pa.Table]) -> Make:
    def change_it(folder: Path) -> None:
        table = change(pq.read_table(folder / "manifest.parquet"))
        pq.write_table(table, folder / "manifest.parquet")

    return a_set(change_it)


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
        pq.write_table(change(pq.read_table(path)), path)

    return make


def linked_lock(at: Path, goods: Path) -> None:
    shutil.copytree(goods / "set", at / "set")
    (at / "run").mkdir()
    (at / "run/.lock").symlink_to(at.parent / "thesis.tex")


WRITE_BOMB = "shards.write --config bomb.yaml --out out"
BOMB = "\n".join(
    ["x0: &s0 [x,x,x,x,x,x,x,x,x,x]"]
    + [f"x{n}: &s{n} [{','.join([f'*s{n - 1}'] * 10)}]" for n in range(1, 9)]
    + ["noise: *s8"]
)
RECIPE = "objective: clip\nloss: {name: infonce}\nmodel:\n  name: RN50\n  kwargs: {%s}\n"
LAUNCH = "slurm.launch pretrain --dry-run --shards set --cluster-file bomb.yaml"
BY_RECIPE = "pretrain.run --recipe ./recipe.yaml --shards set --run-dir run"

INPUTS: dict[str, Input] = {
    "a shard above the set": Input(first_shard(name="../../thesis.tar"), (*OPENED, RELABEL, REWRITE, TRAIN)),
    "a shard anywhere": Input(first_shard(name="/tmp/thesis.tar"), OPENED),
    "a shard called the folder": Input(first_shard(name=".."), OPENED),
    "a shard with an escape": Input(first_shard(name="\x1b[2J.tar"), OPENED),
    "a shard of text": Input(first_shard(bytes="many"), OPENED),
    "a shard of less than nothing": Input(first_shard(samples=-1), OPENED),
    "a fingerprint that is a path": Input(recorded(fingerprint="../../x"), OPENED),
    "a hash that is a path": Input(recorded(manifest_sha256="../../x"), OPENED),
    "samples of text": Input(recorded(num_samples="68"), OPENED),
    "more samples than there are": Input(recorded(num_samples=10**9), OPENED),
    "classes that are a number": Input(recorded(classes=10), OPENED),
    "a level in the clean column": Input(level(column="label"), OPENED),
    "a level of text": Input(level(realised="much"), OPENED),
    "a parent that is none": Input(recorded(parent={"x": "y"}), OPENED),
    "an escape in the source": Input(recorded(source=ESCAPE), (INFO,), status=0),
    "deep set.json": Input(set_file(DEEP), OPENED),
    "a number of 5,000 digits": Input(set_file(b'{"format": 1' + b"0" * 5000 + b"}"), OPENED),
    "set.json that is a list": Input(set_file(b"[]"), OPENED),
    "set.json without an end": Input(set_file(b'"' + b"x" * (40 << 20)), (INFO,)),
    "set.json that is a pipe": Input(a_set(a_pipe), OPENED),
    "deep stats.json": Input(set_file(DEEP, "stats.json"), (PLOT,)),
    "transitions outside": Input(
        set_file(b'{"classes": [], "levels": {"n20": {"transitions": [[9, 9, 9]]}}}', "stats.json"), (PLOT,)
    ),
    "an index with offsets outside": Input(of("key", outside), (RELABEL, TRAIN)),
    "an index with images of exabytes": Input(of("image_size", lambda a: filled(a, 2**62)), (TRAIN,)),
    "an index with labels of no class": Input(of("label_n20", lambda a: filled(a, 10)), (TRAIN,)),
    "an index with shards of no set": Input(of("shard", lambda a: filled(a, 7)), (TRAIN,)),
    "an index with nothing": Input(of("label", lambda a: filled(a, None)), (RELABEL,)),
    "an index of other types": Input(of("label", lambda a: a.cast(pa.string())), (RELABEL, TRAIN)),
    "an index that is cut": Input(set_file(b"ARROW1\0\0", "index.arrow"), (RELABEL, TRAIN)),
    "a manifest without keys": Input(manifest(lambda t: t.drop_columns(["key"])), (VERIFY,), status=1),
    "a manifest of no table": Input(set_file(b"PAR1", "manifest.parquet"), (RELABEL,)),
    "a deep record in a tar": Input(
        a_tar(z_png=good.png(), z_cls=b"1", z_json=DEEP), ("shards.index tars --label-column x",)
    ),
    "a class that is a list": Input(
        a_tar(z_png=good.png(), z_json=b'{"label": [1, 2]}'), ("shards.index tars --label-column label",)
    ),
    "a class of a megabyte": Input(
        a_tar(z_png=good.png(), z_cls=b"1" * (2 << 20)), (INDEX, WRITE_TAR, TAR_TASK)
    ),
    "a class that is an escape": Input(a_tar(z_png=good.png(), z_cls=ESCAPE.encode()), (INDEX,), status=0),
    "a link in a tar": Input(
        member("y.json", tarfile.SYMTYPE, "/etc/hostname"), (INDEX, WRITE_TAR, TAR_TASK)
    ),
    "a device in a tar": Input(member("y.json", tarfile.CHRTYPE), (INDEX, WRITE_TAR)),
    "a member above a tar": Input(member("../y.json"), (INDEX, WRITE_TAR)),
    "code in a tar": Input(a_tar(z_png=good.png(), z_pkl=pickle.dumps(os.system)), (INDEX, WRITE_TAR)),
    "a sparse member": Input(
        member(
            "y.json",
            **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(3 << 30)},
        ),
        (INDEX, WRITE_TAR),
    ),
    "a member of less than nothing": Input(broken_tar(negative), (INDEX, WRITE_TAR, TAR_TASK)),
    "a tar that is cut": Input(broken_tar(lambda data: data[:700]), (INDEX, WRITE_TAR, TAR_TASK)),
    "PostScript called png": Input(an_image(eps), (WRITE_FOLDER, FOLDER_TASK)),
    "an image of 3.6 billion pixels": Input(an_image(huge_png), (FOLDER_TASK,)),
    "a JPEG of 5,000 scans": Input(an_image(many_scans), (FOLDER_TASK,)),
    "an image by its absolute path": Input(a_table(str), (WRITE_TABLE, TABLE_TASK)),
    "an image in a home": Input(a_table(lambda _: "~/private.png"), (WRITE_TABLE, TABLE_TASK)),
    "an image above the table": Input(a_table(lambda _: "../home/private.png"), (WRITE_TABLE,)),
    "an image behind a link": Input(a_table(lambda _: "link.png"), (WRITE_TABLE, TABLE_TASK)),
    "an image that is no path": Input(a_table(lambda _: "a\0b.png"), (WRITE_TABLE,)),
    "an image of a device": Input(a_table(lambda _: "/dev/zero"), (WRITE_TABLE, TABLE_TASK)),
    "an image in a text table": Input(
        a_table(str, "csv"), ("shards.write --source csv:tables/a.csv --noise 0 --out out --workers 1",)
    ),
    "weights to unpickle": Input(
        meta(library="open_clip", architecture="RN50", model_kwargs={"pretrained_image_path": "x.pt"}),
        (PROBE,),
    ),
    "a checkpoint to unpickle": Input(meta(model_kwargs={"checkpoint_path": "x.pt"}), (PROBE,)),
    "weights to download": Input(meta(model_kwargs={"pretrained": True}), (PROBE,)),
    "another place of weights": Input(meta(model_kwargs={"pretrained_cfg": {"file": "x.pt"}}), (PROBE,)),
    "a model of a hub": Input(meta(architecture="hf-hub:timm/resnet18"), (PROBE,)),
    "a model of a folder": Input(meta(library="open_clip", architecture="local-dir:/tmp"), (PROBE,)),
    "a model of all memory": Input(meta(architecture="vit_giant_patch14_224", model_kwargs={}), (PROBE,)),
    "a layer of all memory": Input(meta(model_kwargs={"num_classes": 10**12}), (PROBE,)),
    "images of all memory": Input(preprocessed(input_size=[3, 10**6, 10**6]), (PROBE,)),
    "preprocessing of text": Input(preprocessed(mean="x"), (PROBE,)),
    "noise that is a list": Input(meta(noise=[1]), (PROBE,)),
    "deep meta.json": Input(export_file("meta.json", DEEP), (PROBE,)),
    "weights that are a pickle": Input(export_file("model.safetensors", pickle.dumps(os.system)), (PROBE,)),
    "deep head.json": Input(a_head(DEEP), (PREDICT,)),
    "a head of no kind": Input(a_head(head=["lp"]), (PREDICT,)),
    "a head with other settings": Input(a_head(hyper_parameters={"x": 1}), (PREDICT,)),
    "classes of a head that are none": Input(a_head(classes=None), (PREDICT,)),
    "a head that is a pickle": Input(pickled_head, (PREDICT,)),
    "aliases in a config": Input(a_file("bomb.yaml", BOMB), (WRITE_BOMB, LAUNCH)),
    "a deep config": Input(a_file("bomb.yaml", "- " * 5000), (WRITE_BOMB, LAUNCH)),
    "a config of Python": Input(
        a_file("bomb.yaml", "noise: !!python/object/apply:os.system [id]"),
        (WRITE_BOMB, LAUNCH),
    ),
    "a recipe that unpickles": Input(
        a_file("recipe.yaml", RECIPE % "pretrained_image_path: x.pt, weights_only: false"), (BY_RECIPE,)
    ),
    "a recipe with aliases": Input(a_file("recipe.yaml", BOMB), (BY_RECIPE,)),
    "a lock that is a link": Input(linked_lock, (TRAIN,)),
    "escapes in a row": Input(rows(encoder=ESCAPE), (REPORT, SHOW, EXPORT)),
    "zeros in a row": Input(rows(task="t\0"), (REPORT, SHOW)),
    "a row without a task": Input(row_table(lambda t: t.drop_columns(["task"])), (REPORT, SHOW)),
    "a row of no number": Input(rows(noise_ratio=float("nan")), (REPORT,)),
    "a row of another domain": Input(rows(domain="\u202e"), (REPORT, SHOW)),
    "a row whose study is deep": Input(rows(study=DEEP.decode()), (REPORT,)),
    "a row whose study is none": Input(rows(study='{"candidates": 3}'), (REPORT,)),
    "formulas in a row": Input(
        rows(encoder="a$\\badcommand{$b", head="=HYPERLINK(1)"), (REPORT, EXPORT), status=0
    ),
}
