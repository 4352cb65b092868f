"""The regularisers of NMTune, exact to Eq. 3 to 5 of arXiv 2309.17002 (section 4.2).

Each takes one batch and returns one number. M is the batch size, D the width. Sums run in float64,
also under autocast: the Gram matrix squares the condition of Z, and float32 would leave half of its
digits, about three, to the smaller singular values. The result is float32 (float64 for float64 input).

Eq. 4 and Eq. 5 need only the products of Z with itself. :func:`products` forms them once, as the
smaller of Z Z^T [M, M] and Z^T Z [D, D]: both have the non-zero squared singular values of Z as
eigenvalues, and the same squared Frobenius norm, also after centring. Neither an SVD of Z nor, in a
batch narrower than the features, a D x D matrix is ever formed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduction = Literal["sample", "element", "sum"]

# A singular value below this share of the largest is rounding: float64 products resolve eigenvalues
# to 1e-16 of the largest, so at this share the direction still has six digits. It counts as zero,
# where the sum of singular values has a kink and zero is a valid subgradient.
ZERO_SHARE = 1e-5


class Products(NamedTuple):
    """The products of a batch with itself, in float64.

    Attributes:
        z: The batch, [M, D].
        matrix: Z Z^T [M, M] if M <= D, else Z^T Z [D, D].
        dtype: What a loss is returned in: float32, or float64 if the batch came so.
    """

    z: Tensor
    matrix: Tensor
    dtype: torch.dtype

    @property
    def of_samples(self) -> bool:
        """Whether ``matrix`` is [M, M], a row a sample."""
        return self.z.shape[0] <= self.z.shape[1]


def products(transformed: Tensor) -> Products:
    """Form the cheaper of Z Z^T and Z^T Z, in float64, for :func:`covariance` and :func:`dominant_share`.

    Args:
        transformed: Z, [M, D].
    """
    with torch.autocast(transformed.device.type, enabled=False):
        z = transformed.double()
        rows, columns = z.shape
        matrix = z @ z.mT if rows <= columns else z.mT @ z
        return Products(z, matrix, _result(transformed))


def consistency(features: Tensor, transformed: Tensor, *, reduction: Reduction = "sample") -> Tensor:
    """Eq. 3, L_MSE: the squared distance between normalised features and normalised transformed features.

    Each row is divided by its own Euclidean norm; a row of zeros stays one and has no gradient.

    Args:
        features: F, the frozen features, [M, D].
        transformed: Z, [M, D].
        reduction: Eq. 3 leaves open how a batch becomes one number. ``sample``: the squared norm of each
            sample's difference, averaged over the M samples, so that neither M nor D changes the weight
            against the other terms. ``element``: divided by D as well, as the released code does.
            ``sum``: the squared Frobenius norm of the batch.
    """
    with torch.autocast(transformed.device.type, enabled=False):
        f, z = features.double(), transformed.double()
        squares = [(rows * rows).sum(dim=-1) for rows in (f, z)]
        zero = [square == 0 for square in squares]
        norms = [torch.where(none, 1.0, square).sqrt() for none, square in zip(zero, squares, strict=True)]
        # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b of unit or zero vectors: no [M, D] quotients. In float64 the
        # subtraction leaves six digits to distances down to 1e-10.
        lengths = sum((~none).to(f.dtype) for none in zero)
        distances = (lengths - 2 * (f * z).sum(dim=-1) / (norms[0] * norms[1])).clamp_min(0)
        loss = distances.sum()
        if reduction != "sum":
            loss = loss / (features.numel() if reduction == "element" else len(features))
        return loss.to(_result(transformed))


def covariance(of: Products) -> Tensor:
    """Eq. 4, L_COV: (1 / D) of the sum of squared off-diagonal entries of the covariance of Z.

    C(Z) = 1 / (M - 1) sum_i (z_i - mean)(z_i - mean)^T. From Z Z^T it is the squared Frobenius norm of the
    doubly centred matrix minus the squared variances. One sample has no covariance: the loss is 0.
    """
    z, matrix, dtype = of
    rows, columns = z.shape
    mean = z.mean(dim=0)
    if of.of_samples:
        by_row = matrix.mean(dim=0)
        centred = matrix - by_row - by_row.unsqueeze(1) + by_row.mean()
        variances = (z * z).sum(dim=0) - rows * mean * mean
        total = centred.square().sum() - variances.square().sum()
    else:
        centred = matrix - rows * torch.outer(mean, mean)
        total = (centred - torch.diag(centred.diagonal())).square().sum()
    return (total / (max(rows - 1, 1) ** 2 * columns)).to(dtype)


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
        of: The products of Z.
        k: w_i is 1 up to i = k and 0 after it.
        softness: Above 0, w_i = sigmoid((k + 1/2 - i) / softness) instead.

    Raises:
        ValueError: If k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; possible: 1 or more")
    sigma = singular_values(of)
    rank = torch.arange(len(sigma), 0, -1, device=sigma.device, dtype=sigma.dtype)
    weights = torch.sigmoid((k + 0.5 - rank) / softness) if softness > 0 else (rank <= k).to(sigma.dtype)
    total = sigma.sum()
    share = (weights * sigma).sum() / torch.where(total > 0, total, torch.ones_like(total))
    return -share.to(of.dtype)


def singular_values(of: Products) -> Tensor:
    """Return the min(M, D) singular values of Z, ascending, in float64, with gradients."""
    # eigvalsh, not eigh: its gradient needs no difference of eigenvalues, so repeated ones are harmless.
    squared = torch.linalg.eigvalsh(of.matrix)
    counts = squared > squared[..., -1:] * ZERO_SHARE**2
    return torch.where(counts, squared, torch.ones_like(squared)).sqrt() * counts


def _result(source: Tensor) -> torch.dtype:
    return torch.float64 if source.dtype == torch.float64 else torch.float32
