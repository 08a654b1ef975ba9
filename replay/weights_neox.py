"""Checkpoints that GPT-NeoX writes itself: weights and Adam's moments as stored tensors, under transformers' names.

The optimizer holds the weights in fp32 (`weights_neox_optimizer`); the layers' own files hold them as the model
computes with them. Whoever reads a weight gets the optimizer's, held against the layer's: were the parameters laid out
otherwise than was read, the two would not agree.

Source: EleutherAI/gpt-neox v1.0 and @ ea7aefd8 (megatron/checkpointing.py, tools/ckpts/convert_neox_to_hf.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from data_index.errors import CorruptFile, MissingFile
from data_index.neox_checkpoint import TrainerCounts, layer_files, main_state, neox_states, read_counts
from data_index.pickles import read_torch_archive
from replay.names_neox import from_neox
from replay.stored_tensors import StoredTensor, check_total, of_archive, whole_tensor
from replay.weights_neox_optimizer import MOMENTS, saved_groups


def neox_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every weight, in fp32 where the optimizer holds it so.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
        UnknownLayout: saved in a way that was not seen.
        UnsupportedRecipe: model-parallel ranks, or a parameter that transformers' GPTNeoX lacks.
    """
    counts = read_counts(folder)
    computed = _model(folder, counts)
    if "optimizer" not in neox_states(folder):
        return computed
    held: dict[str, StoredTensor] = {}
    for group in saved_groups(folder, counts, {name: tensor.shape for name, tensor in computed.items()}):
        held |= group.tensors("fp32")
    if not counts.num_updates:
        # DeepSpeed begins with an update without gradients, by which the optimizer's weights may decay a first time.
        return computed | {name: held[name] for name in computed if name in held}
    return {name: _agreeing(held[name], tensor) if name in held else tensor for name, tensor in computed.items()}


def neox_moments(folder: Path) -> dict[str, dict[str, StoredTensor]]:
    """Adam's moments and count; empty ones before the first update.

    Raises:
        MissingFile, CorruptFile, UnsafeFile, UnknownLayout, UnsupportedRecipe
    """
    counts = read_counts(folder)
    computed = _model(folder, counts)
    found: dict[str, dict[str, StoredTensor]] = {moment: {} for moment in (*MOMENTS, "step")}
    for group in saved_groups(folder, counts, {name: tensor.shape for name, tensor in computed.items()}):
        for moment in MOMENTS:
            found[moment] |= group.tensors(moment)
        if found["exp_avg"]:
            found["step"] |= {name: _number(name, group.adam_count) for name in group.shapes}
    if found["exp_avg"] and set(found["exp_avg"]) != set(computed):
        missing = sorted(set(computed) - set(found["exp_avg"]))
        raise CorruptFile(f"{folder}: the optimizer's state lacks {len(missing)} parameters, the first {missing[:1]}")
    return {moment: {n: tensors[n] for n in computed if n in tensors} for moment, tensors in found.items()}


def _agreeing(held: StoredTensor, computed: StoredTensor) -> StoredTensor:
    """The optimizer's weight; when read, it is rounded and compared with the one that the model computed with."""

    def read() -> torch.Tensor:
        weight = held.read()
        if not torch.allclose(weight.to(computed.dtype), computed.read(), rtol=0, atol=0, equal_nan=True):
            raise CorruptFile(
                f"{held.name}: the optimizer's weights are not those of the model's own files; they are of another "
                "step, or lie in another order than the files say"
            )
        return weight

    if held.shape != computed.shape:
        raise CorruptFile(
            f"{held.name} has shape {held.shape} in the optimizer's state and {computed.shape} in its own"
        )
    return whole_tensor(held.name, held.dtype, held.shape, read)


def _number(name: str, value: int) -> StoredTensor:
    return whole_tensor(name, torch.float32, (), lambda: torch.tensor(float(value)))


# --- the model's own files -------------------------------------------------------------------------------------------


def _model(folder: Path, counts: TrainerCounts) -> dict[str, StoredTensor]:
    """Weights as the model computes with them, in the order of its modules."""
    archive = main_state(folder)
    module = archive.value.get("module")
    if module is not None:
        parts = [("", archive, module)]
    else:
        layers = [(f"{number}.", read_torch_archive(path)) for number, path in layer_files(folder).items()]
        parts = [(prefix, layer, layer.value) for prefix, layer in layers]
    found: dict[str, StoredTensor] = {}
    for prefix, source, state in parts:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise CorruptFile(f"{source.source} holds no model state: parameters by name")
        for name, record in state.items():
            ours = from_neox(prefix + name)
            if ours in found:
                raise CorruptFile(f"{folder} holds {ours} twice, once as {prefix}{name}")
            if ours is not None:
                found[ours] = of_archive(source, record, ours)
    _require_whole(folder, counts, found)
    check_total(found, _bytes_of(folder), str(folder))
    return found


def _require_whole(folder: Path, counts: TrainerCounts, found: Mapping[str, StoredTensor]) -> None:
    layers = {int(name.split(".")[2]) for name in found if name.startswith("gpt_neox.layers.")}
    missing = next((layer for layer in range(counts.num_layers) if layer not in layers), None)
    if missing is not None:
        raise MissingFile(
            f"{folder} lacks layer {missing} of {counts.num_layers} (layer_{missing + 2:02d}-model_00-model_states.pt)"
        )
    for name in ("gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.weight"):
        if name not in found:
            raise MissingFile(f"{folder} lacks {name}: a file layer_<number>-model_00-model_states.pt is not there")
    if max(layers) >= counts.num_layers:
        raise CorruptFile(f"{folder} holds layer {max(layers)}, and its trainer counts {counts.num_layers}")


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.pt"))
