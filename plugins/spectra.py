"""The singular value spectrum of a feature matrix, and the numbers read off it.

One pass over [N, D] adds up the D x D Gram matrix in float64, chunk by chunk, so N does not matter for
memory and chunks of any size give the same spectrum. Squaring costs digits at the small end: values
below 1e-8 of the largest are rounding. Products in float32 would take half the time, and lose values at
1e-5 of the largest altogether.

SVE and LSVR are definitions 2.1 and 2.2 of arXiv 2309.17002: noise in pre-training flattens the
spectrum, so SVE rises; the share of the largest value falls, so LSVR, its negative logarithm, rises.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from nml.errors import UserError

Convention = Literal["raw", "row-centred", "column-centred"]
"""What is done to features before their singular values are taken."""
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
"""Every convention; the first is the paper's."""
Values = npt.NDArray[np.float64]
"""float64, of any shape."""

CHUNK_BYTES = 64 << 20
"""Memory that a chunk of float64 rows takes at most."""
MAX_DIM = 16_384
"""Most columns that features may have."""
RANKME_EPSILON = 1e-7
"""RankMe's constant, equation 2 of arXiv 2210.02885."""


class Spectrum:
    """The Gram matrix of features that come in chunks.

    Args:
        dim: D, at most 16,384.
        convention: What is done to the features first. ``raw``: nothing, the paper's definitions.
            ``row-centred``: each sample divided by its norm, then its mean over the features subtracted, as
            the released code does. ``column-centred``: each feature's mean over all samples subtracted.

    Attributes:
        rows: N so far.

    Raises:
        UserError: If the convention is unknown or the features are too wide.
    """

    def __init__(self, dim: int, convention: Convention = "raw") -> None:
        if convention not in CONVENTIONS:
            raise UserError(f"SVD convention {convention!r}", possible=", ".join(CONVENTIONS))
        if not 1 <= dim <= MAX_DIM:
            raise UserError(f"features with {dim} columns", possible=f"1 to {MAX_DIM}")
        self.dim = dim
        self.convention = convention
        self.rows = 0
        # BLAS adds in place to Fortran order only; a copy would double the memory.
        self._gram = np.zeros((dim, dim), order="F")
        self._shift: Values | None = None
        self._sum = np.zeros(dim)

    def add(self, chunk: npt.ArrayLike) -> None:
        """Add rows [n, D] of any floating dtype.

        Raises:
            UserError: If the width differs or a value is not finite.
        """
        rows = _prepared(chunk, self.dim, self.convention)
        if self.convention == "column-centred" and len(rows):
            # Taking away a mean close to the final one first keeps the subtraction at the end harmless.
            if self._shift is None:
                self._shift = rows.mean(axis=0)
            rows = rows - self._shift
            self._sum += rows.sum(axis=0)
        self.rows += len(rows)
        # It takes longer to import than commands take that only name a convention.
        from scipy.linalg.blas import dsyrk

        self._gram = dsyrk(1.0, rows.T, beta=1.0, c=self._gram, overwrite_c=True)

    def singular_values(self) -> Values:
        """Return the singular values so far, descending, [min(N, D)].

        Raises:
            UserError: If nothing was added.
        """
        if not self.rows:
            raise UserError("the features are empty", possible="one row or more")
        gram = self._gram
        if self.convention == "column-centred":
            gram = gram - np.outer(self._sum, self._sum) / self.rows
        return _roots(gram, min(self.rows, self.dim))


def singular_values(
    features: npt.ArrayLike | Iterable[npt.ArrayLike], convention: Convention = "raw"
) -> Values:
    """Return the singular values of features [N, D], descending, float64 [min(N, D)].

    Args:
        features: An array (also memory-mapped), a tensor, or an iterable of chunks of one.
        convention: See :class:`Spectrum`.

    Raises:
        UserError: If the features are empty, too wide or not finite.
    """
    shape = getattr(features, "shape", None)
    if shape is None:
        spectrum: Spectrum | None = None
        for chunk in features:  # type: ignore[union-attr]
            if spectrum is None:
                spectrum = Spectrum(_width(np.shape(chunk)), convention)
            spectrum.add(chunk)
        if spectrum is None:
            raise UserError("the features are empty", possible="one row or more")
        return spectrum.singular_values()
    dim = _width(shape)
    if 0 < shape[0] < dim:
        # Fewer samples than features: the N x N Gram matrix has the same non-zero eigenvalues.
        rows = _prepared(features, dim, convention)  # type: ignore[arg-type]
        if convention == "column-centred":
            rows = rows - rows.mean(axis=0)
        return _roots(rows @ rows.T, len(rows))
    spectrum = Spectrum(dim, convention)
    step = max(1, CHUNK_BYTES // (8 * dim))
    for start in range(0, shape[0], step):
        spectrum.add(features[start : start + step])  # type: ignore[index]
    return spectrum.singular_values()


def sve(values: npt.ArrayLike) -> float:
    """Return the singular value entropy, definition 2.1: -sum p ln p, p the values' shares of their sum.

    0 for one direction, ln(n) for n equal values; nan where every value is 0.
    """
    shares = _shares(values)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum()) + 0.0 if len(shares) else float("nan")


def lsvr(values: npt.ArrayLike) -> float:
    """Return the largest singular value ratio, definition 2.2: -ln(sigma_1 / sum of all).

    0 for one direction, ln(n) for n equal values; nan where every value is 0.
    """
    shares = _shares(values)
    return float(-np.log(shares.max())) + 0.0 if len(shares) else float("nan")


def effective_rank(values: npt.ArrayLike) -> float:
    """Return the effective rank of Roy and Vetterli (EUSIPCO 2007): exp(SVE), between 1 and n."""
    return float(np.exp(sve(values)))


def rankme(values: npt.ArrayLike) -> float:
    """Return RankMe (Garrido et al., arXiv 2210.02885): the effective rank with 1e-7 added to each share."""
    shares = _shares(values) + RANKME_EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else float("nan")


def _width(shape: tuple[int, ...]) -> int:
    if len(shape) != 2:
        raise UserError(f"features of shape {list(shape)}", possible="[N, D]")
    return int(shape[1])


def _prepared(chunk: npt.ArrayLike, dim: int, convention: Convention) -> Values:
    # A tensor, without importing torch: numpy can read neither bfloat16 nor what needs a gradient.
    if hasattr(chunk, "detach"):
        chunk = chunk.detach().cpu().double().numpy()
    rows = np.asarray(chunk, dtype=np.float64, order="C")
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise UserError(f"features of shape {list(rows.shape)}", possible=f"[N, {dim}]")
    if not np.isfinite(rows).all():
        raise UserError("the features hold nan or infinity", possible="finite values")
    if convention == "row-centred":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms > 0, norms, 1)
        rows = rows - rows.mean(axis=1, keepdims=True)
    return rows


def _roots(gram: Values, count: int) -> Values:
    eigenvalues: npt.NDArray[np.float64] = np.linalg.eigvalsh(gram, UPLO="U").astype(np.float64, copy=False)
    return np.sqrt(np.clip(eigenvalues[::-1][:count], 0, None))


def _shares(values: npt.ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    total = array.sum()
    return array / total if total > 0 else array[:0]
