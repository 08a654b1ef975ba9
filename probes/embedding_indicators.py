"""Numbers that tell trained rows of an (un)embedding matrix from rows that training never used; low means suspicious.

A token that is never read only shrinks by weight decay: its input row gets short. A token that is never to be predicted
gets the same push from every softmax: its output row turns where those of other such tokens turned.

Matrices are [rows, width] in any float dtype; results are float32 of shape [rows]. Rows are converted to float32 some
at a time, so that little more memory is needed than the matrix takes.

Source: Land & Bartolo 2024 (arXiv 2405.05417) and cohere-ai/magikarp (formulas, the constant in the cosine)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

SMALLEST_PRODUCT = 1e-6  # of two norms, in the cosine
LEAST_BIAS_NORM = 1e-3  # a bias below it is one in name only
MOST_LEFT_OUT = 256  # members that are left out of the mean in turn
CHUNK_ELEMENTS = 2**20  # 4 MiB of float32, which stays in a processor's cache
_MOST_PRODUCTS = 16
_RESIDUAL = 1e-3

INPUT_NORM = "input_norm"
OUTPUT_COSINE = "output_cosine_to_unused"
OUTPUT_COSINE_CENTRED = "output_cosine_to_unused_centred"
OUTPUT_COSINE_WITHOUT_FIRST = "output_cosine_to_unused_without_first_component"
OUTPUT_DISTANCE = "output_distance_to_unused"
OUTPUT_BIAS = "output_bias"
# With how the published reports call them.
INDICATORS: Mapping[str, str] = {
    INPUT_NORM: "E_in L2 norm",
    OUTPUT_COSINE: "E_out cosine distance to the mean of known-unused rows",
    OUTPUT_COSINE_CENTRED: "the same, the mean row subtracted",
    OUTPUT_COSINE_WITHOUT_FIRST: "the same, without the first principal component",
    OUTPUT_DISTANCE: "E_out L2 distance to the mean of known-unused rows",
    OUTPUT_BIAS: "output bias",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Indicators:
    """
    Attributes:
        values: by name, float32 of shape [rows].
        left_out: by name, float32 of shape [members]; the value of each known-unused row when the mean is taken over
            the others. A row is always near a mean that holds it; this is what can be held against other rows.
    """

    values: Mapping[str, torch.Tensor]
    left_out: Mapping[str, torch.Tensor]


def all_indicators(
    input_matrix: torch.Tensor,
    output_matrix: torch.Tensor | None = None,
    unused_ids: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> Indicators:
    """Every published indicator that can be computed, by name.

    Args:
        output_matrix: None where embeddings are tied: the input matrix is the output matrix.
        unused_ids: int64, rows that are known to be unused; without them there is no distance to them.
        bias: of the output layer, [rows]; left out where its norm is at most LEAST_BIAS_NORM.
    """
    found = {INPUT_NORM: row_norms(input_matrix)}
    if bias is not None and float(bias.double().norm()) > LEAST_BIAS_NORM:
        found[OUTPUT_BIAS] = bias.float()
    if unused_ids is None or not len(unused_ids):
        return Indicators(values=found, left_out={})
    output = input_matrix if output_matrix is None else output_matrix
    mean, first = mean_of_rows(output), first_component(output)
    left_out = {name: values[unused_ids] for name, values in found.items()}
    if len(unused_ids) > 1:
        left_out |= _left_out(output, unused_ids, mean, first)
    found |= output_indicators(output, mean_of_rows(output, unused_ids), mean, first)
    return Indicators(values=found, left_out=left_out)


def output_indicators(
    output: torch.Tensor, unused: torch.Tensor, mean: torch.Tensor, first: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The indicators that compare rows with unused ones.

    Args:
        unused: [width], the mean of the known-unused rows. mean: of all rows. first: the first component.
    """
    return {
        OUTPUT_COSINE: cosine_distances(output, unused),
        OUTPUT_COSINE_CENTRED: cosine_distances(output, unused, subtracted=mean),
        OUTPUT_COSINE_WITHOUT_FIRST: cosine_distances(output, unused, removed=first),
        OUTPUT_DISTANCE: distances(output, unused),
    }


def _left_out(
    output: torch.Tensor, ids: torch.Tensor, mean: torch.Tensor, first: torch.Tensor
) -> dict[str, torch.Tensor]:
    rows = output[ids[:MOST_LEFT_OUT]].float()
    total, count = mean_of_rows(output, ids) * len(ids), len(ids) - 1
    each = [output_indicators(row[None], (total - row) / count, mean, first) for row in rows]
    return {name: torch.cat([values[name] for values in each]) for name in each[0]}


def row_norms(matrix: torch.Tensor) -> torch.Tensor:
    """‖row‖₂."""
    return _by_chunks(matrix, lambda rows: torch.linalg.vector_norm(rows, dim=1))


def distances(matrix: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """‖row − reference‖₂; the reference is of shape [width]."""
    return _by_chunks(matrix, lambda rows: torch.linalg.vector_norm(rows.sub_(reference), dim=1))


def cosine_distances(
    matrix: torch.Tensor,
    reference: torch.Tensor,
    *,
    subtracted: torch.Tensor | None = None,
    removed: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 − row·reference / max(‖row‖ ‖reference‖, 1e-6), of shape [rows].

    Args:
        reference: [width]; a mean of rows. What is done to rows is done to it.
        subtracted: [width]; taken from every row first.
        removed: [width], of norm 1; rows lose their part along it (they are not centred for that, as published).
    """

    def changed(rows: torch.Tensor) -> torch.Tensor:
        """In place: another matrix of that size would cost more time than the arithmetic."""
        if subtracted is not None:
            rows.sub_(subtracted)
        return rows if removed is None else rows.addr_(rows @ removed, removed, alpha=-1)

    target = changed(reference[None].clone())[0]

    def distance(rows: torch.Tensor) -> torch.Tensor:
        rows = changed(rows)
        return 1 - rows @ target / (torch.linalg.vector_norm(rows, dim=1) * target.norm()).clamp_min(SMALLEST_PRODUCT)

    return _by_chunks(matrix, distance)


def mean_of_rows(matrix: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
    """float32 of shape [width]: the mean of all rows, or of some; summed in float64."""
    if ids is not None:
        some = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
        for part in ids.split(max(CHUNK_ELEMENTS // max(matrix.shape[1], 1), 1)):
            some += matrix[part].double().sum(dim=0)
        return (some / len(ids)).float()
    total = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in _chunks(matrix):
        total += rows.sum(dim=0)
    return (total / max(matrix.shape[0], 1)).float()


def first_component(matrix: torch.Tensor) -> torch.Tensor:
    """The first principal component of centred rows, float32 of shape [width] and norm 1; its sign means nothing.

    Found in the space that a direction and its products with the covariance span (Lanczos): the covariance itself would
    take width² memory and rows · width² multiplications. Goes on until ‖Cv − λv‖ < 1e-3 λ, or gives the best of 16
    products, where the first components hardly differ.
    """
    mean, width = mean_of_rows(matrix), matrix.shape[1]
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0)).to(matrix.device)
    basis, images = torch.empty(0, width, device=matrix.device), torch.empty(0, width, device=matrix.device)
    best = torch.zeros(width, device=matrix.device)
    for _ in range(min(_MOST_PRODUCTS, width)):
        for _ in range(2):  # twice: once leaves what rounding lets through
            direction = direction - basis.T @ (basis @ direction)
            direction = direction / direction.norm().clamp_min(torch.finfo(torch.float32).tiny)
        image = _times_covariance(matrix, mean, direction)
        basis, images = torch.cat([basis, direction[None]]), torch.cat([images, image[None]])
        inner = basis @ images.T
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        best, value = vectors[:, -1] @ basis, float(values[-1])
        if float((vectors[:, -1] @ images - value * best).norm()) <= _RESIDUAL * value:
            break
        direction = image
    return best / best.norm().clamp_min(torch.finfo(torch.float32).tiny)


def _times_covariance(matrix: torch.Tensor, mean: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """(1/rows) Σ (row − mean) (row − mean)·direction; the sum of the second factors is 0 up to rounding."""
    product, along = torch.zeros_like(direction), mean @ direction
    left = torch.zeros((), device=matrix.device)
    for rows in _chunks(matrix):
        parts = rows @ direction - along
        product += parts @ rows
        left += parts.sum()
    return (product - left * mean) / max(matrix.shape[0], 1)


def _by_chunks(matrix: torch.Tensor, of_rows: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    parts = [of_rows(rows) for rows in _chunks(matrix)]
    return torch.cat(parts) if parts else torch.empty(0)


def _chunks(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """Some rows at a time as float32, copied into the same memory: whoever gets them may change them."""
    together = max(CHUNK_ELEMENTS // max(matrix.shape[1], 1), 1)
    buffer = torch.empty(together, matrix.shape[1], device=matrix.device)
    for start in range(0, matrix.shape[0], together):
        part = matrix[start : start + together]
        yield buffer[: len(part)].copy_(part)
