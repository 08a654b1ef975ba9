"""Token files of Megatron's trainers: `.bin` beside `.idx`, whole or in shards, shuffled by the trainer or before it.

A dataset is named by its prefix, as the configs name it: PREFIX.bin and PREFIX.idx, or PREFIX-00000-of-00082.bin … with
PREFIX.idx. Shards are read across their borders; nothing is merged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import CorruptFile, MissingFile, OrderMismatch, UnsafeFile
from data_index.files import is_absurd, require_file
from data_index.instances.megatron import across_shards, document_stream, sample_pieces
from data_index.megatron_index import MegatronIndex, read_index_header, read_megatron_index
from data_index.orders.megatron import DatasetShuffle
from data_index.pieces import Pieces
from data_index.run import TokenFile
from data_index.sources.folder import find_file, numbered

if TYPE_CHECKING:
    from data_index.remote.files import Data, RemoteFiles
    from data_index.remote.path import Place

# What a sample's pieces and its places in the orders take in memory.
BYTES_PER_ROW = 40
# Pythia's pre-shuffled sets have indexes of gigabytes, of which the header says all that is not known.
MAX_FETCHED_INDEX_BYTES = 256 * 2**20
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.bin$")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IndexedDataset:
    """One dataset: its index, and the shards of its `.bin` file in order."""

    prefix: str
    index: MegatronIndex
    shards: tuple[Place, ...]

    def shard_tokens(self) -> np.ndarray:
        """Tokens of each shard, int64.

        Raises:
            CorruptFile: a border splits a token.
        """
        item = np.dtype(self.index.dtype).itemsize
        sizes = np.array([require_file(path) for path in self.shards], dtype=np.int64)
        if (sizes % item).any():
            wrong = self.shards[int(np.flatnonzero(sizes % item)[0])]
            raise CorruptFile(
                f"{wrong} has {require_file(wrong):,} bytes, no whole number of {self.index.dtype} tokens: it is "
                "truncated"
            )
        return sizes // item


def find_dataset(folder: Path, data: Data, prefix: str) -> IndexedDataset:
    """
    Raises:
        MissingFile, CorruptFile, UnsafeFile, UnknownLayout
    """
    index_path = find_file(folder, data, f"{prefix}.idx", "index")
    shards = shards_of(index_path, data)
    return IndexedDataset(
        prefix=prefix,
        index=read_megatron_index(_on_disk(index_path), sum(require_file(path) for path in shards)),
        shards=shards,
    )


def _on_disk(index_path: Place) -> Path:
    """An index is read whole: it says where everything lies.

    Raises:
        UnsafeFile: one on a server that is larger than what is worth fetching unasked.
    """
    if isinstance(index_path, Path):
        return index_path
    if index_path.size() > MAX_FETCHED_INDEX_BYTES:
        raise UnsafeFile(
            f"{index_path} has {index_path.size():,} bytes, all of which would be needed: download it with the .bin "
            "files beside it, and say where they are with --data DIR"
        )
    return index_path.download()


def shards_of(index_path: Place, data: Data = None) -> tuple[Place, ...]:
    """The `.bin` file beside an `.idx` file, or its shards in order.

    Published shards may have another stem than the index (document.idx beside document-00000-of-00020.bin); their
    number in the name is that of the last one, or one more.

    Raises:
        MissingFile: none, or one in between.
    """
    stem = index_path.name.removesuffix(".idx")
    beside = _beside(index_path, data)
    whole = beside.get(f"{stem}.bin")
    if whole is not None and whole.is_file():
        return (whole,)
    numbered: dict[int, Place] = {}
    for name, path in beside.items():
        match = _SHARD.match(name)
        if match and match[1] == stem:
            numbered[int(match[2])] = path
    missing = sorted(set(range(max(numbered, default=-1) + 1)) - set(numbered))
    if not numbered or missing:
        wanted = f"{stem}-{missing[0]:05d}-of-….bin" if missing else f"{stem}.bin"
        raise MissingFile(f"{index_path.parent}/{wanted} is not there; {index_path.name} describes its tokens")
    return tuple(numbered[number] for number in sorted(numbered))


def _beside(index_path: Place, data: Data) -> Mapping[str, Place]:
    """The `.bin` files in the folder of an index, by name."""
    if isinstance(index_path, Path):
        return {path.name: path for path in index_path.parent.glob("*.bin")}
    assert data is not None and not isinstance(data, Path)
    return data.beside(index_path)


def preshuffled_on_server(data: RemoteFiles, prefix: str, row_tokens: int) -> tuple[TokenFile, ...] | None:
    """Token files of a pre-shuffled set whose index is too large to fetch, cut by what its header says.

    The header gives the dtype and the number of sequences; that as many rows fill the shards exactly is what stands
    for the index. None where they do not, or where the index is small enough to be read.

    Raises:
        MissingFile, CorruptFile, UnknownLayout, AccessDenied, Unreachable, Offline
    """
    index_path = data.find(f"{prefix}.idx")
    if index_path is None or index_path.size() <= MAX_FETCHED_INDEX_BYTES:
        return None
    shards = shards_of(index_path, data)
    dtype, num_sequences = read_index_header(index_path)
    tokens = np.array([require_file(path) for path in shards], dtype=np.int64) // np.dtype(dtype).itemsize
    if int(tokens.sum()) != num_sequences * row_tokens:
        return None
    return _cut(_placed([(path, dtype) for path in shards]), tokens, num_sequences, row_tokens)


def files_in_pieces(datasets: Sequence[IndexedDataset]) -> tuple[TokenFile, ...]:
    """Token files of datasets whose instances are put together from pieces."""
    return _placed([(path, dataset.index.dtype) for dataset in datasets for path in dataset.shards])


def _placed(shards: Sequence[tuple[Place, str]]) -> tuple[TokenFile, ...]:
    return tuple(
        TokenFile(
            name=name,
            path=path,
            dtype=dtype,
            num_bytes=require_file(path),
            first_instance=0,
            num_instances=0,
            sha256=None if isinstance(path, Path) else path.sha256,
        )
        for name, (path, dtype) in zip(unique_names([path for path, _ in shards]), shards, strict=True)
    )


def unique_names(paths: Sequence[Place]) -> list[str]:
    """File names; with their folder where several have one name, and numbered where that does not tell them apart."""
    names = Counter(path.name for path in paths)
    return numbered([path.name if names[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths])


def shuffled_pieces(datasets: Sequence[IndexedDataset], shuffles: Sequence[DatasetShuffle]) -> Pieces:
    """Pieces of every sample of every dataset; instance numbers are those that the shuffles begin at."""
    _require_plausible(datasets, shuffles)
    parts, first_file = [], 0
    for dataset, shuffle in zip(datasets, shuffles, strict=True):
        stream = document_stream(shuffle, dataset.index.sizes)
        pieces = sample_pieces(stream, dataset.index, np.arange(shuffle.num_samples))
        parts.append(across_shards(pieces, dataset.shard_tokens(), first_file=first_file))
        first_file += len(dataset.shards)
    before = np.cumsum([0, *(len(pieces.file) for pieces in parts)])
    firsts = [pieces.first[1:] + count for pieces, count in zip(parts, before[:-1], strict=True)]
    return Pieces(
        first=np.concatenate([np.zeros(1, dtype=np.int64), *firsts]),
        file=np.concatenate([pieces.file for pieces in parts]),
        start=np.concatenate([pieces.start for pieces in parts]),
        stop=np.concatenate([pieces.stop for pieces in parts]),
    )


def _require_plausible(datasets: Sequence[IndexedDataset], shuffles: Sequence[DatasetShuffle]) -> None:
    """
    Raises:
        OrderMismatch: the config asks for far more samples than the data could be read for.
    """
    stored = sum(require_file(path) for dataset in datasets for path in dataset.shards)
    rows = sum(shuffle.num_samples + shuffle.num_epochs * shuffle.num_sequences for shuffle in shuffles)
    if is_absurd(BYTES_PER_ROW * rows, stored):
        raise OrderMismatch(
            f"the configuration asks for {sum(shuffle.num_samples for shuffle in shuffles):,} samples of {stored:,} "
            "bytes of data: check train_iters, the batch size and the data files"
        )


def cut_in_order(dataset: IndexedDataset, row_tokens: int) -> tuple[TokenFile, ...] | None:
    """Token files of a pre-shuffled set, one instance a sequence in file order; None where it is not one.

    Every sequence has the length of a row and follows the one before, as in Pythia's published sets.
    """
    index = dataset.index
    if (index.sizes != row_tokens).any() or not np.array_equal(
        index.starts(), np.arange(index.num_sequences, dtype=np.int64) * row_tokens
    ):
        return None
    return _cut(files_in_pieces([dataset]), dataset.shard_tokens(), index.num_sequences, row_tokens)


def _cut(
    shards: Sequence[TokenFile], shard_tokens: np.ndarray, num_sequences: int, row_tokens: int
) -> tuple[TokenFile, ...]:
    """Which rows begin in which shard, and where the first of them does; a row may run on into the next shard."""
    files, borders = [], np.append(0, np.cumsum(shard_tokens))
    for file, start, stop in zip(shards, borders[:-1], borders[1:], strict=True):
        first = -(-int(start) // row_tokens)
        last = min(-(-int(stop) // row_tokens), num_sequences)
        lead = min(first * row_tokens, int(stop)) - int(start)
        files.append(replace(file, first_instance=first, num_instances=last - first, first_token=lead))
    return tuple(files)


def documents_of_datasets(datasets: Sequence[IndexedDataset]) -> list[dict[str, Any]]:
    """Rows of `documents`: the documents of every dataset, numbered on, each in the shards that it lies in."""
    rows: list[dict[str, Any]] = []
    number = 0
    names = iter(file.name for file in files_in_pieces(datasets))
    for dataset in datasets:
        index, borders = dataset.index, np.append(0, np.cumsum(dataset.shard_tokens()))
        shard_names = [next(names) for _ in dataset.shards]
        starts, ends = index.starts(), index.starts() + index.sizes
        groups = index.document_starts
        if len(groups) < 2 or groups[-1] != index.num_sequences:
            groups = np.arange(index.num_sequences + 1)
        for first, stop in zip(groups[:-1].tolist(), groups[1:].tolist(), strict=True):
            for sequence in range(first, stop):
                rows += _document_rows(number, int(starts[sequence]), int(ends[sequence]), borders, shard_names)
            number += 1
    return rows


def _document_rows(
    number: int, start: int, end: int, borders: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    shard = int(np.searchsorted(borders, start, side="right")) - 1
    while start < end:
        stop = min(end, int(borders[shard + 1]))
        before = int(borders[shard])
        rows.append(
            {
                "document_id": number,
                "file": names[shard],
                "start": start - before,
                "end": stop - before,
                "source": None,
                "source_start": None,
                "source_end": None,
                "tags": [],
            }
        )
        start, shard = stop, shard + 1
    return rows
