"""NMTune on another MLP: depth 1 to 4, no activation, GELU (Table 16 of arXiv 2309.17002).

nmtune itself has two layers with ReLU. Its keywords ``layers`` and ``activation`` give the same heads,
and others; these have names so that one ``--plugin`` list makes the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from plugins.mlp import Activation
from plugins.nmtune import NMTune


@dataclass(kw_only=True, eq=False)
class OneLayer(NMTune):
    """A single linear layer before the classifier."""

    layers: int = 1


@dataclass(kw_only=True, eq=False)
class ThreeLayers(NMTune):
    """Three linear layers before the classifier."""

    layers: int = 3


@dataclass(kw_only=True, eq=False)
class FourLayers(NMTune):
    """Four linear layers before the classifier."""

    layers: int = 4


@dataclass(kw_only=True, eq=False)
class WithoutActivation(NMTune):
    """Two linear layers with nothing between them."""

    activation: Activation = "linear"


@dataclass(kw_only=True, eq=False)
class GELU(NMTune):
    """Two linear layers with GELU between them."""

    activation: Activation = "gelu"
