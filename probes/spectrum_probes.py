"""Probe of the singular values of every matrix of the layers: ranks, and how heavy the tail is.

Both are read off one decomposition of each matrix, which is what they cost; so they are one probe.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.matrix_spectrum import MatrixSpectrum, matrix_spectrum
from probes.parameter_groups import place_in_layer
from probes.probe import Measurement
from probes.spectral_tail import power_law_tail

RANKS = ("stable rank", "effective rank", "spectral norm")
TAIL = ("alpha", "distance")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixSpectra:
    """Of each matrix of a layer by name, "stable rank, model.layers.3.mlp.down_proj", and the mean over the layers of
    each kind of matrix, "stable rank, mean of mlp.down_proj".

    Embeddings and whatever else is in no layer are left out, as are tensors of more than two dimensions. A matrix with
    an entry that is not finite has NaN for all, and so have the means over it; a matrix of zeros has no rank, and where
    all its singular values are equal no tail, which is NaN as well.

    Attributes:
        ranks: stable rank, effective rank, spectral norm.
        tail: alpha and distance (Kolmogorov-Smirnov) of the power law that fits the largest eigenvalues of W' W.
    """

    ranks: bool = True
    tail: bool = True

    def tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> Collection[str]:
        return [name for name, shape in shapes.items() if len(shape) == 2 and 0 not in shape and place_in_layer(name)]

    def measure_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Sequence[Measurement]:
        names = self.tensors({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        values = {name.removesuffix(".weight"): self._values(tensors[name]) for name in names}
        by_kind: dict[str, list[dict[str, float]]] = {}
        for name, of_matrix in values.items():
            by_kind.setdefault(_kind(name), []).append(of_matrix)
        values |= {f"mean of {kind}": _means(of_matrices) for kind, of_matrices in by_kind.items()}
        return [
            Measurement(metric=f"{statistic}, {name}", value=value, unit="1")
            for name, of_name in values.items()
            for statistic, value in of_name.items()
        ]

    def _values(self, matrix: torch.Tensor) -> dict[str, float]:
        asked = RANKS * self.ranks + TAIL * self.tail
        try:
            spectrum = matrix_spectrum(matrix)
        except (np.linalg.LinAlgError, torch.linalg.LinAlgError):
            return dict.fromkeys(asked, math.nan)
        found = (_ranks(spectrum) if self.ranks else ()) + (_tail(spectrum) if self.tail else ())
        return dict(zip(asked, found, strict=True))


def _ranks(spectrum: MatrixSpectrum) -> tuple[float, ...]:
    return spectrum.stable_rank, spectrum.effective_rank, spectrum.spectral_norm


def _tail(spectrum: MatrixSpectrum) -> tuple[float, ...]:
    law = power_law_tail(spectrum.eigenvalues)
    return (math.nan, math.nan) if law is None else (law.alpha, law.distance)


def _kind(name: str) -> str:
    """What the matrix is called in its layer."""
    place = place_in_layer(name)
    assert place is not None  # only such matrices are asked for
    return place[1]


def _means(of_matrices: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in of_matrices])) for name in of_matrices[0]}
