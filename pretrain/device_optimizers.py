"""Update rules that are called off on the device: they read ``found_inf``, as torch's fused ones do.

``found_inf`` is a float32 scalar on the device, 1 where the step is to leave weights, moments and counts as
they are. torch's fused AdamW reads it. Its fused SGD does, but knows no shards; timm's LAMB counts its steps
on the host, which does not know which of them were called off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from timm.optim import Lamb
from torch.optim.sgd import sgd

from pretrain.engines import local


class DeviceSGD(torch.optim.SGD):
    """torch's fused SGD, on each rank's part of the weights where they are sharded."""

    found_inf: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update the weights."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            buffers: list[torch.Tensor | None] = [None] * len(weights)
            if group["momentum"]:
                for weight in weights:
                    if "momentum_buffer" not in self.state[weight]:
                        # torch begins with the first gradient, which is the same: 0 times the momentum more.
                        self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
                buffers = [local(self.state[weight]["momentum_buffer"]) for weight in weights]
            sgd(
                [local(weight) for weight in weights],
                [local(weight.grad) for weight in weights],
                buffers,
                fused=True,
                found_inf=self.found_inf,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                dampening=0.0,
                nesterov=group["nesterov"],
                maximize=False,
            )


class DeviceLamb(Lamb):
    """timm's LAMB with its count of steps on the device, in a few kernels over all weights.

    Of weights that are sharded each rank computes its part; the norms behind all trust ratios are summed over
    the ranks at once.
    """

    found_inf: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update the weights."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(group, weights)

    def _update(self, group: dict[str, Any], weights: list[Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] |= {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        values = [local(weight) for weight in weights]
        means = [local(self.state[weight]["exp_avg"]) for weight in weights]
        squares = [local(self.state[weight]["exp_avg_sq"]) for weight in weights]
        # 1 where the step is taken, 0 where it is not: then every line below adds nothing.
        go = torch.ones((), device=values[0].device, dtype=values[0].dtype)
        if self.found_inf is not None:
            go = go - self.found_inf
        # What is not finite stays so when it is multiplied by 0.
        gradients = [torch.where(go > 0, local(weight.grad), 0.0) for weight in weights]
        count = torch.as_tensor(group.get("step", 0.0), dtype=torch.float32)
        group["step"] = count = count.to(go.device, non_blocking=True) + go
        first, second = group["betas"]
        keep_mean, keep_square = 1 - (1 - first) * go, 1 - (1 - second) * go
        torch._foreach_mul_(means, keep_mean)
        torch._foreach_add_(means, torch._foreach_mul(gradients, 1 - first))
        torch._foreach_mul_(squares, keep_square)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        # In float64: 1 - beta^step loses half of the digits of float32 in the first steps.
        steps = count.double().clamp(min=1)
        of_mean, of_root = 1 / (1 - first**steps), (1 - second**steps).rsqrt()
        roots = torch._foreach_sqrt(squares)
        # Multiplied and added a number of the host: torch reads a tensor that it is to add.
        torch._foreach_mul_(roots, of_root.to(go.dtype))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        torch._foreach_mul_(updates, of_mean.to(go.dtype))
        lr = go * group["lr"]
        if group["weight_decay"]:
            torch._foreach_add_(updates, values, alpha=group["weight_decay"])
            ratios = _trust_ratios(weights, values, updates)
            torch._foreach_addcmul_(values, updates, list((ratios * -lr).unbind()))
        else:
            torch._foreach_mul_(updates, lr)
            torch._foreach_sub_(values, updates)


def _trust_ratios(
    weights: list[torch.Tensor], values: Sequence[torch.Tensor], updates: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the norm of each weight over that of its update, 1 where one of them is 0."""
    norms = torch.stack([*torch._foreach_norm(list(values)), *torch._foreach_norm(list(updates))])
    mesh = getattr(weights[0], "device_mesh", None)
    if mesh is not None:
        norms = norms.square()
        dist.all_reduce(norms, group=mesh.get_group(mesh.ndim - 1))
        norms = norms.sqrt()
    of_weights, of_updates = norms.chunk(2)
    return torch.where((of_weights > 0) & (of_updates > 0), of_weights / of_updates, 1.0)
