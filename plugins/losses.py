"""The regularisers of NMTune, exact to Eq. 3 to 5 of arXiv 2309.17002 (section 4.2).

Each takes what :func:`products` forms of one batch, and returns one number. M is the batch size, D the width.
Sums run in float64, also under autocast: the products of Z with itself square its condition, and float32
would leave half of its digits, about three, to the smaller singular values. The result is float32 (float64
for float64 input).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from plugins.batch_products import BatchProducts

Reduction = Literal["sample", "element", "sum"]
"""What the squared differences of a consistency are summed and averaged over."""


class Products(NamedTuple):
    """What the losses of a batch are functions of, in float64.

    Attributes:
        off_diagonal: Sum of the squared off-diagonal entries of (M - 1) C(Z), C(Z) as in Eq. 4.
        singular_values: Of Z, ascending, [min(M, D)]; [0] if not asked for.
        distances: Squared distance between each normalised row of F and of Z, [M]; [0] without F.
        shape: M and D.
        dtype: What a loss is returned in: float32, or float64 if the batch came so.
    """

    off_diagonal: Tensor
    singular_values: Tensor
    distances: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype


def products(transformed: Tensor, features: Tensor | None = None, *, spectrum: bool = False) -> Products:
    """Form once what the losses of a batch share.

    Args:
        transformed: Z, [M, D].
        features: F, the frozen features, [M, D], for :func:`consistency`; they get no gradient.
        spectrum: Whether to find the singular values, for :func:`dominant_share`.
    """
    off_diagonal, sigma, distances, *_ = BatchProducts.apply(transformed, features, spectrum)
    rows, columns = transformed.shape
    dtype = torch.float64 if transformed.dtype == torch.float64 else torch.float32
    return Products(off_diagonal, sigma, distances, (rows, columns), dtype)


def consistency(of: Products, *, reduction: Reduction = "sample") -> Tensor:
    """Eq. 3, L_MSE: the squared distance between normalised features and normalised transformed features.

    Each row is divided by its own Euclidean norm; a row of zeros stays one and has no gradient.

    Args:
        of: The products of Z with F.
        reduction: Eq. 3 leaves open how a batch becomes one number. ``sample``: the squared norm of each
            sample's difference, averaged over the M samples, so that neither M nor D changes the weight
            against the other terms. ``element``: divided by D as well, as the released code does.
            ``sum``: the squared Frobenius norm of the batch.
    """
    rows, columns = of.shape
    count = {"sample": rows, "element": rows * columns, "sum": 1}[reduction]
    return (of.distances.sum() / count).to(of.dtype)


def covariance(of: Products) -> Tensor:
    """Eq. 4, L_COV: (1 / D) of the sum of squared off-diagonal entries of the covariance of Z.

    C(Z) = 1 / (M - 1) sum_i (z_i - mean)(z_i - mean)^T. One sample has no covariance: the loss is 0.
    """
    rows, columns = of.shape
    return (of.off_diagonal / (max(rows - 1, 1) ** 2 * columns)).to(of.dtype)


def dominant_share(of: Products, *, k: int = 1) -> Tensor:
    """Eq. 5, L_SVD: minus the share of the k largest singular values of Z in the sum of all of them.

    The paper has k = 1: -sigma_1 / sum_j sigma_j. Repeated and zero singular values have finite gradients.
    A batch of zeros has no share: the loss is 0.

    Raises:
        ValueError: If k is below 1.
    """
    return top_share(of, k=k)


def top_share(of: Products, *, k: int, softness: float = 0.0) -> Tensor:
    """Generalise Eq. 5 to -sum_i w_i sigma_i / sum_j sigma_j, sigma_1 the largest.

    Args:
        of: The products of Z, with its spectrum.
        k: w_i is 1 up to i = k and 0 after it.
        softness: Above 0, w_i = sigmoid((k + 1/2 - i) / softness) instead.

    Raises:
        ValueError: If k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; possible: 1 or more")
    sigma = of.singular_values
    total = sigma.sum()
    if softness > 0:
        rank = torch.arange(len(sigma), 0, -1, device=sigma.device, dtype=sigma.dtype)
        top = (torch.sigmoid((k + 0.5 - rank) / softness) * sigma).sum()
    else:
        top = sigma[-k:].sum()
    return -(top / torch.where(total > 0, total, 1.0)).to(of.dtype)
