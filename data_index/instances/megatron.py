"""Samples of GPT-NeoX and Megatron-DeepSpeed: stretches of documents laid end to end, one token longer than the input.

Neighbouring samples share a token: the label of the last position of one is the first input of the next.

Source: megatron/data/gpt2_dataset.py and helpers.cpp (build_sample_idx) of EleutherAI/gpt-neox @ ea7aefd8
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_index.errors import OrderMismatch
from data_index.megatron_index import MegatronIndex
from data_index.orders.megatron import DatasetShuffle, document_order
from data_index.pieces import Pieces


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentStream:
    """The sequences of a dataset laid end to end as they were shuffled, copies included.

    Attributes:
        sequences: int32 of shape [slots]; the sequence in each slot.
        borders: int64 of shape [slots + 1]; tokens of the stream before each slot.
        sequence_length: L.
        num_samples: samples cut from the stream.
    """

    sequences: np.ndarray
    borders: np.ndarray
    sequence_length: int
    num_samples: int


def document_stream(shuffle: DatasetShuffle, sizes: np.ndarray) -> DocumentStream:
    """The stream of a dataset; `sizes` are the tokens of every sequence of its `.idx` file.

    Raises:
        OrderMismatch: the sizes are not those that the shuffle was made for.
    """
    stop = shuffle.first_sequence + shuffle.num_sequences
    num_tokens = int(sizes[shuffle.first_sequence : stop].sum(dtype=np.int64))
    if stop > len(sizes) or num_tokens != shuffle.num_tokens:
        raise OrderMismatch(
            f"the .idx file has {len(sizes):,} sequences, {num_tokens:,} tokens in the range {shuffle.first_sequence}.."
            f"{stop}; the shuffle was made for {shuffle.num_tokens:,} tokens: it is not the run's file"
        )
    sequences = document_order(shuffle)
    borders = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum(sizes[sequences], dtype=np.int64, out=borders[1:])
    return DocumentStream(
        sequences=sequences,
        borders=borders,
        sequence_length=shuffle.sequence_length,
        num_samples=shuffle.num_samples,
    )


def sample_starts(stream: DocumentStream) -> np.ndarray:
    """Slot and offset in it of the first token of each sample and, last, of the last token of all; [samples + 1, 2].

    This is the trainers' sample_idx, in its dtype: int32, int64 where that does not suffice to number the array.
    """
    places = np.arange(stream.num_samples + 1, dtype=np.int64) * stream.sequence_length
    slots = _slots_of(stream, places)
    slots[0] = 0  # also where the first sequences are empty
    starts = np.stack([slots, places - stream.borders[slots]], axis=1)
    fits = 2 * ((int(stream.borders[-1]) - 1) / stream.sequence_length + 1) < np.iinfo(np.int32).max
    return starts.astype(np.int32 if fits else np.int64)


def sample_pieces(stream: DocumentStream, index: MegatronIndex, samples: np.ndarray, *, file: int = 0) -> Pieces:
    """Pieces of the given samples, each sequence_length + 1 tokens, in the given order.

    Args:
        index: the `.idx` file of the stream.
        samples: sample numbers of any integer type, shape [rows].
        file: the number of the `.bin` file in the run.
    Raises:
        OrderMismatch: a sample that the stream does not have.
    """
    samples = np.asarray(samples, dtype=np.int64)
    if len(samples) and not 0 <= int(samples.min()) <= int(samples.max()) < stream.num_samples:
        raise OrderMismatch(f"the dataset has samples 0..{stream.num_samples - 1}, not all of those asked for")
    start = samples * stream.sequence_length
    stop = start + stream.sequence_length + 1
    first_slot, last_slot = _slots_of(stream, start), _slots_of(stream, stop - 1)
    row, slot = _expanded(first_slot, last_slot - first_slot + 1)
    piece_start = np.maximum(start[row], stream.borders[slot])
    piece_stop = np.minimum(stop[row], stream.borders[slot + 1])
    filled = piece_stop > piece_start  # empty sequences lie between others
    row, slot, piece_start, piece_stop = row[filled], slot[filled], piece_start[filled], piece_stop[filled]
    to_file = index.starts()[stream.sequences[slot]] - stream.borders[slot]
    return Pieces(
        first=_row_borders(row, len(samples)),
        file=np.full(len(row), file, dtype=np.int32),
        start=piece_start + to_file,
        stop=piece_stop + to_file,
    )


def sequence_pieces(index: MegatronIndex, *, file: int = 0) -> Pieces:
    """One instance a sequence, as in the pre-shuffled sets of Pythia, whose sequences lie in training order."""
    starts, filled = index.starts(), index.sizes > 0
    return Pieces(
        first=np.append(0, np.cumsum(filled)).astype(np.int64),
        file=np.full(int(filled.sum()), file, dtype=np.int32),
        start=starts[filled],
        stop=(starts + index.sizes)[filled],
    )


def across_shards(pieces: Pieces, shard_tokens: np.ndarray, *, first_file: int = 0) -> Pieces:
    """Pieces of one `.bin` file as pieces of the shards it was published in, which end anywhere between tokens.

    Args:
        shard_tokens: tokens of each shard, in order.
        first_file: the number of the first shard in the run.
    Raises:
        OrderMismatch: the shards do not reach as far as the pieces.
    """
    filled = np.flatnonzero(shard_tokens)
    borders = np.append(0, np.cumsum(np.asarray(shard_tokens)[filled], dtype=np.int64))
    if len(pieces.stop) and int(pieces.stop.max()) > int(borders[-1]):
        raise OrderMismatch(
            f"the shards hold {int(borders[-1]):,} tokens and the .idx file needs {int(pieces.stop.max()):,}: a shard "
            "is missing or truncated"
        )
    first_shard = np.searchsorted(borders, pieces.start, side="right") - 1
    last_shard = np.searchsorted(borders, pieces.stop, side="left") - 1
    piece, shard = _expanded(first_shard, last_shard - first_shard + 1)
    before = np.append(0, np.cumsum(last_shard - first_shard + 1))
    return Pieces(
        first=before[pieces.first],
        file=(filled[shard] + first_file).astype(np.int32),
        start=np.maximum(pieces.start[piece], borders[shard]) - borders[shard],
        stop=np.minimum(pieces.stop[piece], borders[shard + 1]) - borders[shard],
    )


def _slots_of(stream: DocumentStream, places: np.ndarray) -> np.ndarray:
    """The slot that holds each token of the stream."""
    return np.searchsorted(stream.borders, places, side="right") - 1


def _expanded(first: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row, first, first + 1, … `counts` times: the row numbers, and the values."""
    row = np.repeat(np.arange(len(first)), counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return row, first[row] + within


def _row_borders(row: np.ndarray, num_rows: int) -> np.ndarray:
    return np.append(0, np.cumsum(np.bincount(row, minlength=num_rows))).astype(np.int64)
