"""Train many copies of a head in one batched pass: seeds, learning rates, weight decays, data fractions.

The parameters of all copies are stacked along a first dimension and one step moves them all
(``torch.vmap`` over ``torch.func.functional_call``), so a small head costs a few kernel launches a
step instead of a few a copy. Each copy sees the samples, the learning rates and the number of steps
it would see alone; training one copy is the same code with a stack of one.

Batches are always full. Epoch after epoch of permutations is cut into batches of the same size, and
a batch may reach over the end of an epoch: a remainder of a few samples would have a covariance and
a spectrum of another kind than every other batch.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state

from nml.errors import UserError
from plugins.gradient_head import Batch, GradientHead, HeadModule
from plugins.head import check_data, hyper_parameters
from plugins.schedule import Schedule

# Steps whose sample numbers are drawn at once, and bytes that the stack of one pass may take.
WINDOW = 128
MEMORY_LIMIT = 4 << 30
# Parameters, gradients and AdamW's two averages.
_TENSORS_A_PARAMETER = 4


@dataclasses.dataclass(frozen=True)
class Copy:
    """One fit of one head.

    Attributes:
        head: The head to fit; each copy needs an object of its own.
        seed: Fixes the first weights and the order of the samples.
        rows: The rows of the training set that this copy sees, int64 [n]; None is all of them.
    """

    head: GradientHead
    seed: int = 0
    rows: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class _Lane:
    """A copy with what the loop needs to know about it."""

    copy: Copy
    schedule: Schedule
    samples: int
    steps: int
    order: Hashable


def fit_many(
    copies: Sequence[Copy],
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int | None = None,
    device: str = "cpu",
    memory_limit: int = MEMORY_LIMIT,
) -> None:
    """Fit every copy's head in place; each becomes what its own ``fit`` would make of it.

    Copies whose heads differ in nothing but learning rate and weight decay are trained together.

    Args:
        copies: What to fit.
        features: [N, D], any floating dtype.
        labels: Classes, int64 [N].
        num_classes: K; None means the largest label plus one.
        device: Where to compute.
        memory_limit: Bytes that stacked parameters may take; more copies make more passes.

    Raises:
        UserError: If the data do not fit together, or a head occurs twice.
    """
    num_classes = check_data(features, labels, None, num_classes)
    if len({id(copy.head) for copy in copies}) < len(copies):
        raise UserError("one head object is in several copies", mend="make a head for each copy")
    together: dict[Hashable, list[Copy]] = defaultdict(list)
    for copy in copies:
        together[_kind(copy, len(features))].append(copy)
    for group in together.values():
        size = sum(
            parameter.numel()
            for parameter in group[0].head.build(features.shape[1], num_classes).parameters()
        )
        at_once = max(1, memory_limit // (size * 4 * _TENSORS_A_PARAMETER)) if group[0].head.stackable else 1
        for start in range(0, len(group), at_once):
            part = group[start : start + at_once]
            train(part, features, labels, num_classes=num_classes, device=device)


def train(copies: Sequence[Copy], features: Tensor, labels: Tensor, *, num_classes: int, device: str) -> None:
    """Fit copies of one kind (see :func:`fit_many`) in one pass."""
    lanes = sorted((_lane(copy, len(features)) for copy in copies), key=_finish_last_first)
    modules = [
        lane.copy.head.build(features.shape[1], num_classes, seed=lane.copy.seed).to(device).train()
        for lane in lanes
    ]
    parameters, buffers = stack_module_state(modules)
    stack = _Stack(modules[0], lanes, {name: _laid_out(value) for name, value in parameters.items()}, buffers)
    features, labels = features.to(device), labels.to(device)
    # A module that is not stackable may draw from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(lanes[0].copy.seed)
        for step, (rows, order_of_lane) in enumerate(_batches(lanes, features.device)):
            stack.step(step, features[rows].float(), labels[rows], order_of_lane)
    for number, (lane, module) in enumerate(zip(lanes, modules, strict=True)):
        stacked = {**stack.parameters, **stack.buffers}
        module.load_state_dict({name: value[number] for name, value in stacked.items()})
        lane.copy.head.adopt(module)


class _Stack:
    """The stacked parameters of all lanes, their optimiser, and one step of it."""

    def __init__(
        self,
        module: HeadModule,
        lanes: Sequence[_Lane],
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
    ) -> None:
        self.module = module
        self.lanes = lanes
        self.head = lanes[0].copy.head
        self.parameters = parameters
        self.buffers = buffers
        self.slices = list(_slices(lanes))
        groups: list[dict[str, Any]] = [
            {
                "params": [_dense(value[part]) for value in parameters.values()],
                "weight_decay": lanes[part.start].schedule.weight_decay,
            }
            for part in self.slices
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, fused=True)
        self._losses = torch.vmap(self._loss, randomness="different")

    def _loss(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], features: Tensor, labels: Tensor
    ) -> Tensor:
        transformed, logits = functional_call(self.module, (parameters, buffers), (features,))
        terms = self.head.terms(Batch(features, transformed, logits, labels))
        return torch.stack([term.float() for term in terms.values()]).sum()

    def step(self, step: int, features: Tensor, labels: Tensor, order_of_lane: Tensor) -> None:
        """Move the lanes that are not finished, on features [O, M, D] of O sample orders."""
        live = len(order_of_lane)
        leaves = {name: value[:live].detach().requires_grad_() for name, value in self.parameters.items()}
        buffers = {name: value[:live] for name, value in self.buffers.items()}
        if len(features) != live:
            features, labels = features[order_of_lane], labels[order_of_lane]
        losses = self._losses(leaves, buffers, features, labels)
        gradients = [
            _like(leaf, gradient)
            for leaf, gradient in zip(
                leaves.values(), torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True
            )
        ]
        for part, group in zip(self.slices, self.optimizer.param_groups, strict=True):
            lane = self.lanes[part.start]
            finished = step >= lane.steps
            for parameter, gradient in zip(group["params"], gradients, strict=True):
                parameter.grad = None if finished else _dense(gradient[part])
            if not finished:
                group["lr"] = lane.schedule.rate(step, lane.steps)
        self.optimizer.step()


def _laid_out(stacked: Tensor) -> Tensor:
    """Return a stack of parameters in the memory layout that its gradients come in.

    The gradient of a stack of weights [L, O, I] is a transposed product. Kept in that layout, the
    weights need no transposing copy of the gradient a step, which took as long as the products do.
    """
    stacked = stacked.detach()
    return stacked.mT.contiguous().mT if stacked.ndim == 3 else stacked


def _dense(stacked: Tensor) -> Tensor:
    """Return a contiguous view for the fused AdamW, which would copy anything else before each step."""
    return stacked.mT if stacked.ndim == 3 and not stacked.is_contiguous() else stacked


def _like(leaf: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient in the layout of its leaf: AdamW walks the memory of both alike."""
    return gradient if gradient.stride() == leaf.stride() else torch.empty_like(leaf).copy_(gradient)


def _lane(copy: Copy, total: int) -> _Lane:
    schedule = copy.head.schedule()
    samples = total if copy.rows is None else len(copy.rows)
    order = (copy.seed, None if copy.rows is None else copy.rows.cpu().numpy().tobytes())
    return _Lane(copy, schedule, samples, schedule.steps(samples), order)


def _kind(copy: Copy, total: int) -> Hashable:
    """Return what two copies must share to be trained together."""
    lane = _lane(copy, total)
    free = ("lr", "weight_decay")
    rest = {name: value for name, value in hyper_parameters(copy.head).items() if name not in free}
    return type(copy.head), repr(sorted(rest.items())), lane.schedule.batch(lane.samples)


def _finish_last_first(lane: _Lane) -> tuple[int, float, float]:
    # Lanes that go on longest come first, so that the unfinished ones are always a prefix of the stack.
    return -lane.steps, lane.schedule.lr, lane.schedule.weight_decay


def _slices(lanes: Sequence[_Lane]) -> Iterator[slice]:
    """Yield the runs of lanes that share their learning rate at every step and their weight decay."""
    start = 0
    for _, run in itertools.groupby(lanes, key=lambda lane: (lane.steps, lane.schedule)):
        length = len(list(run))
        yield slice(start, start + length)
        start += length


def _batches(lanes: Sequence[_Lane], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each step the rows [O, M] of O sample orders, and the order of each unfinished lane."""
    orders: dict[Hashable, int] = {}
    order_of_lane = torch.tensor([orders.setdefault(lane.order, len(orders)) for lane in lanes])
    leaders = [lanes[order_of_lane.tolist().index(number)] for number in range(len(orders))]
    batch = lanes[0].schedule.batch(lanes[0].samples)
    streams = [_Stream(leader) for leader in leaders]
    for start in range(0, lanes[0].steps, WINDOW):
        drawn = [
            stream.take(batch * WINDOW).view(WINDOW, batch)
            for stream, leader in zip(streams, leaders, strict=True)
            if leader.steps > start
        ]
        window = torch.stack(drawn, dim=1).to(device)
        for offset in range(min(WINDOW, lanes[0].steps - start)):
            live = sum(lane.steps > start + offset for lane in lanes)
            following = order_of_lane[:live]
            yield window[offset, : int(following.max()) + 1], following.to(device)


class _Stream:
    """The rows of one copy in the order it is trained on: permutation after permutation, without end."""

    def __init__(self, lane: _Lane) -> None:
        self.lane = lane
        self.generator = torch.Generator().manual_seed(lane.copy.seed)
        self.rest = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        parts = [self.rest]
        missing = count - len(self.rest)
        while missing > 0:
            order = torch.randperm(self.lane.samples, generator=self.generator)
            parts.append(order if self.lane.copy.rows is None else self.lane.copy.rows.cpu()[order])
            missing -= len(order)
        drawn = torch.cat(parts)
        self.rest = drawn[count:]
        return drawn[:count]
