"""How far a run is, and what a checkpoint holds so that it goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nml import layout
from nml.errors import UserError
from nml.recipe import Recipe
from nml.untrusted import Untrusted, typed
from pretrain import batchnorm
from pretrain.checkpoints import Checkpoint, Saver, recover
from pretrain.ema import Average
from pretrain.engines import Engine, Tensors, local
from pretrain.engines.native import kept_on_main, whole
from pretrain.loading import StepSampler
from pretrain.noise_watch import NoiseWatch
from pretrain.probing import Probing
from pretrain.world import World, decided_by_main


@dataclass(frozen=True)
class _Marker:
    """What a checkpoint's marker says beside its step and files."""

    world_size: int
    sampler: dict[str, Any]
    skipped: int
    validation: dict[str, Any] | None
    noise: dict[str, Any] | None = None


_MARKED = tuple(field.name for field in fields(_Marker))


class RunState:
    """The position of a run and everything that is saved with it.

    Args:
        recipe: The recipe.
        folder: The run folder.
        world: This process.
        engine: The engine, with fresh weights.
        sampler: The order; positioned by the checkpoint.
        meta: The part of meta.json that is known beforehand.
        watch: What it has seen is saved too.
        beside: What the objective keeps beside the network, equal on all ranks; filled in place.
        encoder: What the names of the tensors begin with that are exported.
        probing: Has checkpoints measured; None where nobody asked for it.

    Attributes:
        step: Steps done.
        skipped: Steps in a row that were not finite, as far as the host has heard.
        validation: The last result, None before the first.
        average: The moving average of the weights, if the recipe has one.
        statistics: The network's buffers, so that a step can be left out.
        watch: Tells what noise does.
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
        watch: NoiseWatch,
        beside: Tensors | None = None,
        encoder: str = "",
        probing: Probing | None = None,
    ) -> None:
        self.step = 0
        self.skipped = 0
        self.validation: dict[str, Any] | None = None
        self.average = Average(engine.network, recipe.ema) if recipe.ema else None
        self.statistics = batchnorm.StepStatistics(engine.network)
        self.saver = Saver(folder, recipe.checkpoints, probing)
        self._recipe, self._folder, self._world = recipe, folder, world
        self.watch = watch
        self._engine, self._sampler, self._meta = engine, sampler, meta
        self._beside, self._encoder, self._probing = beside or {}, encoder, probing
        self._saved = -1

    def resume(self) -> None:
        """Load the newest whole checkpoint, if there is one. Collective."""
        found = decided_by_main(self._world, lambda: recover(self._folder))
        if found is not None:
            self._load(found)
            self.statistics.keep()
        if self._probing is not None:
            self._probing.resume(self.step)

    def _load(self, checkpoint: Checkpoint) -> None:
        try:
            marker = typed(_Marker, {name: checkpoint.record.get(name) for name in _MARKED})
        except Untrusted as error:
            raise UserError(
                f"{checkpoint.folder / layout.MARKER}: {error}", mend="put another checkpoint back"
            ) from error
        self._sampler.restore(marker.sampler, checkpoint.step)
        same = marker.world_size == self._world.size
        shared, own = self._tensors()
        self._engine.load(checkpoint.state, shared, own if same else {}, world_size=marker.world_size)
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
        for name, value in self._beside.items():
            value.copy_(shared[f"beside/{name}"])
        self.step = self._saved = checkpoint.step
        self.skipped = marker.skipped
        self.validation = marker.validation
        self.watch.resume(marker.noise or {}, checkpoint.folder)

    def stepped(self) -> None:
        """Take new weights into account."""
        self.statistics.accept()
        if self.average is not None:
            self.average.update(self._engine.network, self.step)

    def stepped_if(self, applied: torch.Tensor, after_step: Callable[[], None]) -> None:
        """Take new weights into account where there are some; the step leaves nothing behind else.

        Args:
            applied: Whether the weights were updated, a bool scalar on the device.
            after_step: The objective's.
        """
        self.statistics.accept_if(applied)
        kept = [value.clone() for value in self._beside.values()]
        after_step()
        for value, before in zip(self._beside.values(), kept, strict=True):
            value.copy_(torch.where(applied, value, before))
        if self.average is not None:
            self.average.update(self._engine.network, self.step, applied)

    @property
    def probed(self) -> bool:
        """Whether the encoder of this step is to be measured."""
        epoch, within = divmod(self.step, self._sampler.steps_per_epoch)
        return self._probing is not None and within == 0 and self._probing.due(epoch)

    def save(self) -> None:
        """Save this step, unless it is saved already. Collective.

        Raises:
            UserError: If the save before failed, or the state is not worth saving.
        """
        if self._saved == self.step:
            return
        self._check_finite()
        self._saved = self.step
        shared, own = self._tensors()
        # Nothing is gathered into the network for it: a save must not change what trains on.
        average = self.average
        weights = self._engine.weights() if average is None else kept_on_main(whole(average.shadow.items()))
        # Counts of batches have no moving average.
        mean = {name.removeprefix("mean/"): value for name, value in shared.items()}
        names = self._engine.network.state_dict().keys() if self._world.is_main else ()
        weights |= {name: shared.get(f"ema/{name}", mean[name]) for name in names if name in mean}
        start = self._encoder
        exported = {
            name.removeprefix(start): kept for name, kept in weights.items() if name.startswith(start)
        }
        self.saver.start(
            self._engine,
            step=self.step,
            record=self._marker(),
            shared=shared,
            own=own,
            export=(exported, self._meta | self._moment()),
            watched=self.watch.saved(),
            probed=self.probed,
        )

    def _tensors(self) -> tuple[Tensors, Tensors]:
        """Return what belongs to all ranks beside the engine's state, and what is this rank's own."""
        network = self._engine.network
        own = batchnorm.running_statistics(network)
        shared = {f"mean/{name}": value for name, value in batchnorm.averaged(own).items()}
        shared |= {f"beside/{name}": value for name, value in self._beside.items()}
        if self.average is not None:
            mean = batchnorm.averaged(self.average.statistics)
            shared |= {f"ema/{name}": value for name, value in mean.items()}
            shared |= {f"ema/{name}": value for name, value in self.average.shadow.items()}
            own |= {f"ema/{name}": value.cpu().clone() for name, value in self.average.statistics.items()}
        return shared, own

    def _check_finite(self) -> None:
        average = self.average
        kinds: dict[str, bool] = {
            "weights": _finite(self._engine.network.parameters()),
            "running statistics": bool(self.statistics.look()),
            "averaged weights": average is None or _finite(average.tensors()),
            "the optimizer's state": _finite(self._engine.moments()),
            "what the objective keeps": _finite(self._beside.values()),
        }
        bad = torch.tensor([float(not finite) for finite in kinds.values()])
        dist.all_reduce(bad)
        names = [name for name, ranks in zip(kinds, bad.tolist(), strict=True) if ranks]
        if names:
            raise UserError(
                f"step {self.step}: {' and '.join(names)} are infinite or NaN, and are not saved",
                mend="lower --recipe.optimizer.lr, or clip with --recipe.optimizer.clip",
            )

    def _marker(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "world_size": self._world.size,
            "engine": self._engine.name,
            "sampler": self._sampler.state(self.step),
            "skipped": self.skipped,
            "validation": self.validation,
            "noise": self.watch.state(),
        }

    def _moment(self) -> dict[str, Any]:
        """Return the part of meta.json that says when in the run the weights were taken."""
        return {
            "step": self.step,
            "epoch": self.step / self._sampler.steps_per_epoch,
            "samples_seen": self.step * self._recipe.global_batch,
            "validation": self.validation,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _finite(tensors: Iterable[torch.Tensor]) -> bool:
    found = [local(tensor).isfinite().all() for tensor in tensors]
    return not found or bool(torch.stack(found).all())
