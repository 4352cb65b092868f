"""Runs of earlier revisions continue: what a recipe could not say yet was as its default says.

Each file of ``old_configs`` is the ``config.yaml`` of a run, named after the commit that wrote it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nml.errors import UserError
from pretrain.options import parse_options
from pretrain.same_run import check_same_run

CONFIGS = sorted((Path(__file__).parent / "old_configs").glob("*.yaml"))


def resume(run: Path, *words: str) -> None:
    """Ask for the run of a folder again, with other values on top."""
    _, text = parse_options(["--config", str(run / "config.yaml"), *words])
    check_same_run(run, text)


@pytest.fixture(params=CONFIGS, ids=lambda file: file.stem)
def old_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_bytes(request.param.read_bytes())
    return tmp_path


def test_a_run_of_an_earlier_revision_is_the_run_that_is_asked_for(old_run: Path) -> None:
    resume(old_run)
    resume(old_run, "--recipe.data.workers", "3", "--recipe.checkpoints.every_steps", "7")
    with pytest.raises(UserError, match=r"recipe\.optimizer\.lr 0\.5: .* holds a run with 0\.001"):
        resume(old_run, "--recipe.optimizer.lr", "0.5")


def test_a_value_from_after_the_run_has_to_be_its_default(tmp_path: Path) -> None:
    stored = yaml.safe_load(CONFIGS[0].read_text())
    del stored["recipe"]["engine"]["compress_gradients"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    resume(tmp_path)
    with pytest.raises(UserError, match=r"compress_gradients fp16: .* holds a run with none"):
        resume(tmp_path, "--recipe.engine.compress_gradients", "fp16")
