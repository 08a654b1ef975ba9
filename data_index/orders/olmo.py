"""The legacy OLMo trainer's order: a PCG64 shuffle of all instances, seeded with seed + epoch.

Source: olmo/data/iterable_dataset.py, IterableDataset (Python package ai2-olmo 0.6.0).
"""

from __future__ import annotations

import numpy as np

from data_index.errors import OrderMismatch

# Instances are numbered in 32 bits; the trainer asserts the same.
MAX_INSTANCES = np.iinfo(np.uint32).max


def global_indices(num_instances: int, *, seed: int, epoch: int, drop_last: bool, world_size: int) -> np.ndarray:
    """Instances of one epoch in consumption order, uint32; what the trainer writes to train_data/global_indices.npy.

    Global batch b is a stretch of this array, whatever the number of ranks; rank r reads every world_size-th of it.

    Args:
        seed: `data.seed` of the config, or `seed` where that is null.
        epoch: 0-based, as this trainer counts.
        drop_last: the length is rounded down to a multiple of `world_size`; else up, by repeating from the start.
    Raises:
        OrderMismatch: there are none, or too many to number.
    """
    if not 0 < num_instances < MAX_INSTANCES:
        raise OrderMismatch(
            f"{num_instances:,} instances cannot be put in this trainer's order, which numbers 1..{MAX_INSTANCES:,} "
            "in 32 bits: check the token files and the sequence length"
        )
    indices = np.arange(num_instances, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed=seed + epoch)).shuffle(indices)
    if drop_last:
        return indices[: num_instances // world_size * world_size]
    return np.resize(indices, -(-num_instances // world_size) * world_size)
