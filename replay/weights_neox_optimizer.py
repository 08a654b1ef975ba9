"""What GPT-NeoX's ranks saved of the optimizer: groups of parameters laid end to end, and stretches of them.

Where every rank holds the whole optimizer, a group is one stretch (fp16), or one for each parameter (fp32). Under ZeRO
a rank holds one stretch, or, in the DeeperSpeed that trained Pythia, one in each of several turns. The last is filled
up to the length of the others; some writers take that off again, some from the weights only.

Source: EleutherAI/DeeperSpeed @ eb7f5cff, which gpt-neox v1.0 pins (deepspeed/runtime/zero/stage1.py,
runtime/fp16/fused_optimizer.py), and @ 91d1c55b, which main pins (runtime/zero/stage_1_and_2.py,
runtime/bf16_optimizer.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from data_index.errors import CorruptFile, MissingFile, UnknownLayout
from data_index.neox_checkpoint import (
    TrainerCounts,
    main_state,
    optimizer_archives,
    optimizer_state,
    slice_file,
)
from data_index.pickles import TorchArchive
from data_index.stand_ins import TensorRecord
from replay.names_neox import from_neox, optimizer_groups
from replay.stored_tensors import Piece, StoredTensor, tensor_of_archive

MOMENTS = ("exp_avg", "exp_avg_sq")
CONVERT = (
    "convert the weights with gpt-neox' tools/ckpts/convert_neox_to_hf.py into a folder step<N>/, which is read "
    "without an optimizer"
)
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A stretch of a group's elements, as one rank holds it: records by `fp32` and moment, at least this long."""

    archive: TorchArchive
    records: Mapping[str, TensorRecord]
    num_elements: int

    def read(self, kind: str, start: int, num: int) -> torch.Tensor:
        record = self.records[kind]
        part = TensorRecord(storage=record.storage, offset=record.offset + start, shape=(num,), strides=(1,))
        return tensor_of_archive(self.archive, part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Parameters that the optimizer lays end to end, and the stretches that the ranks hold, in their order."""

    shapes: Shapes
    chunks: Sequence[Chunk]
    adam_count: int

    def tensors(self, kind: str) -> dict[str, StoredTensor]:
        """Of every parameter the weight (`fp32`) or a moment; none where it is not there."""
        if not self.chunks or not all(kind in chunk.records for chunk in self.chunks):
            return {}
        found, first = {}, 0
        for name, shape in self.shapes.items():
            pieces = tuple(self._pieces(kind, first, first + math.prod(shape)))
            dtype = getattr(torch, self.chunks[0].records[kind].storage.dtype)
            found[name] = StoredTensor(name=name, dtype=dtype, shape=shape, pieces=pieces, flat=True)
            first += math.prod(shape)
        return found

    def _pieces(self, kind: str, first: int, stop: int) -> Iterator[Piece]:
        """What the stretches hold of the elements first .. stop of the group."""
        ends = list(accumulate(chunk.num_elements for chunk in self.chunks))
        for chunk, end in zip(self.chunks, ends, strict=True):
            start = max(first, end - chunk.num_elements)
            num = min(stop, end) - start
            if num > 0:
                read = partial(chunk.read, kind, start - (end - chunk.num_elements), num)
                yield Piece(starts=(start - first,), sizes=(num,), read=read)


def saved_groups(folder: Path, counts: TrainerCounts, shapes: Shapes) -> Iterator[Group]:
    """The optimizer's groups of every slice of the model.

    Args:
        shapes: of all parameters by transformers' names, in the order of the trainer's modules.
    Raises:
        MissingFile, CorruptFile, UnsafeFile
        UnknownLayout: saved in a way that was not seen.
    """
    for number in range(counts.num_slices):
        if not slice_file(folder, number).is_file():
            raise MissingFile(f"{slice_file(folder, number)} is not there: {counts.num_slices} stages saved the model")
        main = main_state(folder, number)
        archives = optimizer_archives(folder, counts, number)
        if archives:
            yield from _partitioned(main, archives, counts)
        elif counts.num_slices > 1:
            raise UnknownLayout(
                f"{folder}: the optimizer of a pipeline of {counts.num_slices} stages was saved whole, which is not "
                f"read; {CONVERT}"
            )
        else:
            yield from _whole(main, shapes)


def _partitioned(main: TorchArchive, archives: list[TorchArchive], counts: TrainerCounts) -> Iterator[Group]:
    """Groups that ranks hold parts of."""
    states = [optimizer_state(archive) for archive in archives]
    source = archives[0].source
    by_turns = "local_sub_partitions_of_fp32_groups" in states[0]
    key = "local_sub_partitions_of_fp32_groups" if by_turns else "single_partition_of_fp32_groups"
    if key not in states[0]:
        raise UnknownLayout(
            f"{source}: the optimizer is partitioned in a way that no version of GPT-NeoX was seen to (ZeRO stage 3, "
            f"say); {CONVERT}"
        )
    num_groups = len(_list(states[0][key], key, source))
    stated = (archives[0].value if by_turns else main.value).get("param_shapes")
    for number, shapes in enumerate(_shapes_of_groups(stated, num_groups, source)):
        turns: list[list[Chunk]] = []
        for archive, state in zip(archives, states, strict=True):
            weights = _list(state.get(key), key, archive.source)
            if len(weights) != num_groups:
                raise CorruptFile(f"{archive.source} holds {len(weights)} groups, the first rank's file {num_groups}")
            mine = _list(weights[number], key, archive.source) if by_turns else [weights[number]]
            moments = _moments(state.get("base_optimizer_state"), number, len(mine), archive.source)
            padding = _padding(state, number, archive.source)
            turns.append([_chunk(archive, w, m, padding=padding) for w, m in zip(mine, moments, strict=True)])
        if len({len(chunks) for chunks in turns}) != 1:
            raise CorruptFile(f"{source}: the ranks hold different numbers of stretches of group {number}")
        chunks = [chunks[turn] for turn in range(len(turns[0])) for chunks in turns]
        # What fills up the last turn was taken off before saving, or was not.
        last_turn = sum(chunk.num_elements for chunk in chunks[: len(archives)])
        paddings = sum(_padding(state, number, source) for state in states)
        _require_filled(shapes, chunks, last_turn - 1 if by_turns else paddings, source)
        base = states[0].get("base_optimizer_state")
        count = _adam_count(base, number, source)
        yield Group(shapes=shapes, chunks=chunks, adam_count=1 + counts.num_updates if count is None else count)


def _shapes_of_groups(stated: Any, num_groups: int, source: str) -> list[dict[str, tuple[int, ...]]]:
    """Shapes by name, of each group in its order: DeepSpeed lists them by group, before that by module."""
    tables = stated if isinstance(stated, list) else [stated]
    if not all(isinstance(table, dict) and all(isinstance(name, str) for name in table) for table in tables):
        raise UnknownLayout(
            f"{source}: no param_shapes were saved, without which the parameters' order is not known; {CONVERT}"
        )
    named = []
    for table in tables:
        shapes = {from_neox(name): _shape(shape, name, source) for name, shape in table.items()}
        if len(shapes) != len(table) or None in shapes:
            raise CorruptFile(f"{source}: param_shapes name a parameter twice, or a constant")
        named.append({str(name): shape for name, shape in shapes.items()})
    if isinstance(stated, list) and len(named) == num_groups:
        return named
    groups = optimizer_groups(list(named[0]), num_groups) if len(named) == 1 else None
    if groups is None:
        raise CorruptFile(f"{source}: param_shapes are of {len(named)} groups, the optimizer has {num_groups}")
    return [{name: named[0][name] for name in group} for group in groups]


def _shape(value: Any, name: str, source: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(isinstance(n, int) and 0 <= n < 2**40 for n in value) or len(value) > 8:
        raise CorruptFile(f"{source}: {name[:100]} has no shape in param_shapes")
    return value


def _moments(base: Any, group: int, num: int, source: str) -> list[Mapping[str, Any]]:
    """What the optimizer keeps for each stretch of a group on one rank."""
    if isinstance(base, dict):
        numbers = _list(_param_group(base, group, source).get("params"), "params", source)
        states = base.get("state")
        if not isinstance(states, dict) or not all(isinstance(number, int) for number in numbers):
            raise CorruptFile(f"{source} holds no optimizer state: state and param_groups")
        found = [states.get(number, {}) for number in numbers]
    else:  # cut free of padding, to be loaded by another number of ranks
        groups = _list(base, "base_optimizer_state", source)
        held = groups[group] if group < len(groups) else None
        found = held if isinstance(held, list) else [held]
    if len(found) != num or not all(isinstance(moments, dict) for moments in found):
        raise CorruptFile(f"{source}: group {group} of the optimizer has not the {num} stretches of its weights")
    return found


def _param_group(base: Mapping[str, Any], group: int, source: str) -> Mapping[str, Any]:
    groups = _list(base.get("param_groups"), "param_groups", source)
    if group >= len(groups) or not isinstance(groups[group], dict):
        raise CorruptFile(f"{source}: the optimizer has no group {group}")
    return groups[group]


def _chunk(
    archive: TorchArchive,
    weights: Any,
    moments: Mapping[str, Any],
    *,
    padding: int = 0,
    shape: tuple[int, ...] | None = None,
) -> Chunk:
    """Check that weights and moments are of one length, each laid end to end in fp32.

    Args:
        padding: how much longer moments may be, where weights were freed of what fills up the stretch.
    """
    tensors = {"fp32": weights} | {moment: moments.get(moment) for moment in MOMENTS}
    records = {kind: record for kind, record in tensors.items() if record is not None}
    for kind, record in records.items():
        if not isinstance(record, TensorRecord) or record.storage.dtype != "float32":
            raise CorruptFile(f"{archive.source}: {kind} of the optimizer is no tensor in fp32")
        plain = tuple(math.prod(record.shape[axis + 1 :]) for axis in range(len(record.shape)))
        if record.num_elements and record.strides != plain:
            raise CorruptFile(f"{archive.source}: {kind} of the optimizer does not lie end to end")
        if shape is not None and record.shape != shape:
            raise CorruptFile(f"{archive.source}: {kind} of the optimizer has shape {record.shape}, not {shape}")
        archive.check_storage(record.storage)
    lengths = [record.num_elements for record in records.values()]
    if not lengths or any(length not in (lengths[0], lengths[0] + padding) for length in lengths):
        raise CorruptFile(f"{archive.source}: weights and moments of the optimizer are of different lengths")
    return Chunk(archive=archive, records=records, num_elements=lengths[0])


def _padding(state: Mapping[str, Any], group: int, source: str) -> int:
    """Elements that fill up a rank's stretch of a group."""
    paddings = state.get("group_paddings", [])
    if not isinstance(paddings, list) or not all(isinstance(n, int) and 0 <= n < 2**53 for n in paddings):
        raise CorruptFile(f"{source}: group_paddings are no counts")
    return paddings[group] if group < len(paddings) else 0


def _require_filled(shapes: Shapes, chunks: Sequence[Chunk], padding: int, source: str) -> None:
    """Do the ranks' stretches make up the parameters, but for padding at the end?"""
    wanted, there = sum(map(math.prod, shapes.values())), sum(chunk.num_elements for chunk in chunks)
    if not wanted <= there <= wanted + max(padding, 0):
        raise CorruptFile(
            f"{source}, with the files of the other ranks, holds {there:,} elements for parameters of {wanted:,}"
        )


def _adam_count(base: Any, group: int, source: str) -> int | None:
    """How many updates Adam has counted in a group; None where it was not saved.

    Fused kernels count for the group, or with one of its parameters only. DeeperSpeed's first ZeRO did not save the
    count: it begins at 1, because an update without gradients comes first, and (in a process that never loaded a
    checkpoint) every update adds one.
    """
    if isinstance(base, dict):
        table = _param_group(base, group, source)
        tables = [table, *(base["state"].get(number) for number in table["params"])]
    else:
        tables = base[group] if isinstance(base[group], list) else [base[group]]
    found = [table["step"] for table in tables if isinstance(table, dict) and "step" in table]
    if not all(isinstance(number, int) and 0 <= number < 2**24 for number in found):
        raise CorruptFile(f"{source}: the optimizer's count of updates is not a count")
    return max(found, default=0 if isinstance(base, dict) else None)


def _whole(main: TorchArchive, shapes: Shapes) -> Iterator[Group]:
    """Groups of an optimizer that every rank holds whole: flat (fp16), or parameter by parameter (fp32)."""
    state = main.value.get("optimizer")
    if not isinstance(state, dict):
        raise CorruptFile(f"{main.source} holds no optimizer state")
    weights = state.get("fp32_groups_flat")
    base = state.get("optimizer_state_dict") if weights is not None else state
    if not isinstance(base, dict) or not isinstance(base.get("state"), dict):
        raise UnknownLayout(
            f"{main.source}: the optimizer's state is kept in a way that no version of GPT-NeoX was seen to; {CONVERT}"
        )
    num_groups = len(_list(base.get("param_groups"), "param_groups", main.source))
    groups = optimizer_groups(list(shapes), num_groups)
    if groups is None or (weights is not None and len(_list(weights, "fp32_groups_flat", main.source)) != num_groups):
        raise CorruptFile(f"{main.source}: the optimizer has {num_groups} groups, which GPT-NeoX does not make")
    for number, names in enumerate(groups):
        group = {name: shapes[name] for name in names}
        moments = _moments(base, number, 1 if weights is not None else len(names), main.source)
        if weights is not None:
            chunks = [_chunk(main, weights[number], moments[0])]
        else:  # empty before the first update
            chunks = [_chunk(main, None, m, shape=shapes[n]) for n, m in zip(names, moments, strict=True) if m]
        if chunks:
            _require_filled(group, chunks, 0, main.source)
        yield Group(shapes=group, chunks=chunks, adam_count=_adam_count(base, number, main.source) or 0)


def _list(value: Any, name: str, source: str) -> list[Any]:
    if not isinstance(value, list):
        raise CorruptFile(f"{source}: {name} is a {type(value).__name__}, not a list")
    return value
