"""Sharded checkpoints of the legacy OLMo trainer, put together from the files of all ranks.

    torch_legacy  rank<r>.pt: everything of a rank in one pickle, sharded tensors cut into blocks
    torch_new     model_and_optim/: a distributed checkpoint of torch
    olmo_core     model/ and optim/: metadata.json and rank_<r>.safetensors with stretches of flattened tensors
    local         model/rank<r>.pt and optim/rank<r>.pt: FSDP's flat parameters as they lay in memory

Source: Python packages ai2-olmo 0.6.0 (olmo/checkpoint.py), ai2-olmo-core 0.1.0 (distributed/checkpoint.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

import torch

from data_index.errors import CorruptFile, MissingFile
from data_index.files import read_json_object
from data_index.olmo_checkpoint import rank_archives, sharded_kind
from data_index.pickles import TorchArchive
from data_index.stand_ins import ITEM_BYTES, ShardedTensor, TensorProperties
from replay.stored_tensors import (
    SAFETENSORS_DTYPES,
    Piece,
    StoredTensor,
    inside,
    of_archive,
    stored_dcp,
    stored_safetensors,
)
from replay.weights_olmo import Moments, model_of_state, moments_of_state, with_tensors
from replay.weights_olmo_local import local_model, local_optimizer


def sharded_model(folder: Path) -> dict[str, StoredTensor]:
    """The parameters of a sharded checkpoint under the trainer's names, whichever way it was written.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    kind = sharded_kind(folder)
    if kind == "torch_legacy":
        archives = rank_archives(folder)
        return model_of_state(_joined(archives, "model"), _size_of(folder, "rank*.pt"), str(folder))
    if kind == "local":
        return model_of_state(local_model(folder), _size_of(folder, "model/rank*.pt"), f"{folder}/model")
    if kind == "olmo_core":
        tensors = _flattened(folder / "model")
        return model_of_state(tensors, _size_of(folder, "model/*.safetensors"), f"{folder}/model")
    tensors = stored_dcp(folder / "model_and_optim", "model.", "")
    return model_of_state(tensors, _size_of(folder, "model_and_optim/*.distcp"), f"{folder}/model_and_optim")


def sharded_optimizer(folder: Path) -> Moments:
    """Moments of a sharded checkpoint by the trainer's names; empty ones before the first step.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    kind = sharded_kind(folder)
    if kind == "torch_legacy":
        archives = rank_archives(folder)
        return moments_of_state(_joined(archives, "optim"), _size_of(folder, "rank*.pt"), str(folder))
    if kind == "local":
        return moments_of_state(local_optimizer(folder), _size_of(folder, "*/rank*.pt"), f"{folder}/optim")
    state: dict[str, dict[str, StoredTensor]] = {}
    if kind == "olmo_core":
        source, pattern = f"{folder}/optim", "optim/*.safetensors"
        for name, tensor in _flattened(folder / "optim").items():
            parameter, found, moment = name.removeprefix("state.").rpartition(".__")
            if found:
                state.setdefault(parameter, {})[moment] = tensor
    else:
        source, pattern = f"{folder}/model_and_optim", "model_and_optim/*.distcp"
        for name, tensor in stored_dcp(folder / "model_and_optim", "optim.state.", "").items():
            parameter, _, moment = name.rpartition(".")
            state.setdefault(parameter, {})[moment] = tensor
    return moments_of_state({"state": state, "param_groups": []}, _size_of(folder, pattern), source)


def _size_of(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


# --- torch_legacy: a pickle for each rank ----------------------------------------------------------------------------


def _joined(archives: Sequence[TorchArchive], part: str) -> Any:
    values = [archive.value.get(part) if isinstance(archive.value, dict) else None for archive in archives]
    return _join(archives, values, part)


def _join(archives: Sequence[TorchArchive], values: Sequence[Any], name: str) -> Any:
    """One tree out of every rank's; what is not sharded is the same everywhere, and rank 0's is taken."""
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        raise CorruptFile(f"{archives[0].source} and the other ranks' files hold different things as {name!r}")
    if isinstance(first, dict):
        if any(value.keys() != first.keys() for value in values):
            raise CorruptFile(f"{archives[0].source} and the other ranks' files hold different names below {name!r}")
        return {key: _join(archives, [value[key] for value in values], f"{name} {str(key)[:80]}") for key in first}
    if isinstance(first, ShardedTensor):
        return _of_shards(archives, values, name)
    return with_tensors(archives[0], first, name)


def _of_shards(archives: Sequence[TorchArchive], ranks: Sequence[ShardedTensor], name: str) -> StoredTensor:
    try:
        described = [(tuple(map(index, rank.metadata.get("size"))), _dtype_of(rank)) for rank in ranks]
        expected = len({tuple(shard.get("shard_offsets")) for shard in ranks[0].metadata.get("shards_metadata")})
        # Where replicas of the model were trained side by side, several ranks hold the same shard: one is enough.
        found: dict[tuple[int, ...], Piece] = {}
        for archive, rank in zip(archives, ranks, strict=True):
            for piece in _shards_of(archive, rank, described[0][1], name):
                if found.setdefault(piece.starts, piece).sizes != piece.sizes:
                    raise CorruptFile(f"{archive.source}: two ranks hold shards of {name} at {piece.starts}")
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, CorruptFile):
            raise
        raise CorruptFile(f"{archives[0].source}: {name} is no sharded tensor as torch writes it: {error}") from error
    if len(set(described)) != 1:
        raise CorruptFile(f"{archives[0].source} and the other ranks' files give {name} different sizes")
    if len(found) < expected:
        raise MissingFile(
            f"{Path(archives[0].source).parent} holds {len(archives)} files rank<r>.pt with {len(found)} of the "
            f"{expected} shards of {name}: ranks are missing"
        )
    shape, dtype = described[0]
    return StoredTensor(name=name, dtype=getattr(torch, dtype), shape=shape, pieces=tuple(found.values()))


def _dtype_of(tensor: ShardedTensor) -> str:
    properties = tensor.metadata.get("tensor_properties")
    dtype = properties.state[0] if isinstance(properties, TensorProperties) else None
    if dtype not in ITEM_BYTES:
        raise CorruptFile(f"a sharded tensor is of dtype {dtype!r}")
    return str(dtype)


def _shards_of(archive: TorchArchive, tensor: ShardedTensor, dtype: str, name: str) -> Iterator[Piece]:
    for shard in tensor.local:
        record, place = shard.get("tensor"), shard.get("metadata")
        starts, sizes = (tuple(map(index, place.get(key))) for key in ("shard_offsets", "shard_sizes"))
        stored = of_archive(archive, record, name)
        if stored.shape != sizes or stored.dtype != getattr(torch, dtype):
            raise CorruptFile(f"{archive.source}: a shard of {name} is {stored.shape}, not {sizes} as declared")
        yield Piece(starts=starts, sizes=sizes, read=stored.read)


# --- olmo_core: stretches of flattened tensors -----------------------------------------------------------------------


def _flattened(folder: Path) -> dict[str, StoredTensor]:
    """All tensors that `folder/metadata.json` describes."""
    path = folder / "metadata.json"
    described = read_json_object(path).get("tensors")
    if not isinstance(described, dict):
        raise CorruptFile(f"{path} describes no tensors")
    files: dict[str, dict[str, StoredTensor]] = {}
    try:
        return {name: _of_stretches(folder, name, entry, files) for name, entry in described.items()}
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, CorruptFile):
            raise
        raise CorruptFile(f"{path} does not describe tensors as the trainer does: {error!r}") from error


def _of_stretches(
    folder: Path, name: str, described: Mapping[str, Any], files: dict[str, dict[str, StoredTensor]]
) -> StoredTensor:
    shape, dtype = _counts(described["shape"]), SAFETENSORS_DTYPES[described["dtype"]]
    places = described.get("shard_spec_per_file")
    if places is None:  # as written before shards could be blocks
        places = {file: {"flattened_offsets": o} for file, o in described["flattened_offsets_per_file"].items()}
    pieces: dict[tuple[int, ...], Piece] = {}
    flat = True
    for file, place in places.items():
        flat = place.get("flattened_offsets") is not None
        if _num_elements(place) == 0:
            continue  # a rank without a part of this tensor saves nothing of it
        if file not in files:
            files[file] = stored_safetensors(inside(folder, file, "metadata.json"))
        stored = files[file].get(name)
        if stored is None:
            raise CorruptFile(f"{folder}/{file} lacks {name}, which metadata.json places there")
        for piece in _stretches(stored, place) if flat else [_block(stored, place)]:
            if stored.dtype != dtype or len(stored.shape) != 1:
                raise CorruptFile(f"{folder}/{file}: {name} is {stored.dtype} {stored.shape}, not flat {dtype}")
            if 0 not in piece.sizes and pieces.setdefault(piece.starts, piece).sizes != piece.sizes:
                raise CorruptFile(f"{folder}/metadata.json places overlapping pieces of {name}")
    return StoredTensor(name=name, dtype=dtype, shape=shape, pieces=tuple(pieces.values()), flat=flat)


def _stretches(stored: StoredTensor, place: Mapping[str, Any]) -> Iterator[Piece]:
    """Stretches [a, b) of the whole tensor's elements; in the file they lie one behind the other."""
    if _num_elements(place) != math.prod(stored.shape):
        raise CorruptFile(
            f"metadata.json places {_num_elements(place)} elements of {stored.name}; its file has {stored.shape}"
        )
    first, read = 0, stored.read  # one and the same for all stretches, so that the file's tensor is read once
    for start, stop in _offsets(place):
        here = slice(first, first + stop - start)
        first += stop - start
        yield Piece(starts=(start,), sizes=(stop - start,), read=read, elements=here)


def _offsets(place: Mapping[str, Any]) -> list[tuple[int, int]]:
    offsets = place["flattened_offsets"]
    offsets = [offsets] if offsets and isinstance(offsets[0], int) else offsets
    found = [(start, stop) for start, stop in (_counts(pair) for pair in offsets)]
    if any(stop < start for start, stop in found):
        raise CorruptFile(f"metadata.json holds {str(offsets)[:80]} where stretches of elements belong")
    return found


def _num_elements(place: Mapping[str, Any]) -> int:
    if place.get("flattened_offsets") is None:
        return math.prod(_counts(place["local_shape"]))
    return sum(stop - start for start, stop in _offsets(place))


def _block(stored: StoredTensor, place: Mapping[str, Any]) -> Piece:
    sizes, starts = _counts(place["local_shape"]), _counts(place["global_offset"])
    if math.prod(sizes) != math.prod(stored.shape):
        raise CorruptFile(f"metadata.json places a block {sizes} of {stored.name}; its file has {stored.shape}")
    return Piece(starts=starts, sizes=sizes, read=lambda: stored.read().reshape(sizes))


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
        raise CorruptFile(f"metadata.json holds {str(values)[:80]} where sizes or offsets belong")
    return tuple(values)
