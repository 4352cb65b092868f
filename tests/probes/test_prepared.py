"""Preparing published tasks: what is fetched, kept, continued after a stop, and told without network."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from nml.errors import UserError
from probes.tasks import vision
from probes.tasks.prepared import PreparedTask
from tests.probes.published_sets import from_clones, image_bytes, opened, write_cifar

pytest.importorskip("datasets")


def test_a_repository_of_tars_is_prepared(tmp_path: Path) -> None:
    clone = tmp_path / "clip-benchmark--wds_cars"
    for split in ("train", "test"):
        (clone / split).mkdir(parents=True)
        with tarfile.open(clone / split / "0.tar", "w") as tar:
            for number in range(20):
                for suffix, data in (
                    ("webp", image_bytes(number, "WEBP")),
                    ("cls", str(number % 10).encode()),
                ):
                    member = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    task = from_clones(vision.CARS, tmp_path)
    assert task.prepare(tmp_path / "tasks") == {}
    result = opened(task, tmp_path / "tasks")
    assert len(result.classes) == 10
    assert result.train.labels.tolist() == [number % 10 for number in range(20)]
    assert isinstance(result.train.read(3), Image.Image)
    file = tmp_path / "tasks" / "cars" / "test.parquet"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UserError, match="not what was prepared"):
        opened(task, tmp_path / "tasks")


def test_class_names_and_encoded_images_are_kept(tmp_path: Path) -> None:
    task = write_cifar(tmp_path)
    task.prepare(tmp_path / "tasks")
    result = opened(task, tmp_path / "tasks")
    assert result.classes == ("airplane", "bird")
    table = pq.read_table(tmp_path / "tasks" / "cifar10" / "train.parquet")
    assert table["img"][3].as_py()["bytes"] == image_bytes(3)
    assert [test.domain for test in result.evaluations] == ["id", "ood", "ood", "ood", "ood"]


def test_a_stopped_preparation_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_cifar(tmp_path)
    root = tmp_path / "tasks"
    written: list[str] = []
    write = PreparedTask._write

    def stop_at_test(self: PreparedTask, folder: Path, name: str, torchvision: Path | None) -> object:
        if name == "test" and not written.count("test"):
            written.append("test")
            raise KeyboardInterrupt
        written.append(name)
        return write(self, folder, name, torchvision)

    monkeypatch.setattr(PreparedTask, "_write", stop_at_test)
    with pytest.raises(KeyboardInterrupt):
        task.prepare(root)
    # As a killed process leaves it.
    (root / "cifar10" / ".test.parquet.123-abcd.tmp").write_bytes(b"half")
    # Half a task is none.
    with pytest.raises(UserError, match="not prepared"):
        opened(task, root)
    task.prepare(root)
    assert written == ["train", "test", "test"]
    facts = json.loads((root / "cifar10" / "task.json").read_text())
    assert {file: entry["rows"] for file, entry in facts["files"].items()} == {
        "train.parquet": 6,
        "test.parquet": 2,
    }
    assert sorted(path.name for path in (root / "cifar10").iterdir()) == [
        ".lock",
        "task.json",
        "test.parquet",
        "train.parquet",
    ]
    task.prepare(root)
    assert written == ["train", "test", "test"]


def test_a_machine_without_network_is_told_in_one_line(tmp_path: Path) -> None:
    # A proxy that nothing listens on: the same on a machine with network and on one without.
    proxies = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    environment = dict.fromkeys(proxies, "http://127.0.0.1:9") | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "HF_HOME": str(tmp_path / "hub"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "probes.tasks", "prepare", "glue-sst2"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: task glue-sst2: nyu-mll/glue could not be fetched: https://")
    assert "does not answer" in done.stderr
    assert not list(tmp_path.glob("data/tasks/*/task.json"))


def test_commits_are_full_short_or_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from probes.tasks import hub_splits

    class Api:
        def list_repo_commits(self, repository: str, repo_type: str) -> list[object]:
            commit = type("Commit", (), {})
            first, second = commit(), commit()
            first.commit_id, second.commit_id = "f" * 40, "25cfe61" + "0" * 33  # type: ignore[attr-defined]
            return [first, second]

        def dataset_info(self, repository: str, revision: str) -> object:
            info = type("Info", (), {})()
            info.sha = {"main": "a" * 40}.get(revision)
            return info

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(hub_splits, "unreachable", lambda: "")
    hub_splits._look_up.cache_clear()

    def commit(revision: str) -> str | None:
        return hub_splits.HubSplits(repository="a/b", splits=("train",), revision=revision).commit()

    assert commit("c" * 40) == "c" * 40
    assert commit("25cfe61") == "25cfe61" + "0" * 33
    assert commit("main") == "a" * 40
    with pytest.raises(UserError, match="no commit 1234567"):
        commit("1234567")
    hub_splits._look_up.cache_clear()
