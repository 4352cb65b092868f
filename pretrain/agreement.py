"""What the ranks tell each other of a step, and when each of them hears of it.

On a CPU a number can be read as soon as it is computed. On a GPU whoever reads one stands still until the
device has done all that it was given, and by then the device has nothing left to do. So there the host reads
late: what became of a step is copied beside the computing, and read :data:`LAG` steps later, at the same step
on every rank. Whether the weights change is then decided on the device, see
:meth:`pretrain.engines.Engine.step_if`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from pretrain.stragglers import OwnTime
from pretrain.world import World

LAG = {"cpu": 0, "cuda": 2}
"""Steps that the host goes on without knowing, by the type of device."""
# What comes before the times of the ranks: sums over the ranks, and what the update adds.
_LOSS, _OVERFLOWED, _STOPPED, _FAILED, _NORM, _APPLIED = range(6)
_FIRST = 6
_TIMES = len(OwnTime._fields)


class Outcome(NamedTuple):
    """What became of a step, the same on all ranks.

    Attributes:
        loss: Mean over the ranks.
        overflowed: Whether running statistics of one are not finite.
        stopped: Whether one was asked to stop.
        failed: Whether the save of one failed.
        norm: As :class:`pretrain.engines.Update` says it.
        applied: Whether the weights were updated.
        ranks: A :class:`pretrain.stragglers.OwnTime` of each a row.
    """

    loss: float
    overflowed: bool
    stopped: bool
    failed: bool
    norm: float
    applied: bool
    ranks: np.ndarray

    @property
    def trains(self) -> bool:
        """Whether it is worth a look at the gradient."""
        return math.isfinite(self.loss) and not self.overflowed

    @property
    def fault(self) -> str:
        """Why the step counts as one that is not finite; empty where it does not."""
        if not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        if self.overflowed:
            return "running statistics overflow"
        if not self.applied and not math.isfinite(self.norm):
            return f"the norm of the gradient is {self.norm}"
        return ""


@dataclass
class Taken:
    """A step of which the host may not have heard yet.

    Attributes:
        number: Steps before it.
        lr: Its learning rate.
        waited: Seconds that this rank waited for the batch.
        indices: Numbers of the rank's samples, int64 [n], on the CPU.
        outcome: What became of it; None as long as only the device knows.
        seconds: Spent in it.
    """

    number: int
    lr: float
    waited: float
    indices: torch.Tensor
    outcome: Outcome | None
    seconds: float = 0.0


class Agreement:
    """The words of the ranks, and the way of what became of a step to the host.

    Args:
        world: This process.
        device: Where the network is.
        lag: Steps after which what was sent is heard; 0 where each is read at once.
    """

    def __init__(self, world: World, device: torch.device, lag: int) -> None:
        self._world, self._device = world, device
        size = _FIRST + _TIMES * world.size
        # What is copied from, or to, memory that is not pinned is waited for.
        pinned = device.type == "cuda"
        self._words = [torch.zeros(size, pin_memory=pinned) for _ in range(lag + 1)]
        self._answers = [torch.zeros(size, pin_memory=pinned) for _ in range(lag + 1)]
        self._turn = 0
        self._sent: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()

    def tell(
        self, loss: torch.Tensor, finite: torch.Tensor, *, stopped: bool, failed: bool, own: OwnTime
    ) -> torch.Tensor:
        """Return the words of all ranks together, on the device. Collective.

        Args:
            loss: Of this rank, a scalar.
            finite: Whether its running statistics are, a bool scalar.
            stopped: Whether it was asked to stop.
            failed: Whether its save failed.
            own: What it did by itself.
        """
        self._turn = (self._turn + 1) % len(self._words)
        here = self._words[self._turn].zero_()
        here[_STOPPED], here[_FAILED] = stopped, failed
        here[_FIRST + _TIMES * self._world.rank :][:_TIMES] = torch.tensor(own)
        word = here.to(self._device, non_blocking=True, copy=True)
        word[_LOSS] = loss.detach()
        word[_OVERFLOWED] = finite.logical_not()
        dist.all_reduce(word)
        return word

    def trains(self, word: torch.Tensor) -> torch.Tensor:
        """Return :attr:`Outcome.trains` of a word, a bool scalar on the device."""
        return word[_LOSS].isfinite() & (word[_OVERFLOWED] == 0)

    def read(self, word: torch.Tensor) -> Outcome:
        """Return what a word says, once it is there."""
        told = word.cpu().numpy()
        total, overflowed, stops, failures, norm, applied = told[:_FIRST].tolist()
        return Outcome(
            loss=total / self._world.size,
            overflowed=bool(overflowed),
            stopped=bool(stops),
            failed=bool(failures),
            norm=norm,
            applied=bool(applied),
            # Copied: the memory serves a later step.
            ranks=told[_FIRST:].reshape(-1, _TIMES).copy(),
        )

    def send(self, word: torch.Tensor, norm: torch.Tensor, applied: torch.Tensor) -> None:
        """Let the host hear of a step when :meth:`hear` has been called for those before.

        Args:
            word: Of all ranks.
            norm: Norm of the gradient, a scalar.
            applied: Whether the weights were updated, a bool scalar.
        """
        word[_NORM], word[_APPLIED] = norm, applied
        answer = self._answers[self._turn]
        answer.copy_(word, non_blocking=True)
        event = None
        if self._device.type == "cuda":
            # One that blocks leaves the core to the loader.
            event = torch.cuda.Event(blocking=True)
            event.record()
        self._sent.append((answer, event))

    def hear(self) -> Outcome:
        """Return what became of the earliest step that was sent."""
        answer, event = self._sent.popleft()
        if event is not None:
            event.synchronize()
        return self.read(answer)
