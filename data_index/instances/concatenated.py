"""OLMo-core's composable concat-and-chunk source: tokens cut at fixed lengths, running across the files of a group.

Source: olmo_core/data/composable/concat_and_chunk_instance_source.py (Python package ai2-olmo-core 3.0.0)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_index.errors import UnsupportedRecipe
from data_index.pieces import Pieces


def concatenated_pieces(
    file_tokens: Sequence[int], *, sequence_length: int, max_sequence_length: int, source_group_size: int
) -> Pieces:
    """Pieces of every instance; what does not fill `max_sequence_length` at a group's end is left out.

    Args:
        file_tokens: tokens of each file, in the order of `source_order`.
        source_group_size: files that run into one another; 1 is the trainer's default, -1 means all.
    Raises:
        UnsupportedRecipe: lengths that the trainer refuses.
    """
    if max_sequence_length % sequence_length:
        raise UnsupportedRecipe(
            f"max_sequence_length {max_sequence_length} is no multiple of sequence_length {sequence_length}; the "
            "trainer refuses this too"
        )
    borders = np.append(0, np.cumsum(np.asarray(file_tokens, dtype=np.int64))).astype(np.int64)
    size = len(file_tokens) if source_group_size == -1 else source_group_size
    starts = [np.empty(0, dtype=np.int64)]
    for group in range(0, len(file_tokens), size):
        first, stop = borders[group], borders[min(group + size, len(file_tokens))]
        whole = (stop - first) // max_sequence_length * max_sequence_length
        starts.append(np.arange(first, first + whole, sequence_length))
    return pieces_of_stretches(np.concatenate(starts), sequence_length, borders)


def pieces_of_stretches(starts: np.ndarray, length: int, borders: np.ndarray) -> Pieces:
    """Instances of `length` tokens from `starts` of files laid end to end, as pieces of the files.

    Args:
        borders: int64 of shape [files + 1]; tokens before each file.
    """
    filled = np.flatnonzero(np.diff(borders))
    edges = np.append(borders[filled], borders[-1])
    first_file = np.searchsorted(edges, starts, side="right") - 1
    num_pieces = np.searchsorted(edges, starts + length, side="left") - first_file
    row = np.repeat(np.arange(len(starts)), num_pieces)
    file = first_file[row] + np.arange(len(row)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    return Pieces(
        first=np.append(0, np.cumsum(num_pieces)).astype(np.int64),
        file=filled[file].astype(np.int32),
        start=np.maximum(starts[row], edges[file]) - edges[file],
        stop=np.minimum(starts[row] + length, edges[file + 1]) - edges[file],
    )
