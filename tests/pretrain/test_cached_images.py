"""A run that reads its images from a cache beside its set."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from shards import cache
from tests.pretrain.conftest import DATA


def test_a_run_reads_the_cache_that_its_recipe_names_and_goes_on_with_no_other_images(
    few_images: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    losses: Callable[[Path], list[float]],
    tmp_path: Path,
) -> None:
    data = shutil.copytree(few_images, tmp_path / "set")
    recipe = make_recipe("cached", epochs=1, global_batch=16, data={**DATA, "crop": "rrc"})
    command = ["--recipe", str(recipe), "--shards", str(data), "--run-dir", str(tmp_path / "run")]
    cached = ["--recipe.data.cache", "24"]
    assert "there is no cache; make it" in run_ranks(1, [*command, *cached], cwd=tmp_path, status=2)
    cache.main([str(data), "--size", "24", "--workers", "1"])
    run_ranks(1, [*command, *cached], cwd=tmp_path)
    assert len(losses(tmp_path / "run")) == 1
    told = run_ranks(1, command, cwd=tmp_path, status=2)
    assert "recipe.data.cache 0" in told
