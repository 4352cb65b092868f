"""Finished sets: adding levels, indexing foreign tars, reading from afar, telling what is there."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from nml.errors import UserError
from nml.files import sha256_file, write_json
from shards import index, info, relabel, verify
from shards.dataset import ShardDataset
from shards.sampler import ElasticBatchSampler
from shards.shardset import ShardSet


def tars(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.glob("*.tar")}


def test_a_level_is_added_without_touching_images(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, old = tars(copied), ShardSet.open(copied)
    relabel.main([str(copied), "--noise", "0.15"])
    assert "n15: asked 0.15, realised" in capsys.readouterr().out
    new = ShardSet.open(copied)
    assert tars(copied) == before
    assert new.fingerprint == old.fingerprint
    assert new.manifest_sha256 != old.manifest_sha256
    assert new.level(0.15).flipped == round(0.15 * 1259)
    assert verify.main([str(copied)]) == 0


def test_an_added_level_is_the_one_a_write_would_have_made(
    copied: Path, tmp_path: Path, written: Callable, requested: Callable
) -> None:
    relabel.main([str(copied), "--noise", "0.15"])
    whole = written(tmp_path / "whole", requested("digits", "0", "0.15"))
    added = ShardSet.open(copied)
    assert added.index.column("label_n15").to_pylist() == whole.index.column("label_n15").to_pylist()


def test_an_added_level_keeps_the_state_of_a_run(copied: Path) -> None:
    state = ElasticBatchSampler(ShardSet.open(copied), global_batch=32).state_dict(epoch=1, step=5)
    relabel.main([str(copied), "--noise", "0.15"])
    ElasticBatchSampler(ShardSet.open(copied), global_batch=32).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise", "0.1"], "n10 is there already"),
        (["--noise", "0"], "names no level to add"),
        ([], "names no level to add"),
        (["--noise", "0.4", "--model", "caption-swap"], "alters a caption"),
    ],
)
def test_a_level_that_cannot_be_added_changes_nothing(
    copied: Path, arguments: list[str], message: str
) -> None:
    before = {path.name: sha256_file(path) for path in copied.iterdir()}
    with pytest.raises(UserError, match=message):
        relabel.main([str(copied), *arguments])
    assert {path.name: sha256_file(path) for path in copied.iterdir()} == before


def test_the_realised_transition_matrix_is_in_the_statistics(digits_set: ShardSet) -> None:
    matrix = info.transition_matrix(info.read_stats(digits_set), "n30")
    assert matrix.sum(axis=1) == pytest.approx(np.ones(10))
    assert np.diag(matrix) == pytest.approx(0.7, abs=0.01)


def test_info_tells_the_levels_and_draws_them(
    digits_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info.main([digits_set.path, "--plot", str(tmp_path / "noise.png")])
    printed = capsys.readouterr().out
    assert "n30: asked 0.3, realised 0.300238 (symmetric, 378 flipped)" in printed
    assert digits_set.fingerprint in printed
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")


def test_looking_up_a_sample_does_not_wait_for_pandas(digits_set: ShardSet) -> None:
    look = (
        "import sys; from shards.shardset import ShardSet; index = ShardSet.open(sys.argv[1]).index; "
        "index.place(3); print(index.supervision(3, 'label')); sys.exit('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look, digits_set.path], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert int(done.stdout) == digits_set.index.supervision(3, "label")


def test_foreign_tars_read_like_a_set_once_indexed(
    digits_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    for number, keep in enumerate((slice(0, 30), slice(30, 90))):
        # As Python's tarfile writes them: other owners, times and header formats.
        with (
            tarfile.open(Path(digits_set.path) / "shard-000000.tar") as source,
            tarfile.open(folder / f"part-{number}.tar", "w", format=tarfile.PAX_FORMAT) as target,
        ):
            for member in source.getmembers()[keep]:
                content = source.extractfile(member)
                member.mtime = 1.5
                target.addfile(member, content)
    index.main([str(folder), "--label-column", "label"])
    assert "30 samples in 2 tars, a class each" in capsys.readouterr().out
    assert verify.main([str(folder)]) == 0
    foreign, own = ShardSet.open(folder), digits_set
    clean = dict(zip(own.index.column("key").to_pylist(), own.index.column("label").to_pylist(), strict=True))
    keys = foreign.index.column("key").to_pylist()
    assert foreign.index.column("label").to_pylist() == [clean[key] for key in keys]
    assert ShardDataset(foreign)[0].image.size == (32, 32)
    relabel.main([str(folder), "--noise", "0.2"])
    assert ShardSet.open(folder).level(0.2).flipped == 6
    with pytest.raises(UserError, match="is a shard set already"):
        index.main([str(folder)])


def test_equal_keys_of_two_tars_are_kept_apart(digits_set: ShardSet, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        shutil.copy(Path(digits_set.path) / "shard-000000.tar", tmp_path / name)
    index.main([str(tmp_path), "--label-column", "label"])
    keys = pq.read_table(tmp_path / "manifest.parquet")["key"].to_pylist()
    assert len(set(keys)) == 400


def test_class_names_of_foreign_tars_are_numbered_in_sorted_order(
    digits_set: ShardSet, tmp_path: Path
) -> None:
    names = ["wolf", "ant", "cat", "ant"]
    with tarfile.open(Path(digits_set.path) / "shard-000000.tar") as source:
        image = source.extractfile(source.getmembers()[0]).read()
    for number in (0, 1):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as target:
            for sample in (0, 1):
                name = names[2 * number + sample].encode()
                for ending, content in (("png", image), ("cls", name)):
                    member = tarfile.TarInfo(f"{number}{sample}.{ending}")
                    member.size = len(content)
                    target.addfile(member, io.BytesIO(content))
    index.main([str(tmp_path)])
    shard_set = ShardSet.open(tmp_path)
    assert shard_set.classes == ("ant", "cat", "wolf")
    assert shard_set.index.column("label").to_pylist() == [2, 0, 1, 0]


def test_levels_of_one_model_are_held_to_nesting_whatever_lies_between(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relabel.main([str(copied), "--noise", "0.25", "--model", "pair-flip"])
    names = [finding.name for finding in verify.verify(copied)]
    assert [name for name in names if "nested" in name] == ["n10 nested in n20", "n20 nested in n30"]
    # A level of another seed, passed off as one of the ladder, does not fit into it.
    relabel.main([str(copied), "--noise", "0.05", "--seed", "1"])
    described = ShardSet.open(copied).info
    levels = {**described.levels, "n05": replace(described.levels["n05"], seed=0)}
    write_json(copied / "set.json", replace(described, levels=levels).as_json())
    assert verify.main([str(copied), "--quick"]) == 1
    assert "WRONG n05 nested in n10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "more"),
    [(verify, []), (relabel, ["--noise", "0.1"]), (index, [])],
    ids=["verify", "relabel", "index"],
)
def test_what_changes_or_reads_all_of_a_set_wants_it_local(command: Any, more: list[str]) -> None:
    with pytest.raises(UserError, match="s3://bucket/set: this command works on a local folder; copy"):
        command.main(["s3://bucket/set", *more])


@pytest.fixture
def remote(digits_set: ShardSet) -> str:
    memory = fsspec.filesystem("memory")
    memory.put(f"{digits_set.path}/", "/set/", recursive=True)
    return "memory://set"


def test_a_remote_set_reads_like_a_local_one(remote: str, digits_set: ShardSet, tmp_path: Path) -> None:
    far = ShardDataset(ShardSet.open(remote, cache=tmp_path), "n20")
    near = ShardDataset(digits_set, "n20")
    for sample in (0, 700, 1258):
        assert far[sample].target == near[sample].target
        assert far[sample].image.tobytes() == near[sample].image.tobytes()
    cached = sorted(path.name for path in tmp_path.rglob("*.tar"))
    assert cached == ["shard-000000.tar", "shard-000003.tar", "shard-000006.tar"]


def test_a_cached_shard_is_not_fetched_again(remote: str, tmp_path: Path) -> None:
    first = ShardDataset(ShardSet.open(remote, cache=tmp_path))[0]
    fsspec.filesystem("memory").rm("/set/shard-000000.tar")
    again = ShardDataset(ShardSet.open(remote, cache=tmp_path))[0]
    assert again.image.tobytes() == first.image.tobytes()


def test_the_statistics_of_an_added_level_are_not_those_cached_before(
    remote: str, copied: Path, tmp_path: Path
) -> None:
    info.read_stats(ShardSet.open(remote, cache=tmp_path / "cache"))
    relabel.main([str(copied), "--noise", "0.15"])
    fsspec.filesystem("memory").put(f"{copied}/", "/set/", recursive=True)
    assert "n15" in info.read_stats(ShardSet.open(remote, cache=tmp_path / "cache"))["levels"]


def test_a_half_fetched_shard_never_counts(remote: str, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/set/shard-000000.tar", memory.cat("/set/shard-000000.tar")[:-1000])
    dataset = ShardDataset(ShardSet.open(remote, cache=tmp_path))
    with pytest.raises(UserError, match=r"has [\d,]+ bytes, set\.json says"):
        _ = dataset[0]
    assert not list(tmp_path.rglob("*.tar"))


def test_a_remote_folder_without_a_set_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard set there"):
        ShardSet.open("memory://nothing", cache=tmp_path)
