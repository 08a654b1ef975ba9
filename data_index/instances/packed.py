"""OLMo-core's packed dataset: documents put together into instances, the longest first, each where it fits best.

Documents of equally many tokens are packed in the order that numpy's default argsort leaves them in, and that order
depends on the processor and on numpy's version (`sort_kernel`). So the packing that a trainer computed, where its cache
files are there, counts more than one computed here.

Source: NumpyPackedFSLDataset in olmo_core/data/numpy_dataset.py, InstancePacker in olmo_core/data/utils.py (Python
package ai2-olmo-core 3.0.0)
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from data_index.errors import OrderMismatch, UnsupportedRecipe
from data_index.instances.documents import fragmented, truncated
from data_index.pieces import Pieces

Value = TypeVar("Value")
PLAIN = "plain"
# What the probe of `sort_kernel` gives, measured with numpy 1.24, 1.26, 2.0, 2.2, 2.3, 2.4 on x86_64 with and without
# these instructions.
SORT_KERNELS = {
    "ea45398936454f4e": "AVX512, numpy 2",
    "42ced7f5cea65ae8": "AVX2, numpy 2",
    "a3380f3c94352bcf": "AVX512, numpy 1.25-1.26",
    "3155196cbccaa39e": PLAIN,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packing:
    """How the documents of one group of files were packed. Tokens count from the start of the group's first file.

    Attributes:
        documents: int64 of shape [documents, 2]; first token and the one after the last, the longest document first.
        first: int64 of shape [instances + 1]; places in `packed`.
        packed: int64 of shape [documents]; documents in row order, instance after instance.
    """

    documents: np.ndarray
    first: np.ndarray
    packed: np.ndarray


def sort_kernel() -> str:
    """Which of numpy's ways to sort equals this machine has, found by sorting; "unknown" if none that was measured.

    Packings are the same on machines with the same kernel. Which one a published run had is recorded nowhere but in its
    packing caches.
    """
    lengths = np.arange(20_000, dtype=np.int64) * 7919 % 613
    probe = hashlib.sha256(np.argsort(-lengths).astype("<i8").tobytes()).hexdigest()
    return SORT_KERNELS.get(probe[:16], "unknown")


def group_documents(
    documents: Sequence[np.ndarray], file_tokens: Sequence[int], *, sequence_length: int, long_doc_strategy: str
) -> np.ndarray:
    """Documents of a group of files, cut to fit, counted from the start of the first file; [documents, 2].

    Raises:
        UnsupportedRecipe: an unknown `long_doc_strategy`.
    """
    if long_doc_strategy not in ("truncate", "fragment"):
        raise UnsupportedRecipe(f"long_doc_strategy {long_doc_strategy!r}; 'truncate' and 'fragment' are supported")
    cut = truncated if long_doc_strategy == "truncate" else fragmented
    before = np.append(0, np.cumsum(np.asarray(file_tokens, dtype=np.int64)))
    tables = [cut(table, sequence_length) + start for table, start in zip(documents, before[:-1], strict=True)]
    return np.concatenate(tables)


def pack(documents: np.ndarray, sequence_length: int, *, kernel: str | None = None) -> Packing:
    """Pack the documents of a group: best fit, longest first, first in first out among equal spaces.

    Args:
        documents: from `group_documents`; none longer than `sequence_length`.
        kernel: None sorts as this machine does. "plain" sorts as machines do that have none of the faster ways, and as
            numpy did before 1.25; every machine can.
    """
    if kernel not in (None, PLAIN):
        raise UnsupportedRecipe(f"documents cannot be sorted as {kernel!r} does; this machine has {sort_kernel()!r}")
    lengths = documents[:, 1] - documents[:, 0]
    # numpy sorts long doubles without vector instructions everywhere.
    order = np.argsort(-lengths if kernel is None else -lengths.astype(np.longdouble))
    bins = _bins(lengths[order].tolist(), sequence_length)
    return Packing(
        documents=documents[order],
        first=np.append(0, np.cumsum(np.bincount(bins))).astype(np.int64),
        packed=np.argsort(bins, kind="stable"),
    )


def _bins(lengths: Sequence[int], sequence_length: int) -> np.ndarray:
    """The bin of each document, in the given order."""
    by_space: dict[int, deque[int]] = {}
    spaces = 0  # bit s is set where a bin has s tokens of space left
    num_bins = 0
    bins = np.empty(len(lengths), dtype=np.int64)
    for document, length in enumerate(lengths):
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            number = by_space[space].popleft()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, number, num_bins = sequence_length, num_bins, num_bins + 1
        bins[document] = number
        if rest := space - length:
            by_space.setdefault(rest, deque()).append(number)
            spaces |= 1 << rest
    return bins


def check_packing(packing: Packing, documents: np.ndarray, sequence_length: int) -> None:
    """Prove that a packing puts each of a group's documents into one instance once, and that all fit.

    Args:
        documents: from `group_documents`.
    Raises:
        OrderMismatch
    """
    by_place = packing.documents[np.lexsort((packing.documents[:, 1], packing.documents[:, 0]))]
    if not np.array_equal(by_place, documents):
        raise OrderMismatch(
            f"a packing of {len(by_place):,} documents is not of these token files, which hold {len(documents):,}, or "
            "others: they are not the run's files, or were changed"
        )
    if not np.array_equal(np.sort(packing.packed), np.arange(len(documents))):
        raise OrderMismatch("a packing does not hold each document once: its cache files are damaged")
    tiles = len(packing.first) and packing.first[0] == 0 and packing.first[-1] == len(documents)
    if not tiles or (np.diff(packing.first) < 1).any():
        raise OrderMismatch("a packing's instances do not tile its documents: its cache files are damaged")
    lengths = (packing.documents[:, 1] - packing.documents[:, 0])[packing.packed]
    if len(lengths) and int(np.add.reduceat(lengths, packing.first[:-1]).max()) > sequence_length:
        raise OrderMismatch(f"a packing has an instance of more than {sequence_length} tokens: it is another run's")


def packed_pieces(packings: Sequence[Packing], groups: Sequence[Sequence[int]]) -> Pieces:
    """Pieces of every instance, group after group, one piece a document.

    Args:
        groups: tokens of each file of each group.
    """
    firsts, files, starts, stops = [np.zeros(1, dtype=np.int64)], [], [], []
    file_number = 0
    for packing, file_tokens in zip(packings, groups, strict=True):
        borders = np.append(0, np.cumsum(np.asarray(file_tokens, dtype=np.int64)))
        start, stop = packing.documents[packing.packed].T
        file = np.searchsorted(borders, start, side="right") - 1
        firsts.append(packing.first[1:] + firsts[-1][-1])
        files.append(file + file_number)
        starts.append(start - borders[file])
        stops.append(stop - borders[file])
        file_number += len(file_tokens)
    return Pieces(
        first=np.concatenate(firsts),
        file=np.concatenate(files).astype(np.int32),
        start=np.concatenate(starts),
        stop=np.concatenate(stops),
    )


def grouped(values: Sequence[Value], source_group_size: int) -> list[list[Value]]:
    """Consecutive values, `source_group_size` at a time."""
    return [list(values[i : i + source_group_size]) for i in range(0, len(values), source_group_size)]
