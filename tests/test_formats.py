"""Every format is read by one reader: what shards are written from can be probed on, sample for sample."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nml.errors import UserError
from nml.stored_images import StoredImages
from probes.tasks import Task, open_task
from probes.tasks.own_data import read_split
from shards import write

LABELS = [0, 1, 0, 1, 1, 0]
NAMES = ["cat", "dog"]


def encoded(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(file, kind)
    return file.getvalue()


IMAGES = [encoded(number) for number in range(6)]


def folder(root: Path) -> Path:
    """Write a folder a class, half of it gif, with what lies beside images in a real one."""
    for number, label in enumerate(LABELS):
        place = root / NAMES[label] / ("deep" if number > 3 else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(IMAGES[number])
        (place / f"{number}.GIF").write_bytes(encoded(number, "GIF"))
    (root / "cat" / ".ipynb_checkpoints").mkdir()
    (root / "cat" / ".ipynb_checkpoints" / "0.png").write_bytes(IMAGES[0])
    (root / "cat" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    (root / ".cache" / "0.png").write_bytes(IMAGES[0])
    return root


def tar(path: Path, *samples: dict[str, bytes], link: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"{number:03d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(member)
    return path


def classes_in_tar(path: Path, form: str = "{}", extension: str = "cls") -> Path:
    pairs = zip(IMAGES, LABELS, strict=True)
    return tar(path, *({"png": image, extension: form.format(label).encode()} for image, label in pairs))


def parquet(path: Path, **columns: Any) -> Path:
    table = pa.table(columns)
    pq.write_table(table, path, row_group_size=max(4, len(table) // 3))
    return path


def structs() -> list[dict[str, Any]]:
    return [{"bytes": image, "path": None} for image in IMAGES]


def text_table(path: Path, labels: list[str], *, column: str = "filepath") -> Path:
    """Write image files, and a table of their paths."""
    for number, image in enumerate(IMAGES):
        (path.parent / f"a, {number}.png").write_bytes(image)
    with path.open("w", newline="") as file:
        lines = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
        lines.writerow([column, "label"])
        lines.writerows([f"a, {number}.png", label] for number, label in enumerate(labels))
    return path


def saved_by_datasets(path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": structs(), "label": LABELS}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(path)
    return path


NUMBERS = [str(label) for label in LABELS]
WORDS = [NAMES[label] for label in LABELS]
KEYS = [f"k{number}" for number in range(6)]
Make = Callable[[Path], object]


def a_csv(*labels: str, column: str = "filepath") -> Make:
    return lambda at: text_table(at / "x.csv", list(labels), column=column)


def a_tsv(*labels: str) -> Make:
    return lambda at: text_table(at / "x.tsv", list(labels))


def a_parquet(**columns: Any) -> Make:
    return lambda at: parquet(at / "x.parquet", **columns)


def a_tar(*samples: dict[str, bytes], link: str = "") -> Make:
    return lambda at: tar(at / "x.tar", *samples, link=link)


def labelled_tar(form: str = "{}", extension: str = "cls") -> Make:
    return lambda at: classes_in_tar(at / "x.tar", form, extension)


def samples_of_tars(image: str) -> list[dict[str, bytes]]:
    return [
        {image: content, "cls": str(label).encode()} for content, label in zip(IMAGES, LABELS, strict=True)
    ]


def packed(make: Make) -> Callable[[Path], Path]:
    def tar_and_gzip(at: Path) -> Path:
        path = Path(str(make(at)))
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        return path.with_suffix(".tar.gz")

    return tar_and_gzip


def unended(path: Path) -> Path:
    """Cut off what closes a tar, as a writer that was not closed leaves it."""
    path.write_bytes(path.read_bytes().rstrip(b"\0") + bytes(509))
    return path


def parquet_of_paths(at: Path) -> Path:
    text_table(at / "unused.csv", NUMBERS)
    return parquet(at / "x.parquet", file_name=[f"a, {number}.png" for number in range(6)], label=LABELS)


def tars_below(at: Path) -> Path:
    (at / "tars" / "0").mkdir(parents=True)
    (at / "tars" / ".cache").mkdir()
    classes_in_tar(at / "tars" / ".cache" / "a.tar")
    classes_in_tar(at / "tars" / "0" / "a.tar")
    return at / "tars"


def images_alone(at: Path) -> str:
    for number, label in enumerate(LABELS):
        (at / "all" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (at / "all" / NAMES[label] / f"{number}.png").write_bytes(IMAGES[number])
    return f"ImageFolder:{at / 'all'}"


READ: dict[str, tuple[str, Make]] = {
    "folder": ("imagefolder", lambda at: folder(at / "pets")),
    "parquet-bytes": ("parquet", a_parquet(image_bytes=IMAGES, category=LABELS)),
    "parquet-struct": ("parquet", a_parquet(img=structs(), label=WORDS)),
    "parquet-key": ("parquet", a_parquet(jpg=IMAGES, cls=LABELS, key=KEYS)),
    "parquet-gap": ("parquet", a_parquet(image=[*structs()[:5], None], label=LABELS)),
    "parquet-paths": ("parquet", parquet_of_paths),
    "csv": ("csv", a_csv(*WORDS)),
    "csv-capitals": ("csv", a_csv(*NUMBERS, column="Image")),
    "csv-zeros": ("csv", a_csv("007", "7", "007", "7", "10", "NA")),
    "csv-whole-floats": ("csv", a_csv(*(f"{label}.0" for label in LABELS))),
    "csv-truth": ("csv", a_csv("true", "false", "true", "false", "true", "false")),
    "tsv": ("tsv", a_tsv(*WORDS)),
    "tars": ("webdataset", labelled_tar()),
    "tars-alias": ("wds", labelled_tar("00{}")),
    "tars-names": ("webdataset", labelled_tar("n{}\n")),
    "tars-json": ("wds", labelled_tar('{{"label": {}}}', "json")),
    "tars-input": ("wds", a_tar({"in.png": IMAGES[0], "cls": b"0"}, {"gif": encoded(1, "GIF"), "cls": b"1"})),
    "tars-range": ("webdataset", lambda at: classes_in_tar(at / "x-00.tar").parent / "x-{00..00}.tar"),
    "tars-foreign": (
        "wds",
        a_tar(*({"npz": b"x", **each, "pth": b"x", "pkl": b"x"} for each in samples_of_tars("png"))),
    ),
    "tars-members": ("wds", a_tar(*({"png": b"x", **each} for each in samples_of_tars("input.PNG")))),
    "tars-gzip": ("webdataset", packed(labelled_tar())),
    "tars-below": ("wds", tars_below),
    "tars-list": ("wds", lambda at: classes_in_tar(at / "x-1.tar").parent / "{x,x}-{1..1,1}.tar"),
    "tars-no-end": ("wds", lambda at: unended(classes_in_tar(at / "x.tar"))),
    "huggingface": ("huggingface", lambda at: saved_by_datasets(at / "saved")),
    "torchvision": ("torchvision", images_alone),
    "third-party": ("in-memory", lambda at: at),
}


# What the classes of a case are called, where that is a matter of meaning.
CLASSES = {
    "parquet-bytes": NUMBERS,
    "csv-zeros": ["007", "7", "007", "7", "10", "NA"],
    "csv-whole-floats": NUMBERS,
    "csv-truth": ["true", "false"] * 3,
    "tars-alias": NUMBERS,
    "tars-names": [f"n{number}" for number in NUMBERS],
    "huggingface": WORDS,
}


@pytest.fixture
def in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a distribution that registers a source of its own."""
    site = tmp_path / "site"
    (site / "in_memory-1.dist-info").mkdir(parents=True)
    (site / "in_memory-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: in-memory\nVersion: 1\n"
    )
    (site / "in_memory-1.dist-info" / "entry_points.txt").write_text(
        "[nml.sources]\nin-memory = in_memory:Two\n"
    )
    (site / "in_memory.py").write_text(
        "from shards.sources import Example\n"
        "class Two:\n"
        "    kind, classes, held_out, parent = 'class', ('no', 'yes'), False, None\n"
        "    def __init__(self, spec): self.place = spec.require_argument('place', 'in-memory:x')\n"
        "    def __iter__(self):\n"
        f"        for n, image in enumerate({IMAGES!r}): yield Example(f'n{{n}}', n % 2, image)\n"
    )
    monkeypatch.syspath_prepend(str(site))


def as_set(source: str, out: Path, *more: str) -> tuple[list[str], list[str], str]:
    """Write a set; return names, classes and a hash of the images, in the order of the source."""
    write.main(["--source", source, "--out", str(out), "--workers", "1", *more])
    rows = pq.read_table(out / "manifest.parquet").sort_by("source_row").to_pylist()
    classes = json.loads((out / "set.json").read_text())["classes"]
    shards = sorted(out.glob("*.tar"))
    digest = hashlib.sha256()
    for row in rows:
        with shards[row["shard"]].open("rb") as shard:
            shard.seek(row["image_offset"])
            digest.update(row["image_size"].to_bytes(8, "little") + shard.read(row["image_size"]))
    return [row["source_name"] for row in rows], [classes[row["label"]] for row in rows], digest.hexdigest()


def as_task(source: str, **options: str) -> tuple[list[str], list[str], str]:
    """Open a task on the same data; return the same."""
    name, _, argument = source.partition(":")
    more = "".join(f",{option}={value}" for option, value in options.items())
    task: Task = open_task(f"{name}:{argument},{argument},shifts=none{more}")
    samples = task.train
    assert task.evaluations[0].samples.fingerprint == samples.fingerprint
    Image.Image.load(samples.read(len(samples.keys) - 1))
    return list(samples.keys), [task.classes[label] for label in samples.labels], samples.fingerprint


@pytest.mark.parametrize("case", READ)
@pytest.mark.usefixtures("in_memory")
def test_both_ends_read_the_same_samples(tmp_path: Path, case: str) -> None:
    name, make = READ[case]
    source = f"{name}:{make(tmp_path)}"
    members = {"tars-members": {"members": "image=input.png+label=cls"}}.get(case, {})
    more = [word for option, value in members.items() for word in (f"--{option}", value)]
    names, classes, images = as_set(source, tmp_path / "out", *more)
    keys, labels, fingerprint = as_task(source, **members)
    # What has no name is called by its row, which published keys of sets and of tasks write in two ways.
    assert [f"{int(name[4:]):08d}" if name.startswith("row-") else name for name in names] == keys
    assert classes == labels == CLASSES.get(case, labels)
    assert images == fingerprint
    assert len(keys) == {"folder": 12, "parquet-gap": 5, "tars-input": 2}.get(case, 6)


def test_the_bundled_digits_are_the_same_at_both_ends(tmp_path: Path) -> None:
    names, classes, _ = as_set("digits", tmp_path / "out")
    task = open_task("digits")
    assert names == list(task.train.keys)
    assert classes == [task.classes[label] for label in task.train.labels]


WHOLE = {"png": IMAGES[0], "cls": b"0"}


def _cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def _linked(root: Path, target: str) -> Path:
    (root / "cat" / "gone.png").symlink_to(target)
    return root


def _renamed(root: Path) -> Path:
    (root / "dog" / "1.png").rename(os.fsdecode(bytes(root / "dog") + b"/\xff.png"))
    return root


def _with_line(path: object, line: str) -> object:
    with Path(str(path)).open("a", encoding="latin-1") as file:
        file.write(line + "\n")
    return path


def _compressed_otherwise(path: Path) -> Path:
    path.write_bytes(lzma.compress(b"x"))
    return path


def _bare(at: Path) -> Path:
    (at / "a" / "b").mkdir(parents=True)
    return at / "a"


REFUSED: dict[str, tuple[str, Make, str]] = {
    "gzip-cut": (
        "wds",
        lambda at: _cut(packed(labelled_tar())(at), 100),
        "damaged after .* of the tar",
    ),
    "zip": ("wds", lambda at: _compressed_otherwise(at / "x.tar"), "x.tar: is compressed by xz"),
    "link": ("webdataset", a_tar(WHOLE, link="1.png"), "'1.png' is a symbolic link"),
    "cut": ("wds", lambda at: _cut(classes_in_tar(at / "x.tar"), 1536), "the tar is cut short"),
    "no-image": ("wds", a_tar(WHOLE, {"cls": b"1"}), "sample '001' has no image"),
    "no-class": ("wds", a_tar(WHOLE, {"png": IMAGES[1]}), r"sample '001' has no \.cls"),
    "minus-in-tar": ("wds", labelled_tar("-1"), "class -1, below 0"),
    "empty": ("csv", a_csv("", *WORDS[1:]), "line 2 has the class '', which is empty"),
    "blank": ("tsv", a_tsv(" ", *WORDS[1:]), "line 2 has the class ' ', which is empty"),
    "minus": ("csv", a_csv("-1", *NUMBERS[1:]), "class -1, below 0"),
    "half": ("tsv", a_tsv("2.5", *NUMBERS[1:]), "class 2.5, which is neither"),
    "null": ("parquet", a_parquet(image=IMAGES, label=[None, *LABELS[1:]]), "row 0 has no label"),
    "minus-in-parquet": ("parquet", a_parquet(image=IMAGES, label=[-1] * 6), "class -1, below 0"),
    "no-column": (
        "parquet",
        a_parquet(picture=IMAGES, label=LABELS),
        "no image .*found.* picture, label",
    ),
    "no-label": ("parquet", a_parquet(image=IMAGES, x=LABELS), "no label .*column found.* columns: image, x"),
    "no-tar": ("wds", _bare, r"there is no \*\.tar or \*\.tar\.gz or .* in .*/a; check"),
    "no-file": ("parquet", lambda at: at / "gone.parquet", r"there is no file .*gone\.parquet"),
    "no-images": ("imagefolder", _bare, "no image in the 1 folders"),
    "loop": (
        "imagefolder",
        lambda at: _linked(folder(at / "pets"), "../cat"),
        "gone.png is a link to a folder above itself",
    ),
    "no-utf8": (
        "imagefolder",
        lambda at: _renamed(folder(at / "pets")),
        r"the name 'dog/\\udcff.png' is no UTF-8",
    ),
    "dangling": (
        "imagefolder",
        lambda at: _linked(folder(at / "pets"), "nowhere"),
        "gone.png is a link to nothing",
    ),
    "ragged": ("csv", lambda at: _with_line(a_csv(*WORDS)(at), "a.png,cat,more"), "line 8 has 3 columns"),
    "latin": ("csv", lambda at: _with_line(a_csv(*WORDS)(at), "a.png,ca\xe9"), "cannot be read as UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_both_ends_refuse_the_same_data_in_the_same_words(tmp_path: Path, case: str) -> None:
    name, make, message = REFUSED[case]
    source = f"{name}:{make(tmp_path)}"
    with pytest.raises(UserError, match=message):
        as_set(source, tmp_path / "out")
    with pytest.raises(UserError, match=message):
        as_task(source)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n"


def test_an_eps_called_png_starts_no_program_at_either_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    root = folder(tmp_path / "pets")
    (root / "cat" / "0.png").write_bytes(EPS)
    with pytest.raises(UserError, match="is not an image of a known format"):
        as_set(f"imagefolder:{root}", tmp_path / "out")
    task = open_task(f"imagefolder:{root},{root},shifts=none")
    with pytest.raises(UserError, match=r"0\.png cannot be decoded: no image of JPEG, PNG"):
        task.train.read(list(task.train.keys).index("cat/0.png"))
    assert not (tmp_path / "started").exists()


def test_what_is_no_image_is_counted_and_an_animation_gives_its_first_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "pets")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(root / "dog" / "1.GIF", save_all=True, append_images=frames[1:])
    task = open_task(f"imagefolder:{root},{root},shifts=none")
    assert "that are no images: 1 .txt" in capsys.readouterr().err
    image = task.train.read(list(task.train.keys).index("dog/1.GIF"))
    assert np.asarray(image.convert("RGB"))[0, 0].tolist() == [255, 0, 0]


def test_texts_of_a_csv_and_splits_inside_one_argument(tmp_path: Path) -> None:
    for split in ("train", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], [f'a "{split}",\nb', "x"], ["c", "y"]])
    task = open_task(f"csv:{tmp_path},shifts=none")
    assert task.name == tmp_path.name
    assert task.train.read(0) == 'a "train",\nb'
    assert task.evaluations[0].samples.read(0) == 'a "test",\nb'
    images = folder(tmp_path / "pets" / "train")
    folder(tmp_path / "pets" / "val")
    assert len(open_task(f"imagefolder:{images.parent},test=val,validation=val").train.keys) == 12
    with pytest.raises(UserError, match=r"no folder .*pets/test"):
        open_task(f"imagefolder:{images.parent}")
    with pytest.raises(UserError, match=r"test=new: no file of --task csv:.*; possible: test, train; choose"):
        open_task(f"csv:{tmp_path},test=new")


def test_images_of_a_large_table_are_each_found_in_their_row(tmp_path: Path) -> None:
    images = [str(number).encode() for number in range(9000)]
    path = parquet(tmp_path / "x.parquet", image=images, label=[number % 2 for number in range(9000)])
    split = read_split("parquet", str(path), {})
    assert [StoredImages(split.places)[row] for row in (0, 4095, 4096, 8999)] == [
        b"0",
        b"4095",
        b"4096",
        b"8999",
    ]


def test_captions_are_no_task(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"png": IMAGES[0], "txt": b"a cat"})
    with pytest.raises(UserError, match=r"but png, txt; name a field of its \.json: label=FIELD"):
        open_task(f"wds:{path},{path}")
