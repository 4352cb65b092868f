"""SVE, LSVR and the spectrum on cases whose answer is known in closed form."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from nml.errors import UserError
from plugins.spectra import CONVENTIONS, Convention, effective_rank, lsvr, rankme, singular_values, sve


def test_identity_is_flat() -> None:
    values = singular_values(np.eye(8))
    np.testing.assert_allclose(values, np.ones(8))
    assert sve(values) == pytest.approx(np.log(8))
    assert lsvr(values) == pytest.approx(np.log(8))
    assert effective_rank(values) == pytest.approx(8)
    assert rankme(values) == pytest.approx(8, rel=1e-4)


def test_one_direction_has_no_entropy() -> None:
    values = singular_values(np.outer(np.arange(1, 30), np.arange(1, 6)))
    assert sve(values) == pytest.approx(0, abs=1e-5)
    assert lsvr(values) == pytest.approx(0, abs=1e-6)


def test_geometric_spectrum() -> None:
    ratio, count = 0.5, 10
    exact = ratio ** np.arange(count)
    left, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((50, count)))
    values = singular_values(left * exact)
    share = exact / exact.sum()
    np.testing.assert_allclose(values, exact, rtol=1e-9)
    assert sve(values) == pytest.approx(-(share * np.log(share)).sum())
    assert lsvr(values) == pytest.approx(-np.log((1 - ratio) / (1 - ratio**count)))


def test_a_flatter_spectrum_has_more_entropy_and_a_larger_lsvr() -> None:
    steep, flat = 0.5 ** np.arange(10), 0.9 ** np.arange(10)
    assert sve(flat) > sve(steep)
    assert lsvr(flat) > lsvr(steep)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.integers(1, 60),
    st.integers(1, 30),
    st.integers(1, 13),
    st.sampled_from(CONVENTIONS),
    st.floats(0, 100),
)
def test_chunks_give_what_one_pass_gives(
    rows: int, columns: int, size: int, convention: Convention, offset: float
) -> None:
    features = np.random.default_rng(rows * 31 + columns).standard_normal((rows, columns)).astype(np.float32)
    features += np.float32(offset)
    whole = singular_values(features, convention)
    chunks = singular_values((features[start : start + size] for start in range(0, rows, size)), convention)
    assert whole.shape == chunks.shape == (min(rows, columns),)
    # The Gram matrix resolves values down to 1e-8 of the largest of what was added up.
    largest = np.linalg.norm(
        features.astype(np.float64) if convention == "raw" else features - features.mean(0)
    )
    np.testing.assert_allclose(whole, chunks, rtol=1e-7, atol=2e-7 * max(largest, 1))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_conventions_are_what_an_explicit_svd_gives(convention: Convention) -> None:
    features = np.random.default_rng(0).standard_normal((40, 7)) + 3
    exact = features
    if convention == "row-centred":
        exact = features / np.linalg.norm(features, axis=1, keepdims=True)
        exact = exact - exact.mean(axis=1, keepdims=True)
    elif convention == "column-centred":
        exact = features - features.mean(axis=0)
    np.testing.assert_allclose(
        singular_values(features, convention), np.linalg.svd(exact, compute_uv=False), atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(30, 5), (5, 30)])
def test_tensors_of_any_floating_dtype_serve(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    features = torch.randn(shape).to(dtype).requires_grad_()
    exact = np.linalg.svd(features.detach().double().numpy(), compute_uv=False)
    np.testing.assert_allclose(singular_values(features), exact, rtol=1e-6)
    np.testing.assert_allclose(singular_values(features.split(4))[: len(exact)], exact, rtol=1e-6)


def test_features_of_zeros_have_no_share() -> None:
    assert np.isnan(sve(np.zeros(3)))
    assert np.isnan(lsvr(np.zeros(3)))


@pytest.mark.parametrize("features", [np.zeros((0, 3)), np.zeros(3), np.array([[1.0, np.nan]] * 3)])
def test_features_without_a_spectrum_are_refused(features: np.ndarray) -> None:
    with pytest.raises(UserError):
        singular_values(features)


def test_unknown_convention_is_refused() -> None:
    with pytest.raises(UserError, match="row-centred"):
        singular_values(np.eye(2), "centred")  # type: ignore[arg-type]
