"""OLMo-core's padded dataset: one document an instance, cut at the sequence length, padded up to it.

Padding is outside the loss, and the repetition filter does not see it.

Source: NumpyPaddedFSLDataset in olmo_core/data/numpy_dataset.py (Python package ai2-olmo-core 3.0.0)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_index.instances.documents import truncated
from data_index.pieces import Pieces


def padded_pieces(documents: Sequence[np.ndarray], sequence_length: int) -> Pieces:
    """One piece an instance.

    Args:
        documents: the table of each file (`documents_of`, without `bos`: this dataset looks at `eos` alone, whatever
            its config says).
    """
    kept = [truncated(table, sequence_length) for table in documents]
    spans = np.concatenate(kept) if kept else np.empty((0, 2), dtype=np.int64)
    return Pieces(
        first=np.arange(len(spans) + 1, dtype=np.int64),
        file=np.repeat(np.arange(len(kept)), [len(table) for table in kept]).astype(np.int32),
        start=spans[:, 0].copy(),
        stop=spans[:, 1].copy(),
    )
