"""Impossible combinations are refused in one line before any work starts; recipes stay as published."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nml.errors import UserError
from pretrain.engines import check_engine
from pretrain.options import parse_options
from pretrain.recipe import Engine, Loss, Model, Optimizer, Recipe
from pretrain.recipe_files import recipe_names
from pretrain.schedule import learning_rate

GOLDEN = Path(__file__).with_name("golden_recipes.json")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_lamb_is_refused_where_zero_fuses_layers(stage: int) -> None:
    recipe = Recipe(optimizer=Optimizer(name="lamb"), engine=Engine(zero_stage=stage))
    with pytest.raises(UserError, match="trust ratio"):
        check_engine("deepspeed", recipe)
    check_engine("ddp", recipe)


@pytest.mark.parametrize(
    ("engine", "recipe", "named"),
    [
        ("deepspeed", Recipe(engine=Engine(dtype="fp16")), "batch normalisation"),
        ("deepspeed", Recipe(ema=0.9, engine=Engine(zero_stage=3)), "zero_stage 3"),
        ("fsdp", Recipe(engine=Engine(compress_gradients="bf16")), "only ddp"),
        ("ddp", Recipe(engine=Engine(deepspeed_config="x.json")), "--engine deepspeed"),
        ("ddp", Recipe(model=Model(batch_norm="sync"), engine=Engine(compile=True)), "sync with compile"),
    ],
)
def test_combinations_that_train_something_else_are_refused(engine: str, recipe: Recipe, named: str) -> None:
    with pytest.raises(UserError, match=named):
        check_engine(engine, recipe)


def test_a_loss_of_the_other_objective_is_refused() -> None:
    with pytest.raises(UserError, match="possible: cross-entropy, bce"):
        Recipe(loss=Loss(name="infonce"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--recipe", "quickstrat"], "did you mean quickstart"),
        (["--recipe", "no/such.yaml"], "no such file"),
        (["--noise", "1.2"], "not a noise ratio"),
        (["--engine", "foo"], "ddp, fsdp, deepspeed"),
        (["--recipe.optimizer.lr", "fast"], "--recipe.optimizer.lr fast"),
        (["--recipe.optimizr.lr", "1"], "did you mean --recipe.optimizer.lr"),
        (["--epochs", "0"], "recipe.epochs 0"),
        (["--shards", "nowhere"], "nowhere"),
        (["--recipe", "clip_rn50_cc3m"], "class set"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path, words: list[str], named: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pretrain.run", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line]
    assert len(errors) == 1, done.stderr
    assert named in errors[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", recipe_names())
def test_a_published_recipe_does_not_drift(name: str) -> None:
    options, _ = parse_options(["--recipe", name])
    assert options.recipe.source
    assert options.recipe.expect
    assert options.recipe.resolved() == json.loads(GOLDEN.read_text())[name]


def test_the_config_of_a_run_gives_the_run_again(tmp_path: Path) -> None:
    words = ["--recipe", "rsb_a3", "--noise", "0.1", "--recipe.optimizer.lr", "0.004", "--epochs", "7"]
    options, text = parse_options(words)
    assert options.recipe.epochs == 7
    (tmp_path / "config.yaml").write_text(text)
    again, _ = parse_options(["--config", str(tmp_path / "config.yaml")])
    assert again == options


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    options, _ = parse_options(["--recipe", "rsb_a3"])
    rates = [
        learning_rate(options.recipe, step, steps_per_epoch=10, total_steps=1000) for step in range(1000)
    ]
    assert rates[49] == pytest.approx(8e-3)
    assert rates[0] < rates[25] < rates[49]
    assert all(one >= other for one, other in itertools.pairwise(rates[50:]))
    assert rates[-1] == pytest.approx(1e-6, abs=1e-6)
