"""Checkpoints of the legacy OLMo trainer: its model and optimizer state as stored tensors under the trainer's names.

Unsharded folders are read here, sharded ones in `weights_olmo_sharded`. Whatever the file, the state is a tree: the
model's names with tensors, and the optimizer's {"state": {parameter: {moment: tensor}}, "param_groups": [...]}, where
parameters are names (FSDP) or numbers that the groups give names to (DDP). The pickles inside are read through the
allow-list.

Source: Python package ai2-olmo 0.6.0 (olmo/checkpoint.py, olmo/safetensors_util.py, olmo/optim.py).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from data_index.errors import CorruptFile
from data_index.files import require_file
from data_index.olmo_checkpoint import unsharded_file
from data_index.pickles import MAX_PICKLE_BYTES, TorchArchive, read_pickle, read_torch_archive
from data_index.stand_ins import TensorRecord
from replay.names_olmo import plain_name, ungrouped
from replay.stored_tensors import StoredTensor, check_total, of_archive, stored_safetensors, whole_tensor

if TYPE_CHECKING:
    from data_index.remote.path import Place

Moments = dict[str, dict[str, StoredTensor]]
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def unsharded_model(folder: Place) -> dict[str, StoredTensor]:
    """The parameters of `model.safetensors` or `model.pt`, under the trainer's names.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    path = unsharded_file(folder, "weights")
    return model_of_state(_state_of_file(path), require_file(path), str(path))


def unsharded_optimizer(folder: Place) -> Moments:
    """Moments of `optim.safetensors` or `optim.pt` by the trainer's names; empty ones before the first step.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    path = unsharded_file(folder, "optimizer")
    return moments_of_state(_state_of_file(path), require_file(path), str(path))


# --- a state, from whatever file -------------------------------------------------------------------------------------


def model_of_state(state: Any, num_bytes: int, source: str) -> dict[str, StoredTensor]:
    """Check that a tree is a model's state; names become plain.

    Args:
        num_bytes: what the files behind it hold.
    """
    tensors = {name: value for name, value in state.items() if isinstance(name, str)} if isinstance(state, dict) else {}
    if not tensors or len(tensors) != len(state) or not all(isinstance(t, StoredTensor) for t in tensors.values()):
        raise CorruptFile(f"{source} holds no model state: parameters by name")
    check_total(tensors, num_bytes, source)
    return _renamed(tensors, source)


def moments_of_state(state: Any, num_bytes: int, source: str) -> Moments:
    """Moments out of an optimizer's state tree, by the trainer's plain names.

    A state that numbers its parameters is read with the names its own groups give to the numbers, however many groups
    there are: the trainer, too, moves state by name, and one group more or less changes only who decays.
    """
    if not isinstance(state, dict) or not isinstance(state.get("state", {}), dict) or "param_groups" not in state:
        raise CorruptFile(f"{source} holds no optimizer state: state and param_groups")
    names = _names_of_numbers(state["param_groups"], source)
    found: Moments = {moment: {} for moment in MOMENTS}
    for key, moments in state.get("state", {}).items():
        name = names.get(key) if isinstance(key, int) else key
        if not isinstance(name, str) or not isinstance(moments, dict):
            raise CorruptFile(
                f"{source}: the optimizer's state {key!r} has no name in param_groups (param_names), so that its "
                "parameter cannot be told"
            )
        for moment, value in moments.items():
            found.setdefault(str(moment), {})[name] = _number(value, name, source)
    check_total({f"{m} {n}": t for m, tensors in found.items() for n, t in tensors.items()}, num_bytes, source)
    return {moment: _renamed(tensors, source) for moment, tensors in found.items()}


def _number(value: Any, name: str, source: str) -> StoredTensor:
    """Older torch counts `step` as a plain number."""
    if isinstance(value, StoredTensor):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CorruptFile(f"{source}: the optimizer's state of {name} holds a {type(value).__name__}, not a tensor")
    return whole_tensor(name, torch.float32, (), lambda: torch.tensor(float(value)))


def _names_of_numbers(groups: Any, source: str) -> dict[int, str]:
    names: dict[int, str] = {}
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise CorruptFile(f"{source}: param_groups is no list of groups")
    for group in groups:
        numbers, called = group.get("params"), group.get("param_names")
        if not isinstance(numbers, list) or not isinstance(called, list) or len(numbers) != len(called):
            continue  # harmless where the state is keyed by names; where it is not, the number is missing below
        for number, name in zip(numbers, called, strict=True):
            if isinstance(number, int) and names.setdefault(number, str(name)) != name:
                raise CorruptFile(f"{source}: param_groups give the number {number} to two parameters")
    return names


def _renamed(tensors: Mapping[str, StoredTensor], source: str) -> dict[str, StoredTensor]:
    plain = ungrouped(plain_name(name) for name in tensors)
    found = {plain[plain_name(name)]: tensor for name, tensor in tensors.items()}
    if len(found) != len(tensors):
        raise CorruptFile(f"{source} holds a parameter twice, with and without the name of its wrapper")
    return found


# --- files -----------------------------------------------------------------------------------------------------------


def _state_of_file(path: Place) -> Any:
    if path.suffix == ".safetensors":
        return _state_of_safetensors(path)
    archive = read_torch_archive(path)
    return with_tensors(archive, archive.value)


def with_tensors(archive: TorchArchive, value: Any, name: str = "") -> Any:
    """A pickled tree with stored tensors in place of the records in its dicts."""
    if isinstance(value, TensorRecord):
        return of_archive(archive, value, name)
    if isinstance(value, dict):
        return {key: with_tensors(archive, item, f"{name} {str(key)[:80]}".strip()) for key, item in value.items()}
    return value


def _state_of_safetensors(path: Place) -> dict[Any, Any]:
    """The trainer's nested form: a name is a pickled pair, keys and whether the value is a pickle, in base64."""
    state: dict[Any, Any] = {}
    for encoded, tensor in stored_safetensors(path).items():
        keys, is_pickled = _decode_key(encoded, path)
        inner = state
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise CorruptFile(f"{path}: {keys} lies below a value")
        if keys[-1] in inner:
            raise CorruptFile(f"{path} holds {keys} twice")
        inner[keys[-1]] = pickled_value(tensor, f"{path} {keys}") if is_pickled else tensor
    return state


def _decode_key(encoded: str, path: Place) -> tuple[tuple[Any, ...], bool]:
    try:
        raw = base64.b64decode(encoded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptFile(
            f"{path}: {encoded[:40]!r} is no name as the OLMo trainer writes it (a model as transformers saves it is "
            "read with the layout hf)"
        ) from error
    decoded = read_pickle(raw, f"{path}, name {encoded[:40]}")
    match decoded:
        case ((_, *_) as keys, bool(is_pickled)) if all(isinstance(key, str | int) for key in keys):
            return tuple(keys), is_pickled
    raise CorruptFile(f"{path}: the name {encoded[:40]!r} is not a pair of keys and a flag")


def pickled_value(tensor: StoredTensor, source: str) -> Any:
    """What the bytes of a uint8 tensor are a pickle of.

    Raises:
        CorruptFile, UnsafeFile
    """
    if tensor.dtype != torch.uint8 or tensor.num_bytes > MAX_PICKLE_BYTES:
        raise CorruptFile(f"{source} holds no pickled value: {tensor.dtype}, {tensor.num_bytes} bytes")
    return read_pickle(tensor.read().numpy().tobytes(), source)
