"""Checkpoint folders that GPT-NeoX writes itself (DeepSpeed's layout): which files, and how far training had come.

    mp_rank_<r>_model_states.pt                           one for each slice of the model: counts, learning rate
    layer_<l>-model_<m>-model_states.pt                   a layer's weights; without a pipeline they are in mp_rank_00
    [bf16_]zero_pp_rank_<d>_mp_rank_<r>_optim_states.pt   what data-parallel rank d holds of slice r's optimizer

A slice is a pipeline stage here; models that were cut across their matrices are refused by name. The tensors themselves
are read by `replay.weights`.

Source: EleutherAI/gpt-neox v1.0 and @ ea7aefd8 (megatron/checkpointing.py); EleutherAI/DeeperSpeed @ eb7f5cff and
@ 91d1c55b (deepspeed/runtime/engine.py), which these pin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, ForensicsError, MissingFile, UnsupportedRecipe
from data_index.pickles import TorchArchive, read_torch_archive

FIRST_SLICE = "mp_rank_00_model_states.pt"
_LAYER = re.compile(r"layer_(\d+)-model_00-model_states\.pt$")
_FOLDER = re.compile(r"global_step(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerCounts:
    """How far a run had come at a checkpoint.

    Attributes:
        step: steps taken, skipped ones included.
        num_updates: the learning rate's counter: updates applied so far; the next step uses the rate of this number.
        num_ranks: data-parallel ranks, each of which saved its part of the optimizer.
        num_slices: pipeline stages.
    """

    step: int
    num_updates: int
    num_layers: int
    padded_vocab_size: int
    num_ranks: int
    num_slices: int

    @property
    def num_skipped(self) -> int:
        """Steps that changed nothing, because the loss scale overflowed."""
        return self.step - self.num_updates


def is_neox_checkpoint(folder: Path) -> bool:
    return (folder / FIRST_SLICE).is_file()


def neox_states(folder: Path) -> tuple[str, ...]:
    """Which of weights, optimizer and trainer state a folder holds."""
    try:
        state = main_state(folder).value
    except ForensicsError:
        state = {}  # whoever loads it is told what is wrong
    weights = state.get("module") is not None or bool(layer_files(folder))
    optimizer = state.get("optimizer") is not None or any(folder.glob("*zero_pp_rank_*_optim_states.pt"))
    there = {"weights": weights, "optimizer": optimizer, "trainer": True}
    return tuple(name for name, is_there in there.items() if is_there)


def slice_file(folder: Path, number: int) -> Path:
    return folder / f"mp_rank_{number:02d}_model_states.pt"


def main_state(folder: Path, number: int = 0) -> TorchArchive:
    """What the trainer saved for one slice: a dict; tensors stay on disk.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    archive = read_torch_archive(slice_file(folder, number))
    if not isinstance(archive.value, dict):
        raise CorruptFile(f"{archive.source} holds no state of GPT-NeoX: a table by name")
    return archive


def layer_files(folder: Path) -> dict[int, Path]:
    """Files of layers by number, of a model that ran as a pipeline."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := _LAYER.match(path.name))}
    return dict(sorted(found.items()))


def read_counts(folder: Path) -> TrainerCounts:
    """
    Raises:
        MissingFile, CorruptFile, UnsafeFile
        UnsupportedRecipe: the model was cut over several model-parallel ranks.
    """
    archive = main_state(folder)
    state, source = archive.value, archive.source
    arguments = _table(state.get("args"), "args", source)
    parallel = _count(arguments.get("model_parallel_size", 1), "model_parallel_size", source, least=1)
    if parallel != 1:
        raise UnsupportedRecipe(
            f"{folder} was saved by {parallel} model-parallel ranks, which each trained biases of their own; convert "
            "it with gpt-neox' tools/ckpts/convert_neox_to_hf.py into a folder step<N>/ to read its weights"
        )
    step = _count(state.get("iteration"), "iteration", source)
    named = _FOLDER.match(folder.name)
    if named and int(named[1]) != step:
        raise CorruptFile(f"{folder} was saved at step {step}: it is another checkpoint under this name")
    skipped = _count(state.get("skipped_steps", 0), "skipped_steps", source)
    scheduler = state.get("lr_scheduler")
    updates = step - skipped
    if scheduler is not None:
        updates = _count(_table(scheduler, "lr_scheduler", source).get("num_iters"), "lr_scheduler.num_iters", source)
    if not 0 <= updates <= step:
        raise CorruptFile(f"{source} counts {updates} updates and {skipped} skipped steps in {step} steps")
    return TrainerCounts(
        step=step,
        num_updates=updates,
        num_layers=_count(arguments.get("num_layers"), "num_layers", source, least=1),
        padded_vocab_size=_count(arguments.get("padded_vocab_size"), "padded_vocab_size", source, least=1),
        num_ranks=_count(state.get("dp_world_size"), "dp_world_size", source, least=1),
        num_slices=_count(state.get("mp_world_size", 1), "mp_world_size", source, least=1),
    )


def optimizer_archives(folder: Path, counts: TrainerCounts, number: int) -> list[TorchArchive]:
    """What each data-parallel rank saved of a slice's optimizer, in their order; none where it was not partitioned.

    Raises:
        MissingFile: one is missing.
        CorruptFile, UnsafeFile
    """
    for prefix in ("zero", "bf16_zero"):
        there = sorted(folder.glob(f"{prefix}_pp_rank_*_mp_rank_{number:02d}_optim_states.pt"))
        if not there:
            continue
        # Not as many paths as the trainer counts ranks: that is a number that a file may set at will.
        paths = [
            folder / f"{prefix}_pp_rank_{rank}_mp_rank_{number:02d}_optim_states.pt"
            for rank in range(min(counts.num_ranks, len(there) + 1))
        ]
        for path in paths:
            if not path.is_file():
                raise MissingFile(
                    f"{path} is not there: the checkpoint is incomplete ({counts.num_ranks} ranks saved it)"
                )
        return [read_torch_archive(path) for path in paths]
    return []


def saves_adam_count(folder: Path) -> bool:
    """Did the trainer save how many updates Adam counts? DeeperSpeed's first ZeRO did not."""
    archives = optimizer_archives(folder, read_counts(folder), 0)
    return not archives or not isinstance(optimizer_state(archives[0]).get("base_optimizer_state"), list)


def optimizer_state(archive: TorchArchive) -> Mapping[str, Any]:
    """
    Raises:
        CorruptFile
    """
    state = archive.value.get("optimizer_state_dict") if isinstance(archive.value, dict) else None
    return _table(state, "optimizer_state_dict", archive.source)


def _table(value: Any, name: str, source: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CorruptFile(f"{source}: {name} is a {type(value).__name__}, not a table")
    return value


def _count(value: Any, name: str, source: str, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**53:
        raise CorruptFile(f"{source}: {name} is {value!r}, not a count")
    return value
