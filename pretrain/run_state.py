"""How far a run is, and what a checkpoint holds so that it goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from nml.errors import UserError
from nml.recipe import Recipe
from pretrain import batchnorm
from pretrain.checkpoints import Checkpoint
from pretrain.ema import Average, local
from pretrain.engines import Engine, Tensors
from pretrain.exporting import describe_moment
from pretrain.loading import StepSampler
from pretrain.saving import Saver, recover
from pretrain.world import World, decided_by_main


class RunState:
    """The position of a run and everything that is saved with it.

    Args:
        recipe: The recipe.
        folder: The run folder.
        world: This process.
        engine: The engine, with fresh weights.
        sampler: The order; positioned by the checkpoint.
        meta: The part of meta.json that is known beforehand.

    Attributes:
        step: Steps done.
        skipped: Steps in a row whose loss was not finite.
        validation: The last result, None before the first.
        average: The moving average of the weights, if the recipe has one.
        saver: Writes the checkpoints.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        world: World,
        *,
        engine: Engine,
        sampler: StepSampler,
        meta: dict[str, Any],
    ) -> None:
        self.step = 0
        self.skipped = 0
        self.validation: dict[str, Any] | None = None
        self.average = Average(engine.network, recipe.ema) if recipe.ema else None
        self.saver = Saver(folder, recipe.checkpoints)
        self._recipe, self._folder, self._world = recipe, folder, world
        self._engine, self._sampler, self._meta = engine, sampler, meta
        self._saved = -1

    def resume(self) -> None:
        """Load the newest whole checkpoint, if there is one. Collective."""
        found = decided_by_main(self._world, lambda: recover(self._folder))
        if found is not None:
            self._load(found)

    def _load(self, checkpoint: Checkpoint) -> None:
        record = checkpoint.record
        self._sampler.restore(record["sampler"], checkpoint.step)
        same = record["world_size"] == self._world.size
        shared, own = self._tensors()
        self._engine.load(checkpoint.state, shared, own if same else {}, world_size=record["world_size"])
        mean = {
            name.removeprefix("mean/"): value for name, value in shared.items() if name.startswith("mean/")
        }
        batchnorm.set_statistics(self._engine.network, own if same else mean)
        if self.average is not None:
            statistics = own if same else shared
            for name, value in self.average.shadow.items():
                value.copy_(shared[f"ema/{name}"])
            for name, value in self.average.statistics.items():
                value.copy_(statistics[f"ema/{name}"])
        self.step = self._saved = checkpoint.step
        self.skipped = record["skipped"]
        self.validation = record["validation"]

    def save(self) -> None:
        """Save this step, unless it is saved already. Collective.

        Raises:
            UserError: If the save before failed, or the weights are not worth saving.
        """
        if self._saved == self.step:
            return
        if not _finite(self._engine.network):
            raise UserError(
                f"step {self.step}: weights are infinite or NaN, and are not saved",
                mend="lower --recipe.optimizer.lr, or clip with --recipe.optimizer.clip",
            )
        self._saved = self.step
        shared, own = self._tensors()
        with self.averaged():
            weights = self._engine.weights()
        # Counts of batches have no moving average.
        mean = {name.removeprefix("mean/"): value for name, value in shared.items()}
        names = self._engine.network.state_dict().keys() if self._world.is_main else ()
        weights |= {name: shared.get(f"ema/{name}", mean[name]) for name in names if name in mean}
        self.saver.start(
            self._engine,
            step=self.step,
            record=self._marker(),
            shared=shared,
            own=own,
            export=(weights, self._meta | self._moment()),
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network carry the average of its weights inside the block, if there is one."""
        if self.average is None:
            yield
            return
        with self.average.in_place(self._engine.network):
            yield

    def _tensors(self) -> tuple[Tensors, Tensors]:
        """Return what belongs to all ranks beside the engine's state, and what is this rank's own."""
        network = self._engine.network
        shared = {f"mean/{name}": value for name, value in batchnorm.averaged_statistics(network).items()}
        own = batchnorm.running_statistics(network)
        if self.average is not None:
            with self.averaged():
                mean = batchnorm.averaged_statistics(network)
            shared |= {f"ema/{name}": mean[name] for name in self.average.statistics}
            shared |= {f"ema/{name}": value for name, value in self.average.shadow.items()}
            own |= {f"ema/{name}": value.cpu().clone() for name, value in self.average.statistics.items()}
        return shared, own

    def _marker(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "world_size": self._world.size,
            "engine": self._engine.name,
            "sampler": self._sampler.state(self.step),
            "skipped": self.skipped,
            "validation": self.validation,
        }

    def _moment(self) -> dict[str, Any]:
        return describe_moment(
            step=self.step,
            epoch=self.step / self._sampler.steps_per_epoch,
            samples_seen=self.step * self._recipe.global_batch,
            validation=self.validation,
        )


def _finite(network: nn.Module) -> bool:
    """Return whether all weights on all ranks are finite. Collective."""
    own = all(bool(local(parameter).isfinite().all()) for parameter in network.parameters())
    agreed = torch.tensor([float(own)])
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return bool(agreed.item())
