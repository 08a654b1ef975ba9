"""OLMo-core's composable sources: concat-and-chunk sources of token files under one loader.

Source: Python package ai2-olmo-core 3.0.0 (data/composable/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import UnsupportedRecipe
from data_index.instances.concatenated import concatenated_pieces
from data_index.instances.packed import grouped
from data_index.orders.olmo_core_composable import indices_file_name, sources_of_epoch
from data_index.orders.olmo_core_fingerprint import concat_and_chunk_fingerprint, document_source_fingerprint
from data_index.pieces import Pieces
from data_index.run import Order, TokenFile
from data_index.sources.folder import lookup, numbered
from data_index.sources.olmo_core_data import Dataset, Described

if TYPE_CHECKING:
    from data_index.remote.files import Data


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Source:
    """One source of a composed order; `names` of its files as its config lists them."""

    names: tuple[str, ...]
    files: tuple[TokenFile, ...]
    pieces: Pieces
    sequence_length: int
    max_sequence_length: int
    fingerprint: str


def read_composable(
    folder: Path, checkpoint: Path, sources: Sequence[Mapping[str, Any]], loader: Mapping[str, Any], data: Data
) -> Dataset:
    """Concat-and-chunk sources of token files; everything else that can be composed is refused by name."""
    cut = [_chunked_source(folder, checkpoint, source, loader, data) for source in sources]
    lengths = {(source.sequence_length, source.max_sequence_length) for source in cut}
    if len(lengths) != 1:
        raise UnsupportedRecipe(f"config.json: sources of several sequence lengths {sorted(lengths)}")
    ((length, longest),) = lengths
    sizes = [source.pieces.num_instances for source in cut]
    # Sources may name the same files.
    names = numbered([name for source in cut for name in source.names])
    files = [file for source in cut for file in source.files]
    shuffled = loader.get("shuffle", True) is not False
    strategy = str(loader.get("shuffle_strategy") or "inter_source") if shuffled else None
    per_epoch = int(loader.get("sources_per_epoch", -1))
    parameters = {
        "seed": int(loader["seed"]),
        "source_sizes": sizes,
        "chunk_size": longest // length,
        "sources_per_epoch": per_epoch,
    } | ({"strategy": strategy} if strategy else {})
    taken = _instances_per_epoch(sizes, per_epoch, strategy)
    described = Described(folder=folder, checkpoint=checkpoint, dataset=sources[0], loader=loader, data=data)
    tokenizer = loader.get("tokenizer") or lookup(sources[0], "tokenizer") or {}
    return Dataset(
        files=tuple(replace(file, name=name) for file, name in zip(files, names, strict=True)),
        sequence_length=length,
        num_instances=sum(sizes),
        num_positions=taken,
        order=Order(rule="olmo_core_composable", parameters=parameters),
        masking=described.masking(),
        indices_file=lambda epoch: indices_file_name(
            taken,
            sequence_length=length,
            max_sequence_length=longest,
            seed=int(loader["seed"]),
            epoch=epoch,
            strategy=strategy,
        ),
        fingerprint=lambda: None if any(file.label_mask for file in files) else ",".join(s.fingerprint for s in cut),
        fingerprint_key="source_fingerprints",
        pieces=_joined([(source.pieces, len(source.files)) for source in cut]),
        eos_token_id=tokenizer.get("eos_token_id"),
    )


def _instances_per_epoch(sizes: Sequence[int], per_epoch: int, strategy: str | None) -> int:
    """
    Raises:
        UnsupportedRecipe: epochs that take turns at the sources are not equally long.
    """
    num_groups = len(sizes) // len(sources_of_epoch(len(sizes), 1, per_epoch))
    taken = set()
    for epoch in range(1, num_groups + 1):
        some = [sizes[source] for source in sources_of_epoch(len(sizes), epoch, per_epoch)]
        taken.add(min(some) * len(some) if strategy == "interleaved_source" else sum(some))
    if len(taken) > 1:
        raise UnsupportedRecipe(
            f"config.json: sources_per_epoch {per_epoch} makes epochs of {sorted(taken)} instances; this version "
            "computes epochs of one length"
        )
    return taken.pop()


def _chunked_source(
    folder: Path, checkpoint: Path, source: Mapping[str, Any], loader: Mapping[str, Any], data: Data
) -> _Source:
    kind = str(source.get("_CLASS_", "")).rsplit(".", 1)[-1]
    inner = source.get("sources") or []
    names = {str(one.get("_CLASS_", "")).rsplit(".", 1)[-1] for one in inner}
    if kind != "ConcatAndChunkInstanceSourceConfig" or names - {"NumpyDocumentSourceConfig"} or len(inner) != 1:
        raise UnsupportedRecipe(
            f"config.json: source {kind} of {', '.join(sorted(names)) or 'nothing'} has an order that this version "
            "does not compute; ConcatAndChunkInstanceSourceConfig of one NumpyDocumentSourceConfig has"
        )
    if inner[0].get("max_document_length") is not None:
        raise UnsupportedRecipe("config.json: max_document_length cuts documents; this version does not compute that")
    described = Described(
        folder=folder,
        checkpoint=checkpoint,
        dataset=dict(inner[0]) | {"paths": inner[0]["source_paths"]},
        loader=loader,
        data=data,
    )
    length = int(source["sequence_length"])
    longest = int(source.get("max_sequence_length") or length)
    files = described.place(lambda num_bytes: 0)
    tokens = [file.num_bytes // np.dtype(file.dtype).itemsize for file in files]
    size = int(inner[0].get("source_group_size") or 1)
    size = len(files) if size == -1 else size
    pieces = concatenated_pieces(tokens, sequence_length=length, max_sequence_length=longest, source_group_size=size)
    prints = [
        document_source_fingerprint(
            [(name, count) for (name, _), count in zip(group, counts, strict=True)],
            dtype=files[0].dtype,
            eos_token_id=int(described.tokenizer["eos_token_id"]),
            bos_token_id=described.tokenizer.get("bos_token_id"),
        )
        for group, counts in zip(grouped(described.as_listed(files), size), grouped(tokens, size), strict=True)
    ]
    return _Source(
        names=tuple(name for name, _ in described.as_listed(files)),
        files=files,
        pieces=pieces,
        sequence_length=length,
        max_sequence_length=longest,
        fingerprint=concat_and_chunk_fingerprint(prints, longest),
    )


def _joined(parts: Sequence[tuple[Pieces, int]]) -> Pieces:
    """Pieces of several sources, one after another; each counts its own files from 0."""
    firsts, files, before, pieces_before = [np.zeros(1, dtype=np.int64)], [], 0, 0
    for pieces, num_files in parts:
        firsts.append(pieces.first[1:] + pieces_before)
        files.append(pieces.file + np.int32(before))
        before, pieces_before = before + num_files, pieces_before + len(pieces.file)
    return replace(
        parts[0][0],
        first=np.concatenate(firsts),
        file=np.concatenate(files),
        start=np.concatenate([pieces.start for pieces, _ in parts]),
        stop=np.concatenate([pieces.stop for pieces, _ in parts]),
    )
