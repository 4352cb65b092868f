"""Eq. 3 to 5 against a float64 reference with an explicit SVD and an explicit D x D covariance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plugins.batch_products import ZERO_SHARE
from plugins.losses import consistency, covariance, dominant_share, products, top_share
from plugins.nmtune import NMTune
from plugins.trainable import Batch


def reference_consistency(f: Tensor, z: Tensor) -> Tensor:
    unit = [rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300) for rows in (f, z)]
    return (unit[0] - unit[1]).square().sum(dim=1).mean()


def reference_covariance(z: Tensor) -> Tensor:
    if len(z) < 2:
        return 0 * z.sum()
    matrix = torch.cov(z.T).reshape(z.shape[1], z.shape[1])
    off = matrix - torch.diag(torch.diagonal(matrix))
    return off.square().sum() / z.shape[1]


def reference_share(z: Tensor) -> Tensor:
    """Through U, V of an explicit SVD: the sum's gradient is U V^T over the non-zero singular values."""
    u, s, vt = torch.linalg.svd(z.detach(), full_matrices=False)
    kept = s > s[0] * ZERO_SHARE
    sigma = torch.einsum("mi,md,id->i", u, z, vt)[kept]
    return -sigma[0] / sigma.sum()


@st.composite
def batches(draw: st.DrawFn) -> Tensor:
    """M < D, M = D and M > D; full rank, steep, rank-deficient, constant; float32 values held in float64."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    kind = draw(st.sampled_from(["full", "steep", "deficient", "constant"]))
    if kind == "constant":
        return torch.full((rows, columns), draw(st.integers(1, 5)) / 2, dtype=torch.float64)
    if kind == "deficient":
        # Small integers: the products are exact, so the rank is.
        rank = draw(st.integers(1, max(1, min(rows, columns) // 2)))
        parts = [
            torch.randint(-3, 4, shape, generator=generator) for shape in ((rows, rank), (rank, columns))
        ]
        z = (parts[0] @ parts[1]).float()
    else:
        z = torch.randn(rows, columns, generator=generator)
        if kind == "steep":
            # Singular values that fall to 1e-3 of the largest, as those of features with a large mean do.
            u, s, vt = torch.linalg.svd(z.double(), full_matrices=False)
            z = (u * s[0] * torch.logspace(0, -3, len(s), dtype=torch.float64) @ vt).float()
    return (z + draw(st.sampled_from([0.0, 1.0]))).double()


def assert_close(found: Tensor, expected: Tensor, scale: float = 0.0) -> None:
    """Within 1e-6 of the expected size; of ``scale`` where the exact answer cancels to nothing."""
    assert found.isfinite().all()
    assert float((found.double() - expected).norm()) <= 1e-6 * max(float(expected.norm()), scale)


def value_and_gradient(loss: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss, z, allow_unused=True, materialize_grads=True)[0]


@hypothesis.given(batches(), st.integers(0, 1000))
def test_consistency_is_equation_3(z: Tensor, seed: int) -> None:
    f = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)).double()
    hypothesis.assume(bool((z.norm(dim=1) > 0).all()))
    small, exact = z.float().requires_grad_(), z.requires_grad_()
    found = value_and_gradient(consistency(products(small, f.float())), small)
    expected = value_and_gradient(reference_consistency(f, exact), exact)
    assert_close(found[0], expected[0], 1e-6)
    assert_close(found[1], expected[1], 1e-6 / float(z.detach().norm(dim=1).min()))


@hypothesis.given(batches())
def test_covariance_is_equation_4(z: Tensor) -> None:
    small, exact = z.float().requires_grad_(), z.requires_grad_()
    found = value_and_gradient(covariance(products(small)), small)
    expected = value_and_gradient(reference_covariance(exact), exact)
    size = float(z.detach().square().sum()) / max(1, len(z) - 1)
    assert_close(found[0], expected[0], 1e-8 * size**2)
    assert_close(found[1], expected[1], 1e-8 * size**1.5)


@hypothesis.given(batches())
def test_dominant_share_is_equation_5(z: Tensor) -> None:
    s = torch.linalg.svdvals(z)
    hypothesis.assume(bool(s[0] > 0))
    # At a repeated largest value the gradient is any of a set; another test asks for it to be finite.
    hypothesis.assume(len(s) == 1 or bool(s[0] - s[1] > 1e-3 * s[0]))
    small, exact = z.float().requires_grad_(), z.requires_grad_()
    found = value_and_gradient(dominant_share(products(small, spectrum=True)), small)
    expected = value_and_gradient(reference_share(exact), exact)
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1], 1.0 / float(s.sum()))


@pytest.mark.parametrize(
    "z",
    [
        torch.eye(6),
        torch.zeros(5, 3),
        torch.ones(1, 4),
        torch.ones(7, 7),
        torch.randn(9, 2) @ torch.ones(2, 30),
    ],
    ids=["repeated", "zero", "one sample", "constant", "rank one"],
)
def test_gradients_are_finite_where_singular_values_repeat_or_vanish(z: Tensor) -> None:
    z = z.clone().requires_grad_()
    of = products(z, torch.ones_like(z), spectrum=True)
    loss = consistency(of) + covariance(of) + dominant_share(of)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(16, 8), (8, 8), (8, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_leave_half_precision_under_autocast(shape: tuple[int, int], dtype: torch.dtype) -> None:
    # Z as a layer under autocast gives it, in half precision, counts for what it is.
    f, z = torch.randn(shape), torch.randn(shape).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [
            consistency(products(z, f)),
            covariance(products(z)),
            dominant_share(products(z, spectrum=True)),
        ]
    assert [loss.dtype for loss in losses] == [torch.float32] * 3
    exact = z.detach().double().requires_grad_()
    references = [
        reference_consistency(f.double(), exact),
        reference_covariance(exact),
        reference_share(exact),
    ]
    for loss, reference in zip(losses, references, strict=True):
        assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
        found, expected = value_and_gradient(loss, z)[1], value_and_gradient(reference, exact)[1]
        # The gradient itself is handed back in the precision of Z.
        torch.testing.assert_close(
            found, expected.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6
        )


@pytest.mark.parametrize("shape", [(32, 5), (8, 8), (8, 20)])
def test_nmtune_minimises_equation_6(shape: tuple[int, int]) -> None:
    f, z, labels = torch.randn(shape), torch.randn(shape), torch.arange(shape[0]) % 3
    logits = torch.randn(shape[0], 3)
    found = torch.stack(list(NMTune().terms(Batch(f, z, logits, labels)).values())).sum()
    regularisers = (
        reference_consistency(f.double(), z.double())
        + reference_covariance(z.double())
        + reference_share(z.double())
    )
    expected = torch.nn.functional.cross_entropy(logits.double(), labels) + 0.01 * regularisers
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(5, 3), (4, 4), (3, 6)])
@pytest.mark.parametrize("stored", ["by row", "by column"])
def test_all_terms_together_have_the_gradient_of_their_finite_differences(
    shape: tuple[int, int], stored: str
) -> None:
    f, z = torch.randn(2, *shape, dtype=torch.double)
    z = (z if stored == "by row" else z.T.contiguous().T).requires_grad_()

    def together(z: Tensor) -> Tensor:
        of = products(z, f, spectrum=True)
        return consistency(of) + 2 * covariance(of) + 3 * dominant_share(of)

    assert torch.autograd.gradcheck(together, z)


@pytest.mark.parametrize("shape", [(7, 3), (3, 7)])
@pytest.mark.parametrize("shared", [True, False], ids=["one F", "an F each"])
def test_stacked_copies_have_the_losses_and_gradients_of_each_alone(
    shape: tuple[int, int], shared: bool
) -> None:
    copies = torch.randn(4, *shape, requires_grad=True)
    features = torch.randn(shape) if shared else torch.randn(4, *shape)

    def losses(z: Tensor, f: Tensor) -> Tensor:
        of = products(z, f, spectrum=True)
        return torch.stack([consistency(of), covariance(of), dominant_share(of)])

    weights = torch.tensor([1.0, 2.0, 3.0])
    stacked = torch.vmap(losses, in_dims=(0, None if shared else 0))(copies, features)
    (gradient,) = torch.autograd.grad((stacked @ weights).sum(), copies)
    for number in range(4):
        z = copies[number].detach().requires_grad_()
        alone = losses(z, features if shared else features[number])
        torch.testing.assert_close(stacked[number], alone, rtol=1e-6, atol=1e-7)
        expected = torch.autograd.grad(alone @ weights, z)[0]
        torch.testing.assert_close(gradient[number], expected, rtol=1e-5, atol=1e-7)


def test_a_row_of_zeros_stays_one_and_has_no_gradient() -> None:
    f, z = torch.ones(4, 3), torch.randn(4, 3)
    f[0], z[1] = 0, 0
    z.requires_grad_()
    of = products(z, f)
    torch.testing.assert_close(of.distances[:2], torch.ones(2, dtype=torch.double))
    (gradient,) = torch.autograd.grad(consistency(of), z)
    assert not gradient[:2].any()
    assert gradient[2:].any()


def test_reductions_of_equation_3() -> None:
    of = products(torch.randn(6, 4), torch.randn(6, 4))
    a_sample = consistency(of, reduction="sample")
    torch.testing.assert_close(consistency(of, reduction="sum"), 6 * a_sample)
    torch.testing.assert_close(consistency(of, reduction="element"), a_sample / 4)


def test_soft_top_share_goes_to_the_hard_one() -> None:
    of = products(torch.randn(10, 6), spectrum=True)
    torch.testing.assert_close(top_share(of, k=2, softness=1e-3), dominant_share(of, k=2))
    assert top_share(of, k=2, softness=1.0) != dominant_share(of, k=2)


def test_a_soft_top_share_is_computed_where_the_spectrum_is() -> None:
    of = products(torch.randn(10, 6), spectrum=True)
    elsewhere = of._replace(singular_values=of.singular_values.to("meta"))
    assert top_share(elsewhere, k=2, softness=1.0).device.type == "meta"


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that an operation gives."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_wide_features_cost_no_matrix_of_their_width_and_lose_no_digit() -> None:
    rows, columns = 8, 4096
    f, z = torch.randn(2, rows, columns, dtype=torch.double)
    z.requires_grad_()
    with Largest() as largest:
        of = products(z, f, spectrum=True)
        found = consistency(of) + covariance(of) + dominant_share(of)
        found.backward()
    assert largest.numbers == rows * columns
    again = z.detach().clone().requires_grad_()
    expected = reference_consistency(f, again) + reference_covariance(again) + reference_share(again)
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(z.grad, again.grad, rtol=1e-9, atol=1e-12)
