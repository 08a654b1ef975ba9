"""Probes of stored tensors that need no decomposition: norms of the parts of a model, and of the rows of embeddings.

A tensor with an entry that is not finite makes what depends on it NaN, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.embedding_indicators import row_norms
from probes.norms import norms_by_group, root_mean_square_of_norm
from probes.parameter_groups import EMBEDDINGS, MATRICES, groups_by_name, named_embeddings
from probes.probe import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightNorms:
    """L2 norm and root mean square of all elements, of the embeddings, and of the matrices of each layer.

    Every stored tensor is in "all". An embedding that is stored once for both ends is "tied embedding".
    """

    def tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> Collection[str]:
        return list(shapes)

    def measure_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Sequence[Measurement]:
        groups = groups_by_name({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        sizes = {group: sum(tensors[name].numel() for name in names) for group, names in groups.items()}
        norms = dict(zip(groups, norms_by_group(tensors, groups), strict=True))
        found = _norm_and_mean("all", math.hypot(*norms.values()), sum(sizes.values()))
        for group in groups:
            if group in EMBEDDINGS or (group.startswith("layer ") and group.endswith(MATRICES)):
                found += _norm_and_mean(group, norms[group], sizes[group])
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingNorms:
    """How long the rows of the embeddings are: mean, median, 5th and 95th percentile of their L2 norms."""

    def tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> Collection[str]:
        return list(named_embeddings(shapes))

    def measure_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Sequence[Measurement]:
        of_tensors = named_embeddings({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return [one for name, group in of_tensors.items() for one in _row_norm_statistics(group, tensors[name])]


def _norm_and_mean(group: str, norm: float, num_elements: int) -> list[Measurement]:
    finite = norm if math.isfinite(norm) else math.nan
    mean = root_mean_square_of_norm(finite, num_elements) if num_elements else math.nan
    return [
        Measurement(metric=f"norm, {group}", value=finite, unit="1"),
        Measurement(metric=f"root mean square, {group}", value=mean, unit="1"),
    ]


def _row_norm_statistics(group: str, matrix: torch.Tensor) -> list[Measurement]:
    norms = row_norms(matrix).double().cpu().numpy()
    values = np.full(4, np.nan)
    if len(norms) and np.isfinite(norms).all():
        values = np.array([norms.mean(), *np.quantile(norms, [0.5, 0.05, 0.95])])
    names = ("mean row norm", "median row norm", "5th percentile of row norms", "95th percentile of row norms")
    return [
        Measurement(metric=f"{name}, {group}", value=float(value), unit="1")
        for name, value in zip(names, values, strict=True)
    ]
