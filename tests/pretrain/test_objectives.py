"""What the objectives compute: the global batch's contrastive loss, mixing, bounds, and who decays."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from nml.recipe import Data, Engine, Loss, Model, Optimizer, Recipe
from pretrain import batchnorm
from pretrain.classify import Classify
from pretrain.clip import Clip
from pretrain.engines.ddp import DdpEngine
from pretrain.loading import Batch
from pretrain.models import build_network
from pretrain.objective import Setting
from pretrain.optimizers import build_optimizer, parameter_groups

BATCH = 16
OnRanks = Callable[..., list[Any]]


def clip_recipe(tiny_clip: dict[str, Any], loss: Any = "infonce", parts: int = 0) -> Recipe:
    return Recipe(
        objective="clip",
        global_batch=BATCH,
        # Statistics of a rank's own batch differ by definition: frozen ones leave the loss to compare.
        model=Model(name=tiny_clip["name"], kwargs=tiny_clip["kwargs"], batch_norm="frozen"),
        data=Data(size=32, test_size=32),
        loss=Loss(name=loss),
        optimizer=Optimizer(name="adamw", lr=1e-3),
        engine=Engine(micro_batch=parts),
    )


def captions(objective: Clip) -> Batch:
    generator = torch.Generator().manual_seed(3)
    assert objective.text_transform is not None
    texts = [f"a {word} number {n}" for n, word in enumerate(["cat", "dog", "fish", "bird"] * (BATCH // 4))]
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    return Batch(images, torch.stack([objective.text_transform(text) for text in texts]), torch.arange(BATCH))


def contrast(rank: int, size: int, recipe: Recipe, parts: int) -> dict[str, np.ndarray]:
    """Return the gradient of the global batch, of which this rank has its part, and the loss."""
    objective = Clip(recipe, Setting(rank=rank, world_size=size, seed=0, micro_batches=parts))
    engine = DdpEngine(build_network(objective.architecture, 0), recipe)
    batchnorm.set_training(engine.network, recipe.model.batch_norm)
    mine = Batch(*(part[rank::size] for part in captions(objective)[:3]))
    loss = objective.backward(engine, mine, 0)
    dist.all_reduce(loss)
    found = {name: weight.grad.numpy() for name, weight in engine.network.named_parameters()}
    return found | {"loss": (loss / size).numpy()}


@pytest.mark.parametrize("loss", ["infonce", "siglip", "gce", "sce"])
def test_ranks_and_micro_batches_have_the_gradient_of_the_whole_batch(
    on_ranks: OnRanks, tmp_path: Path, tiny_clip: dict[str, Any], loss: str
) -> None:
    recipe = clip_recipe(tiny_clip, loss)
    (whole,) = on_ranks(1, contrast, tmp_path / "one", recipe, 1)
    ranked = on_ranks(2, contrast, tmp_path / "two", recipe, 1)[0]
    both = on_ranks(2, contrast, tmp_path / "parts", recipe, 4)[0]
    for other in (ranked, both):
        assert other.keys() == whole.keys()
        for name in whole:
            np.testing.assert_allclose(other[name], whole[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_loss_is_that_of_every_pair_of_the_batch(
    on_ranks: OnRanks, tmp_path: Path, tiny_clip: dict[str, Any]
) -> None:
    recipe = clip_recipe(tiny_clip)

    def plain(rank: int, size: int) -> float:
        objective = Clip(recipe, Setting(rank=0, world_size=1, seed=0, micro_batches=1))
        network = build_network(objective.architecture, 0)
        batchnorm.set_training(network, "frozen")
        batch = captions(objective)
        output = network(batch.images, batch.targets)
        logits = output["logit_scale"] * output["image_features"] @ output["text_features"].T
        own = torch.arange(BATCH)
        both = nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)
        return float(both) / 2

    expected = on_ranks(1, plain, tmp_path / "plain")[0]
    found = on_ranks(2, contrast, tmp_path / "ours", recipe, 2)
    assert [float(answer["loss"]) for answer in found] == pytest.approx([expected] * 2, rel=1e-5)


def statistics(rank: int, size: int, recipe: Recipe, parts: int) -> dict[str, Any]:
    objective = Clip(recipe, Setting(rank=rank, world_size=size, seed=0, micro_batches=parts))
    engine = DdpEngine(build_network(objective.architecture, 0), recipe)
    batchnorm.set_training(engine.network, "local")
    objective.backward(engine, captions(objective), 0)
    return {name: buffer.numpy() for name, buffer in engine.network.named_buffers()}


def test_accumulation_counts_every_sample_once_in_batch_normalisation(
    on_ranks: OnRanks, tmp_path: Path, tiny_clip: dict[str, Any]
) -> None:
    recipe = clip_recipe(tiny_clip)
    (found,) = on_ranks(1, statistics, tmp_path / "store", recipe, 4)
    counts = {int(value) for name, value in found.items() if name.endswith("num_batches_tracked")}
    # Two forward passes of 4 micro-batches; only the second is to be remembered.
    assert counts == {4}


def test_the_logit_scale_stays_within_1_and_100(
    on_ranks: OnRanks, tmp_path: Path, tiny_clip: dict[str, Any]
) -> None:
    def clamped(rank: int, size: int) -> list[float]:
        recipe = clip_recipe(tiny_clip)
        objective = Clip(recipe, Setting(rank=rank, world_size=size, seed=0, micro_batches=1))
        engine = DdpEngine(build_network(objective.architecture, 0), recipe)
        scale = engine.network.get_parameter("logit_scale")
        found = []
        for value in (9.0, -1.0, 2.5):
            scale.data.fill_(value)
            objective.after_step(engine, 0)
            found.append(float(scale.detach()))
        return found

    assert on_ranks(1, clamped, tmp_path / "store") == [pytest.approx([math.log(100), 0.0, 2.5])]


class Recorded:
    """An engine of one layer that keeps what it is given."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []
        self.losses: list[float] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images.append(images.clone())
        return images.mean((2, 3)).repeat(1, 2)[:, :4]

    def micro_step(self, *, last: bool) -> Any:
        return contextlib.nullcontext(last)

    def backward(self, loss: torch.Tensor) -> None:
        self.losses.append(float(loss))


def classify(loss: Loss, *, rank: int = 0, seed: int = 0, parts: int = 1) -> Classify:
    recipe = Recipe(model=Model(name="resnet18"), data=Data(size=8), loss=loss)
    return Classify(recipe, Setting(rank=rank, seed=seed, micro_batches=parts, num_classes=4))


def pictures() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 8, 8, generator=generator)
    return Batch(images, torch.arange(8) % 4, torch.arange(8))


def mixed_images(loss: Loss, step: int = 0, **changes: int) -> torch.Tensor:
    engine: Any = Recorded()
    classify(loss, **changes).backward(engine, pictures(), step)
    return torch.cat(engine.images)


def test_mixup_adds_pairs_and_cutmix_pastes_them() -> None:
    batch = pictures().images
    mixup = mixed_images(Loss(mixup=0.8))
    share = ((mixup - batch.flip(0)) / (batch - batch.flip(0)))[0]
    assert share.std() < 1e-3
    assert 0 < float(share.mean()) < 1
    cutmix = mixed_images(Loss(cutmix=1.0), step=1)
    assert bool(((cutmix == batch) | (cutmix == batch.flip(0))).all())
    assert not torch.equal(cutmix, batch)


def test_mixing_depends_on_seed_step_and_rank_alone() -> None:
    loss = Loss(mixup=0.8)
    assert torch.equal(mixed_images(loss, step=5), mixed_images(loss, step=5))
    for other in (
        mixed_images(loss, step=6),
        mixed_images(loss, step=5, rank=1),
        mixed_images(loss, step=5, seed=1),
    ):
        assert not torch.equal(other, mixed_images(loss, step=5))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_of_mixed_targets_is_that_of_soft_labels(smoothing: float) -> None:
    """Label smoothing is applied once, by the mixing, and not again by the loss."""
    from timm.data.mixup import mixup_target

    engine: Any = Recorded()
    classify(Loss(name="bce", mixup=0.8, smoothing=smoothing)).backward(engine, pictures(), 0)
    batch = pictures()
    (images,) = engine.images
    share = float(((images - batch.images.flip(0)) / (batch.images - batch.images.flip(0)))[0].mean())
    soft = mixup_target(batch.targets, 4, share, smoothing)
    scores = images.mean((2, 3)).repeat(1, 2)[:, :4]
    expected = nn.functional.binary_cross_entropy_with_logits(scores, soft)
    assert engine.losses == pytest.approx([float(expected)], rel=1e-4)


def test_micro_batches_of_a_classifier_add_up_to_the_mean() -> None:
    whole: Any = Recorded()
    parts: Any = Recorded()
    one = classify(Loss(smoothing=0.1)).backward(whole, pictures(), 0)
    other = classify(Loss(smoothing=0.1), parts=4).backward(parts, pictures(), 0)
    assert len(parts.losses) == 4
    assert float(other) == pytest.approx(float(one), rel=1e-5)
    assert sum(parts.losses) == pytest.approx(sum(whole.losses), rel=1e-5)


def test_norms_biases_and_the_logit_scale_do_not_decay(tiny_clip: dict[str, Any]) -> None:
    import open_clip

    network = open_clip.create_model(
        tiny_clip["name"], nonscalar_logit_scale=True, pretrained_text=False, **tiny_clip["kwargs"]
    )
    decayed, free = parameter_groups(network.named_parameters(), 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    spared = {id(parameter) for parameter in free["params"]}
    for name, parameter in network.named_parameters():
        norm_or_bias = parameter.ndim == 1 or name.endswith("bias") or name == "logit_scale"
        assert (id(parameter) in spared) == norm_or_bias, name
    assert len(decayed["params"]) + len(free["params"]) == len(list(network.parameters()))


def test_lamb_is_timms_and_clips_nothing_itself() -> None:
    from timm.optim import Lamb

    recipe = Recipe(optimizer=Optimizer(name="lamb", lr=5e-3))
    optimizer: Any = build_optimizer(recipe, parameter_groups(nn.Linear(2, 2).named_parameters(), 0.02))
    assert isinstance(optimizer, Lamb)
    assert optimizer.defaults["max_grad_norm"] is None


def test_drop_path_drops_more_the_deeper_the_block() -> None:
    from timm.layers import DropPath

    from pretrain.models import architecture

    recipe = Recipe(model=Model(name="resnet18", kwargs={"drop_path_rate": 0.05}))
    network = build_network(architecture(recipe, 10), 0)
    rates = [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.05)


def test_repeated_augmentation_spreads_the_views_of_a_sample_over_the_ranks(image_set: Path) -> None:
    from pretrain.loading import StepSampler
    from pretrain.world import World
    from shards.shardset import ShardSet

    shard_set = ShardSet.open(str(image_set))
    recipe = Recipe(epochs=1, global_batch=48, data=Data(repeats=3, streams=12, size=32))
    samplers = [StepSampler(shard_set, recipe, World(rank, 3), seed=0) for rank in range(3)]
    seen = set()
    for step in range(samplers[0].steps_per_epoch):
        batches = [sampler.batch(0, step) for sampler in samplers]
        for views in zip(*batches, strict=True):
            assert {view.view for view in views} == {0, 1, 2}
            assert len({view.index for view in views}) == 1
        seen |= {view.index for view in batches[0]}
    # As in timm, an epoch of as many steps shows a third of the samples.
    assert len(seen) == samplers[0].steps_per_epoch * 16


@pytest.mark.parametrize(("batch", "streams", "repeats"), [(48, 12, 3), (20, 12, 2), (32, 4, 5)])
def test_views_on_one_rank_are_the_same_samples_at_any_world_size(
    image_set: Path, batch: int, streams: int, repeats: int
) -> None:
    from pretrain.loading import StepSampler
    from pretrain.world import World
    from shards.shardset import ShardSet

    shard_set = ShardSet.open(str(image_set))
    data = Data(repeats=repeats, repeats_on="rank", streams=streams, size=32)
    recipe = Recipe(epochs=1, global_batch=batch, data=data)
    seen: dict[int, list[Counter[tuple[int, int]]]] = {}
    for world in (1, 2, 4):
        samplers = [StepSampler(shard_set, recipe, World(rank, world), seed=0) for rank in range(world)]
        steps = [[sampler.batch(0, step) for sampler in samplers] for step in range(len(samplers[0]))]
        assert {len(batch_of_rank) for step in steps for batch_of_rank in step} == {batch // world}
        seen[world] = [Counter((ref.index, ref.view) for own in step for ref in own) for step in steps]
        images = [{ref.index for step in steps for ref in step[rank]} for rank in range(world)]
        assert sum(map(len, images)) == len(set().union(*images))
    assert seen[1] == seen[2] == seen[4]
    epoch = sum(seen[1], Counter())
    # Each view once; but for a lane's last image, all of an image's views.
    assert set(epoch.values()) == {1}
    whole = Counter(index for index, _ in epoch)
    assert sum(views < repeats for views in whole.values()) <= streams


def test_randaugment_draws_from_the_seed_of_the_sample() -> None:
    import random

    from PIL import Image

    from pretrain.transforms import training_transform

    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    image = Image.fromarray(noise)
    rule = Data(size=24, crop="rrc", auto_augment="rand-m7-mstd0.5-inc1")
    with_it, without = training_transform(rule), training_transform(replace(rule, auto_augment=""))

    def seeded(transform: Callable[[Any], Any], seed: int) -> torch.Tensor:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        result: torch.Tensor = transform(image)
        return result

    assert torch.equal(seeded(with_it, 1), seeded(with_it, 1))
    assert not torch.equal(seeded(with_it, 1), seeded(with_it, 2))
    changed = [not torch.equal(seeded(with_it, seed), seeded(without, seed)) for seed in range(5)]
    # A draw may be a no-op, five in a row are not.
    assert any(changed)
