"""The orders of LLM360's Amber and K2: chunks one after another, shuffled inside by the trainer (Amber) or before (K2).

Source: main.py, main_utils.py of LLM360/amber-train @ 64bc595; main.py of LLM360/k2-train @ 869fbb9
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from data_index.errors import OrderMismatch

SEED = 11111
K2_CHUNKS = 360


def amber_order(
    chunk_sizes: Sequence[int], process_starts: Sequence[int], *, world_size: int, rows_per_rank: int
) -> np.ndarray:
    """Instances in Amber's consumption order; instance i is line i of the chunks laid end to end. int64.

    Each process seeds one generator with 11111 + its first chunk and draws a permutation a chunk, so the order inside a
    chunk depends on where the process that trained on it had started; the set of lines of a chunk does not. Lines that
    do not fill a batch at a chunk's end are left out.

    Args:
        process_starts: the first chunk of each process, rising, from 0; a restart from checkpoint k starts at k + 1.
        world_size, rows_per_rank: a global batch is their product. Its rows are given rank after rank.
    Raises:
        OrderMismatch: starts that no chain of processes can have.
    """
    starts = list(process_starts)
    rising = all(a < b for a, b in zip(starts, starts[1:], strict=False))
    if not starts or starts[0] != 0 or not rising or starts[-1] >= len(chunk_sizes):
        raise OrderMismatch(
            f"processes cannot have started at chunks {starts} of {len(chunk_sizes)}: give the first chunk of each "
            "process that saved a checkpoint, rising, beginning with 0"
        )
    before = np.append(0, np.cumsum(chunk_sizes))
    orders = []
    for start, stop in zip(starts, [*starts[1:], len(chunk_sizes)], strict=True):
        generator = np.random.RandomState(SEED + start)
        for chunk in range(start, stop):
            lines = generator.permutation(chunk_sizes[chunk])
            orders.append(before[chunk] + _rank_after_rank(lines, world_size, rows_per_rank))
    return np.concatenate(orders)


def _rank_after_rank(lines: np.ndarray, world_size: int, rows_per_rank: int) -> np.ndarray:
    """Whole batches of shuffled lines; row j of rank r in batch b is line (b * rows_per_rank + j) * world_size + r."""
    per_batch = world_size * rows_per_rank
    whole = lines[: len(lines) // per_batch * per_batch]
    return whole.reshape(-1, rows_per_rank, world_size).swapaxes(1, 2).reshape(-1)


def k2_chunk_order() -> list[int]:
    """Chunks in the order that K2 was trained on. 160 and 186, at which its loss had spiked, come last."""
    first = [*range(16), *range(32, 38), *range(44, 52)]
    chunks = first + [chunk for chunk in range(K2_CHUNKS) if chunk not in first]
    for place in (160, 185):
        chunks.append(chunks.pop(place))
    return chunks


def k2_order(chunk_sizes: Sequence[int]) -> np.ndarray:
    """Instances in K2's consumption order; instance i is line i of chunks 0, 1, … laid end to end. int64.

    Lines are read as they stand in the published chunks, which were shuffled when they were made (`k2_shuffle`).

    Raises:
        OrderMismatch: not all 360 chunks.
    """
    if len(chunk_sizes) != K2_CHUNKS:
        raise OrderMismatch(f"K2's order is over {K2_CHUNKS} chunks; {len(chunk_sizes)} are there")
    before = np.append(0, np.cumsum(chunk_sizes))
    return np.concatenate([np.arange(before[chunk], before[chunk + 1]) for chunk in k2_chunk_order()])


def k2_shuffle(chunk: int, num_lines: int) -> np.ndarray:
    """Which line of a chunk as gathered stands at each line of the published chunk, int64."""
    lines = list(range(num_lines))
    random.Random(SEED + chunk).shuffle(lines)
    return np.array(lines, dtype=np.int64)
