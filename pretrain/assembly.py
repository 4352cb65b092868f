"""Put a run together from its options."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from nml import layout
from nml.errors import UserError
from nml.initial_weights import InitialWeights
from nml.objectives import declared
from nml.recipe import Recipe
from nml.recipe_effects import default_of
from nml.run_options import EngineName
from pretrain import batchnorm
from pretrain.encoder_files import describe_run
from pretrain.engines import Engine, build_engine, check_engine
from pretrain.feed_limit import feed_limits
from pretrain.first_pass import check_first_pass
from pretrain.fixed_sample import FixedSample
from pretrain.loading import Batch, StepSampler, micro_batch_count, training_loader
from pretrain.memorised import write_memorisation
from pretrain.noise_watch import NoiseWatch
from pretrain.objective import Objective, Setting
from pretrain.observers import build_observers
from pretrain.options import Options
from pretrain.presentations import Presentations
from pretrain.probing import Probing
from pretrain.profiling import Tracer
from pretrain.recording import Recorder
from pretrain.run_state import RunState
from pretrain.schedule import warmup_steps
from pretrain.training import Trainer
from pretrain.transforms import testing_transform, training_transform
from pretrain.utilisation import ALONE, work_of
from pretrain.validation import ValidationData, validation_data
from pretrain.warm_start import begin_from
from pretrain.world import World, decided_by_all, decided_by_main, wait_no_longer
from pretrain.zero_shot import Prompts, read_prompts
from shards.dataset import ShardDataset
from shards.shardset import ShardSet


def assemble(
    options: Options,
    world: World,
    shard_set: ShardSet,
    started: float,
    start: InitialWeights | None = None,
    probing: Probing | None = None,
) -> tuple[Trainer, DataLoader[Batch]]:
    """Return the trainer of a run and its loader. Collective.

    Args:
        options: The options.
        world: This process, in its group.
        shard_set: The data.
        started: When the process began, by time.perf_counter().
        start: The weights that the network begins from; None for fresh ones.
        probing: Measures the encoder while it trains; None where nobody asked for it.

    Raises:
        UserError: If the parts do not fit each other; nothing has been written then.
    """
    recipe = options.recipe
    share_cores(world)
    # All batches of a run have one shape: worth the search for the fastest convolutions.
    torch.backends.cudnn.benchmark = True
    check_engine(options.engine, recipe)
    _check_kind(options, shard_set)
    if recipe.data.cache and options.require_signature:
        raise UserError(
            f"recipe.data.cache {recipe.data.cache}: a cache is not signed, and --require-signature asks for "
            "what is",
            mend="use one of the two",
        )
    sampler = StepSampler(shard_set, recipe, world, options.seed, views=declared(recipe.objective).views)
    accumulation = micro_batch_count(recipe, world)
    validation = validation_data(
        options.validation,
        shard_set,
        testing_transform(recipe.data),
        signed_by=options.require_signature,
        # Neighbours are among the validation images alone.
        same_classes=declared(recipe.objective).judged_by == "scores",
    )
    if world.is_main:
        for line in idle_in_run(
            recipe,
            engine=options.engine,
            world_size=world.size,
            steps_per_epoch=sampler.steps_per_epoch,
            validated=validation is not None,
        ):
            print(line, flush=True)
    objective = build_objective(
        recipe,
        Setting(
            rank=world.rank,
            world_size=world.size,
            seed=options.seed,
            micro_batches=accumulation,
            num_classes=len(shard_set.classes or ()),
            total_steps=recipe.epochs * sampler.steps_per_epoch,
            prompts=_prompts(options, validation),
        ),
    )
    network = objective.network()
    # A run that goes on needs them no more, and they may be gone.
    if start is not None and decided_by_main(world, Path(start.file).exists):
        taken = begin_from(network.get_submodule(objective.encoder.removesuffix(".")), start)
        if world.is_main:
            print(taken.line(start.file), flush=True)
    network = batchnorm.prepare(network, recipe.model.batch_norm)
    objective.begin(network)
    samples = recipe.global_batch // world.size // accumulation
    # An objective may ask the other ranks before it asks the network, so all of them try.
    decided_by_all(lambda: check_first_pass(recipe, objective, network, samples=samples))
    level = shard_set.level(options.level)
    engine = build_engine(options.engine, network, recipe, accumulation=accumulation)
    wait_no_longer(world)
    watch = build_watch(options, world, shard_set, objective, engine)
    meta = describe_run(options, objective.architecture, shard_set, world_size=world.size, start=start)
    state = RunState(
        recipe,
        options.run_dir,
        world,
        engine=engine,
        sampler=sampler,
        meta=meta,
        watch=watch,
        beside=objective.tensors(),
        encoder=objective.encoder,
        probing=probing,
    )
    trainer = Trainer(
        recipe,
        world,
        engine=engine,
        objective=objective,
        sampler=sampler,
        shard_set=shard_set,
        validation=validation,
        state=state,
        recorder=Recorder(
            options.run_dir,
            is_main=world.is_main,
            steps_per_epoch=sampler.steps_per_epoch,
            global_batch=recipe.global_batch,
            device=engine.device,
            started=started,
            work=work_of(recipe, len(shard_set.classes or ()), devices=world.size, device=engine.device)
            if world.is_main
            else ALONE,
            observers=[
                *build_observers(options, sampler.steps_per_epoch),
                *feed_limits(recipe, shard_set, sampler, engine.device, world.size),
            ]
            if world.is_main
            else [],
            on_error=state.saver.note,
        ),
        tracer=Tracer(options.run_dir, options.profile) if world.is_main and options.profile else None,
    )
    dataset = ShardDataset(
        shard_set,
        level.name,
        training_transform(recipe.data),
        objective.text_transform or _no_text,
        seed=options.seed,
        skip_budget=recipe.data.skip_budget,
        cache=recipe.data.cache,
        ledger=options.run_dir / layout.LOGS / "skipped.jsonl",
        with_truth=True,
    )
    loader = training_loader(
        dataset,
        sampler,
        workers=recipe.data.workers,
        timeout=world.timeout,
        pin_memory=torch.cuda.is_available(),
    )
    return trainer, loader


def build_watch(
    options: Options, world: World, shard_set: ShardSet, objective: Objective, engine: Engine
) -> NoiseWatch:
    """Return what tells of the noise of a run. Collective.

    Raises:
        UserError: If every sample is to be remembered, and the objective predicts nothing of one.
    """
    recipe, level = options.recipe, shard_set.level(options.level)
    of_classes = shard_set.kind == "class" and objective.judged_by == "scores"
    if options.memorisation and not (of_classes or objective.prompted):
        raise UserError(
            f"--memorisation: the objective {recipe.objective} predicts neither classes nor captions",
            mend="leave it out",
        )
    fixed = None
    # Training passes tell neither what single images are taken for where they are mixed, nor which caption of
    # many an image is nearest to.
    if objective.prompted or (of_classes and (recipe.loss.mixup or recipe.loss.cutmix)):
        fixed = FixedSample(
            shard_set, level.name, testing_transform(recipe.data), world, workers=recipe.data.workers
        )
    return NoiseWatch(
        shard_set.kind,
        recipe.global_batch,
        engine.device,
        fixed=fixed,
        presentations=Presentations(shard_set.num_samples) if options.memorisation else None,
        memorised=partial(write_memorisation, options.run_dir / layout.MEMORISATION, shard_set, level.name),
    )


def build_objective(recipe: Recipe, setting: Setting) -> Objective:
    """Return the objective of a recipe."""
    kind: Any = declared(recipe.objective)
    objective: Objective = kind(recipe, setting)
    return objective


def _no_text(caption: str) -> int:  # noqa: ARG001 - a transform of captions
    """Stand for a caption that nothing reads."""
    return 0


def _check_kind(options: Options, shard_set: ShardSet) -> None:
    needed = declared(options.recipe.objective).takes
    if needed != "any" and (shard_set.kind == "class") != (needed == "class"):
        raise UserError(
            f"--shards {shard_set.path}: a {shard_set.kind} set, and the recipe {options.recipe_name} "
            f"trains {options.recipe.objective}",
            possible=f"{needed} sets",
            mend="name another recipe or another set",
        )


def _prompts(options: Options, validation: ValidationData | None) -> Prompts | None:
    """Return what zero-shot validation asks, where it is to be had."""
    objective: Any = declared(options.recipe.objective)
    for flag, value in (("--class-names", options.class_names), ("--templates", options.templates)):
        if value is not None and not objective.prompted:
            raise UserError(
                f"{flag} {value}: the recipe {options.recipe_name} asks no prompts when it validates",
                mend=f"leave out {flag}",
            )
        if value is not None and validation is None:
            raise UserError(
                f"{flag} {value}: there is nothing to validate on", mend="name a --validation set"
            )
    if validation is None or not objective.prompted:
        return None
    return read_prompts(options.class_names, options.templates, validation.classes)


def share_cores(world: World) -> None:
    """Divide the cores among the processes of this machine, where nobody has."""
    if "OMP_NUM_THREADS" not in os.environ:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))


def idle_in_run(
    recipe: Recipe, *, engine: EngineName, world_size: int, steps_per_epoch: int, validated: bool
) -> Iterator[str]:
    """Yield a line for each value of a recipe that has no effect in this run, or not the one that it says.

    It is no mistake of the recipe's, which is the same on any engine, number of processes and set of data.

    Args:
        recipe: The recipe.
        engine: How processes share the work.
        world_size: Number of processes.
        steps_per_epoch: Of the recipe on the data.
        validated: Whether there is anything to validate on.
    """
    config, schedule, saved = recipe.engine, recipe.schedule, recipe.checkpoints
    total, warmup = recipe.epochs * steps_per_epoch, warmup_steps(recipe, steps_per_epoch)
    if engine != "deepspeed" and config.zero_stage != default_of(recipe, "engine.zero_stage"):
        yield f"recipe.engine.zero_stage {config.zero_stage}: no effect with --engine {engine}"
    if config.shard_group >= world_size and config.shard_group:
        yield f"recipe.engine.shard_group {config.shard_group}: no effect, all processes are {world_size}"
    if config.micro_batch >= recipe.global_batch // world_size:
        yield (
            f"recipe.engine.micro_batch {config.micro_batch}: no effect, a process has "
            f"{recipe.global_batch // world_size} samples a step"
        )
    if recipe.model.batch_norm == "sync" and world_size == 1:
        yield "recipe.model.batch_norm sync: no effect in one process"
    if recipe.validate_every != default_of(recipe, "validate_every") and not validated:
        yield f"recipe.validate_every {recipe.validate_every}: no effect without a --validation set"
    if warmup <= 1 and (schedule.warmup_epochs or schedule.warmup_steps):
        yield (
            f"recipe.schedule: no effect of the warm-up, which is {warmup} steps long where an epoch has "
            f"{steps_per_epoch}"
        )
    elif warmup >= total:
        yield (
            f"recipe.schedule: the warm-up takes {warmup} steps and the run {total}, so that it ends below "
            f"recipe.optimizer.lr {recipe.optimizer.lr} and before the schedule {schedule.name} begins"
        )
    # The average's own warm-up, see pretrain.ema.
    reached = (1 + total) / (10 + total)
    if recipe.ema > reached:
        yield f"recipe.ema {recipe.ema}: within {total} steps the same as any decay from {reached:.4g} on"
    if saved.keep_every and not any(
        period and math.lcm(period, saved.keep_every) <= total
        for period in (saved.every_steps, saved.every_epochs * steps_per_epoch)
    ):
        yield f"recipe.checkpoints.keep_every {saved.keep_every}: no effect, no step saved is a multiple"
