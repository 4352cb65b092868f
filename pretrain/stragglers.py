"""Who a step waited for: what each rank did by itself, and how the slowest one divides the step.

A step lasts as long for every rank, since all end it together; what a rank spends waiting for others says
nothing. So each rank tells what it did by itself, and the rank with the most of it is whom the others
waited for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

    from pretrain.liveness import Pulse


class OwnTime(NamedTuple):
    """Seconds of one rank since it told last, without those in which it waited for others.

    Attributes:
        reading: Spent waiting for a batch.
        frozen: The process stood still.
        computing: The training thread worked; 0 where a device computes, whose own work cannot be told
            from its waiting.
    """

    reading: float
    frozen: float
    computing: float


class Division(NamedTuple):
    """What became of a step.

    Attributes:
        useful: Seconds that trained.
        data_wait: Seconds in which the slowest rank waited for its batch.
        waiting: Seconds in which the others waited for the slowest rank, because it stood still or
            computed longer than the median of the ranks.
        rank: The slowest rank.
        why: What it did most of: ``reading data``, ``frozen`` or ``computing``.
        late: Seconds of its standstill that lie before the step.
    """

    useful: float
    data_wait: float
    waiting: float
    rank: int
    why: str
    late: float


def divide(seconds: float, ranks: np.ndarray) -> Division:
    """Divide a step of ``seconds`` by what the slowest of the ranks did; the parts add up to it.

    Args:
        seconds: How long the step took.
        ranks: An :class:`OwnTime` a row, [world, 3].
    """
    rank = int(ranks.sum(1).argmax())
    slowest = OwnTime(*ranks[rank].tolist())
    # The lower median: of two ranks, the faster one.
    typical = float(np.partition(ranks[:, 2], middle := (len(ranks) - 1) // 2)[middle])
    excess = max(0.0, slowest.computing - typical)
    data_wait = min(slowest.reading, seconds)
    frozen = min(slowest.frozen, seconds - data_wait)
    slow = min(excess, seconds - data_wait - frozen)
    causes = {"computing": excess, "reading data": slowest.reading, "frozen": slowest.frozen}
    return Division(
        useful=seconds - data_wait - frozen - slow,
        data_wait=data_wait,
        waiting=frozen + slow,
        rank=rank,
        why=max(causes, key=lambda cause: causes[cause]),
        late=slowest.frozen - frozen,
    )


class Stopwatch:
    """Measures what this rank does by itself.

    Args:
        pulse: Notices standstills.
        device: Where the network runs.
    """

    def __init__(self, pulse: Pulse, device: torch.device) -> None:
        self._pulse = pulse
        self._device, self._on_host = device, device.type == "cpu"
        self._reading = self._computing = self._told = 0.0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count the time inside as spent waiting for a batch."""
        start, frozen = time.perf_counter(), self._frozen()
        yield
        stood = self._frozen() - frozen
        if self._waits():
            self._reading += max(0.0, time.perf_counter() - start - stood)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the work inside as the step's."""
        start = self._pulse.work()
        yield
        if self._on_host:
            self._computing += self._pulse.work() - start

    def tell(self) -> OwnTime:
        """Return what was counted since the last telling."""
        frozen = self._frozen()
        own = OwnTime(self._reading, frozen - self._told, self._computing)
        self._reading, self._told, self._computing = 0.0, frozen, 0.0
        return own

    def _waits(self) -> bool:
        """Return whether a device has nothing left to do: else it does not know that the host had to wait."""
        if self._on_host:
            return True
        import torch

        return torch.cuda.current_stream(self._device).query()

    def _frozen(self) -> float:
        self._pulse.check()
        return self._pulse.frozen
