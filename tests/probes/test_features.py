from __future__ import annotations

import copy
import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nml.errors import UserError
from nml.files import sha256_file
from nml.locking import byte_lock
from probes.encoders import EncoderInfo, open_checkpoint
from probes.features import FeatureStore, feature_key, feature_pass
from probes.features.__main__ import main as features_command
from probes.features.computing import augment
from probes.tasks.samplesets import ImageBytes, Texts

COUNT = 40


def texts(count: int = COUNT) -> Texts:
    return Texts(
        [f"k{n}" for n in range(count)], np.zeros(count, np.int64), [f"text {n}" for n in range(count)]
    )


class Counting:
    """An encoder that notes every sample it encodes in a file, and can wait or die on the way."""

    batch_size = 4

    def __init__(self, log: Path, *, dim: int = 3, die_at: str = "", bad: str = "") -> None:
        self.info = EncoderInfo(name="counting", kind="test", modality="text", identity={"weights": "w"})
        self.log, self.dim, self.die_at, self.bad = log, dim, die_at, bad

    def prepare(self, content: Any) -> Any:
        return content

    def encode(self, prepared: Sequence[Any]) -> Any:
        with self.log.open("a") as file:
            file.writelines(f"{text}\n" for text in prepared)
        if self.die_at in prepared:
            os.kill(os.getpid(), signal.SIGKILL)
        rows = [[float(text.split()[1]) + place for place in range(self.dim)] for text in prepared]
        if self.bad in prepared:
            rows[prepared.index(self.bad)][0] = float("nan")
        return np.array(rows, np.float32)


def compute(folder: str, log: str, die_at: str = "") -> None:
    encoder = Counting(Path(log), die_at=die_at)
    feature_pass(FeatureStore(Path(folder)), encoder, texts(), dataset="t", chunk_rows=8)


def start(*arguments: str) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=compute, args=arguments)
    process.start()
    return process


def test_two_processes_that_ask_for_the_same_features_compute_them_once(tmp_path: Path) -> None:
    processes = [start(str(tmp_path / "store"), str(tmp_path / "log")) for _ in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted(f"text {n}" for n in range(COUNT))


def test_a_killed_pass_goes_on_where_it_stopped_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    killed = start(str(tmp_path / "store"), str(tmp_path / "log"), "text 21")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    before = len((tmp_path / "log").read_text().splitlines())
    compute(str(tmp_path / "store"), str(tmp_path / "log"))
    compute(str(tmp_path / "undisturbed"), str(tmp_path / "other"))
    again = len((tmp_path / "log").read_text().splitlines()) - before
    assert again == COUNT - 16  # two chunks of eight were whole
    resumed, whole = (next((tmp_path / name).glob("*/features.npy")) for name in ("store", "undisturbed"))
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in resumed.parent.iterdir()) == [
        "DONE.json",
        "features.npy",
        "key.json",
        "lock",
    ]


def test_features_are_mapped_from_disk_and_no_second_pass_is_made(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store")
    encoder = Counting(tmp_path / "log")
    first = feature_pass(store, encoder, texts(), dataset="t")
    second = feature_pass(store, encoder, texts(), dataset="t")
    assert isinstance(second.array, np.memmap)
    assert np.array_equal(first.array, second.array)
    assert len((tmp_path / "log").read_text().splitlines()) == COUNT


def test_features_that_are_not_finite_name_the_sample(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features of sample k5 are not finite"):
        feature_pass(FeatureStore(tmp_path), Counting(tmp_path / "log", bad="text 5"), texts(), dataset="t")


def test_another_width_than_the_cached_one_is_refused(tmp_path: Path) -> None:
    killed = start(str(tmp_path / "store"), str(tmp_path / "log"), "text 21")
    killed.join()
    with pytest.raises(UserError, match="gives 5 dimensions, the features cached for it have 3"):
        feature_pass(
            FeatureStore(tmp_path / "store"),
            Counting(tmp_path / "log", dim=5),
            texts(),
            dataset="t",
            chunk_rows=8,
        )


def test_old_entries_are_collected_and_those_in_use_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FeatureStore(tmp_path / "store")
    encoder = Counting(tmp_path / "log")
    folders = {}
    for count in (4, 5, 6, 7):
        feature_pass(store, encoder, texts(count), dataset=f"t{count}")
        folders[count] = store.entry(feature_key(encoder.info, texts(count))).folder
        for file in folders[count].iterdir():
            os.utime(file, (1, 1))
    # One is read again, one is under way in another process.
    feature_pass(store, encoder, texts(4), dataset="t4")
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(str(folders[5]),))
    holder.start()
    while not (folders[5] / "held").exists():
        assert holder.is_alive()
        time.sleep(0.01)
    os.utime(folders[5] / "held", (1, 1))
    features_command(["gc", str(store.folder), "--days", "30"])
    assert all(folder.exists() for folder in folders.values())
    features_command(["gc", str(store.folder), "--days", "30", "--remove"])
    holder.kill()
    holder.join()
    assert [count for count, folder in folders.items() if folder.exists()] == [4, 5]
    assert "2 entries" in capsys.readouterr().out


def hold(folder: str) -> None:
    with byte_lock(Path(folder) / "lock", 0, wait=True):
        (Path(folder) / "held").touch()
        signal.pause()


def test_a_damaged_entry_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore(tmp_path / "store")
    for count in (4, 5):
        feature_pass(store, Counting(tmp_path / "log"), texts(count), dataset=f"t{count}")
    features_command(["verify", str(store.folder)])
    assert "DAMAGED" not in capsys.readouterr().out
    file = store.entry(feature_key(Counting(tmp_path / "log").info, texts(5))).folder / "features.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="1 of 2 entries are not what was written"):
        features_command(["verify", str(store.folder)])
    assert "on t5  DAMAGED" in capsys.readouterr().out


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.raises(UserError, match="has no file locks"):
        feature_pass(FeatureStore(tmp_path), Counting(tmp_path / "log"), texts(), dataset="t")


def png(value: int) -> bytes:
    import io

    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


class InMemory(list[bytes]):
    """Encoded images that no file holds."""

    files = ()
    layout = "in memory"

    def name(self, index: int) -> str:
        return f"number {index}"


def test_one_byte_of_the_data_or_one_key_changes_the_key() -> None:
    info = Counting(Path("/dev/null")).info
    labels = np.zeros(2, np.int64)
    base = feature_key(info, ImageBytes(["a", "b"], labels, InMemory([png(1), png(2)])))
    byte = feature_key(info, ImageBytes(["a", "b"], labels, InMemory([png(1), png(3)])))
    split = feature_key(info, ImageBytes(["a", "c"], labels, InMemory([png(1), png(2)])))
    view = feature_key(info, ImageBytes(["a", "b"], labels, InMemory([png(1), png(2)])), view=1)
    relabelled = feature_key(info, ImageBytes(["a", "b"], labels + 1, InMemory([png(1), png(2)])))
    assert len({key.digest for key in (base, byte, split, view)}) == 4
    assert relabelled.digest == base.digest


def test_one_byte_of_the_weights_or_the_preprocessing_changes_the_encoder(
    tmp_path: Path, make_export: Callable[..., Path]
) -> None:
    export = make_export(tmp_path / "run") / "export"
    before = open_checkpoint(tmp_path / "run").info.hash
    meta = json.loads((export / "meta.json").read_text())
    other = copy.deepcopy(meta)
    other["preprocessing"]["mean"][0] += 0.01
    (export / "meta.json").write_text(json.dumps(other))
    preprocessed = open_checkpoint(tmp_path / "run").info.hash
    weights = bytearray((export / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (export / "model.safetensors").write_bytes(weights)
    (export / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="does not have the hash"):
        open_checkpoint(tmp_path / "run")
    (export / "meta.json").write_text(
        json.dumps(meta | {"weights_sha256": sha256_file(export / "model.safetensors")})
    )
    assert len({before, preprocessed, open_checkpoint(tmp_path / "run").info.hash}) == 3


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    samples = ImageBytes(["good", "bad"], np.zeros(2, np.int64), InMemory([png(1), png(2)[:40]]))
    with pytest.raises(UserError, match="image number 1 cannot be decoded"):
        feature_pass(FeatureStore(tmp_path), Counting(tmp_path / "log"), samples, dataset="t")


def test_augmented_views_differ_and_are_the_same_every_time() -> None:
    image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    first, again, second = augment(image, "k", 1), augment(image, "k", 1), augment(image, "k", 2)
    assert first.tobytes() == again.tobytes() != second.tobytes()
    assert first.size == image.size
