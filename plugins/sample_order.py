"""Which samples each step of training sees.

Batches are always full. Epoch after epoch of permutations is cut into batches of the same size, and a batch
may reach over the end of an epoch: a remainder of a few samples would have a covariance and a spectrum of
another kind than every other batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

# Steps whose samples are drawn at once.
WINDOW = 128


class SampleOrder:
    """The rows of one copy in the order it is trained on: permutation after permutation, without end.

    Args:
        seed: Fixes the permutations.
        samples: n, how many there are.
        rows: Their rows in the training set, int64 [n]; None is 0 to n - 1.
        steps: How many batches will be asked for.
    """

    def __init__(self, seed: int, samples: int, rows: Tensor | None, steps: int) -> None:
        self.seed = seed
        self.samples = samples
        self.rows = None if rows is None else rows.cpu()
        self.steps = steps
        self._generator = torch.Generator().manual_seed(seed)
        self._rest = torch.empty(0, dtype=torch.int64)

    @property
    def key(self) -> Hashable:
        """What orders have in common that are the same at every step."""
        return self.seed, self.steps, self.samples, None if self.rows is None else self.rows.numpy().tobytes()

    def take(self, count: int) -> Tensor:
        """Return the next rows, int64 [``count``]."""
        parts = [self._rest]
        missing = count - len(self._rest)
        while missing > 0:
            order = torch.randperm(self.samples, generator=self._generator)
            parts.append(order if self.rows is None else self.rows[order])
            missing -= len(order)
        drawn = torch.cat(parts)
        self._rest = drawn[count:]
        return drawn[:count]


class Batches:
    """The batches of several copies, step by step; copies of one order share them.

    Iterating yields for each step the rows of every order that is not finished, int64 [O, M], and the order
    of every copy that is not finished, int64 [L].

    Args:
        orders: The order of each copy; those with the most steps come first.
        size: M, the samples of a batch.
    """

    def __init__(self, orders: Sequence[SampleOrder], size: int) -> None:
        self.size = size
        self._steps = [order.steps for order in orders]
        distinct: dict[Hashable, SampleOrder] = {}
        numbers: dict[Hashable, int] = {}
        for order in orders:
            distinct.setdefault(order.key, order)
            numbers.setdefault(order.key, len(numbers))
        self._distinct = list(distinct.values())
        self._of_copy = torch.tensor([numbers[order.key] for order in orders])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows of every unfinished order and the order of every unfinished copy."""
        last = self._steps[0]
        for start in range(0, last, WINDOW):
            drawn = [
                order.take(self.size * WINDOW).view(WINDOW, self.size)
                for order in self._distinct
                if order.steps > start
            ]
            window = torch.stack(drawn, dim=1)
            for step in range(start, min(start + WINDOW, last)):
                rows = window[step - start, : sum(order.steps > step for order in self._distinct)]
                yield rows, self._of_copy[: sum(steps > step for steps in self._steps)]
