"""Singular values of a weight matrix, and what they say in one number: spectral norm, stable rank, effective rank.

    stable rank      |W|_F^2 / |W|_2^2                   at most the rank; small where one direction outweighs the rest
    effective rank   exp(H(p)), p = sigma / sum(sigma)   the number of equal singular values of the same entropy

How they are computed: matrices whose shorter side is at most `LARGEST_EXACT` by a singular value decomposition in fp64.
Larger ones from the eigenvalues of the smaller of W W' and W' W, which is summed up in fp64 from some of the longer
side at a time, so that no fp64 copy of the whole matrix is made. An eigenvalue is then off by some fp64 roundings of
the largest one: a singular value above 1e-4 of the largest has 7 digits and more, one below 1e-7 or so is only known to
be small, as it is in a matrix whose entries were rounded to fp32. `spectral_norm` alone needs neither.

Sources: effective rank: Roy & Vetterli, EUSIPCO 2007. Stable rank: Rudelson & Vershynin, arXiv math/0503442.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from probes.norms import group_norm

LARGEST_EXACT = 512
ELEMENTS_AT_ONCE = 2**22  # 32 MiB of fp64
TOLERANCE = 1e-6  # relative; what is left of the error is about its square


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatrixSpectrum:
    """
    Attributes:
        singular_values: fp64 of shape [min(rows, columns)], falling.
    """

    num_rows: int
    num_columns: int
    singular_values: np.ndarray

    @property
    def eigenvalues(self) -> np.ndarray:
        """Of W' W, without those that are 0 because W is wider than tall: squares of the singular values, falling."""
        return self.singular_values**2

    @property
    def spectral_norm(self) -> float:
        """The largest singular value."""
        return float(self.singular_values[0])

    @property
    def stable_rank(self) -> float:
        """NaN for a matrix of zeros."""
        if not self.spectral_norm:
            return math.nan
        return float(((self.singular_values / self.spectral_norm) ** 2).sum())

    @property
    def effective_rank(self) -> float:
        """NaN for a matrix of zeros."""
        if not self.spectral_norm:
            return math.nan
        shares = self.singular_values / self.singular_values.sum()
        shares = shares[shares > 0]
        return float(np.exp(-(shares * np.log(shares)).sum()))


def matrix_spectrum(matrix: torch.Tensor) -> MatrixSpectrum:
    """All singular values of a matrix, on its own device.

    Args:
        matrix: [rows, columns], of any float dtype, neither of them 0.
    Raises:
        numpy.linalg.LinAlgError: an entry is not finite.
    """
    matrix = matrix.detach()
    if not math.isfinite(group_norm([matrix])):
        raise np.linalg.LinAlgError(f"a matrix of shape {tuple(matrix.shape)} has entries that are not finite")
    if min(matrix.shape) <= LARGEST_EXACT:
        values = torch.linalg.svdvals(matrix.double())
    else:
        values = torch.linalg.eigvalsh(smaller_gram(matrix)).flip(0).clamp(min=0.0).sqrt()
    return MatrixSpectrum(num_rows=matrix.shape[0], num_columns=matrix.shape[1], singular_values=values.cpu().numpy())


def smaller_gram(matrix: torch.Tensor) -> torch.Tensor:
    """W' W of a tall matrix, W W' of a wide one, fp64."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=matrix.device)
    for part in _parts(tall):
        gram.addmm_(part.T, part)
    return gram


def spectral_norm(matrix: torch.Tensor) -> float:
    """The largest singular value, without the others: by Lanczos iteration on the smaller Gram matrix, never formed.

    A few dozen products with the matrix in fp64. The eigenvalue is converged to `TOLERANCE`, relative. The first vector
    is fixed, so that the same matrix gives the same number.

    Args and errors are those of `matrix_spectrum`.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    matrix = matrix.detach()
    if not math.isfinite(group_norm([matrix])):
        raise np.linalg.LinAlgError(f"a matrix of shape {tuple(matrix.shape)} has entries that are not finite")
    size = min(matrix.shape)
    if size <= 2 or not matrix.any():
        return matrix_spectrum(matrix).spectral_norm
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T

    def product(vector: np.ndarray) -> np.ndarray:
        v = torch.from_numpy(np.ascontiguousarray(vector)).to(matrix.device)
        return sum((part.T @ (part @ v) for part in _parts(tall)), torch.zeros_like(v)).cpu().numpy()

    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)
    largest = eigsh(operator, k=1, v0=start, tol=TOLERANCE, return_eigenvectors=False)
    return math.sqrt(max(float(largest[0]), 0.0))


def stable_rank(matrix: torch.Tensor) -> float:
    """|W|_F^2 / |W|_2^2 from `spectral_norm`: what `matrix_spectrum` gives, at a fraction of its cost."""
    norm = spectral_norm(matrix)
    return (group_norm([matrix]) / norm) ** 2 if norm else math.nan


def _parts(tall: torch.Tensor) -> Iterator[torch.Tensor]:
    return (part.double() for part in tall.split(max(ELEMENTS_AT_ONCE // tall.shape[1], 1)))
