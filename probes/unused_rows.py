"""Rows of an embedding matrix that training cannot have used, and rows that are copies of each other.

Models keep such rows in three places: beyond the tokenizer's ids (padding, to a round number), at bytes that no UTF-8
text contains, and wherever a token never came up: then many rows are nearly the same, because nothing told them apart.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import torch

from probes.embedding_indicators import mean_of_rows

# Rows are near-duplicates where their cosine distance is at most this part of that of two rows drawn at random.
NEAR = 0.01
LEAST_CLUSTER = 4
_PLANES, _TABLES, _BITS = 64, 8, 14
_PAIRS = 4096
_ROUNDS = 16  # rows of a bucket that others are held against


def zero_rows(matrix: torch.Tensor) -> torch.Tensor:
    """Ids of rows whose elements are all exactly 0, int64; of Adam's second moments: rows that no gradient reached."""
    together = max(2**24 // max(matrix.shape[1], 1), 1)
    parts = [matrix[n : n + together].count_nonzero(dim=1) == 0 for n in range(0, matrix.shape[0], together)]
    return torch.cat(parts).nonzero()[:, 0] if parts else torch.empty(0, dtype=torch.int64)


def not_finite_rows(matrix: torch.Tensor) -> torch.Tensor:
    """Ids of rows with an element that is infinite or no number, int64."""
    if not matrix.numel() or all(bool(end.isfinite()) for end in matrix.aminmax()):  # one end is NaN if any is
        return torch.empty(0, dtype=torch.int64)
    together = max(2**24 // max(matrix.shape[1], 1), 1)
    parts = [~matrix[n : n + together].isfinite().all(dim=1) for n in range(0, matrix.shape[0], together)]
    return torch.cat(parts).nonzero()[:, 0]


def exact_duplicates(matrix: torch.Tensor) -> list[np.ndarray]:
    """Groups of rows that are equal bit for bit, each rising, the largest first; rows of zeros are one of them."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    together = max(2**24 // max(matrix.shape[1], 1), 1)
    for start in range(0, matrix.shape[0], together):
        rows = matrix[start : start + together].contiguous().cpu().view(torch.uint8).numpy()
        for number, row in enumerate(rows, start):
            groups[hashlib.blake2b(row.data, digest_size=16).digest()].append(number)
    found = [np.array(group) for group in groups.values() if len(group) > 1]
    return sorted(found, key=lambda group: (-len(group), int(group[0])))


def typical_distance(matrix: torch.Tensor) -> float:
    """The median cosine distance of two different rows drawn at random."""
    generator = torch.Generator().manual_seed(0)
    size = matrix.shape[0]
    if size < 2:
        return 0.0
    one = torch.randint(0, size, (_PAIRS,), generator=generator)
    other = (one + torch.randint(1, size, (_PAIRS,), generator=generator)) % size
    return float((1 - torch.cosine_similarity(matrix[one].float(), matrix[other].float())).median())


def near_duplicates(matrix: torch.Tensor, *, most: float | None = None) -> list[np.ndarray]:
    """Groups of at least LEAST_CLUSTER rows of nearly the same direction, each rising, the largest first.

    Rows that fall on the same side of some random planes share a bucket, in several tables; rows of a bucket are held
    against one of them, first by their products with the planes, then, where these are close, exactly. The work grows
    with the number of rows, not with its square. Rows of zeros have no direction and are in no group.

    Args:
        most: cosine distance between a member and the one it is held against; default: NEAR times the distance of
            random rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    limit = NEAR * typical_distance(matrix) if most is None else most
    sketch, sides, blank = _sketches(matrix)
    pairs = [np.empty((0, 2), dtype=np.int64)]
    generator = np.random.default_rng(2)
    for _ in range(_TABLES):
        chosen = generator.choice(_PLANES, _BITS, replace=False)
        numbers = sides[:, chosen] @ (1 << np.arange(_BITS))
        pairs += _near_in_buckets(matrix, sketch, np.flatnonzero(~blank), numbers, limit)
    one, other = np.concatenate(pairs).T
    size = matrix.shape[0]
    joined = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(size, size))
    _, labels = connected_components(joined, directed=False)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    found = [np.sort(group) for group in groups if len(group) >= LEAST_CLUSTER]
    return sorted(found, key=lambda group: (-len(group), int(group[0])))


def _sketches(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By row: products of its direction with random planes, float32; the side of each plane it lies on, seen from the
    mean row; whether it is all zeros."""
    planes = torch.randn(matrix.shape[1], _PLANES, generator=torch.Generator().manual_seed(1)).to(matrix.device)
    offset = mean_of_rows(matrix) @ planes
    together = max(2**21 // max(matrix.shape[1], 1), 1)
    sketch = torch.empty(matrix.shape[0], _PLANES)
    sides, blank = torch.empty(matrix.shape[0], _PLANES, dtype=torch.bool), torch.empty(matrix.shape[0])
    for start in range(0, matrix.shape[0], together):
        part = slice(start, start + together)
        rows = matrix[part].float()
        products, norms = rows @ planes, torch.linalg.vector_norm(rows, dim=1)
        sides[part], blank[part] = (products > offset).cpu(), norms.cpu()
        sketch[part] = (products / (norms[:, None].clamp_min(1e-30) * _PLANES**0.5)).cpu()
    return sketch.numpy(), sides.numpy(), (blank == 0).numpy()


def _near_in_buckets(
    matrix: torch.Tensor, sketch: np.ndarray, rows: np.ndarray, numbers: np.ndarray, limit: float
) -> list[np.ndarray]:
    """Pairs of rows [pairs, 2] of the same bucket whose cosine distance is at most `limit`: each with the first one
    left in its bucket; then those that were not near, with the first of them, and so on."""
    found = []
    rows = rows[np.argsort(numbers[rows], kind="stable")]
    for _ in range(_ROUNDS):
        begins = np.flatnonzero(np.diff(numbers[rows], prepend=-1))
        first = np.repeat(rows[begins], np.diff(begins, append=len(rows)))
        apart = np.square(sketch[rows] - sketch[first]).sum(axis=1)
        # ‖a − b‖² of directions is twice their cosine distance; its estimate is seldom off by more than a half.
        close = np.flatnonzero((apart <= 2 * limit * 1.75) & (rows != first))
        close = close[_exact_distances(matrix, rows[close], first[close]) <= limit]
        found.append(np.stack([first[close], rows[close]], axis=1))
        left = rows != first
        left[close] = False
        rows = rows[left]
        if not len(rows):
            break
    return found


def _exact_distances(matrix: torch.Tensor, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    together = max(2**21 // max(matrix.shape[1], 1), 1)
    parts = [np.empty(0, dtype=np.float32)]
    for n in range(0, len(one), together):
        left = matrix[torch.from_numpy(one[n : n + together])].float()
        right = matrix[torch.from_numpy(other[n : n + together])].float()
        parts.append((1 - torch.cosine_similarity(left, right)).cpu().numpy())
    return np.concatenate(parts)
