"""Supervised contrast (Khosla et al. 2020): views of samples with one label attract, so that noise enters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nml.objectives import Takes
from pretrain.loading import Batch
from pretrain.objectives.contrast import Contrast, ContrastOptions


@dataclass(frozen=True, kw_only=True)
class SupConOptions(ContrastOptions):
    """Of the supervised contrast.

    Attributes:
        temperature: Divides the cosines.
    """

    temperature: float = 0.1


class SupCon(Contrast):
    """The supervised contrastive loss over the views of the global batch, by the level's labels."""

    takes: ClassVar[Takes] = "class"
    Options: ClassVar[type[Any]] = SupConOptions
    small: ClassVar[dict[str, Any]] = {"options": {"hidden": 8, "dim": 4}}

    def classes(self, batch: Batch) -> torch.Tensor:
        """See :class:`pretrain.objectives.contrast.Contrast`: the labels."""
        return batch.targets
