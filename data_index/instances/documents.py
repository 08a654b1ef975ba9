"""Where documents lie in raw token files, as OLMo-core finds and cuts them.

A table of documents is int64 of shape [documents, 2]: first token and the one after the last, in file order.

Source: olmo_core/data/utils.py and composable/numpy_document_source.py (Python package ai2-olmo-core 3.0.0)
"""

from __future__ import annotations

import random

import numpy as np

BLOCK_TOKENS = 2**24


def ends_in(block: np.ndarray, count: int, eos: int, bos: int | None = None) -> np.ndarray:
    """Places after the last token of each document that ends among the first `count` tokens of a block, rising, int64.

    Args:
        block: one token more than `count`, where the file goes on, to see what follows.
        bos: where given, a document ends only at an `eos` that a `bos` follows, or at the last token.
    """
    found = block[:count] == eos
    if bos is not None:
        found[: len(block) - 1] &= block[1:] == bos
    return np.flatnonzero(found) + 1


def documents_of(tokens: np.ndarray, eos: int, bos: int | None = None, *, to_the_end: bool = False) -> np.ndarray:
    """Documents of one file; each ends with its end-of-sequence token.

    Args:
        tokens: all of the file; a memory map is read in blocks.
        bos: where given, a document ends only at an `eos` that a `bos` follows, or at the last token.
        to_the_end: whether tokens after the last `eos` are a document. The composable sources take them; the datasets
            leave them out.
    """
    ends = [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(tokens), BLOCK_TOKENS):
        ends.append(start + ends_in(tokens[start : start + BLOCK_TOKENS + 1], BLOCK_TOKENS, eos, bos))
    borders = np.concatenate(ends)
    if to_the_end and borders[-1] != len(tokens):
        borders = np.append(borders, len(tokens))
    return np.stack([borders[:-1], borders[1:]], axis=1)


def truncated(documents: np.ndarray, length: int) -> np.ndarray:
    """Documents without what is longer than `length` tokens."""
    start, stop = documents.T
    return np.stack([start, np.minimum(stop, start + length)], axis=1)


def fragmented(documents: np.ndarray, length: int) -> np.ndarray:
    """Documents cut into pieces of `length` tokens, the last of each shorter."""
    start, stop = documents.T
    num_fragments = -(-(stop - start) // length)
    document = np.repeat(np.arange(len(documents)), num_fragments)
    number = np.arange(len(document)) - np.repeat(np.cumsum(num_fragments) - num_fragments, num_fragments)
    first = start[document] + number * length
    return np.stack([first, np.minimum(first + length, stop[document])], axis=1)


def source_order(num_files: int, source_permutation_seed: int | None) -> list[int]:
    """The order in which a dataset takes the files of its config."""
    order = list(range(num_files))
    if source_permutation_seed is not None:
        random.Random(source_permutation_seed).shuffle(order)
    return order
