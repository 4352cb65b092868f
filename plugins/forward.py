"""forward: cross-entropy on the predictions as label noise would have changed them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nml.errors import UserError
from plugins.head import share
from plugins.lp import LinearProbe
from plugins.mlp import MLP
from plugins.trainable import Batch
from plugins.trainer import Copy, fit_many

# What a flip that the matrix excludes is taken for: one label against it must not cost without bound.
EXCLUDED = 1e-6
# How far the shares of a class may be from adding up to 1.
TOLERANCE = 1e-4
# Of the linear probe that T is estimated by.
PROBE_RATE = 0.01


@dataclass(kw_only=True, eq=False)
class Forward(MLP):
    """L = -mean of log sum_i T[i, y] p_i, on the MLP of nmtune; T[i, j] is the share of class i labelled j.

    Source: G. Patrini et al., Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach
    (CVPR 2017), forward correction. Where T is not given it is estimated as they do: row i are the class
    probabilities that a head without correction gives to a sample that it is very sure is of class i, the
    quantile ``anchor`` of all. That head is a linear probe, which learns fewer wrong labels by heart than an
    MLP. Where nearly half of a class has the label of one other, no estimate tells the two apart: give T.

    Attributes:
        matrix: T, K rows of K shares that add up to 1; None to estimate it.
        anchor: Quantile of the probability of class i that names its sample.
    """

    matrix: tuple[tuple[float, ...], ...] | None = None
    anchor: float = 0.97

    _transitions: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "anchor")
        if self.matrix is not None:
            size = len(self.matrix)
            for number, row in enumerate(self.matrix):
                if len(row) != size or min(row, default=-1) < 0 or abs(sum(row) - 1) > TOLERANCE:
                    raise UserError(
                        f"matrix: row {number} is {list(row)}",
                        possible=f"{size} shares of 0 or more that add up to 1, as there are {size} rows",
                    )

    @property
    def outcome(self) -> dict[str, Any]:
        """How much noise T says there is: the mean over classes of what leaves the diagonal."""
        if self._transitions is None:
            return {}
        return {"off_diagonal": round(1 - float(self._transitions.diagonal().mean()), 4)}

    def check_classes(self, num_classes: int) -> None:
        """Refuse a matrix of another number of classes.

        Raises:
            UserError: Names both.
        """
        if self.matrix is not None and len(self.matrix) != num_classes:
            raise UserError(f"matrix has {len(self.matrix)} rows", possible=f"{num_classes}, one a class")

    def prepare(
        self, copies: Sequence[Copy], features: Tensor, labels: Tensor, *, num_classes: int, device: str
    ) -> None:
        """Give each head its T: what it was given, or an estimate by a linear probe."""
        heads = [copy.head for copy in copies if isinstance(copy.head, Forward)]
        self.check_classes(num_classes)
        if self.matrix is not None:
            for head in heads:
                head._transitions = torch.tensor(self.matrix, dtype=torch.float32)
            return
        shared = ("modality", "epochs", "batch_size", "rescale", "least_steps")
        probes = [
            LinearProbe(lr=PROBE_RATE, **{name: getattr(head, name) for name in shared}) for head in heads
        ]
        first = [dataclasses.replace(copy, head=probe) for copy, probe in zip(copies, probes, strict=True)]
        fit_many(first, features, labels, num_classes=num_classes, device=device)
        for head, copy, probe in zip(heads, copies, probes, strict=True):
            rows = features if copy.rows is None else features[copy.rows]
            probabilities = torch.softmax(probe.predict_logits(rows), dim=1)
            place = max(0, min(len(rows) - 1, round(self.anchor * (len(rows) - 1))))
            anchors = probabilities.argsort(dim=0)[place]
            head._transitions = probabilities[anchors]

    def build_memory(self, samples: int, num_classes: int) -> dict[str, Tensor]:  # noqa: ARG002 - of no sample
        """Return T, [K, K]."""
        known = self._transitions
        return {"transitions": torch.eye(num_classes) if known is None else known}

    def label_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the corrected cross-entropy."""
        reaching = batch.memory["transitions"].clamp_min(EXCLUDED).log().T[batch.labels]
        likelihood = functional.log_softmax(batch.logits.float(), dim=1)
        return {"forward": -torch.logsumexp(likelihood + reaching, dim=1).mean()}
