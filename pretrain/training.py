"""The training loop: resume, step, agree, record, save."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nml.errors import UserError
from nml.files import write_json
from pretrain import batchnorm, layout
from pretrain.checkpoints import Checkpoint, newest_checkpoint
from pretrain.ema import Average
from pretrain.engines import Engine, Tensors
from pretrain.exporting import describe_moment
from pretrain.loading import Batch, StepSampler
from pretrain.metrics import Ledger, Metrics
from pretrain.objective import Objective
from pretrain.profiling import trace
from pretrain.recipe import Recipe
from pretrain.saving import Saver
from pretrain.schedule import learning_rate
from pretrain.stopping import STOPPED_STATUS, StopRequest
from pretrain.validation import ValidationData, validate
from pretrain.world import World, decided_by_main
from shards.shardset import ShardSet


class Trainer:
    """One run, from where its newest checkpoint left off to its last step.

    Args:
        recipe: The recipe.
        run: The run folder.
        world: This process.
        engine: The engine, with fresh weights.
        objective: The objective.
        sampler: The order; positioned by the checkpoint.
        shard_set: The data, for naming samples.
        validation: What to validate on; None for nothing.
        meta: The part of meta.json that is known beforehand.
        started: When the process began, by time.perf_counter().
        observers: Called with every metrics line on rank 0.
        profile: Steps to trace; 0 for none.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        world: World,
        *,
        engine: Engine,
        objective: Objective,
        sampler: StepSampler,
        shard_set: ShardSet,
        validation: ValidationData | None,
        meta: dict[str, Any],
        started: float,
        observers: list[Any],
        profile: int = 0,
    ) -> None:
        self.recipe, self.folder, self.world = recipe, run, world
        self.engine, self.objective, self.sampler = engine, objective, sampler
        self.shard_set, self.validation, self.meta = shard_set, validation, meta
        self.observers, self._started, self._profile = observers, started, profile
        self.ledger, self.stop = Ledger(), StopRequest()
        self.steps_per_epoch = sampler.steps_per_epoch
        self.total = recipe.epochs * self.steps_per_epoch
        self.average = Average(engine.network, recipe.ema) if recipe.ema else None
        self.saver = Saver(run, recipe.checkpoints)
        self.step = 0
        self.skipped = 0
        self.last_validation: dict[str, Any] | None = None
        self.metrics: Metrics | None = None
        self._saved = -1
        batchnorm.set_training(engine.network, recipe.model.batch_norm)

    def resume(self) -> None:
        """Load the newest whole checkpoint, if there is one. Collective."""
        found = decided_by_main(self.world, lambda: newest_checkpoint(self.folder))
        if found is not None:
            self._load(found)
        self.metrics = (
            Metrics(self.folder / layout.METRICS, self.step, self.ledger) if self.world.is_main else None
        )
        if self.world.is_main and self.step:
            print(f"resuming at step {self.step} of {self.total}", flush=True)

    def _load(self, checkpoint: Checkpoint) -> None:
        record = checkpoint.record
        self.sampler.restore(record["sampler"], checkpoint.step)
        same = record["world_size"] == self.world.size
        shared, own = self._tensors()
        self.engine.load(checkpoint.state, shared, own if same else {}, world_size=record["world_size"])
        mean = {
            name.removeprefix("mean/"): value for name, value in shared.items() if name.startswith("mean/")
        }
        batchnorm.set_statistics(self.engine.network, own if same else mean)
        if self.average is not None:
            for name, value in self.average.shadow.items():
                value.copy_(shared[f"ema/{name}"])
        self.step = self._saved = checkpoint.step
        self.skipped = record["skipped"]
        self.last_validation = record["validation"]

    def run(self, loader: Iterable[Batch]) -> int:
        """Resume and train; return the exit status. Collective."""
        self.resume()
        if self.world.size > 2 and self.engine.name == "ddp":
            self.warm_up()
        self.ledger.lost["startup"] += time.perf_counter() - self._started
        return self.train(iter(loader))

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
        tracer = trace(self.folder, self._profile) if self.world.is_main else None
        while self.step < self.total:
            if tracer is not None:
                tracer.step()
            with self.ledger.losing("data_wait"):
                waiting = time.perf_counter()
                batch = self._move(next(batches))
                waited = time.perf_counter() - waiting
            stopped = self.train_step(batch, waited)
            self._end_of_epoch()
            if stopped:
                return self._stop()
        if tracer is not None:
            tracer.stop()
        self._save()
        with self.ledger.losing("checkpoint"):
            self.saver.wait()
        self._done()
        return 0

    def train_step(self, batch: Batch, waited: float) -> bool:
        """Do one step; return whether any rank was asked to stop."""
        start = time.perf_counter()
        lr = learning_rate(
            self.recipe, self.step, steps_per_epoch=self.steps_per_epoch, total_steps=self.total
        )
        loss = self.objective.backward(self.engine, batch, self.step)
        mean, stopped, failed = self._agree(loss)
        norm = 0.0
        if math.isfinite(mean):
            norm = self.engine.step(lr)
            self.objective.after_step(self.engine)
            self.skipped = 0
            if self.average is not None:
                self.average.update(self.engine.network, self.step)
        else:
            self._skip(batch, mean)
        self.step += 1
        seconds = time.perf_counter() - start
        self.ledger.useful += seconds
        self._record(mean, lr, norm, seconds, waited)
        if failed:
            self.saver.wait()
        return stopped

    def _agree(self, loss: torch.Tensor) -> tuple[float, bool, bool]:
        """Return the mean loss over the ranks, whether one was stopped, whether one's save failed."""
        word = torch.tensor([float(loss), float(self.stop.signal is not None), float(self.saver.failed)])
        dist.all_reduce(word)
        total, stopped, failed = word.tolist()
        return total / self.world.size, bool(stopped), bool(failed)

    def _skip(self, batch: Batch, loss: float) -> None:
        self.skipped += 1
        if self.skipped <= self.recipe.skip_nonfinite:
            self.engine.discard()
            return
        keys: list[list[str]] = [[] for _ in range(self.world.size)]
        dist.all_gather_object(keys, [self.shard_set.index.place(int(index)).key for index in batch.indices])
        raise UserError(
            f"step {self.step}: the loss is {loss}, {self.skipped} steps in a row; "
            f"samples: {', '.join(sorted(chain(*keys)))}",
            mend="lower --recipe.optimizer.lr, clip with --recipe.optimizer.clip, or look at those samples",
        )

    def _end_of_epoch(self) -> None:
        """Validate and save where it is time to."""
        config = self.recipe.checkpoints
        epoch, within = divmod(self.step, self.steps_per_epoch)
        if within == 0:
            if epoch % self.recipe.validate_every == 0 or self.step == self.total:
                self._validate()
            if epoch % max(1, config.every_epochs) == 0 and config.every_epochs:
                self._save()
        if config.every_steps and self.step % config.every_steps == 0:
            self._save()

    def _validate(self) -> None:
        if self.validation is None:
            return
        carried = self.average.in_place(self.engine.network) if self.average else nullcontext()
        with self.ledger.losing("validation"), carried:
            self.last_validation = validate(
                self.engine, self.objective, self.validation, self.world, self.recipe.model.batch_norm
            )
        self._tell("validation", self.last_validation)

    def _save(self) -> None:
        if self._saved == self.step:
            return
        self._saved = self.step
        with self.ledger.losing("checkpoint"):
            shared, own = self._tensors()
            carried = self.average.in_place(self.engine.network) if self.average else nullcontext()
            with carried:
                weights = self.engine.weights()
            names = self.engine.network.state_dict().keys() if self.world.is_main else ()
            mean = {name.removeprefix("mean/"): value for name, value in shared.items()}
            weights |= {name: mean[name] for name in names if name in mean}
            self.saver.start(
                self.engine,
                step=self.step,
                record=self._marker(),
                shared=shared,
                own=own,
                export=(weights, self.meta | self._moment()),
            )

    def _tensors(self) -> tuple[Tensors, Tensors]:
        """Return what belongs to all ranks beside the engine's state, and what is this rank's own."""
        shared = {f"mean/{k}": v for k, v in batchnorm.averaged_statistics(self.engine.network).items()}
        if self.average is not None:
            shared |= {f"ema/{name}": value for name, value in self.average.shadow.items()}
        return shared, batchnorm.running_statistics(self.engine.network)

    def _marker(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "world_size": self.world.size,
            "engine": self.engine.name,
            "sampler": self.sampler.state(self.step),
            "skipped": self.skipped,
            "validation": self.last_validation,
        }

    def _moment(self) -> dict[str, Any]:
        return describe_moment(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            samples_seen=self.step * self.recipe.global_batch,
            validation=self.last_validation,
        )

    def _record(self, loss: float, lr: float, norm: float, seconds: float, waited: float) -> None:
        batch = self.recipe.global_batch
        values = {
            "epoch": self.step / self.steps_per_epoch,
            "loss": loss if math.isfinite(loss) else None,
            "lr": lr,
            "grad_norm": norm or None,
            "samples_seen": self.step * batch,
            "samples_per_s": round(batch / (seconds + waited), 2),
            "step_s": round(seconds, 5),
            "data_wait_s": round(waited, 5),
            "memory_mb": _memory_mb(self.engine.device),
        }
        self._tell("step", values)

    def _tell(self, event: str, values: dict[str, Any]) -> None:
        if self.metrics is not None:
            line = self.metrics.write(event, self.step, values)
            for observer in self.observers:
                observer(line)

    def _stop(self) -> int:
        self._save()
        self.saver.wait()
        if self.world.is_main:
            print(f"stopped at step {self.step} of {self.total}; the same command continues", file=sys.stderr)
        return STOPPED_STATUS

    def _done(self) -> None:
        if self.metrics is None:
            return
        self.metrics.close()
        record = {
            "step": self.step,
            "epochs": self.recipe.epochs,
            "seconds": round(self.ledger.useful + sum(self.ledger.lost.values()), 1),
            "goodput": round(self.ledger.goodput, 4),
            "validation": self.last_validation,
            "set_fingerprint": self.shard_set.fingerprint,
        }
        write_json(self.folder / layout.DONE, record)

    def _move(self, batch: Batch) -> Batch:
        layout_of_images = (
            torch.channels_last if self.recipe.engine.channels_last else torch.contiguous_format
        )
        images = batch.images.to(self.engine.device, non_blocking=True, memory_format=layout_of_images)
        return Batch(images, batch.targets.to(self.engine.device, non_blocking=True), batch.indices)


def _memory_mb(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
