"""Which training samples a fit sees: validation carved from train, fractions, downstream label noise.

All of it is a pure function of sample keys, training labels and a seed; test data has no part in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nml.errors import UserError
from nml.files import atomic_writer
from probes.hashing import hash_value, rank_by_hash
from probes.samples import Labels

VALIDATION_SHARE = Fraction(1, 10)
CARVE_SALT = "nml-validation/1"

Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Carving:
    """Training samples divided in two.

    Attributes:
        fit: Positions to train on, int64, ascending.
        validation: Positions to select on, int64, ascending; empty if validation data is published.
    """

    fit: Indices
    validation: Indices


def carve(keys: Sequence[str], labels: Labels, *, published: bool) -> Carving:
    """Set a tenth of every class aside for selection, by the hash of the keys.

    A class keeps at least one sample to train on; the split is the same for every seed and head.

    Args:
        keys: Sample keys of the training split.
        labels: Their labels, see :func:`strata`.
        published: Whether the task brings validation data of its own; then nothing is set aside.

    Raises:
        UserError: If nothing can be set aside.
    """
    everything = np.arange(len(keys))
    if published:
        return Carving(everything, everything[:0])
    held = _per_class(rank_by_hash(keys, CARVE_SALT), labels, VALIDATION_SHARE, leave=1)
    if not len(held):
        raise UserError(
            f"{len(keys)} training samples are too few to set validation samples aside",
            mend="give two or more samples of a class",
        )
    return Carving(np.setdiff1d(everything, held), held)


def fraction_order(keys: Sequence[str], seed: int) -> Indices:
    """Return the order in which the samples join the subsets of a seed, int64 [N]."""
    return rank_by_hash(keys, f"nml-fraction/1 {seed}")


def subset_of(order: Indices, labels: Labels, fraction: Fraction) -> Indices:
    """Return the positions of a fraction of every class, at least one sample of each.

    Subsets of one order are nested: what is among 10 % is among 25 %.

    Args:
        order: The :func:`fraction_order` of a seed, which all fractions share.
        labels: Of all samples.
        fraction: Of every class.
    """
    return _per_class(order, labels, fraction, least=1)


def strata(labels: Labels) -> npt.NDArray[np.int64]:
    """Return what samples are divided by, int64 [N]: their class, the rarest of several, or nothing."""
    if labels.dtype != bool:
        return labels if labels.dtype.kind != "f" else np.zeros(len(labels), np.int64)
    rarest_first = np.argsort(labels.sum(axis=0), kind="stable")
    # A sample without any class is one of its own kind.
    with_none = np.column_stack([labels[:, rarest_first], np.ones(len(labels), bool)])
    return with_none.argmax(axis=1)


def _per_class(order: Indices, labels: Labels, share: Fraction, *, least: int = 0, leave: int = 0) -> Indices:
    labels, chosen = strata(labels), []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        count = max(least, round(share * len(members)))
        # A class of two to four samples still has one to select on.
        if leave and count == 0 and len(members) > leave:
            count = 1
        chosen.append(members[: min(count, len(members) - leave)])
    return np.sort(np.concatenate(chosen))


def flip_labels(
    keys: Sequence[str],
    labels: Labels,
    ratio: Fraction,
    num_classes: int,
    seed: int,
    parts: Sequence[Indices] | None = None,
) -> Labels:
    """Return labels of which exactly round(ratio * n) of every part are wrong, uniformly (appendix B.5).

    Nested: what is flipped at 10 % is flipped at 20 %. A sample that is flipped gets the same wrong class
    at every ratio and in every part.

    Args:
        keys: N sample keys.
        labels: Their classes, int64 [N].
        ratio: Share to flip.
        num_classes: K.
        seed: Seed of the choice and of the wrong classes.
        parts: Positions of each part, int64 [n]; samples in none keep their labels. All samples are one
            part without it.
    """
    flipped = labels.copy()
    if not ratio:
        return flipped
    order = rank_by_hash(keys, f"nml-downstream/1 {seed}")
    draws = np.random.Generator(np.random.Philox(key=seed)).integers(0, num_classes - 1, size=len(labels))
    wrong = np.empty_like(labels)
    wrong[order] = draws + (draws >= labels[order])
    for part in [order] if parts is None else parts:
        # Flips of the whole would not be the same share of its parts: one may hold few or many of them.
        chosen = order[np.isin(order, part)][: round(ratio * len(part))]
        flipped[chosen] = wrong[chosen]
    return flipped


def store_split(folder: Path, split_hash: str, keys: Sequence[str], carving: Carving) -> Path:
    """Write which training samples were set aside for selection; the same split is written once.

    Returns:
        A Parquet file with a row a training sample: ``key``, ``split`` (``train`` or ``validation``).
    """
    names = np.full(len(keys), "train", dtype=object)
    names[carving.validation] = "validation"
    identity = hash_value([split_hash, carving.validation.tolist()])[:32]
    path = folder / "splits" / f"{identity}.parquet"
    if not path.exists():
        table = pa.table({"key": list(keys), "split": pa.array(names).dictionary_encode()})
        with atomic_writer(path) as file:
            pq.write_table(table, file, compression="zstd")
    return path
