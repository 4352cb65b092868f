"""The gradient of a loss over all samples of a batch that is cut into parts."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from pretrain.batchnorm import unchanged_statistics
from pretrain.engines import Engine, Tensors
from pretrain.loading import Batch


def backward_of_whole(
    engine: Engine,
    parts: list[Batch],
    forward: Callable[[Batch], Tensors],
    loss: Callable[[Tensors], torch.Tensor],
    *,
    rows: Collection[str],
    seed: Callable[[int], None],
) -> tuple[torch.Tensor, Tensors]:
    """Add the gradient of a loss over all parts together; return the loss and the rows, detached.

    Of several parts, features come first, without gradients, then each part again (Gao et al. 2021): the
    gradient with respect to all features is taken once, and sent through part by part.

    Args:
        engine: The engine.
        parts: Of the rank's batch, equally large.
        forward: What the network says of a part.
        loss: Of what it says of all.
        rows: Names of what has a row a sample; the rest is the same for every part.
        seed: Called with the number of a part before each of its forward passes.
    """
    if len(parts) == 1:
        seed(0)
        with engine.micro_step(last=True):
            output = forward(parts[0])
            value = loss(output)
            engine.backward(value)
        return value.detach(), {name: output[name].detach().float() for name in rows}
    outputs: list[Tensors] = []
    # This pass must leave no trace: batch normalisation would count every sample twice.
    with unchanged_statistics(engine.network), torch.no_grad():
        for number, part in enumerate(parts):
            seed(number)
            outputs.append(forward(part))
    whole = {name: torch.cat([output[name].float() for output in outputs]) for name in rows}
    scalars = {name: outputs[0][name].float() for name in outputs[0] if name not in rows}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in (whole | scalars).items()}
    value = loss(leaves)
    gradients = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    pieces = {name: gradients[name].chunk(len(parts)) for name in rows}
    for number, part in enumerate(parts):
        seed(number)
        with engine.micro_step(last=number == len(parts) - 1):
            output = forward(part)
            terms = [(output[name].float() * pieces[name][number]).sum() for name in rows]
            # A scalar's gradient is whole already: each part carries its share.
            terms += [(output[name] * gradients[name]).sum() / len(parts) for name in scalars]
            engine.backward(torch.stack([term.reshape(()) for term in terms]).sum())
    return value.detach(), {name: leaves[name].detach() for name in rows}
