"""nmtune-gce: the regularisers of nmtune with generalised cross-entropy in the place of cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from plugins.gce import check_share, generalised_cross_entropy
from plugins.nmtune import NMTune
from plugins.trainable import Batch


@dataclass(kw_only=True, eq=False)
class NMTuneGCE(NMTune):
    """L = L_GCE + lambda (L_MSE + L_COV + L_SVD): against noise in pre-training and in the task's labels.

    Attributes:
        q: As in :class:`plugins.gce.GeneralisedCrossEntropy`.
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("q", self.q)

    def label_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return generalised cross-entropy in the place of cross-entropy."""
        return {"gce": generalised_cross_entropy(batch.logits, batch.labels, self.q)}
