"""nmtune-gce: the regularisers of nmtune with generalised cross-entropy in the place of cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from plugins.gce import GeneralisedCrossEntropy
from plugins.nmtune import NMTune


# The first of both is whose labels' term counts, and which targets that can take.
@dataclass(kw_only=True, eq=False)
class NMTuneGCE(GeneralisedCrossEntropy, NMTune):
    """L = L_GCE + lambda (L_MSE + L_COV + L_SVD): against noise in pre-training and in the task's labels."""
