"""Whether the loader or the device sets the pace of a run, in one line at the end of an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nml.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from pretrain.loading import StepSampler
    from shards.shardset import ShardSet

# Of a process: networks are compiled, caches are cold, and the first batches are waited for in any case.
_WARM_UP = 20
_FEWEST = 20
# Of the time: what a loader that keeps up may cost, too.
_NOTABLE = 0.05


class Pace(NamedTuple):
    """Steps of an epoch, added up.

    Attributes:
        samples: That were trained on.
        seconds: That it took.
        waited: Of these, spent by the slowest rank of each step in waiting for its batch.
    """

    samples: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0


def feed_limits(
    recipe: Recipe, shard_set: ShardSet, sampler: StepSampler, device: torch.device, world: int
) -> list[FeedLimit]:
    """Return the observer of a run on a GPU with loader processes, else nothing.

    On a CPU loader and network share the cores, and neither's own pace can be told from the other's.
    """
    data = recipe.data
    if device.type == "cpu" or not data.workers:
        return []
    cheaper = []
    if data.crop == "rrc" and not data.cache and not shard_set.info.resized:
        cheaper.append("a set written with --resize 256")
    if data.repeats > 1 and data.repeats_on == "ranks" and world > 1:
        cheaper.append("a run with --recipe.data.repeats_on rank, which decodes an image once for its views")
    workers = data.workers * world
    return [FeedLimit(sampler.steps_per_epoch, recipe.global_batch, workers=workers, cheaper=cheaper)]


def limit_in_words(pace: Pace, *, workers: int, cheaper: Sequence[str]) -> str:
    """Return what limits a run whose network is on a GPU.

    Without data to wait for, steps would take the rest of the time or more: where the device works on while
    the host waits, its own time is hidden in the wait. So what it would take is a bound, as are the cores.

    Args:
        pace: What was measured.
        workers: Loader processes of all ranks.
        cheaper: Ways to spend less on an image.
    """
    delivered = pace.samples / pace.seconds
    if pace.waited < _NOTABLE * pace.seconds:
        share = 100 * pace.waited / pace.seconds
        return (
            f"the GPUs set the pace: they take {delivered:,.0f} images/s and wait {share:.0f} % of the time "
            "for data"
        )
    taken = pace.samples / max(pace.seconds - pace.waited, 0.01 * pace.seconds)
    more = math.ceil(workers * (taken / delivered - 1))
    mends = [f"up to {more} more loader processes on cores of their own ({workers} are at work)"]
    return (
        f"the loader sets the pace: it delivers {delivered:,.0f} images/s, the GPUs would take up to "
        f"{taken:,.0f}: {', or '.join([*mends, *cheaper])}"
    )


class FeedLimit:
    """An observer that says what limits a run after its first epoch, and again when that changes.

    Args:
        steps_per_epoch: Steps of an epoch.
        global_batch: Samples of a step.
        workers: Loader processes of all ranks, at least 1.
        cheaper: Ways to spend less on an image.
    """

    def __init__(
        self, steps_per_epoch: int, global_batch: int, *, workers: int, cheaper: Sequence[str]
    ) -> None:
        self._steps_per_epoch, self._global_batch = steps_per_epoch, global_batch
        self._workers, self._cheaper = workers, cheaper
        self._heard = 0
        self._steps: list[Pace] = []
        self._said = ""

    def __call__(self, line: dict[str, Any]) -> None:
        """Take note of a step."""
        if line["event"] != "step":
            return
        self._heard += 1
        if self._heard > _WARM_UP:
            seconds = self._global_batch / line["samples_per_s"]
            self._steps.append(Pace(self._global_batch, seconds, min(line["data_wait_s"], seconds)))
        if line["step"] % self._steps_per_epoch:
            return
        if len(self._steps) >= _FEWEST:
            self._say(Pace(*map(sum, zip(*self._steps, strict=True))))
        self._steps = []

    def _say(self, pace: Pace) -> None:
        from tqdm import tqdm

        text = limit_in_words(pace, workers=self._workers, cheaper=self._cheaper)
        limit = text.partition(":")[0]
        if limit != self._said:
            # Around a live line, if there is one.
            tqdm.write(text)
            self._said = limit

    def close(self) -> None:
        """Nothing is left to do."""
