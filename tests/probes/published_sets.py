"""Small clones of published sets, in the formats of their sources."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from probes.spec import split_spec
from probes.tasks import Task, vision
from probes.tasks.prepared import PreparedTask


def image_bytes(value: int, kind: str = "PNG", size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value % 256, value % 256, 0)).save(file, kind)
    return file.getvalue()


def write_repository(folder: Path, splits: dict[tuple[str, str], pa.Table]) -> None:
    """Write a clone of a data set on the hub: Parquet by configuration and split, named in its card."""
    configs: dict[str, list[str]] = {}
    for (config, split), table in splits.items():
        (folder / config).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / config / f"{split}-00000-of-00001.parquet")
        configs.setdefault(config, []).append(split)
    lines = ["---", "configs:"]
    for config, names in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for name in names:
            lines += [f"  - split: {name}", f"    path: {config}/{name}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def from_clones(task: PreparedTask, clones: Path) -> PreparedTask:
    """Return the task with every repository that has a clone read from it."""
    parts = {}
    for name, part in task.parts.items():
        clone = clones / part.hub.repository.replace("/", "--") if part.hub else clones
        if part.hub and clone.is_dir():
            part = dataclasses.replace(part, hub=dataclasses.replace(part.hub, repository=str(clone)))
        parts[name] = part
    return dataclasses.replace(task, parts=parts)


def opened(task: PreparedTask, root: Path) -> Task:
    return task.open(split_spec(task.record.name), root)


def texts(task: Task, name: str) -> list[tuple[object, int]]:
    samples = next(test.samples for test in task.evaluations if test.name == name)
    return [(samples.read(row), int(label)) for row, label in enumerate(samples.labels)]


def place(root: Path, task: PreparedTask, part: str, **files: str) -> None:
    folder = root / task.record.name / "sources" / part
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")


def cifar_table(count: int) -> pa.Table:
    images = [{"bytes": image_bytes(number), "path": None} for number in range(count)]
    label = {"names": ["airplane", "bird"], "_type": "ClassLabel"}
    features = {"img": {"_type": "Image"}, "label": label}
    table = pa.table({"img": images, "label": [number % 2 for number in range(count)]})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_cifar(clones: Path) -> PreparedTask:
    splits = {("plain_text", "train"): cifar_table(6), ("plain_text", "test"): cifar_table(2)}
    write_repository(clones / "uoft-cs--cifar10", splits)
    return from_clones(vision.CIFAR10, clones)
