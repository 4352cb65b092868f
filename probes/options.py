"""What a study measures on one (encoder, task), and where it goes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from plugins.spectra import Convention
from probes.features import FeatureStore
from probes.heads import HeadChoice
from probes.training_data import Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure on one (encoder, task).

    Attributes:
        heads: The heads and their candidates.
        fractions: Shares of the training data.
        seeds: Seeds of each fit.
        noises: Downstream label noise ratios.
        views: Augmented views of the training data beyond the plain one.
        convention: Singular value convention.
        head_spectra: Whether to compute the spectrum of each head's transformed features, too.
        device: Where to fit.
        results: Where rows go.
        store: Where features are kept.
        heads_folder: Where the fitted heads are saved; None for nowhere.
    """

    heads: Sequence[HeadChoice]
    fractions: Sequence[Fraction]
    seeds: Sequence[int]
    noises: Sequence[Fraction]
    views: int = 0
    convention: Convention = "raw"
    head_spectra: bool = True
    device: str = "cpu"
    results: Path
    store: FeatureStore
    heads_folder: Path | None = None

    def points(self) -> list[Point]:
        """Return every (fraction, seed, noise)."""
        return [
            Point(fraction, seed, noise)
            for noise, fraction, seed in itertools.product(self.noises, self.fractions, self.seeds)
        ]
