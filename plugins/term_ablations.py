"""NMTune with some of its three terms only (Table 15 of arXiv 2309.17002); all else is nmtune's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from plugins.nmtune import NMTune


@dataclass(kw_only=True, eq=False)
class ConsistencyOnly(NMTune):
    """Cross-entropy and L_MSE, Eq. 3."""

    regularisers: ClassVar[frozenset[str]] = frozenset({"mse"})


@dataclass(kw_only=True, eq=False)
class CovarianceOnly(NMTune):
    """Cross-entropy and L_COV, Eq. 4."""

    regularisers: ClassVar[frozenset[str]] = frozenset({"cov"})


@dataclass(kw_only=True, eq=False)
class DominantShareOnly(NMTune):
    """Cross-entropy and L_SVD, Eq. 5."""

    regularisers: ClassVar[frozenset[str]] = frozenset({"svd"})


@dataclass(kw_only=True, eq=False)
class WithoutDominantShare(NMTune):
    """Cross-entropy, L_MSE and L_COV."""

    regularisers: ClassVar[frozenset[str]] = frozenset({"mse", "cov"})


@dataclass(kw_only=True, eq=False)
class WithoutCovariance(NMTune):
    """Cross-entropy, L_MSE and L_SVD."""

    regularisers: ClassVar[frozenset[str]] = frozenset({"mse", "svd"})


@dataclass(kw_only=True, eq=False)
class WithoutConsistency(NMTune):
    """Cross-entropy, L_COV and L_SVD."""

    regularisers: ClassVar[frozenset[str]] = frozenset({"cov", "svd"})
