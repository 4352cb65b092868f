"""Keys, classes and fingerprints that results, features and noise plans were published under."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probes.hashing import hash_value
from probes.tasks import open_task
from shards.catalogue import read_catalogue, write_catalogue
from shards.sources import open_source

# Fingerprint, hash of the splits' keys and revision, each shortened.
TASKS = {
    "imagefolder:folder": ("90215e37", "37fb5747", "270a609f"),
    "wds:a.tar": ("2993a66e", "423da18a", "76db3802"),
    "wds:a.tar,label=label_n20": ("2993a66e", "423da18a", "1510d66a"),
    "wds:two": ("b372feae", "f10a8ffa", "636c3440"),
    "wds:dot.tar": ("2993a66e", "bdb8a003", "76db3802"),
    "parquet:bytes.parquet": ("2993a66e", "d1eccd1f", "76db3802"),
    "parquet:struct.parquet": ("2993a66e", "0bd36323", "1510d66a"),
    "parquet:imageid.parquet": ("2993a66e", "1e5e494c", "76db3802"),
    "parquet:text.parquet": ("e8f5e80f", "fa76ba66", "d96068fd"),
    "parquet:pair.parquet": ("9633e265", "3a477ea1", "b7ddc4f5"),
    "tsv:h.tsv": ("a9ed7514", "df3a963c", "480f2638"),
    "tsv:n.tsv": ("a9ed7514", "183b37f2", "480f2638"),
    "digits": ("3a009d99", "cb552f4c", "1"),
}
# Hash of keys, names, supervision and classes, shortened.
SETS = {
    "imagefolder:folder": "48acde97",
    "webdataset:a.tar": "481bbd01",
    "webdataset:two": "d4eee159",
    "webdataset:dot.tar": "b96f3f76",
    "parquet:bytes.parquet": "6f304fb3",
    "parquet:struct.parquet": "a1c22506",
    "parquet:imageid.parquet": "f27dd4fe",
    "parquet:paths.parquet": "ab68ff58",
    "csv:im.csv": "492e9667",
    "tsv:im.tsv": "492e9667",
    "csv:cap.csv": "794e2dd6",
    "tsv:cap.tsv": "794e2dd6",
    "digits": "a5bd48dc",
}


def ppm(number: int) -> bytes:
    """Return an image whose bytes follow from no library's version."""
    return b"P6 2 2 255\n" + bytes([number, 255 - number, 7]) * 4


def write_tar(path: Path, samples: list[dict[str, bytes]], prefix: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"{prefix}s{number:03d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    for name in ("cat", "dog"):
        (root / "folder" / name / "deep").mkdir(parents=True)
        for number, place in enumerate(("0.ppm", "1.ppm", "deep/2.ppm")):
            (root / "folder" / name / place).write_bytes(ppm(10 * number + (name == "dog")))
    images, labels = [ppm(number) for number in range(6)], [number % 2 for number in range(6)]
    records = [json.dumps({"label": label, "label_n20": 1 - label}).encode() for label in labels]
    samples = [
        {"ppm": image, "cls": str(label).encode(), "json": record}
        for image, label, record in zip(images, labels, records, strict=True)
    ]
    write_tar(root / "a.tar", samples)
    write_tar(root / "two" / "a.tar", samples[:3])
    write_tar(root / "two" / "b.tar", samples[2:])
    write_tar(root / "dot.tar", samples, "./v1.0/")
    structs = [{"bytes": image, "path": f"p{number}.ppm"} for number, image in enumerate(images)]
    keys, words = [f"k{number}" for number in range(6)], [("dog", "cat")[label] for label in labels]
    first, second = ([f"{letter} {number}" for number in range(6)] for letter in "tu")
    for name, columns in {
        "bytes": {"image": images, "label": labels},
        "struct": {"img": structs, "label": words, "key": keys},
        "imageid": {"img": structs, "fine_label": labels, "image_id": keys},
        "text": {"sentence": first, "label": labels, "idx": list(range(10, 16))},
        "pair": {"sentence1": first, "sentence2": second, "label": labels},
        "paths": {"image": ["folder/cat/0.ppm", "folder/cat/1.ppm"], "label": [0, 1]},
    }.items():
        pq.write_table(pa.table(columns), root / f"{name}.parquet", row_group_size=2)
    lines = [f"w {number}\t{number % 2}\n" for number in range(6)]
    (root / "h.tsv").write_text("text\tlabel\n" + "".join(lines))
    (root / "n.tsv").write_text("".join(f"w {number}\t{'ab'[number % 2]}\n" for number in range(6)))
    for kind, mark in (("csv", ","), ("tsv", "\t")):
        rows = [(f"folder/{name}/{number}.ppm", name, number) for name in ("cat", "dog") for number in (0, 1)]
        (root / f"im.{kind}").write_text(
            f"filepath{mark}label\n" + "".join(f"{path}{mark}{name}\n" for path, name, _ in rows)
        )
        (root / f"cap.{kind}").write_text(
            f"filepath{mark}caption\n"
            + "".join(f"{path}{mark}a {name} {number}\n" for path, name, number in rows)
        )
    return root


@pytest.mark.parametrize("text", TASKS)
def test_a_task_keeps_its_keys_and_revision(data: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(data)
    kind, _, rest = text.partition(":")
    path, *options = rest.split(",")
    task = open_task(",".join([f"{kind}:{path}", path, *options]) if rest else kind)
    found = (task.train.fingerprint[:8], task.split_hash[:8], task.revision[:8])
    assert found == TASKS[text]


@pytest.mark.parametrize("text", SETS)
def test_a_set_keeps_its_keys_and_classes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(data)
    source = open_source(text)
    write_catalogue(source, tmp_path)
    found = read_catalogue(tmp_path, source.classes)
    supervision = found.labels.tolist() if found.kind == "class" else found.table["caption"].to_pylist()
    names = [found.table[column].to_pylist() for column in ("key", "name")]
    assert hash_value([*names, supervision, found.classes])[:8] == SETS[text]
