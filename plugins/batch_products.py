"""What the losses need of a batch [M, D], as one step of autograd.

The losses of a batch are functions of a few small quantities. Left to autograd, each would walk the M x D
numbers several times in each direction, in float64, and each small step on the way costs as much again to
launch: at D = 2048 together a fifth of the whole training step of an MLP. Here all are formed in one go, and
so is their gradient: one product with an M x M matrix, and multiples of two M x D matrices. Neither an SVD of
Z nor, in a batch narrower than the features, a D x D matrix is ever formed: Z Z^T and Z^T Z have the squared
singular values of Z as eigenvalues, and the same squared Frobenius norm, also after centring.

Everything runs in float64 whatever is given, which autocast leaves alone; the gradient is handed back in the
dtype of Z.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A singular value below this share of the largest is rounding: float64 products resolve eigenvalues
# to 1e-16 of the largest, so at this share the direction still has six digits. It counts as zero,
# where the sum of singular values has a kink and zero is a valid subgradient.
ZERO_SHARE = 1e-5

# How many results come before what is kept for the gradient.
_RESULTS = 3


class BatchProducts(torch.autograd.Function):
    """Z [*, M, D], F [*, M, D] or None, and whether singular values are asked for -> float64, in order:

    - the sum of the squared off-diagonal entries of C^T C, [*], where C is Z less the mean of each feature;
    - the singular values of Z, ascending, [*, min(M, D)]; [*, 0] if not asked for;
    - the squared distance between each row of F and that of Z, both divided by their norms, [*, M]; [*, 0]
      without F. A row of zeros stays one, and has no gradient;
    - what the gradient needs, without a gradient of its own.

    F, which is frozen, has no gradient.
    """

    @staticmethod
    def forward(transformed: Tensor, features: Tensor | None, spectrum: bool) -> tuple[Tensor, ...]:
        """Return the three, and what the gradient needs."""
        # Row by row, as F is stored: a layer may give Z column by column, and a step that writes one layout
        # from the other takes ten times as long as one within either.
        z = transformed.contiguous().double()
        rows, columns = z.shape[-2:]
        mean = z.mean(dim=-2, keepdim=True)
        if rows <= columns:
            matrix = z @ z.mT
            by_row = matrix.mean(dim=-1, keepdim=True)
            centred = matrix - by_row - by_row.mT + by_row.mean(dim=-2, keepdim=True)
            # torch.var takes eight times as long.
            deviations = (z - mean).square_().sum(dim=-2, keepdim=True)
            off_diagonal = centred.square().sum(dim=(-2, -1)) - deviations.square().sum(dim=(-2, -1))
        else:
            matrix = z.mT @ z
            centred = matrix - rows * mean.mT @ mean
            centred.diagonal(dim1=-2, dim2=-1).zero_()
            deviations = torch.zeros_like(mean)
            off_diagonal = centred.square().sum(dim=(-2, -1))
        sigma, distances, none = (z.new_empty((*z.shape[:-2], 0)) for _ in range(3))
        vectors = f = both = shrink = none
        if spectrum:
            # Of one copy that diverged LAPACK would refuse the whole stack.
            diverged = ~matrix.isfinite().all(dim=-1).all(dim=-1)
            squared, vectors = torch.linalg.eigh(matrix.masked_fill(diverged[..., None, None], 0))
            squared = squared.masked_fill(diverged.unsqueeze(-1), math.nan)
            sigma = squared.masked_fill(squared <= squared[..., -1:] * ZERO_SHARE**2, 0).sqrt_()
        if features is not None:
            f = features.double()
            of_f, of_z = (torch.linalg.vector_norm(part, dim=-1) for part in (f, z))
            inverse = _inverse(of_z)
            both = inverse * _inverse(of_f)
            cosine = (f * z).sum(dim=-1) * both
            shrink = cosine * inverse.square()
            # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b of unit or zero vectors. In float64 the subtraction leaves six
            # digits to distances down to 1e-10.
            distances = ((of_f > 0).double() + (of_z > 0) - 2 * cosine).clamp_min_(0)
        # Views, because autograd takes no input back as it came, which float64 ones do.
        kept = z.view_as(z), f.view_as(f), mean, centred, deviations, vectors, both, shrink
        return off_diagonal, sigma, distances, *kept

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor | None, bool], output: tuple[Tensor, ...]
    ) -> None:
        """Keep what the gradient needs."""
        ctx.mark_non_differentiable(*output[_RESULTS:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], *output[_RESULTS:])
        ctx.dtype = inputs[0].dtype
        ctx.asked = inputs[1] is not None, inputs[2]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        of_off_diagonal: Tensor | None,
        of_sigma: Tensor | None,
        of_distances: Tensor | None,
        *_: None,
    ) -> tuple[Tensor, None, None]:
        """Return the gradient of Z."""
        sigma, z, f, mean, centred, deviations, vectors, both, shrink = ctx.saved_tensors
        with_f, spectrum = ctx.asked
        wide = z.shape[-2] <= z.shape[-1]
        # It is factor @ Z, or Z @ factor, and multiples of rows and columns.
        factor = torch.zeros_like(centred)
        if of_sigma is not None and spectrum:
            factor += (vectors * (of_sigma * _inverse(sigma)).unsqueeze(-2)) @ vectors.mT
        if of_off_diagonal is not None:
            slope = 4 * of_off_diagonal[..., None, None]
            factor.addcmul_(centred, slope)
        if of_distances is not None and with_f:
            along_f, along_z = -2 * of_distances * both, 2 * of_distances * shrink
            if wide:
                factor.diagonal(dim1=-2, dim2=-1).add_(along_z)
        result = factor @ z if wide else z @ factor
        if of_off_diagonal is not None:
            if wide:
                result.addcmul_(z - mean, -slope * deviations)
            else:
                result.sub_(slope * mean @ centred)
        if of_distances is not None and with_f:
            result.addcmul_(f, along_f.unsqueeze(-1))
            if not wide:
                result.addcmul_(z, along_z.unsqueeze(-1))
        return result.to(ctx.dtype), None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int, int | None, None],
        transformed: Tensor,
        features: Tensor | None,
        spectrum: bool,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Treat the copies as one more leading dimension."""
        transformed = transformed.movedim(in_dims[0], 0)
        if features is not None and in_dims[1] is not None:
            features = features.movedim(in_dims[1], 0)
        elif features is not None:
            features = features.expand(info.batch_size, *features.shape)
        result = BatchProducts.apply(transformed, features, spectrum)
        return result, (0,) * len(result)


def _inverse(values: Tensor) -> Tensor:
    """Return 1 / values, and 0 for 0."""
    return values.masked_fill(values == 0, math.inf).reciprocal_()
