"""Train many copies of a head in one batched pass: seeds, learning rates, weight decays, data fractions.

The parameters of all copies are stacked along a first dimension and one step moves them all
(``torch.vmap`` over ``torch.func.functional_call``), so a small head costs a few kernel launches a
step instead of a few a copy. Each copy sees the samples, the learning rates and the number of steps
it would see alone; training one copy is the same code with a stack of one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from tqdm import tqdm

from nml.cli import is_interactive
from nml.errors import UserError
from nml.labels import TARGETS
from plugins.head import check_data, hyper_parameters
from plugins.lane_labels import LaneLabels
from plugins.sample_order import Batches, SampleOrder
from plugins.schedule import Schedule
from plugins.trainable import Batch, HeadModule, Trainable, feature_scales

# Bytes that the stack of one pass may take.
MEMORY_LIMIT = 4 << 30
# Parameters from which on a head is trained alone on a CPU: its step is all arithmetic, which a stack does
# not share, and its weights and averages stay in the caches only if no other copy's come in between.
WIDE = 4_000_000
# Seconds after which a pass shows its progress on a terminal.
SHOWN_AFTER = 1.0
# Parameters, gradients and AdamW's two averages.
_TENSORS_A_PARAMETER = 4


@dataclasses.dataclass(frozen=True)
class Copy:
    """One fit of one head.

    Attributes:
        head: The head to fit; each copy needs an object of its own.
        seed: Fixes the first weights and the order of the samples.
        rows: The rows of the training set that this copy sees, int64 [n]; None is all of them.
        labels: Its own labels of the whole training set; None is those of all copies.
    """

    head: Trainable
    seed: int = 0
    rows: Tensor | None = None
    labels: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class _Lane:
    """A copy with what the loop needs to know about it."""

    copy: Copy
    schedule: Schedule
    order: SampleOrder


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
        labels: Classes, int64 [N], or what else the heads take (:class:`plugins.head.Head`).
        num_classes: K; None means the largest label plus one, or what their shape says.
        device: Where to compute.
        memory_limit: Bytes that a stack may take; more copies make more passes.

    Raises:
        UserError: If the data do not fit together, or a head occurs twice.
    """
    targets = TARGETS.intersection(*(copy.head.targets for copy in copies))
    num_classes = check_data(features, labels, None, num_classes, targets=targets)
    if len({id(copy.head) for copy in copies}) < len(copies):
        raise UserError("one head object is in several copies", mend="make a head for each copy")
    for copy in copies:
        if copy.labels is not None and copy.labels.shape != labels.shape:
            raise UserError(
                f"a copy's labels are {list(copy.labels.shape)}",
                possible=f"{list(labels.shape)}, one a row of the features",
            )
    together: dict[Hashable, list[Copy]] = defaultdict(list)
    for copy in copies:
        together[_kind(copy, len(features))].append(copy)
    for group in together.values():
        head = group[0].head
        head.prepare(group, features, labels, num_classes=num_classes, device=device)
        size = sum(parameter.numel() for parameter in head.build(features.shape[1], num_classes).parameters())
        memory = sum(value.numel() for value in head.build_memory(len(features), num_classes).values())
        alone = not head.stackable or (size >= WIDE and torch.device(device).type == "cpu")
        at_once = 1 if alone else max(1, memory_limit // (4 * (size * _TENSORS_A_PARAMETER + memory)))
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
    if lanes[0].copy.head.rescale:
        scales = feature_scales(features, [lane.copy.rows for lane in lanes])
        for module, scale in zip(modules, scales, strict=True):
            module.scale.fill_(scale)
    memories = [lane.copy.head.build_memory(len(features), num_classes) for lane in lanes]
    stack = _Stack(modules, lanes, memories, device)
    features = features.to(device)
    given = LaneLabels(
        [labels if lane.copy.labels is None else lane.copy.labels for lane in lanes],
        [lane.copy.rows for lane in lanes],
        device,
    )
    batches = Batches([lane.order for lane in lanes], lanes[0].schedule.batch(lanes[0].order.samples))
    # A module that is not stackable may draw from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(lanes[0].copy.seed)
        for step, (rows, of_lane) in enumerate(_shown(batches, lanes)):
            # Straight from the training set to each lane; in between, lanes of one order would cost a copy.
            here = (rows if len(rows) == len(of_lane) else rows[of_lane]).to(features.device)
            # Whole rows: less than half the time of an index with two dimensions.
            batch = features.index_select(0, here.flatten()).unflatten(0, here.shape)
            stack.step(step, batch.float(), given.of(here), here)
    for number, (lane, module) in enumerate(zip(lanes, modules, strict=True)):
        module.load_state_dict(stack.state(number))
        given.restore(number, module)
        lane.copy.head.adopt(module)


class _Stack:
    """The stacked parameters of all lanes, their optimiser, and one step of it.

    Args:
        modules: L modules of one kind.
        lanes: What each is trained with; those that go on longest come first.
        memories: What each remembers from step to step, as it is before the first.
        device: Where to compute.
    """

    def __init__(
        self,
        modules: Sequence[HeadModule],
        lanes: Sequence[_Lane],
        memories: Sequence[dict[str, Tensor]],
        device: str,
    ) -> None:
        self.lanes = lanes
        self.head = lanes[0].copy.head
        parameters, self.buffers = stack_module_state(list(modules))
        self.parameters = {name: value.detach() for name, value in parameters.items()}
        self.memory = {
            name: torch.stack([memory[name] for memory in memories]).to(device) for name in memories[0]
        }
        samples = [lane.order.samples for lane in lanes]
        self.epochs_a_step = (lanes[0].schedule.batch(samples[0]) / torch.tensor(samples)).to(device)
        # Only its structure is used, so it needs no memory for weights.
        self.module = deepcopy(modules[0]).to("meta")
        stack_linear_layers(self.module)
        self.slices = list(_slices(lanes))
        groups: list[dict[str, Any]] = [
            {
                "params": [value[part] for value in self.parameters.values()],
                "weight_decay": lanes[part.start].schedule.weight_decay,
            }
            for part in self.slices
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, fused=True)
        self._losses = torch.vmap(self._loss, randomness="different")

    def _loss(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        memory: dict[str, Tensor],
        features: Tensor,
        *rest: Tensor,
    ) -> Tensor:
        labels, samples, epoch = rest
        scaled, transformed, logits = functional_call(self.module, (parameters, buffers), (features,))
        terms = self.head.terms(Batch(scaled, transformed, logits, labels, samples, epoch, memory))
        return torch.stack([term.float() for term in terms.values()]).sum()

    def step(self, step: int, features: Tensor, labels: Tensor, samples: Tensor) -> None:
        """Move the lanes that are not finished.

        Args:
            step: Counted from 0.
            features: The batch of each unfinished lane, [L, M, D].
            labels: Their labels, [L, M].
            samples: Their rows in the training set, [L, M].
        """
        live = len(features)
        leaves = {name: value[:live].detach().requires_grad_() for name, value in self.parameters.items()}
        buffers = {name: value[:live] for name, value in self.buffers.items()}
        memory = {name: value[:live] for name, value in self.memory.items()}
        epochs = step * self.epochs_a_step[:live]
        losses = self._losses(leaves, buffers, memory, features, labels, samples, epochs)
        # The fused AdamW walks the memory of parameter and gradient alike.
        gradients = [
            gradient.contiguous() for gradient in torch.autograd.grad(losses.sum(), list(leaves.values()))
        ]
        for part, group in zip(self.slices, self.optimizer.param_groups, strict=True):
            lane = self.lanes[part.start]
            finished = step >= lane.order.steps
            for parameter, gradient in zip(group["params"], gradients, strict=True):
                parameter.grad = None if finished else gradient[part]
            if not finished:
                group["lr"] = lane.schedule.rate(step, lane.order.steps)
        self.optimizer.step()

    def state(self, number: int) -> dict[str, Tensor]:
        """Return the parameters and buffers of one lane."""
        return {name: value[number] for name, value in {**self.parameters, **self.buffers}.items()}


def _lane(copy: Copy, total: int) -> _Lane:
    schedule = copy.head.schedule()
    samples = total if copy.rows is None else len(copy.rows)
    return _Lane(copy, schedule, SampleOrder(copy.seed, samples, copy.rows, schedule.steps(samples)))


def _kind(copy: Copy, total: int) -> Hashable:
    """Return what two copies must share to be trained together."""
    lane = _lane(copy, total)
    free = ("lr", "weight_decay")
    rest = {name: value for name, value in hyper_parameters(copy.head).items() if name not in free}
    return type(copy.head), repr(sorted(rest.items())), lane.schedule.batch(lane.order.samples)


def _shown(batches: Batches, lanes: Sequence[_Lane]) -> Iterable[tuple[Tensor, Tensor]]:
    """Show the steps of a pass that takes longer than a moment, on a terminal."""
    shown: Iterable[tuple[Tensor, Tensor]] = tqdm(
        batches,
        total=lanes[0].order.steps,
        desc=f"{type(lanes[0].copy.head).__name__} x {len(lanes)}",
        unit="step",
        delay=SHOWN_AFTER,
        leave=False,
        disable=not is_interactive(),
    )
    return shown


def _finish_last_first(lane: _Lane) -> tuple[int, float, float]:
    # Lanes that go on longest come first, so that the unfinished ones are always a prefix of the stack.
    return -lane.order.steps, lane.schedule.lr, lane.schedule.weight_decay


def _slices(lanes: Sequence[_Lane]) -> Iterator[slice]:
    """Yield the runs of lanes that share their learning rate at every step and their weight decay."""
    start = 0
    for _, run in itertools.groupby(lanes, key=lambda lane: (lane.order.steps, lane.schedule)):
        length = len(list(run))
        yield slice(start, start + length)
        start += length


class StackedLinear(nn.Linear):
    """``nn.Linear``, computed as (W x^T)^T.

    Under ``torch.vmap`` the layer becomes a batched product of [M, I] with [I, O] a copy, and its gradient
    one of [I, M] with [M, O]. Where O is a few classes, both run at a third of the speed of the same products
    the other way round (45 copies, M = 64, I = 2048, O = 10, one core: 27 ms against 9). Turned round, the
    gradient of the weights also comes in the layout of the weights, which the fused AdamW needs.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return [M, O] for [M, I]."""
        if input.ndim != 2:
            return super().forward(input)
        result = (self.weight @ input.mT).mT
        return result if self.bias is None else result + self.bias


def stack_linear_layers(module: nn.Module) -> None:
    """Make the linear layers of a module, in place, such that ``torch.vmap`` over copies of it is fast."""
    for part in module.modules():
        # A subclass has a forward of its own, which must stay.
        if type(part) is nn.Linear:
            part.__class__ = StackedLinear
