"""lp: linear probing, a linear classifier on the frozen features as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from plugins.gradient_head import GradientHead
from plugins.schedule import TEXT_LINEAR, VISION_LINEAR, Schedule


@dataclass(kw_only=True, eq=False)
class LinearProbe(GradientHead):
    """Linear probing with the paper's settings: AdamW, lr 0.1 (text 0.01), no weight decay."""

    schedules: ClassVar[Mapping[str, Schedule]] = {"vision": VISION_LINEAR, "text": TEXT_LINEAR}

    def tried_rate(self) -> float:
        """Return a tenth of the schedule's rate, which is a hundred times that of other heads."""
        return self.schedule().lr / 10

    def build_transform(self, in_features: int) -> nn.Module:  # noqa: ARG002 - the base's signature
        """Leave the features as they are."""
        return nn.Identity()
