"""The loops that benchmarks/train_step.py races: the project's, a bare one, timm's and open_clip's.

The project's step is the whole of it: engine, loss, agreement of the ranks on stop signals and failed
saves, update, metrics line. timm ships its training loop as a script of its repository (train.py), not
in the package: the loop here does what that one does for each batch, with timm's own optimizer,
scheduler and meters. open_clip ships its loop in the package: open_clip_train.train.train_one_epoch
runs as it is.
"""

from __future__ import annotations

import logging
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nml.recipe import Recipe
from nml.run_options import EngineName
from pretrain.engines import build_engine
from pretrain.engines.native import device_of_rank, precision
from pretrain.loading import Batch
from pretrain.models import build_network
from pretrain.noise_watch import NoiseWatch
from pretrain.objective import Objective
from pretrain.optimizers import build_optimizer, parameter_groups
from pretrain.recording import Recorder
from pretrain.run_state import RunState
from pretrain.training import Trainer
from pretrain.world import World

# Takes a step on each of the batches of a round.
Round = Callable[[Iterable[Batch]], None]


def project(
    recipe: Recipe, world: World, objective: Objective, folder: Path, engine_name: EngineName = "ddp"
) -> Round:
    engine = build_engine(engine_name, build_network(objective.architecture, 0), recipe, accumulation=1)
    sampler: Any = Namespace(steps_per_epoch=10**9)
    recorder = Recorder(
        folder,
        is_main=True,
        steps_per_epoch=sampler.steps_per_epoch,
        global_batch=recipe.global_batch,
        device=engine.device,
        started=time.perf_counter(),
        observers=[],
    )
    recorder.open(0)
    watch = NoiseWatch(
        "class" if recipe.objective == "classify" else "caption", recipe.global_batch, engine.device
    )
    unused: Any = None
    trainer = Trainer(
        recipe,
        world,
        engine=engine,
        objective=objective,
        sampler=sampler,
        shard_set=unused,
        validation=None,
        state=RunState(recipe, folder, world, engine=engine, sampler=sampler, meta={}, watch=watch),
        recorder=recorder,
    )

    def run(batches: Iterable[Batch]) -> None:
        for batch in batches:
            trainer.train_step(batch, 0.0)

    return run


def unwatched(own: Round) -> Round:
    """The same without a look at what noise does: batches do not know what is true."""
    return lambda batches: own([batch._replace(truth=None) for batch in batches])


def bare(recipe: Recipe, objective: Objective) -> Round:
    """The fewest lines that train the same: no metrics but the loss, one process, no ddp."""
    network = _placed(recipe, objective)
    optimizer = build_optimizer(
        recipe, parameter_groups(network.named_parameters(), recipe.optimizer.weight_decay)
    )
    called: Any = torch.compile(network, dynamic=False) if recipe.engine.compile else network
    classify = nn.CrossEntropyLoss()

    def contrast(output: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = output["logit_scale"] * output["image_features"] @ output["text_features"].T
        own = torch.arange(len(logits), device=logits.device)
        return (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2

    def run(batches: Iterable[Batch]) -> None:
        for batch in batches:
            with precision(recipe, batch.images.device):
                if recipe.objective == "classify":
                    loss = classify(called(batch.images), batch.targets)
                else:
                    loss = contrast(called(batch.images, batch.targets))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        # Once a round: on a GPU each look would wait for it.
        loss.item()

    return run


def _placed(recipe: Recipe, objective: Objective) -> nn.Module:
    """Return the network on its device, in the layout of the recipe."""
    network = build_network(objective.architecture, 0).to(device_of_rank()).train()
    layout = torch.channels_last if recipe.engine.channels_last else torch.contiguous_format
    return network.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def timm_loop(recipe: Recipe, objective: Objective) -> Round:
    """What train_one_epoch of timm's train.py does for each batch, with --amp-dtype bfloat16 where asked."""
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter

    network = _placed(recipe, objective)
    # timm's own --torchcompile.
    called: Any = torch.compile(network) if recipe.engine.compile else network
    config = recipe.optimizer
    optimizer = create_optimizer_v2(
        network, opt="sgd", lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=1, updates_per_epoch=10**6, step_on_epochs=False
    )
    criterion = nn.CrossEntropyLoss()
    losses, updates, data, update = AverageMeter(), AverageMeter(), AverageMeter(), 0

    def run(batches: Iterable[Batch]) -> None:
        nonlocal update
        end = time.time()
        optimizer.zero_grad()
        for batch in batches:
            data.update(time.time() - end)
            with precision(recipe, batch.images.device):
                loss = criterion(called(batch.images), batch.targets)
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(batch.images))
            optimizer.zero_grad()
            update += 1
            updates.update(time.time() - end)
            scheduler.step_update(num_updates=update, metric=losses.avg)
            end = time.time()

    return run


class _EpochOfBatches:
    """What open_clip's loop asks of its data: a loader that knows its numbers, and an epoch."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches
        self.num_batches = len(batches)
        self.num_samples = len(batches) * len(batches[0].images)

    @property
    def dataloader(self) -> _EpochOfBatches:
        return self

    def set_epoch(self, epoch: int) -> None:
        pass

    def __iter__(self) -> Any:
        return ((batch.images, batch.targets) for batch in self._batches)


def open_clip_loop(recipe: Recipe, objective: Objective) -> Round:
    import open_clip
    from open_clip_train.train import train_one_epoch

    logging.getLogger().setLevel(logging.ERROR)
    network = _placed(recipe, objective)
    optimizer = build_optimizer(
        recipe, parameter_groups(network.named_parameters(), recipe.optimizer.weight_decay)
    )
    args = Namespace(
        device=device_of_rank(),
        precision="amp_bf16" if recipe.engine.dtype == "bf16" else "fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        horovod=False,
        grad_clip_norm=None,
        rank=0,
        local_rank=0,
        log_local=False,
        log_every_n_steps=100,
        batch_size=recipe.global_batch,
        world_size=1,
        wandb=False,
    )

    def cosine(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * 0.5 * (1 + math.cos(math.pi * step / 1e9))

    def run(batches: Iterable[Batch]) -> None:
        data = {"train": _EpochOfBatches(list(batches))}
        train_one_epoch(network, data, open_clip.ClipLoss(), 0, optimizer, None, cosine, None, args)

    return run
