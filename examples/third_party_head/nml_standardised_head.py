"""A head of another package: a small bottleneck whose features are held to unit variance."""

from dataclasses import dataclass

from torch import nn

from plugins.gradient_head import GradientHead


@dataclass(kw_only=True, eq=False)
class StandardisedProbe(GradientHead):
    """Features -> bottleneck -> linear classifier, with a term that keeps every feature in use.

    Attributes:
        width: Features after the bottleneck.
        weight: How much a standard deviation below 1 costs.
    """

    width: int = 128
    weight: float = 0.01

    def build_transform(self, in_features):
        """Return the module that maps [M, in_features] to Z [M, width]."""
        return nn.Sequential(nn.Linear(in_features, self.width), nn.Tanh())

    def terms(self, batch):
        """Add a named term to cross-entropy; the trainer minimises their sum."""
        shortfall = (1 - batch.transformed.std(dim=0, correction=0)).relu().mean()
        return super().terms(batch) | {"spread": self.weight * shortfall}
