import math

import numpy as np
import pytest
import torch

import probes.matrix_spectrum
from probes.matrix_spectrum import matrix_spectrum, spectral_norm, stable_rank


def matrix_of(singular_values: np.ndarray, num_rows: int, num_columns: int) -> torch.Tensor:
    """U diag(sigma) V' with random orthonormal U and V, fp64."""
    random = np.random.default_rng(1)
    rank = len(singular_values)
    u, v = (np.linalg.qr(random.standard_normal((size, rank)))[0] for size in (num_rows, num_columns))
    return torch.from_numpy((u * singular_values) @ v.T)


@pytest.fixture(params=["decomposition", "gram"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "gram":
        monkeypatch.setattr(probes.matrix_spectrum, "LARGEST_EXACT", 0)
        monkeypatch.setattr(probes.matrix_spectrum, "ELEMENTS_AT_ONCE", 100)
    return str(request.param)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_a_matrix_with_known_singular_values_has_them(way: str, shape: tuple[int, int]) -> None:
    """Closed forms: sum of squares over the largest square; the exponential of the entropy, written with powers."""
    values = np.geomspace(3.0, 1e-3, 24)
    found = matrix_spectrum(matrix_of(values, *shape))
    shares = values / values.sum()

    # Eigenvalues of a Gram matrix are off by roundings of the largest: 1e-16 * (3 / 1e-3)^2 here.
    np.testing.assert_allclose(found.singular_values, values, rtol=1e-12 if way == "decomposition" else 1e-8)
    np.testing.assert_allclose(found.eigenvalues[:12], values[:12] ** 2, rtol=1e-9)
    assert found.spectral_norm == pytest.approx(3.0, rel=1e-13)
    assert found.stable_rank == pytest.approx((values**2).sum() / 9.0, rel=1e-13)
    assert found.effective_rank == pytest.approx(1 / math.prod(shares**shares), rel=1e-8)
    assert (found.num_rows, found.num_columns) == shape


def test_ranks_of_an_orthogonal_matrix_are_its_size_and_of_one_direction_1(way: str) -> None:
    orthogonal = matrix_spectrum(5 * matrix_of(np.ones(24), 40, 24))
    outer = matrix_spectrum(torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0)))

    assert (orthogonal.stable_rank, orthogonal.effective_rank) == pytest.approx((24.0, 24.0), rel=1e-12)
    assert outer.spectral_norm == pytest.approx(math.sqrt(204 * 91), rel=1e-12)
    assert outer.stable_rank == pytest.approx(1.0, rel=1e-12)
    assert outer.effective_rank == pytest.approx(1.0, abs=1e-5)  # rounding may leave 1e-8 of the largest beside it


def test_a_bf16_matrix_is_taken_as_it_stands_and_left_so(way: str) -> None:
    weight = torch.nn.Parameter(torch.randn(30, 20, generator=torch.Generator().manual_seed(2)).bfloat16())
    before = weight.detach().clone()
    expected = np.linalg.svd(weight.detach().double().numpy(), compute_uv=False)

    np.testing.assert_allclose(matrix_spectrum(weight).singular_values, expected, rtol=1e-10)
    assert torch.equal(weight, before) and weight.grad is None


@pytest.mark.parametrize("shape", [(600, 30), (30, 600), (90, 90), (300, 300), (2, 5), (1, 7)])
def test_the_spectral_norm_alone_is_that_of_the_decomposition(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random matrix is the hard case: its largest singular values lie close together."""
    monkeypatch.setattr(probes.matrix_spectrum, "ELEMENTS_AT_ONCE", 20000)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    exact = np.linalg.svd(matrix.double().numpy(), compute_uv=False)

    assert spectral_norm(matrix) == pytest.approx(exact[0], rel=1e-10)
    assert stable_rank(matrix) == pytest.approx((exact**2).sum() / exact[0] ** 2, rel=1e-10)
    assert spectral_norm(matrix) == spectral_norm(matrix)


def test_zeros_have_no_rank_and_numbers_that_are_not_finite_no_spectrum() -> None:
    nothing = matrix_spectrum(torch.zeros(4, 3))
    broken = torch.eye(3)
    broken[1, 2] = math.nan

    assert nothing.spectral_norm == spectral_norm(torch.zeros(4, 3)) == 0.0
    assert math.isnan(nothing.stable_rank) and math.isnan(nothing.effective_rank)
    assert math.isnan(stable_rank(torch.zeros(4, 3)))
    for measure in (matrix_spectrum, spectral_norm):
        with pytest.raises(np.linalg.LinAlgError, match="not finite"):
            measure(broken)
