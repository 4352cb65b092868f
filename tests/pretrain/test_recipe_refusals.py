"""Impossible combinations are refused in one line before any work starts; recipes stay as published."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nml.errors import UserError
from nml.recipe import Checkpoints, Data, Engine, Loss, Model, Optimizer, Recipe, Schedule
from nml.recipe_files import recipe_names
from nml.run_options import Resume, check_resume
from pretrain.checkpoints import complete
from pretrain.engines import check_engine
from pretrain.engines.deepspeed_config import deepspeed_config
from pretrain.options import parse_options
from pretrain.schedule import learning_rate
from pretrain.transforms import training_transform
from tests.commands import run_command

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


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "does not read"),
        ("[1]", "holds a list"),
        ('{"zero_optimization": 2}', "zero_optimization 2"),
        ('{"optimizer": {"type": "AdamW"}}', "optimizer: the recipe decides"),
        ('{"scheduler": {"type": "WarmupLR"}}', "--recipe.schedule.name"),
        ('{"fp16": {"enabled": true}}', "--recipe.engine.dtype"),
        ('{"bf16": {"enabled": true}}', "--recipe.engine.dtype"),
        ('{"elasticity": {"enabled": true}}', "--recipe.global_batch"),
        ('{"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}', "offload_optimizer.ratio 0.5"),
        ('{"zero_optimization": {"compute_grad_norm": false}}', "by the norm ZeRO knows"),
    ],
)
def test_an_own_deepspeed_file_that_contradicts_the_recipe_is_refused_early(
    tmp_path: Path, text: str, named: str
) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(named)):
        check_engine("deepspeed", Recipe(engine=Engine(deepspeed_config=str(path))))


def test_an_own_deepspeed_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(engine=Engine(deepspeed_config=str(tmp_path / "none.json")))
    with pytest.raises(UserError, match="No such file"):
        check_engine("deepspeed", recipe)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"train_batch_size": 32}, "train_batch_size 32: the recipe gives 64"),
        ({"train_micro_batch_size_per_gpu": 4}, "the recipe gives 16"),
        ({"gradient_accumulation_steps": 3}, "--recipe.engine.micro_batch"),
        ({"gradient_clipping": 5.0}, "--recipe.optimizer.clip"),
        ({"zero_optimization": {"stage": 3}}, "--recipe.engine.zero_stage"),
    ],
)
def test_an_own_deepspeed_file_with_other_numbers_is_refused(
    tmp_path: Path, own: dict[str, object], named: str
) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    recipe = Recipe(
        global_batch=64,
        optimizer=Optimizer(clip=1.0),
        engine=Engine(deepspeed_config=str(path), zero_stage=2),
    )
    with pytest.raises(UserError, match=named):
        deepspeed_config(recipe, accumulation=2, world_size=2)


def test_an_own_deepspeed_file_is_merged_over_the_generated_one(tmp_path: Path) -> None:
    own = {
        "train_batch_size": "auto",
        "gradient_clipping": 1.0,
        "zero_optimization": {"overlap_comm": False, "stage": "auto", "offload_optimizer": {"ratio": 1.0}},
        "fp16": {"enabled": False},
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    recipe = Recipe(
        global_batch=64,
        optimizer=Optimizer(clip=1.0),
        engine=Engine(deepspeed_config=str(path), zero_stage=2),
    )
    merged = deepspeed_config(recipe, accumulation=2, world_size=2)
    assert merged["train_batch_size"] == 64
    offload = {"ratio": 1.0}
    assert merged["zero_optimization"] == {"stage": 2, "overlap_comm": False, "offload_optimizer": offload}


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        (Data, {"std": (0.5, 0.0, 0.5)}, "recipe.data.std [0.5, 0.0, 0.5]"),
        (Data, {"scale": (1.0, 0.5)}, "recipe.data.scale [1.0, 0.5]"),
        (Data, {"color_jitter": -0.1}, "recipe.data.color_jitter -0.1"),
        (Data, {"auto_augment": "rand-foo"}, "recipe.data.auto_augment 'rand-foo'"),
        (Data, {"auto_augment": "rand-w0"}, "recipe.data.auto_augment 'rand-w0'"),
        (Data, {"auto_augment": "augmix-m3", "crop": "pad"}, "for crop pad"),
        (Loss, {"mixup": -0.2}, "recipe.loss.mixup -0.2"),
        (Loss, {"bce_threshold": 1.5}, "recipe.loss.bce_threshold 1.5"),
        (Optimizer, {"betas": (1.5, 0.999)}, "recipe.optimizer.betas (1.5, 0.999)"),
        (Optimizer, {"momentum": -1.0}, "recipe.optimizer.momentum -1.0"),
        (Schedule, {"warmup_epochs": -1.0}, "recipe.schedule.warmup_epochs -1.0"),
        (Checkpoints, {"every_steps": -6}, "recipe.checkpoints.every_steps -6"),
        (Recipe, {"skip_nonfinite": -1}, "recipe.skip_nonfinite -1"),
    ],
)
def test_a_value_that_means_nothing_is_refused(
    part: Callable[..., object], values: dict[str, object], named: str
) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        part(**values)


@pytest.mark.parametrize(
    "policy", ["rand-m7-mstd0.5-inc1", "augmix-m3-w3", "original-mstd0.5", "3a", "rand-n3-t3a"]
)
def test_policies_that_timm_knows_build_a_transform(policy: str) -> None:
    training_transform(Data(auto_augment=policy, size=32))


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
        (["--templates", "openai"], "--templates openai"),
        (["--resume", "must"], "--resume must"),
        (["--profile", "-1"], "--profile -1"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path, words: list[str], named: str) -> None:
    done = run_command("pretrain.run", *words, cwd=tmp_path)
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


RSB = {
    # Wightman et al. 2021, Table 2: epochs, lr, weight decay, smoothing, mixup, RandAugment, drop path,
    # views of a sample, training pixels; and the top-1 at 224.
    "rsb_a1": (600, 5e-3, 0.01, 0.1, 0.2, "rand-m7-mstd0.5-inc1", 0.05, 3, 224, "80.4"),
    "rsb_a2": (300, 5e-3, 0.02, 0.0, 0.1, "rand-m7-mstd0.5-inc1", 0.05, 3, 224, "79.8"),
    "rsb_a3": (100, 8e-3, 0.02, 0.0, 0.1, "rand-m6-mstd0.5-inc1", 0.0, 1, 160, "78.1"),
}


@pytest.mark.parametrize("name", RSB)
def test_the_rsb_recipes_are_the_papers(name: str) -> None:
    recipe = parse_options(["--recipe", name])[0].recipe
    loss, data = recipe.loss, recipe.data
    found = (
        recipe.epochs,
        recipe.optimizer.lr,
        recipe.optimizer.weight_decay,
        loss.smoothing,
        loss.mixup,
        data.auto_augment,
        recipe.model.kwargs["drop_path_rate"],
        data.repeats,
        data.size,
    )
    assert found == RSB[name][:-1]
    assert (recipe.model.name, recipe.global_batch, recipe.optimizer.name) == ("resnet50", 2048, "lamb")
    assert (loss.name, loss.cutmix, loss.switch) == ("bce", 1.0, 0.5)
    assert (data.test_size, data.crop_pct, data.interpolation) == (224, 0.95, "bicubic")
    assert (data.color_jitter, data.erasing, recipe.ema) == (0.0, 0.0, 0.0)
    assert (recipe.schedule.name, recipe.schedule.warmup_epochs) == ("cosine", 5)
    assert f"{RSB[name][-1]} % clean" in recipe.expect
    assert "79.96/79.18/78.61/76.27/73.11" in recipe.expect


@pytest.mark.parametrize(
    ("name", "lr", "epochs"),
    [("clip_rn50_yfcc15m", 5e-4, 32), ("clip_rn50_cc12m", 1e-3, 30), ("clip_rn50_cc3m", 1e-3, 30)],
)
def test_the_clip_recipes_are_open_clips(name: str, lr: float, epochs: int) -> None:
    recipe = parse_options(["--recipe", name])[0].recipe
    rule = recipe.optimizer
    assert (recipe.model.name, recipe.global_batch, recipe.epochs) == ("RN50-quickgelu", 1024, epochs)
    assert (rule.name, rule.lr, rule.weight_decay, rule.betas, rule.eps) == (
        "adamw",
        lr,
        0.1,
        (0.9, 0.999),
        1e-8,
    )
    assert (recipe.schedule.name, recipe.schedule.warmup_steps) == ("cosine", 10_000)
    assert name != "clip_rn50_yfcc15m" or "32.64/30.86/29.54/27.72/26.53" in recipe.expect.replace("\n", "")


def test_the_stem_of_the_cifar_recipes_leaves_the_grid_of_the_image() -> None:
    import torch

    from pretrain.models import architecture, build_network

    for name in ("cifar_resnet18", "cifar_resnet50"):
        recipe = parse_options(["--recipe", name])[0].recipe
        network = build_network(architecture(recipe, 10), 0)
        side = recipe.data.size
        with torch.no_grad():
            stem = network.maxpool(network.act1(network.bn1(network.conv1(torch.zeros(1, 3, side, side)))))
        assert stem.shape[2:] == (32, 32)


@pytest.mark.parametrize(
    ("resume", "there", "named"),
    [("must", False, "no complete checkpoint"), ("never", True, "holds a run"), ("auto", True, "")],
)
def test_resume_says_what_a_run_folder_may_hold(
    tmp_path: Path, resume: Resume, there: bool, named: str
) -> None:
    if there:
        folder = tmp_path / "checkpoints" / "step-00000010"
        folder.mkdir(parents=True)
        complete(folder, {"step": 10})
    with pytest.raises(UserError, match=named) if named else contextlib.nullcontext():
        check_resume(tmp_path, resume)


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


def test_values_on_the_command_line_win_wherever_the_recipe_and_the_config_stand(tmp_path: Path) -> None:
    own = ["--recipe.epochs", "5", "--recipe-name", "mine"]
    _, text = parse_options(["--recipe", "rsb_a3"])
    (tmp_path / "config.yaml").write_text(text)
    for words in (["--recipe", "rsb_a3"], ["--recipe=rsb_a3"], ["--config", str(tmp_path / "config.yaml")]):
        options, _ = parse_options([*own, *words])
        assert (options.recipe.epochs, options.recipe_name) == (5, "mine")
        assert options.recipe.optimizer.name == "lamb"
