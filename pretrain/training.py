"""The training loop: resume, step, agree, validate, save."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from nml.errors import UserError
from nml.recipe import Recipe
from pretrain import batchnorm
from pretrain.ending import STOPPED_STATUS, StopRequest
from pretrain.engines import Engine, Update
from pretrain.liveness import COMPUTING, READING, SAVING, VALIDATING, WAITING, WRITING, Liveness
from pretrain.loading import Batch, StepSampler
from pretrain.objective import Objective
from pretrain.profiling import Tracer
from pretrain.recording import Recorder, StepReport
from pretrain.run_state import RunState
from pretrain.schedule import learning_rate
from pretrain.stragglers import Stopwatch
from pretrain.transforms import normalised
from pretrain.validation import ValidationData, validate
from pretrain.world import World, decided_by_main
from shards.shardset import ShardSet
from shards.yuv import PACKED_DIMENSIONS, unpacked

# Sample keys that an error names before it points to the file that has them all.
_NAMED = 16


class _Word(NamedTuple):
    """What the ranks tell each other after a backward pass.

    Attributes:
        loss: Mean over the ranks.
        overflowed: Whether running statistics of one are not finite.
        stopped: Whether one was asked to stop.
        failed: Whether the save of one failed.
        ranks: A :class:`pretrain.stragglers.OwnTime` of each a row.
    """

    loss: float
    overflowed: bool
    stopped: bool
    failed: bool
    ranks: np.ndarray


class Trainer:
    """One run, from where its newest checkpoint left off to its last step.

    Args:
        recipe: The recipe.
        world: This process.
        engine: The engine, with fresh weights.
        objective: The objective.
        sampler: The order; positioned by the checkpoint.
        shard_set: The data, for naming samples.
        validation: What to validate on; None for nothing.
        state: How far the run is, and its checkpoints.
        recorder: Hears of every step.
        tracer: Traces the first steps; None for no trace.
    """

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        *,
        engine: Engine,
        objective: Objective,
        sampler: StepSampler,
        shard_set: ShardSet,
        validation: ValidationData | None,
        state: RunState,
        recorder: Recorder,
        tracer: Tracer | None = None,
    ) -> None:
        self.recipe, self.world = recipe, world
        self.engine, self.objective, self.sampler = engine, objective, sampler
        self.shard_set, self.validation = shard_set, validation
        self.state, self.recorder, self.tracer = state, recorder, tracer
        self.stop = StopRequest()
        self.liveness = Liveness(world)
        self.stopwatch = Stopwatch(self.liveness.pulse, engine.device)
        # Every batch is normalised into the same memory, as a step is over before the next begins: on a
        # CPU the first touch of fresh memory takes longer than the arithmetic.
        self._floats: torch.Tensor | None = None
        self.steps_per_epoch = sampler.steps_per_epoch
        self.total = recipe.epochs * self.steps_per_epoch
        batchnorm.set_training(engine.network, recipe.model.batch_norm)

    def run(self, loader: Iterable[Batch]) -> int:
        """Resume and train; return the exit status. Collective."""
        ledger = self.recorder.ledger
        with ledger.losing("startup", since_start=True):
            self.liveness.start()
            ledger.hosts = self.liveness.hosts
            self.state.resume()
            decided_by_main(self.world, lambda: self.recorder.open(self.state.step))
            if self.world.is_main and self.state.step:
                print(f"resuming at step {self.state.step} of {self.total}", flush=True)
            if self.world.size > 2 and self.engine.name == "ddp":
                self.warm_up()
        try:
            return self.train(iter(loader))
        finally:
            self.liveness.stop()

    def warm_up(self) -> None:
        """Pass one empty batch forward and back, and forget it.

        ddp rearranges its buckets after the first backward pass, and with them the order in which
        more than two ranks' gradients are summed: a resumed run would differ in the last bits.
        """
        batch = self.objective.empty_batch(self.recipe.global_batch // self.world.size)
        with batchnorm.unchanged_statistics(self.engine.network):
            self.objective.backward(self.engine, self._move(batch), 0)
        self.engine.discard()

    def train(self, batches: Iterator[Batch]) -> int:
        """Train to the end, or to a stop signal; return the exit status. Collective."""
        # What stood still before is startup.
        self.stopwatch.tell()
        while self.state.step < self.total:
            waiting = time.perf_counter()
            with self.stopwatch.reading(), self.liveness.phase(READING):
                batch = self._move(next(batches))
            stopped = self.train_step(batch, time.perf_counter() - waiting)
            if self.tracer is not None:
                self.tracer.step(self.state.step, last=stopped or self.state.step == self.total)
            self._end_of_epoch()
            if stopped:
                return self._stop()
        self._save(wait=True)
        decided_by_main(self.world, self.state.watch.write)
        self.recorder.done(
            self.state.step,
            {
                "epochs": self.recipe.epochs,
                "validation": self.state.validation,
                "set_fingerprint": self.shard_set.fingerprint,
            },
        )
        return 0

    def train_step(self, batch: Batch, waited: float) -> bool:
        """Do one step; return whether any rank was asked to stop."""
        start = time.perf_counter()
        state = self.state
        lr = learning_rate(
            self.recipe, state.step, steps_per_epoch=self.steps_per_epoch, total_steps=self.total
        )
        with self.stopwatch.computing(), self.liveness.phase(COMPUTING):
            loss = self.objective.backward(self.engine, batch, state.step)
        with self.liveness.phase(WAITING):
            word = self._agree(loss)
        self.liveness.stepped()
        with self.stopwatch.computing(), self.liveness.phase(COMPUTING):
            norm, applied = self._update(batch, word, lr)
            if applied:
                state.watch.see(state.step, batch, self.objective.seen)
        state.step += 1
        with self.liveness.phase(WRITING):
            seconds = time.perf_counter() - start
            report = StepReport(word.loss, lr, norm, seconds, waited, word.ranks, applied)
            self.recorder.step(state.step, report)
        if word.failed:
            state.saver.wait()
        return word.stopped

    def _agree(self, loss: torch.Tensor) -> _Word:
        """Learn how the step went on all ranks. Collective."""
        stopped, failed = self.stop.signal is not None, self.state.saver.failed
        own = torch.tensor([0.0, 0.0, float(stopped), float(failed), *self.stopwatch.tell()])
        # The first four are sums; of the times each rank has a place of its own.
        each = len(own) - 4
        word = torch.zeros(4 + each * self.world.size)
        word[:4], word[4 + each * self.world.rank :][:each] = own[:4], own[4:]
        # On the device of the loss: the one wait for it is that for the answer.
        word = word.to(self.engine.device)
        word[0] = loss.detach()
        word[1] = self.state.statistics.look().logical_not()
        dist.all_reduce(word)
        told = word.cpu().numpy()
        total, overflowed, stops, failures = told[:4].tolist()
        ranks = told[4:].reshape(-1, each)
        return _Word(total / self.world.size, bool(overflowed), bool(stops), bool(failures), ranks)

    def _update(self, batch: Batch, word: _Word, lr: float) -> Update:
        """Update the weights, unless something is not finite; then the step leaves nothing behind."""
        if word.overflowed or not math.isfinite(word.loss):
            self.engine.discard()
            self.state.statistics.take_back()
            finite = math.isfinite(word.loss)
            self._count(batch, "running statistics overflow" if finite else f"the loss is {word.loss}")
            return Update(0.0, applied=False)
        update = self.engine.step(lr)
        if update.applied:
            self.objective.after_step(self.engine, self.state.step)
            self.state.stepped()
            return update
        self.state.statistics.take_back()
        if not math.isfinite(update.norm):
            self._count(batch, f"the norm of the gradient is {update.norm}")
        return update

    def _count(self, batch: Batch, why: str) -> None:
        """Count a step that is left out, and stop where too many were left out in a row. Collective."""
        self.state.skipped += 1
        if self.state.skipped <= self.recipe.skip_nonfinite:
            return
        found: list[list[str]] = [[] for _ in range(self.world.size)]
        dist.all_gather_object(found, [self.shard_set.index.place(int(index)).key for index in batch.indices])
        keys = sorted(chain(*found))
        note = self.recorder.note("not-finite.json", {"step": self.state.step, "why": why, "samples": keys})
        more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
        raise UserError(
            f"step {self.state.step}: {why}, {self.state.skipped} steps in a row are not finite; "
            f"samples: {', '.join(keys[:_NAMED])}{more}, all in {note}",
            mend="lower --recipe.optimizer.lr, clip with --recipe.optimizer.clip, or look at those samples",
        )

    def _end_of_epoch(self) -> None:
        """Validate and save where it is time to."""
        config, step = self.recipe.checkpoints, self.state.step
        epoch, within = divmod(step, self.steps_per_epoch)
        if within == 0:
            self._tell_noise(epoch)
            if epoch % self.recipe.validate_every == 0 or step == self.total:
                self._validate()
            if config.every_epochs and epoch % config.every_epochs == 0:
                self._save()
        if config.every_steps and step % config.every_steps == 0:
            self._save()

    def _tell_noise(self, epoch: int) -> None:
        with self.recorder.ledger.losing("validation"), self.liveness.phase(VALIDATING):
            told = self.state.watch.end_of_epoch(epoch, self.engine, self.objective)
        for line in told:
            self.recorder.tell("noise", self.state.step, line)

    def _validate(self) -> None:
        if self.validation is None:
            return
        losing, phase = self.recorder.ledger.losing("validation"), self.liveness.phase(VALIDATING)
        with losing, phase:
            self.state.validation = validate(
                self.engine,
                self.objective,
                self.validation,
                self.world,
                average=self.state.average,
                workers=self.recipe.data.workers,
            )
        self.recorder.tell("validation", self.state.step, self.state.validation)

    def _save(self, *, wait: bool = False) -> None:
        with self.recorder.ledger.losing("checkpoint"), self.liveness.phase(SAVING):
            self.state.save()
            if wait:
                self.state.saver.wait()

    def _stop(self) -> int:
        self._save(wait=True)
        self.recorder.close()
        if self.world.is_main:
            print(
                f"stopped at step {self.state.step} of {self.total}"
                f" ({self.stop.name or 'by another rank'}); the same command continues",
                file=sys.stderr,
            )
        return STOPPED_STATUS

    def _move(self, batch: Batch) -> Batch:
        layout_of_images = (
            torch.channels_last if self.recipe.engine.channels_last else torch.contiguous_format
        )
        images = batch.images.to(self.engine.device, non_blocking=True)
        if images.ndim == PACKED_DIMENSIONS:
            images = unpacked(images)
        images = images.contiguous(memory_format=layout_of_images)
        if self._floats is None and images.dtype == torch.uint8:
            self._floats = torch.empty_like(images, dtype=torch.float32)
        images = normalised(images, self.recipe.data.mean, self.recipe.data.std, out=self._floats)
        targets = batch.targets.to(self.engine.device, non_blocking=True)
        truth = None if batch.truth is None else batch.truth.to(self.engine.device, non_blocking=True)
        return Batch(images, targets, batch.indices, truth)
