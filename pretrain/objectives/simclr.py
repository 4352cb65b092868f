"""SimCLR (Chen et al. 2020): the views of a sample attract, those of others repel. Labels are not read."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from pretrain.loading import Batch
from pretrain.objectives.contrast import Contrast


class SimCLR(Contrast):
    """NT-Xent over the views of the global batch."""

    small: ClassVar[dict[str, Any]] = {"options": {"hidden": 8, "dim": 4}}

    def classes(self, batch: Batch) -> torch.Tensor:
        """See :class:`pretrain.objectives.contrast.Contrast`: each sample is its own."""
        number = len(batch.targets)
        own = torch.arange(number, device=batch.targets.device)
        return own + self.setting.rank * number
