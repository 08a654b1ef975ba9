"""The order of OLMo-core's composable data loader: instances of several sources, shuffled across, within or in turn.

Source: olmo_core/data/composable/data_loader.py and utils.py (Python package ai2-olmo-core 3.0.0)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_index.errors import OrderMismatch, UnsupportedRecipe
from data_index.orders.olmo_core_fsl import global_indices

STRATEGIES = ("inter_source", "intra_source", "interleaved_source")


def sources_of_epoch(num_sources: int, epoch: int, sources_per_epoch: int = -1) -> range:
    """Numbers of the sources that an epoch takes; groups of `sources_per_epoch` take turns, -1 means all.

    Args:
        epoch: 1-based.
    Raises:
        UnsupportedRecipe: a number that the trainer refuses.
    """
    size = num_sources if sources_per_epoch == -1 else sources_per_epoch
    if size < 1 or num_sources % size:
        raise UnsupportedRecipe(f"sources_per_epoch {sources_per_epoch} does not divide {num_sources} sources")
    first = (epoch - 1) % (num_sources // size) * size
    return range(first, first + size)


def composable_indices(
    source_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    strategy: str | None,
    chunk_size: int = 1,
    sources_per_epoch: int = -1,
) -> np.ndarray:
    """Instances of one epoch in consumption order, uint32; what the trainer keeps in its global-indices file.

    They count from 0 at the first source of the epoch; `run_instances` counts from the first source of the run.

    Args:
        source_sizes: instances of every source of the run.
        epoch: 1-based.
        strategy: `shuffle_strategy`; None where the config says `shuffle: false`.
        chunk_size: max_sequence_length / sequence_length; instances that stay together.
    Raises:
        UnsupportedRecipe: an unknown strategy.
        OrderMismatch: sources that do not hold whole chunks.
    """
    sizes = [source_sizes[source] for source in sources_of_epoch(len(source_sizes), epoch, sources_per_epoch)]
    if any(size % chunk_size for size in sizes):
        raise OrderMismatch(f"sources of {sizes} instances do not hold whole chunks of {chunk_size}")
    if strategy is None:
        return np.arange(sum(sizes), dtype=np.uint32)
    if strategy == "inter_source":
        return global_indices(sum(sizes), seed=seed, epoch=epoch, chunk_size=chunk_size)
    if strategy not in STRATEGIES:
        raise UnsupportedRecipe(f"shuffle_strategy {strategy!r}; known are {', '.join(STRATEGIES)}")
    interleaved = strategy == "interleaved_source"
    # Taken in turn, all sources last as long as the shortest; the others' last instances are never served.
    taken = [min(sizes)] * len(sizes) if interleaved else sizes
    before = np.cumsum([0, *sizes[:-1]]).astype(np.uint32)
    orders = [
        global_indices(size, seed=seed + number, epoch=epoch, chunk_size=chunk_size) + before[number]
        for number, size in enumerate(taken)
    ]
    return np.stack(orders, axis=1).reshape(-1) if interleaved else np.concatenate(orders)


def run_instances(
    indices: np.ndarray, source_sizes: Sequence[int], *, epoch: int, sources_per_epoch: int = -1
) -> np.ndarray:
    """Instances of an epoch, counted from the run's first source; uint32."""
    first = sources_of_epoch(len(source_sizes), epoch, sources_per_epoch).start
    return indices + np.uint32(sum(source_sizes[:first]))


def indices_file_name(
    num_instances: int,
    *,
    sequence_length: int,
    max_sequence_length: int,
    seed: int,
    epoch: int,
    strategy: str | None,
) -> str:
    """The name of the file that holds an epoch's order; headerless uint32."""
    lengths = f"max_seq_len{max_sequence_length}"
    if strategy is None:
        return f"global_indices_{lengths}_seq_len{sequence_length}_size{num_instances}_v1.npy"
    return (
        f"global_indices_epoch{epoch}_{lengths}_seed{seed}_seq_len{sequence_length}_shuffle{strategy}"
        f"_size{num_instances}_v1.npy"
    )
