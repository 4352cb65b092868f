"""The training loop: resume, step, agree, validate, save."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

import torch
import torch.distributed as dist

from nml.errors import UserError, some
from nml.recipe import Recipe
from pretrain import batchnorm
from pretrain.agreement import Agreement, Outcome, Taken
from pretrain.ending import STOPPED_STATUS, StopRequest
from pretrain.engines import Engine
from pretrain.liveness import COMPUTING, READING, SAVING, VALIDATING, WAITING, WRITING, Liveness
from pretrain.loading import Batch, StepSampler
from pretrain.objective import Objective
from pretrain.profiling import Tracer
from pretrain.recording import Recorder, StepReport
from pretrain.run_state import RunState
from pretrain.schedule import learning_rate
from pretrain.stragglers import Stopwatch
from pretrain.upload import Uploader, uploaded
from pretrain.validation import ValidationData, validate
from pretrain.world import World, decided_by_main
from shards.shardset import ShardSet

# Sample keys that an error names before it points to the file that has them all.
_NAMED = 16


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
        self.agreement = Agreement(world, engine.device, engine.lag)
        # Steps of which the host has not heard, at most as many as the lag says; whether to stop.
        self._unheard: deque[Taken] = deque()
        self.stopping = False
        self.upload = Uploader(recipe, engine.device)
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
            self.objective.backward(self.engine, self.upload(batch), 0)
        self.engine.discard()

    def train(self, batches: Iterator[Batch]) -> int:
        """Train to the end, or to a stop signal; return the exit status. Collective."""
        # What stood still before is startup.
        self.stopwatch.tell()
        batches = uploaded(batches, self.upload, self.engine.device)
        while self.state.step < self.total:
            waiting = time.perf_counter()
            with self.stopwatch.reading(), self.liveness.phase(READING):
                batch = next(batches)
            self.train_step(batch, time.perf_counter() - waiting)
            if self._ends_epoch() or self._is_to_save():
                self._hear_all()
            if self.tracer is not None:
                self.tracer.step(self.state.step, last=self.stopping or self.state.step == self.total)
            self._end_of_epoch()
            if self.stopping:
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

    def train_step(self, batch: Batch, waited: float) -> None:
        """Take one step, and hear what became of the one before which is the engine's ``lag`` back."""
        start = time.perf_counter()
        state, late = self.state, self.engine.lag > 0
        lr = learning_rate(
            self.recipe, state.step, steps_per_epoch=self.steps_per_epoch, total_steps=self.total
        )
        with self.stopwatch.computing(), self.liveness.phase(COMPUTING):
            loss = self.objective.backward(self.engine, batch, state.step)
        with self.liveness.phase(WAITING):
            word = self.agreement.tell(
                loss,
                state.statistics.look(),
                stopped=self.stop.signal is not None,
                failed=state.saver.failed,
                own=self.stopwatch.tell(),
            )
            outcome = None if late else self.agreement.read(word)
        with self.stopwatch.computing(), self.liveness.phase(COMPUTING):
            if outcome is None:
                self._update_if(batch, word, lr)
            else:
                outcome = self._update(batch, outcome, lr)
        taken = Taken(state.step, lr, waited, batch.indices, outcome)
        self._unheard.append(taken)
        state.step += 1
        heard = self._hear() if len(self._unheard) > self.engine.lag else None
        taken.seconds = time.perf_counter() - start
        if heard is not None:
            self._record(heard)

    def _update(self, batch: Batch, outcome: Outcome, lr: float) -> Outcome:
        """Update the weights, unless something is not finite; then the step leaves nothing behind."""
        state = self.state
        if not outcome.trains:
            self.engine.discard()
            state.statistics.take_back()
            return outcome
        update = self.engine.step(lr)
        if update.applied:
            self.objective.after_step(self.engine, state.step)
            state.stepped()
            state.watch.see(state.step, batch, self.objective.seen)
        else:
            state.statistics.take_back()
        return outcome._replace(norm=update.norm, applied=update.applied)

    def _update_if(self, batch: Batch, word: torch.Tensor, lr: float) -> None:
        """Do the same without knowing whether something is not finite: the device does."""
        state = self.state
        norm, applied = self.engine.step_if(lr, self.agreement.trains(word))
        state.stepped_if(applied, lambda: self.objective.after_step(self.engine, state.step))
        state.watch.see(state.step, batch, self.objective.seen, applied)
        self.agreement.send(word, norm, applied)

    def _hear(self) -> Taken:
        """Return the earliest step of which the host has not heard, with what became of it."""
        taken = self._unheard.popleft()
        if taken.outcome is None:
            with self.liveness.phase(WAITING):
                taken.outcome = self.agreement.hear()
        self.liveness.stepped()
        return taken

    def _hear_all(self) -> None:
        """Hear of all steps, before the device is asked for something else. Collective."""
        while self._unheard:
            start = time.perf_counter()
            taken = self._hear()
            taken.seconds += time.perf_counter() - start
            self._record(taken)

    def _record(self, taken: Taken) -> None:
        """Take a step of which the host has heard into the books. Collective."""
        outcome = taken.outcome
        assert outcome is not None
        if outcome.applied:
            self.state.skipped = 0
        elif outcome.fault:
            self._count(taken, outcome.fault)
        with self.liveness.phase(WRITING):
            report = StepReport(
                loss=outcome.loss,
                lr=taken.lr,
                grad_norm=outcome.norm if self.recipe.optimizer.clip else 0.0,
                seconds=taken.seconds,
                waited=taken.waited,
                ranks=outcome.ranks,
                applied=outcome.applied,
            )
            self.recorder.step(taken.number + 1, report)
        if outcome.failed:
            self.state.saver.wait()
        self.stopping |= outcome.stopped

    def _count(self, taken: Taken, why: str) -> None:
        """Count a step that is left out, and stop where too many were left out in a row. Collective."""
        self.state.skipped += 1
        if self.state.skipped <= self.recipe.skip_nonfinite:
            return
        found: list[list[str]] = [[] for _ in range(self.world.size)]
        dist.all_gather_object(found, [self.shard_set.index.place(int(index)).key for index in taken.indices])
        keys = sorted(chain(*found))
        note = self.recorder.note("not-finite.json", {"step": taken.number, "why": why, "samples": keys})
        raise UserError(
            f"step {taken.number}: {why}, {self.state.skipped} steps in a row are not finite; "
            f"samples: {some(keys, _NAMED)}, all in {note}",
            mend="lower --recipe.optimizer.lr, clip with --recipe.optimizer.clip, or look at those samples",
        )

    def _ends_epoch(self) -> bool:
        return self.state.step % self.steps_per_epoch == 0

    def _is_to_save(self) -> bool:
        every = self.recipe.checkpoints.every_steps
        return bool(every) and self.state.step % every == 0

    def _end_of_epoch(self) -> None:
        """Validate and save where it is time to."""
        config, step = self.recipe.checkpoints, self.state.step
        epoch = step // self.steps_per_epoch
        if self._ends_epoch():
            self._tell_noise(epoch)
            if epoch % self.recipe.validate_every == 0 or step == self.total:
                self._validate()
            if self.state.probed or (config.every_epochs and epoch % config.every_epochs == 0):
                self._save()
        if self._is_to_save():
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
        self._hear_all()
        self._save(wait=True)
        self.recorder.close()
        if self.world.is_main:
            print(
                f"stopped at step {self.state.step} of {self.total}"
                f" ({self.stop.name or 'by another rank'}); the same command continues",
                file=sys.stderr,
            )
        return STOPPED_STATUS
