"""The packings that OLMo-core's trainer computed and kept: three headerless uint64 files a group of token files.

    document-indices-<T>-<key>.npy        first token and the one after the last of each document, the longest first
    instance-offsets-<T>-<key>.npy        first and after-last place of each instance in the next
    documents-by-instance-<T>-<key>.npy   documents, instance after instance

They lie in <work_dir>/dataset-common. T is the sequence length; the key hashes what the packing depends on, with the
full paths that the trainer knew. Where those are gone, a packing is recognised by its documents.

Source: NumpyPackedFSLDataset in olmo_core/data/numpy_dataset.py (Python package ai2-olmo-core 3.0.0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_index.errors import CorruptFile, MissingFile, OrderMismatch
from data_index.files import require_file
from data_index.instances.packed import Packing, check_packing

KINDS = ("document-indices", "instance-offsets", "documents-by-instance")


def packing_key(
    files: Sequence[tuple[str, int]], *, long_doc_strategy: str, use_array_if_local: bool | None = None
) -> str:
    """The key of a group's packing.

    Args:
        files: path as the config named it, and bytes, of each file of the group in order.

    Not for files that the trainer read over the network: version 3.0.0 adds hashes of their metadata files.
    """
    digest = hashlib.sha256()
    for path, num_bytes in files:
        digest.update(f"{path}{num_bytes}".encode())
    digest.update(f"{long_doc_strategy}uint64".encode())
    if use_array_if_local is not None:
        digest.update(f"use_array_if_local={use_array_if_local}".encode())
    return digest.hexdigest()


def read_packings(folder: Path, sequence_length: int) -> dict[str, Packing]:
    """Every packing of that sequence length in a folder, by key. Nothing about them is proved yet.

    Raises:
        MissingFile, CorruptFile: one of three files is gone, or truncated.
    """
    prefix = f"{KINDS[0]}-{sequence_length}-"
    keys = sorted(path.name.removeprefix(prefix).removesuffix(".npy") for path in folder.glob(f"{prefix}*.npy"))
    return {key: read_packing(folder, sequence_length, key) for key in keys}


def read_packing(folder: Path, sequence_length: int, key: str) -> Packing:
    """One packing.

    Raises:
        MissingFile, CorruptFile
    """
    paths = [folder / f"{kind}-{sequence_length}-{key}.npy" for kind in KINDS]
    documents, offsets, packed = (_numbers(path) for path in paths)
    for path, array in zip(paths[:2], (documents, offsets), strict=True):
        if len(array) % 2:
            raise CorruptFile(f"{path} holds {len(array):,} numbers, which are no pairs: it is truncated")
    starts, stops = offsets.reshape(-1, 2).T
    if not np.array_equal(starts[1:], stops[:-1]):
        raise OrderMismatch(f"{paths[1]} has instances that do not follow one another: it is damaged")
    return Packing(documents=documents.reshape(-1, 2), first=np.append(starts[:1], stops), packed=packed)


def packing_of(packings: Mapping[str, Packing], key: str, documents: np.ndarray, sequence_length: int) -> Packing:
    """The trainer's packing of a group of files: by its key, or the one with the same documents. It is proved.

    Args:
        documents: from `group_documents`.
    Raises:
        OrderMismatch: none is of these files.
    """
    for candidate in [packings[key]] if key in packings else packings.values():
        if len(candidate.documents) != len(documents) and key not in packings:
            continue
        try:
            check_packing(candidate, documents, sequence_length)
        except OrderMismatch:
            if key in packings:
                raise
            continue
        return candidate
    raise OrderMismatch(
        f"none of {len(packings)} packings that the trainer kept is of these token files ({len(documents):,} "
        f"documents, key {key[:12]}…): the files are not the run's, or the cache is incomplete"
    )


def _numbers(path: Path) -> np.ndarray:
    try:
        size = require_file(path)
    except MissingFile as error:
        raise MissingFile(f"{path}, one of the three files of a packing, is not there") from error
    if size % 8:
        raise CorruptFile(f"{path} has {size:,} bytes, no multiple of 8: it is truncated")
    numbers = np.fromfile(path, dtype="<u8")
    if len(numbers) and int(numbers.max()) >= 2**62:
        raise CorruptFile(f"{path} holds {int(numbers.max()):,}, which is no number of a token or a document")
    return numbers.astype(np.int64)
