"""A value of a recipe changes what is trained, or the recipe is refused, or a line says that it does not."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nml.errors import UserError
from nml.recipe import Checkpoints, Data, Engine, Loss, Model, Optimizer, Recipe, Schedule
from nml.recipe_effects import value_of
from nml.recipe_files import recipe_names
from pretrain import batchnorm, transforms
from pretrain.assembly import build_objective, idle_in_run
from pretrain.ema import Average
from pretrain.engines import build_engine, check_engine
from pretrain.loading import Batch, StepSampler, micro_batch_count
from pretrain.objective import Setting, seed_step
from pretrain.options import parse_options
from pretrain.schedule import learning_rate
from pretrain.world import World
from tests.pretrain.small_engines import Network, batch

# They say where values come from, fit the run to the machine, or decide what is kept of it.
NOT_TRAINED = re.compile(
    r"source|expect|validate_every|skip_nonfinite|checkpoints\..*|data\.workers|data\.skip_budget|data\.cache|"
    r"engine\.compile|engine\.compile_mode|engine\.checkpoint_activations|engine\.deepspeed_config"
)
# Two values of every other field, so that one of them is another one than a recipe's.
OTHERS: dict[str, tuple[Any, Any]] = {
    "objective": ("clip", "classify"),
    "options": ({"temperature": 0.3}, {"temperature": 0.4}),
    "epochs": (2, 3),
    "global_batch": (32, 64),
    "ema": (0.5, 0.6),
    "model.name": ("resnet18", "resnet34"),
    "model.kwargs": ({"drop_path_rate": 0.1}, {"drop_path_rate": 0.2}),
    "model.batch_norm": ("frozen", "sync"),
    "data.size": (40, 48),
    "data.test_size": (40, 48),
    "data.crop_pct": (0.6, 0.7),
    "data.interpolation": ("bilinear", "bicubic"),
    "data.mean": ((0.1, 0.2, 0.3), (0.2, 0.2, 0.3)),
    "data.std": ((0.1, 0.2, 0.3), (0.2, 0.2, 0.3)),
    "data.crop": ("none", "pad"),
    "data.scale": ((0.5, 0.6), (0.6, 0.7)),
    "data.flip": (1.0, 0.9),
    "data.color_jitter": (0.4, 0.6),
    "data.jitter_hue": (0.3, 0.4),
    "data.jitter_prob": (0.1, 0.2),
    "data.grayscale": (1.0, 0.9),
    "data.blur": (1.0, 0.9),
    "data.auto_augment": ("rand-m9-n5", "rand-m3-n4"),
    "data.erasing": (1.0, 0.9),
    "data.repeats": (2, 4),
    "data.repeats_on": ("rank", "ranks"),
    "data.streams": (8, 16),
    "loss.name": ("bce", "cross-entropy"),
    "loss.smoothing": (0.2, 0.3),
    "loss.mixup": (0.3, 0.4),
    "loss.cutmix": (0.3, 0.4),
    "loss.switch": (0.1, 0.9),
    "loss.bce_threshold": (0.4, 0.3),
    "loss.gce_q": (0.5, 0.3),
    "loss.sce_alpha": (0.2, 0.3),
    "loss.sce_beta": (0.5, 0.6),
    "loss.sce_zero": (-3.0, -2.0),
    "optimizer.name": ("adamw", "lamb"),
    "optimizer.lr": (0.01, 0.02),
    "optimizer.weight_decay": (0.3, 0.4),
    "optimizer.momentum": (0.5, 0.6),
    "optimizer.betas": ((0.5, 0.6), (0.6, 0.7)),
    "optimizer.eps": (1e-2, 1e-3),
    "optimizer.clip": (0.01, 0.02),
    "schedule.name": ("constant", "cosine"),
    "schedule.warmup_epochs": (0.5, 0.7),
    "schedule.warmup_steps": (3, 5),
    "schedule.warmup_lr": (1e-3, 2e-3),
    "schedule.min_lr": (1e-3, 2e-3),
    "engine.dtype": ("bf16", "fp16"),
    "engine.channels_last": (True, False),
    "engine.micro_batch": (4, 8),
    "engine.zero_stage": (2, 3),
    "engine.compress_gradients": ("bf16", "fp16"),
    "engine.shard_group": (2, 4),
    "engine.gather_dtype": ("bf16", "fp32"),
}
SMALL = Data(size=32, test_size=32, streams=4)
MIXED = Loss(name="bce", mixup=0.2, cutmix=1.0, bce_threshold=0.2)
BASES: dict[str, Recipe] = {
    "sgd": Recipe(data=SMALL),
    "constant": Recipe(data=replace(SMALL, crop="pad"), schedule=Schedule(name="constant", warmup_steps=4)),
    "mixup": Recipe(data=SMALL, loss=Loss(mixup=0.2, smoothing=0.1), optimizer=Optimizer(name="adamw")),
    "bce": Recipe(data=replace(SMALL, auto_augment="rand-m7"), loss=MIXED, optimizer=Optimizer(name="lamb")),
    "clip": Recipe(objective="clip", model=Model(name="RN50"), data=SMALL, loss=Loss(name="siglip"), ema=0.4),
    "gce": Recipe(data=SMALL, loss=Loss(name="gce", mixup=0.2)),
    "sce": Recipe(objective="clip", model=Model(name="RN50"), data=SMALL, loss=Loss(name="sce")),
} | {name: parse_options(["--recipe", name])[0].recipe for name in recipe_names()}
RUN = {"engine": "ddp", "world_size": 1, "steps_per_epoch": 20, "validated": True}


BCE = Loss(name="bce", mixup=0.2)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"loss": replace(MIXED, smoothing=0.1)},
            "recipe.loss.smoothing 0.1: no effect beside recipe.loss.bce",
        ),
        (
            {"loss": Loss(name="bce", bce_threshold=0.2)},
            "recipe.loss.bce_threshold 0.2: no effect on targets",
        ),
        (
            {"loss": Loss(bce_threshold=0.2)},
            "recipe.loss.bce_threshold 0.2: no effect with recipe.loss.name cross",
        ),
        (
            {"engine": Engine(compile_mode="max-autotune-no-cudagraphs")},
            "recipe.engine.compile_mode max-autotune-no-cudagraphs: no effect without recipe.engine.compile",
        ),
        ({"loss": Loss(name="sce", gce_q=0.3)}, "recipe.loss.gce_q 0.3: no effect with recipe.loss.name sce"),
        ({"loss": replace(BCE, switch=0.4)}, "recipe.loss.switch 0.4: no effect unless both"),
        (
            {"loss": replace(BCE, cutmix=1.0, switch=0.0)},
            "recipe.loss.cutmix 1.0: no effect with recipe.loss.switch",
        ),
        ({"optimizer": Optimizer(eps=0.1)}, "use --recipe.optimizer.eps 1e-08"),
        ({"optimizer": Optimizer(betas=(0.5, 0.6))}, "use --recipe.optimizer.betas '[0.9, 0.999]'"),
        ({"optimizer": Optimizer(name="lamb", momentum=0.5)}, "no effect with recipe.optimizer.name lamb"),
        ({"schedule": Schedule(name="constant", min_lr=0.1)}, "no effect with recipe.schedule.name constant"),
        ({"schedule": Schedule(warmup_lr=0.1)}, "no effect without recipe.schedule.warmup_epochs"),
        (
            {"data": Data(repeats_on="rank")},
            "recipe.data.repeats_on rank: no effect without recipe.data.repeats",
        ),
        ({"data": Data(crop="pad", scale=(0.5, 0.6))}, "no effect with recipe.data.crop pad"),
        ({"data": Data(auto_augment="rand-m7", color_jitter=0.4)}, "beside recipe.data.auto_augment rand-m7"),
    ],
)
def test_a_value_without_effect_is_refused_with_what_takes_it_away(
    values: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        Recipe(**values)


@pytest.mark.parametrize(
    ("values", "run", "line"),
    [
        ({"engine": Engine(zero_stage=2)}, {}, "recipe.engine.zero_stage 2: no effect with --engine ddp"),
        ({"engine": Engine(zero_stage=2)}, {"engine": "deepspeed"}, ""),
        ({"engine": Engine(shard_group=2)}, {"engine": "fsdp", "world_size": 4}, ""),
        (
            {"engine": Engine(shard_group=2)},
            {"engine": "fsdp"},
            "recipe.engine.shard_group 2: no effect",
        ),
        (
            {"engine": Engine(micro_batch=64)},
            {"world_size": 4},
            "recipe.engine.micro_batch 64: no effect, a process",
        ),
        ({"engine": Engine(micro_batch=64)}, {}, ""),
        (
            {"validate_every": 2},
            {"validated": False},
            "recipe.validate_every 2: no effect without a --validation",
        ),
        ({"validate_every": 2}, {}, ""),
        (
            {"schedule": Schedule(warmup_epochs=0.01)},
            {},
            "recipe.schedule: no effect of the warm-up, which is 0",
        ),
        (
            {"schedule": Schedule(warmup_steps=200)},
            {},
            "recipe.schedule: the warm-up takes 200 steps and the run 200",
        ),
        ({"ema": 0.99}, {}, "recipe.ema 0.99: within 200 steps the same as any decay from 0.9571 on"),
        ({"ema": 0.9}, {}, ""),
        (
            {"checkpoints": Checkpoints(keep_every=19)},
            {"steps_per_epoch": 9},
            "recipe.checkpoints.keep_every 19: no",
        ),
        ({"checkpoints": Checkpoints(keep_every=7)}, {}, ""),
    ],
)
def test_a_value_without_effect_in_a_run_is_said_in_a_line(
    values: dict[str, Any], run: dict[str, Any], line: str
) -> None:
    told = list(idle_in_run(Recipe(**values), **(RUN | run)))
    assert [line in one for one in told] == ([True] if line else [])


def names(config: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(config):
        value = getattr(config, field.name)
        yield from names(value, f"{prefix}{field.name}.") if is_dataclass(value) else [prefix + field.name]


def changed(recipe: Recipe, name: str) -> Recipe:
    value = next(value for value in OTHERS[name] if value != value_of(recipe, name))
    group, _, last = name.rpartition(".")
    if not group:
        return replace(recipe, **{last: value})
    return replace(recipe, **{group: replace(getattr(recipe, group), **{last: value})})


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC)


def trained_images(data: Data) -> list[Any]:
    transform, image = transforms.training_transform(data), picture()
    found = []
    for draw in range(6):
        seed_step(0, draw, 0, 0)
        found.append(transforms.normalised(transform(image)[None], data.mean, data.std).numpy().tobytes())
    return found


def image_of_a_test(data: Data) -> Any:
    return transforms.testing_transform(data)(picture()).numpy().tobytes()


class Scores:
    """Stands in for an engine: scores that are a function of the images."""

    device = torch.device("cpu")

    def __init__(self, projected: int) -> None:
        self.losses: list[float] = []
        self.projected = projected

    def forward(self, images: torch.Tensor, texts: torch.Tensor | None = None) -> Any:
        if self.projected:
            return {"projected": images.mean((2, 3)).repeat(1, self.projected)[:, : self.projected]}
        features = images.mean((2, 3)).repeat(1, 2)[:, :4]
        if texts is None:
            return features
        return {
            "image_features": features,
            "text_features": features.flip(0),
            "logit_scale": torch.tensor(3.0),
            "logit_bias": torch.tensor(-2.0),
        }

    def micro_step(self, *, last: bool) -> Any:
        return contextlib.nullcontext(last)

    def backward(self, loss: torch.Tensor) -> None:
        self.losses.append(float(loss))


def loss_of_steps(objective: str, model: Model, loss: Loss, options: dict[str, Any]) -> Any:
    recipe = Recipe(objective=objective, model=model, loss=loss, options=options)
    made = build_objective(recipe, Setting(num_classes=4, total_steps=12))
    if objective == "mae":
        # It needs a network of its own, which test_reconstruction_and_teachers gives it.
        return options, made.architecture
    if made.encoder:
        made.begin(made.network())
    width = made.options.prototypes if objective == "dino" else made.options.dim if made.encoder else 0
    engine: Any = Scores(width)
    images = torch.rand(8 * made.views, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(12):
        made.backward(engine, Batch(images, torch.arange(8) % 4, torch.arange(8)), step)
    return engine.losses, made.architecture


def weights(model: Model, rule: Optimizer, config: Any, ema: float, global_batch: int) -> Any:
    recipe = Recipe(model=model, optimizer=rule, engine=config, ema=ema, global_batch=global_batch)
    parts = micro_batch_count(recipe, World())
    torch.manual_seed(0)
    network = batchnorm.prepare(Network(), model.batch_norm)
    engine = build_engine("ddp", network, recipe, accumulation=parts)
    batchnorm.set_training(network, model.batch_norm)
    average = Average(network, ema) if ema else None
    for step in range(3):
        images, labels = batch(step)
        for images_part, labels_part in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            with engine.micro_step(last=True):
                scores = engine.forward(images_part).float()
                engine.backward(nn.functional.cross_entropy(scores, labels_part) / parts)
        engine.step(rule.lr)
        if average:
            average.update(network, step + 10)
    told = average.shadow if average else dict(network.named_parameters())
    strides = [weight.stride() for weight in network.parameters()]
    return [value.detach().numpy().tobytes() for value in told.values()], strides


def rates(rule: Optimizer, schedule: Schedule, epochs: int) -> list[float]:
    recipe = Recipe(optimizer=rule, schedule=schedule, epochs=epochs)
    steps = epochs * RUN["steps_per_epoch"]
    return [
        learning_rate(recipe, step, steps_per_epoch=RUN["steps_per_epoch"], total_steps=steps)
        for step in range(steps)
    ]


def order(epochs: int, global_batch: int, repeats: int, repeats_on: Any, streams: int) -> Any:
    data = Data(repeats=repeats, repeats_on=repeats_on, streams=streams)
    samples: Any = SimpleNamespace(num_samples=9000, fingerprint="", info=SimpleNamespace(shards=[]))
    samples.info.shards = [SimpleNamespace(samples=1000)] * 9
    sampler = StepSampler(samples, Recipe(epochs=epochs, global_batch=global_batch, data=data), World(), 0)
    return len(sampler), [[tuple(ref) for ref in sampler.batch(0, step)] for step in (0, 1)]


class Trained:
    """What recipes train, computed in small; parts that two recipes share are computed once."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def __call__(self, recipe: Recipe) -> list[Any]:
        data, rule = recipe.data, recipe.optimizer
        return [
            self._once(trained_images, data),
            self._once(image_of_a_test, data),
            self._once(loss_of_steps, recipe.objective, recipe.model, recipe.loss, recipe.options),
            self._once(
                weights,
                replace(recipe.model, kwargs={}),
                rule,
                replace(recipe.engine, deepspeed_config=None),
                recipe.ema,
                min(recipe.global_batch, 16),
            ),
            self._once(rates, rule, recipe.schedule, recipe.epochs),
            self._once(
                order, recipe.epochs, recipe.global_batch, data.repeats, data.repeats_on, data.streams
            ),
        ]

    def _once(self, part: Callable[..., Any], *inputs: Any) -> Any:
        key = f"{part.__name__} {inputs}"
        if key not in self._known:
            self._known[key] = part(*inputs)
        return self._known[key]


@pytest.fixture(scope="module")
def trained(process_group: None) -> Trained:
    return Trained()


@pytest.mark.parametrize("base", BASES)
def test_every_value_of_a_recipe_is_trained_with_or_refused_or_said_to_have_no_effect(
    trained: Trained, base: str
) -> None:
    recipe = BASES[base]
    silent = []
    for name in names(recipe):
        if NOT_TRAINED.fullmatch(name):
            continue
        try:
            other = changed(recipe, name)
            check_engine("ddp", other)
            if trained(other) != trained(recipe):
                continue
        except UserError:
            continue
        group = name.rpartition(".")[0]
        told = idle_in_run(other, **RUN)  # type: ignore[arg-type]
        if not any(line.startswith((f"recipe.{name} ", f"recipe.{group}: ")) for line in told):
            silent.append(name)
    assert silent == []


def test_every_field_is_changed_or_said_not_to_be_trained() -> None:
    every = set(names(Recipe()))
    assert {name for name in every if not NOT_TRAINED.fullmatch(name)} == OTHERS.keys()
