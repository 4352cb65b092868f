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

from plugins.batch_products import Cosine, Moments

Reduction = Literal["sample", "element", "sum"]

# A singular value below this share of the largest is rounding: float64 products resolve eigenvalues
# to 1e-16 of the largest, so at this share the direction still has six digits. It counts as zero,
# where the sum of singular values has a kink and zero is a valid subgradient.
ZERO_SHARE = 1e-5


class Products(NamedTuple):
    """The products of a batch with itself, in float64.

    Attributes:
        matrix: Z Z^T [M, M] if M <= D, else Z^T Z [D, D].
        mean: Of each feature, [D].
        deviations: Squared deviations of each feature from its mean, summed over the samples, [D].
        rows: M.
        dtype: What a loss is returned in: float32, or float64 if the batch came so.
    """

    matrix: Tensor
    mean: Tensor
    deviations: Tensor
    rows: int
    dtype: torch.dtype

    @property
    def of_samples(self) -> bool:
        """Whether ``matrix`` is [M, M], a row a sample."""
        return self.rows <= len(self.mean)


def products(transformed: Tensor) -> Products:
    """Form the cheaper of Z Z^T and Z^T Z, in float64, for :func:`covariance` and :func:`dominant_share`.

    Args:
        transformed: Z, [M, D].
    """
    with torch.autocast(transformed.device.type, enabled=False):
        matrix, mean, deviations, _ = Moments.apply(transformed)
    return Products(matrix, mean, deviations, transformed.shape[0], _result(transformed))


def consistency(features: Tensor, transformed: Tensor, *, reduction: Reduction = "sample") -> Tensor:
    """Eq. 3, L_MSE: the squared distance between normalised features and normalised transformed features.

    Each row is divided by its own Euclidean norm; a row of zeros stays one and has no gradient.

    Args:
        features: F, the frozen features, [M, D]; they get no gradient.
        transformed: Z, [M, D].
        reduction: Eq. 3 leaves open how a batch becomes one number. ``sample``: the squared norm of each
            sample's difference, averaged over the M samples, so that neither M nor D changes the weight
            against the other terms. ``element``: divided by D as well, as the released code does.
            ``sum``: the squared Frobenius norm of the batch.
    """
    with torch.autocast(transformed.device.type, enabled=False):
        cosine, of_f, of_z = Cosine.apply(features, transformed)
        # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b of unit or zero vectors. In float64 the subtraction leaves six
        # digits to distances down to 1e-10.
        lengths = (of_f > 0).to(cosine.dtype) + (of_z > 0)
        loss = (lengths - 2 * cosine).clamp_min(0).sum()
        if reduction != "sum":
            loss = loss / (features.numel() if reduction == "element" else len(features))
        return loss.to(_result(transformed))


def covariance(of: Products) -> Tensor:
    """Eq. 4, L_COV: (1 / D) of the sum of squared off-diagonal entries of the covariance of Z.

    C(Z) = 1 / (M - 1) sum_i (z_i - mean)(z_i - mean)^T. From Z Z^T it is the squared Frobenius norm of the
    doubly centred matrix minus the squared variances. One sample has no covariance: the loss is 0.
    """
    if of.of_samples:
        by_row = of.matrix.mean(dim=0)
        centred = of.matrix - by_row - by_row.unsqueeze(1) + by_row.mean()
        total = centred.square().sum() - of.deviations.square().sum()
    else:
        centred = of.matrix - of.rows * torch.outer(of.mean, of.mean)
        total = (centred - torch.diag(centred.diagonal())).square().sum()
    return (total / (max(of.rows - 1, 1) ** 2 * len(of.mean))).to(of.dtype)


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
