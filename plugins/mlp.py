"""mlp: a two-layer MLP on the frozen features, then a linear classifier; NMTune without its regularisers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from nml.errors import UserError
from plugins.gradient_head import GradientHead
from plugins.head import at_least

Activation = Literal["relu", "gelu", "linear"]
# Hidden units of a head on fewer features than any encoder gives: two units with ReLU learn next to nothing.
NARROWEST = 16
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "linear": nn.Identity}


@dataclass(kw_only=True, eq=False)
class MLP(GradientHead):
    """D -> hidden -> D with an activation between the layers; Z has the width of F, as Eq. 3 needs.

    Attributes:
        layers: Linear layers before the classifier. The paper has 2.
        hidden: Width between the layers; None is D, the width of the features, or 16 where that is less. The
            paper names no width; D adds none of its own and keeps Z able to copy F.
        activation: What stands between two layers; the paper has ``relu``. ``linear`` is none at all.
    """

    layers: int = 2
    hidden: int | None = None
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "layers")
        if self.hidden is not None and self.hidden < 1:
            raise UserError(f"hidden {self.hidden}", possible="1 or more, or None for the features' width")

    def build_transform(self, in_features: int) -> nn.Module:
        """Return the layers; the last one leads back to ``in_features``."""
        hidden = self.hidden or max(in_features, NARROWEST)
        widths = [in_features, *[hidden] * (self.layers - 1), in_features]
        parts: list[nn.Module] = []
        for number, (before, after) in enumerate(itertools.pairwise(widths)):
            if number:
                parts.append(_ACTIVATIONS[self.activation]())
            parts.append(nn.Linear(before, after))
        return nn.Sequential(*parts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a head with the same hyper-parameters, of whatever width its layers are."""
        asked, first = self.hidden, state.get("transform.0.weight")
        if asked is None and self.layers > 1 and first is not None:
            # On few features it was D before there was a least width.
            self.hidden = len(first)
        try:
            super().load_state_dict(state)
        finally:
            self.hidden = asked
