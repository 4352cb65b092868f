"""LoRA (arXiv 2106.09685) through peft: matrices of low rank beside the linear layers and convolutions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import ClassVar

from torch import Tensor, nn

from nml.errors import UserError, import_extra
from plugins.head import at_least
from probes.tuning.methods import Tuning

NEEDS = ("tune", "--method lora")
"""The extra, and what needs it."""
_ADAPTER = "default"


@dataclasses.dataclass(kw_only=True, eq=False)
class LoRA(Tuning):
    """Matrices of low rank beside each linear layer, attention and convolution; all weights stay.

    Attributes:
        rank: Their rank.
        alpha: What they add is multiplied by alpha / rank.
    """

    lr: float = 1e-3
    rank: int = 8
    alpha: float = 8.0

    method: ClassVar[str] = "lora"
    libraries: ClassVar[tuple[str, ...]] = ("peft",)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rank")
        if not self.alpha > 0:
            raise UserError(f"alpha {self.alpha:g}", possible="above 0")

    def begin(self, module: nn.Module, used: Collection[str]) -> dict[str, nn.Parameter]:
        """Put the matrices into a network and return them."""
        self._inject(module, used)
        return {name: part for name, part in module.named_parameters() if part.requires_grad}

    def end(self, module: nn.Module) -> None:
        """Take the matrices out again."""
        _take_out(module, merge=False)

    def put(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Merge the matrices into the weights they stand beside."""
        used = {name for name, _ in module.named_parameters()}
        # Inside an attention stands a layer that gets matrices with it.
        layers = {name.partition(".lora_")[0].partition(".base_layer")[0] for name in state}
        self._inject(module, used, only=layers)
        known = dict(module.named_parameters())
        for name, value in state.items():
            known[name].data.copy_(value)
        _take_out(module, merge=True)
        module.requires_grad_(False)

    def _inject(self, module: nn.Module, used: Collection[str], only: Collection[str] | None = None) -> None:
        peft = import_extra("peft", *NEEDS)
        found = sorted(only) if only is not None else targets(module, used)
        if not found:
            raise UserError(
                "--method lora: the network has no linear layer and no plain convolution",
                possible="full, bitfit, lp-ft",
            )
        # An expression: of names in a list those would count, too, that end in one of them.
        exactly = "|".join(map(re.escape, found))
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=exactly)
        peft.inject_adapter_in_model(config, module, adapter_name=_ADAPTER)


def targets(module: nn.Module, used: Collection[str]) -> list[str]:
    """Return the names of the layers that get matrices of low rank.

    Linear layers, convolutions and attentions of PyTorch itself. Subclasses have a forward of their own
    (weights that are standardised, padding like TensorFlow's), which what stands beside them would not share;
    of convolutions in groups and with dilation peft merges nothing right.
    """
    parents = {name.rpartition(".")[0] for name in used} | set(used)
    attentions = [name for name, part in module.named_modules() if type(part) is nn.MultiheadAttention]
    found = []
    for name, part in module.named_modules():
        if any(name.startswith(f"{attention}.") for attention in attentions):
            continue
        plain = type(part) is nn.Conv2d and part.groups == 1 and set(part.dilation) == {1}
        if name in parents and (plain or type(part) in (nn.Linear, nn.MultiheadAttention)):
            found.append(name)
    return found


def _take_out(module: nn.Module, *, merge: bool) -> None:
    """Put the layers back that matrices stand beside, with or without what these add."""
    from peft.tuners.lora import LoraLayer

    for name, layer in [named for named in module.named_modules() if isinstance(named[1], LoraLayer)]:
        # What stood inside another one has gone with it.
        if ".base_layer." in f"{name}.":
            continue
        if hasattr(layer, "unload_and_optionally_merge_module"):
            bare = layer.unload_and_optionally_merge_module(merge=merge, safe_merge=False, adapter_names=None)
        else:
            if merge:
                layer.merge()
            bare = layer.get_base_layer()
        module.set_submodule(name, bare)
    # With it peft would warn of every further tuning of the same network.
    if hasattr(module, "peft_config"):
        del module.peft_config
