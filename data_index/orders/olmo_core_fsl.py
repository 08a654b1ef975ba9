"""OLMo-core's fixed-sequence-length order: a PCG64 shuffle of chunks, seeded with seed + epoch.

Source: olmo_core/data/data_loader.py, NumpyFSLDataLoader (Python package ai2-olmo-core 3.0.0).
"""

from __future__ import annotations

import numpy as np


def global_indices(num_instances: int, *, seed: int, epoch: int, chunk_size: int = 1) -> np.ndarray:
    """Instances of one epoch in consumption order, uint32 of shape [num_instances // chunk_size * chunk_size].

    Args:
        epoch: 1-based, as the trainer counts.
        chunk_size: instances that stay together; max_target_sequence_length / sequence_length.
    """
    chunks = np.arange(num_instances // chunk_size, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed=seed + epoch)).shuffle(chunks)
    if chunk_size == 1:
        return chunks
    within = np.arange(chunk_size, dtype=np.uint32)
    return (chunks[:, None] * np.uint32(chunk_size) + within[None, :]).reshape(-1)
