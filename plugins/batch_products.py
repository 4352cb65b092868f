"""What the losses need of a batch [M, D], each as one step of autograd.

The losses of a batch are functions of a few small products. Left to autograd, each product would walk the
M x D numbers several times in each direction, in float64, which for D = 2048 cost as much as a tenth of the
whole training step of an MLP. Here each is formed in one go, and so is its gradient.

Both run in float64 whatever they are given, and hand the gradient back in the dtype of Z.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Moments(torch.autograd.Function):
    """Z [*, M, D] -> Z Z^T [*, M, M] if M <= D, else Z^T Z [*, D, D]; mean and squared deviations [*, D]."""

    @staticmethod
    def forward(transformed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the three, and Z in float64, which has no gradient."""
        z = transformed.double()
        rows, columns = z.shape[-2:]
        matrix = z @ z.mT if rows <= columns else z.mT @ z
        mean = z.mean(dim=-2)
        # torch.var takes eight times as long.
        deviations = (z - mean.unsqueeze(-2)).square_().sum(dim=-2)
        return matrix, mean, deviations, z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """Keep Z and its mean."""
        _, mean, _, z = output
        ctx.mark_non_differentiable(z)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, mean)
        ctx.dtype = inputs[0].dtype

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_matrix: Tensor | None, of_mean: Tensor | None, of_deviations: Tensor | None, _: None
    ) -> Tensor:
        """Return the gradient of Z."""
        z, mean = ctx.saved_tensors
        rows, columns = z.shape[-2:]
        if of_matrix is None:
            result = torch.zeros_like(z)
        else:
            both = of_matrix + of_matrix.mT
            result = torch.matmul(*((both, z) if rows <= columns else (z, both)), out=torch.empty_like(z))
        if of_deviations is not None:
            slope = 2 * of_deviations.unsqueeze(-2)
            result = result.addcmul_(z, slope).sub_(slope * mean.unsqueeze(-2))
        if of_mean is not None:
            result = result.add_(of_mean.unsqueeze(-2) / rows)
        return result.to(ctx.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], transformed: Tensor) -> tuple[Any, Any]:  # noqa: ARG004
        """Treat the copies as one more leading dimension."""
        return Moments.apply(transformed.movedim(in_dims[0], 0)), (0, 0, 0, 0)


class Cosine(torch.autograd.Function):
    """F and Z [*, M, D] -> the cosine of each pair of rows [*, M].

    That of a row of zeros is 0, without gradient. F, which is frozen, has no gradient at all.
    """

    @staticmethod
    def forward(features: Tensor, transformed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cosine, and the norms of the rows of F and of Z, which have no gradient."""
        f, z = features.double(), transformed.double()
        norms = [torch.linalg.vector_norm(rows, dim=-1) for rows in (f, z)]
        lengths = norms[0] * norms[1]
        cosine = (f * z).sum(dim=-1) / torch.where(lengths > 0, lengths, 1.0)
        return cosine, norms[0], norms[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep the inputs, as they came, and the results."""
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_cosine: Tensor, *_: Tensor) -> tuple[None, Tensor]:
        """Return the gradient of Z."""
        features, transformed, cosine, of_f, of_z = ctx.saved_tensors
        lengths = of_f * of_z
        along_f = torch.where(lengths > 0, of_cosine / torch.where(lengths > 0, lengths, 1.0), 0.0)
        along_z = torch.where(of_z > 0, -of_cosine * cosine / torch.where(of_z > 0, of_z, 1.0) ** 2, 0.0)
        # In the layout of Z, which the layer before it has chosen for its products.
        result = torch.empty_like(transformed, dtype=torch.double)
        torch.mul(features, along_f.unsqueeze(-1), out=result)
        result = result.addcmul_(transformed.double(), along_z.unsqueeze(-1))
        return None, result.to(transformed.dtype)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None], features: Tensor, transformed: Tensor
    ) -> tuple[Any, Any]:
        """Treat the copies as one more leading dimension."""
        stacked = [
            value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in zip((features, transformed), in_dims, strict=True)
        ]
        return Cosine.apply(*stacked), (0, 0, 0)
