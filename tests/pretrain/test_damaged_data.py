"""Pre-training on damaged sets: refused or skipped and counted, in one line, and never a hang."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nml.errors import UserError
from pretrain import run as pretrain_run
from shards.shardset import ShardSet

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def copied(image_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_set, tmp_path / "set"))


@pytest.fixture
def recipe(make_recipe: Callable[..., Path], tiny_data: dict[str, Any]) -> Callable[..., Path]:
    """One epoch, read by two workers a rank."""

    def make(name: str, **data: object) -> Path:
        return make_recipe(name, epochs=1, data={**tiny_data, "workers": 2, **data})

    return make


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def flip_image(folder: Path, sample: int) -> str:
    place = ShardSet.open(folder).index.place(sample)
    flip(folder / f"shard-{place.shard:06d}.tar", place.offset + place.size // 2)
    return place.key


def words(recipe: Path, shards: Path, run: Path) -> list[str]:
    return ["--recipe", str(recipe), "--shards", str(shards), "--noise", "0.25", "--run-dir", str(run)]


def test_a_damaged_image_ends_the_run_of_all_ranks_in_one_line(
    copied: Path, recipe: Callable[..., Path], run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    key = flip_image(copied, 100)
    out = run_ranks(2, words(recipe("damaged"), copied, tmp_path / "run"), cwd=tmp_path, status=2)
    told = [line for line in out.splitlines() if line.startswith("error: ")]
    assert any(line.startswith(f"error: sample {key} of shard-") for line in told), out
    assert not (tmp_path / "run" / "DONE.json").exists()


def test_within_the_budget_it_trains_to_the_end_and_writes_the_skip_down(
    copied: Path, recipe: Callable[..., Path], run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    keys = {flip_image(copied, sample) for sample in (10, 100)}
    arguments = words(recipe("skipping", skip_budget=0.01), copied, tmp_path / "run")
    out = run_ranks(2, arguments, cwd=tmp_path)
    assert "Traceback" not in out
    ledger = (tmp_path / "run" / "logs" / "skipped.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in ledger} == keys
    assert (tmp_path / "run" / "DONE.json").exists()


def truncated(folder: Path) -> str:
    with (folder / "shard-000001.tar").open("r+b") as file:
        file.truncate(5000)
    return r"shard-000001\.tar: has 5,000 bytes, set\.json says"


def deleted(folder: Path) -> str:
    (folder / "shard-000002.tar").unlink()
    return r"shard-000002\.tar: is missing"


def unfinished(folder: Path) -> str:
    (folder / "set.json").unlink()
    return r"no shard set there \(set\.json is missing\)"


def other_set_file(folder: Path) -> str:
    flip(folder / "set.json", (folder / "set.json").read_bytes().index(b"label_n25") + 7)
    return r"set\.json: damaged"


@pytest.mark.parametrize("damage", [truncated, deleted, unfinished, other_set_file])
def test_a_set_that_is_not_whole_is_refused_before_anything_is_written(
    damage: Callable[[Path], str], copied: Path, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    message = damage(copied)
    with pytest.raises(UserError, match=message):
        pretrain_run.main(words(recipe("refused"), copied, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
