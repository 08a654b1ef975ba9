"""Sharded checkpoints of the trainer's kind `local`: FSDP's flat parameters and the optimizer as they lay in memory.

A flat parameter is the elements of several parameters laid end to end and cut evenly over the ranks; beside its data
stands which elements of which parameter a rank holds. The optimizer numbers its parameters and cuts moments alike.

Source: Python package ai2-olmo 0.6.0 (olmo/checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

import torch

from data_index.errors import CorruptFile, MissingFile
from data_index.olmo_checkpoint import local_world_size, rank_archives
from data_index.pickles import TorchArchive
from data_index.stand_ins import TensorRecord
from replay.names_olmo import plain_name
from replay.stored_tensors import Piece, StoredTensor, of_archive
from replay.weights_olmo import with_tensors


def local_model(folder: Path) -> dict[str, StoredTensor]:
    """Every parameter of `folder/model/rank<r>.pt`, from the stretches that the ranks hold.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    shards: dict[str, list[Piece]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for archive in _ranks(folder, "model"):
        for name, shape, (start, stop), record in _flat_parameters(archive):
            part = of_archive(archive, record, name)
            shards.setdefault(name, []).append(Piece(starts=(start,), sizes=(stop - start,), read=part.read))
            same = shapes.setdefault(name, shape) == shape
            if not same or dtypes.setdefault(name, record.storage.dtype) != record.storage.dtype:
                raise CorruptFile(f"{archive.source}: {name} has another shape or dtype than in the other ranks' files")
    return {name: _flat(name, dtypes[name], shapes[name], pieces) for name, pieces in shards.items()}


def _ranks(folder: Path, part: str) -> list[TorchArchive]:
    archives, expected = rank_archives(folder / part), local_world_size(folder)
    if len(archives) != expected:
        raise MissingFile(f"{folder}/{part} holds the files of {len(archives)} ranks; metadata.yaml counts {expected}")
    return archives


def _flat(name: str, dtype: str, shape: tuple[int, ...], pieces: Sequence[Piece]) -> StoredTensor:
    unique = {piece.starts: piece for piece in reversed(pieces)}
    if any(unique[piece.starts].sizes != piece.sizes for piece in pieces):
        raise CorruptFile(f"two ranks hold different stretches of {name} from the same element on")
    return StoredTensor(name=name, dtype=getattr(torch, dtype), shape=shape, pieces=tuple(unique.values()), flat=True)


def _flat_parameters(
    archive: TorchArchive,
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, int], TensorRecord]]:
    """A rank's parts of parameters: name, full shape, stretch of the full parameter's elements, where they are."""
    try:
        for module in archive.value["modules"]:
            prefix = plain_name(module["name"] + ".") if module["name"] else ""
            for handle in module["handles"]:
                data = handle["flat_param.data"]
                for name, shape, stretch, first in _stretches_of_handle(handle):
                    num = index(stretch[1] - stretch[0])
                    if not isinstance(data, TensorRecord) or len(data.shape) != 1 or data.strides != (1,):
                        raise CorruptFile(f"{archive.source}: flat_param.data is no flat tensor")
                    if num < 0 or first < 0 or first + num > data.shape[0]:
                        raise CorruptFile(f"{archive.source}: {name} lies outside its flat parameter")
                    record = TensorRecord(storage=data.storage, offset=data.offset + first, shape=(num,), strides=(1,))
                    yield plain_name(prefix + name), tuple(map(index, shape)), stretch, record
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
        if isinstance(error, CorruptFile):
            raise
        raise CorruptFile(f"{archive.source} holds no flat parameters as the trainer writes them: {error!r}") from error


def _stretches_of_handle(handle: Mapping[str, Any]) -> Iterator[tuple[str, Any, tuple[int, int], int]]:
    """(name, full shape, stretch of its elements, first element in the flat data), in torch's two ways to say so."""
    names, shapes = handle["flat_param._fqns"], handle["flat_param._shapes"]
    if "flat_param._shard_indices" in handle:  # torch up to 2.0: the stretches lie one behind the other
        first = max(handle["flat_param._shard_indices"][0], 0)
        at = 0
        offsets = handle["flat_param._shard_param_offsets"]
        for name, shape, (start, last) in zip(names[first:], shapes[first:], offsets, strict=False):
            yield name, shape, (start, last + 1), at
            at += last + 1 - start
        return
    for name, shape, info in zip(names, shapes, handle["flat_param._shard_param_infos"], strict=True):
        in_shard, offset, num, start, last = info
        if in_shard and num != last + 1 - start:
            raise CorruptFile(f"{num} elements of {name} cannot be its elements {start} to {last}")
        if in_shard:
            yield name, shape, (start, last + 1), offset


def local_optimizer(folder: Path) -> dict[str, Any]:
    """The optimizer's state tree; a moment is cut over the ranks as its parameter is.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    state: dict[str, dict[str, Any]] = {}
    places: dict[tuple[str, str], list[tuple[tuple[int, ...], str, Piece]]] = {}
    for model, optimizer in zip(_ranks(folder, "model"), _ranks(folder, "optim"), strict=True):
        cut = {name: (shape, stretch) for name, shape, stretch, _ in _flat_parameters(model)}
        for name, moment, value in _named_moments(optimizer):
            if not isinstance(value, TensorRecord) or value.shape == ():
                state.setdefault(name, {}).setdefault(moment, with_tensors(optimizer, value, name))
                continue
            if value.num_elements == 0:
                continue  # no part of this parameter lies on this rank
            if name not in cut or value.shape != (cut[name][1][1] - cut[name][1][0],):
                raise CorruptFile(f"{optimizer.source}: {moment} of {name} is not cut as the parameter is")
            shape, (start, stop) = cut[name]
            part = of_archive(optimizer, value, f"{moment} {name}")
            piece = Piece(starts=(start,), sizes=(stop - start,), read=part.read)
            places.setdefault((name, moment), []).append((shape, value.storage.dtype, piece))
    for (name, moment), found in places.items():
        shape, dtype, _ = found[0]
        state.setdefault(name, {})[moment] = _flat(f"{moment} {name}", dtype, shape, [piece for *_, piece in found])
    return {"state": state, "param_groups": []}


def _named_moments(archive: TorchArchive) -> Iterator[tuple[str, str, Any]]:
    try:
        names = {
            number: plain_name(name)
            for group in archive.value["param_groups"]
            for number, name in zip(group["params"], group["param_names"], strict=True)
        }
        for number, moments in archive.value["state"].items():
            yield from ((names[number], str(moment), value) for moment, value in moments.items())
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise CorruptFile(f"{archive.source} holds no optimizer state as torch writes it: {error!r}") from error
