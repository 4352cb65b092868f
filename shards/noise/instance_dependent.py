"""Instance-dependent noise: images that look like another class are likelier to be labelled so.

After X. Xia et al., Part-dependent Label Noise (NeurIPS 2020): a random projection of the features
a class gives scores p = softmax(x W_y) over the other classes. Their flip rates are random and miss
the ratio (0.05 becomes 0.10); here the samples are ranked by the Gumbel-top-k trick, which draws
exactly round(r N) of them without replacement in proportion to how strongly their scores point away.

``--model-file`` names the features: a ``.npy`` [N, D] in the source's order, or a ``.parquet`` with
columns ``key`` and ``features``; ``--encoder`` has them computed (see shards.features).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from nml.errors import UserError
from shards.hashing import mix, uniform
from shards.noise import Flips, Integers, Kind, Population, exact_count
from shards.noise.matrix_file import read_array

Floats = npt.NDArray[np.float64]


class InstanceDependent:
    """Exactly round(r N) flips, chosen and directed by the features."""

    kind: ClassVar[Kind] = "class"
    nested: ClassVar[bool] = True
    own_ratio: ClassVar[bool] = False

    def __init__(self, model_file: str | None = None) -> None:
        if not model_file:
            raise UserError(
                "--model instance-dependent: needs features",
                mend="have them computed with --encoder timm:resnet18, or name them with --model-file "
                "features.npy, a row a sample in the source's order",
            )
        self._file = Path(model_file)

    def plan(self, population: Population, ratios: Sequence[Fraction], seed: int) -> list[Flips]:
        """Rank the samples once, and flip the first k."""
        if population.num_classes < 2:
            raise UserError("--model instance-dependent: needs at least 2 classes")
        features = _standardised(self._features(population))
        counts = [exact_count(ratio, len(population)) for ratio in ratios]
        propensity, targets = _scores(features, population, seed)
        gumbel = -np.log(-np.log(uniform(mix(population.hashes, seed, "select"))))
        # Ties in floating point are broken by the key's hash, never by the order samples came in.
        order = np.lexsort((population.hashes, -(propensity + gumbel)))
        return [Flips(order[:count], targets[order[:count]]) for count in counts]

    def _features(self, population: Population) -> Floats:
        """Return the features, float64 [N, D], in the population's order."""
        if self._file.suffix == ".parquet":
            return _by_key(self._file, population)
        array = read_array(self._file, "features")
        if array.ndim != 2 or len(array) != len(population):
            raise UserError(
                f"--model-file {self._file}: has shape {'x'.join(map(str, array.shape))}",
                possible=f"{len(population)} rows, one a sample",
            )
        mend = "name a parquet with columns key and features, or compute them with --encoder"
        return np.asarray(population.from_source_order(array, self._file, mend), np.float64)


def _by_key(path: Path, population: Population) -> Floats:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["key", "features"])
        rows = {key: row for row, key in enumerate(table["key"].to_pylist())}
        values = np.array(table["features"].to_pylist(), np.float64)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"--model-file {path}: features cannot be read: {error}", possible="columns key and features"
        ) from error
    missing = next((key for key in population.keys if key not in rows), None)
    if missing is not None:
        raise UserError(f"--model-file {path}: has no features of sample {missing!r}")
    return values[[rows[key] for key in population.keys]]


def _standardised(features: Floats) -> Floats:
    """Give every dimension mean 0 and deviation 1, so that no scale of the encoder's matters."""
    if not np.all(np.isfinite(features)):
        raise UserError("--model-file: features hold a value that is not finite")
    deviation = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def _scores(features: Floats, population: Population, seed: int) -> tuple[Floats, Integers]:
    """Return each sample's log propensity to flip, [N], and the class it would flip to, [N]."""
    dimensions, classes = features.shape[1], population.num_classes
    propensity = np.empty(len(features))
    targets = np.empty(len(features), np.int64)
    others = np.arange(classes, dtype=np.uint64)
    for label in np.unique(population.labels).tolist():
        rows = np.flatnonzero(population.labels == label)
        projection = _normal(dimensions * classes, seed, f"projection {label}").reshape(dimensions, classes)
        logits = features[rows] @ projection / np.sqrt(dimensions)
        keep = np.delete(np.arange(classes), label)
        # How far the strongest other class stands above the own one.
        propensity[rows] = logits[:, keep].max(axis=1) - logits[:, label]
        cells = population.hashes[rows][:, None] ^ mix(others[keep], seed, "target class")[None, :]
        noise = -np.log(-np.log(uniform(mix(cells, seed, "target"))))
        targets[rows] = keep[np.argmax(logits[:, keep] + noise, axis=1)]
    return propensity, targets


def _normal(count: int, seed: int, purpose: str) -> Floats:
    """Return standard normal numbers from keyed hashes (Box and Muller), float64 [count]."""
    numbers = np.arange(count, dtype=np.uint64)
    radius = np.sqrt(-2 * np.log(uniform(mix(numbers, seed, purpose + " radius"))))
    return radius * np.cos(2 * np.pi * uniform(mix(numbers, seed, purpose + " angle")))
