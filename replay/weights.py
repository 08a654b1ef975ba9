"""Checkpoints to tensors, whole or one by one; the only weight IO.

What differs between formats is where the bytes are (`stored_tensors`, `weights_olmo`, `weights_olmo_sharded`,
`weights_hf`, `weights_neox`); what they become is the same: tensors under transformers' names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from data_index.dcp import DcpEntry
from data_index.errors import CorruptFile, MissingState, UnknownLayout
from data_index.files import atomic_file
from data_index.olmo_checkpoint import layout_of, model_numbers, unsharded_file
from data_index.run import Checkpoint
from replay.names_olmo import numbers_from_shapes, parts_of
from replay.parameter_names import from_olmo_core, trainer_tensors
from replay.stored_remote import dcp_files, fetch_dcp
from replay.stored_tensors import StoredTensor, of_dcp, open_safetensors, stored_dcp, stored_safetensors
from replay.stored_tensors import tensor_of_archive as tensor_of_archive
from replay.weights_hf import download_model, hf_model, todays_name, weight_files
from replay.weights_neox import neox_moments, neox_weights
from replay.weights_olmo import MOMENTS, unsharded_model, unsharded_optimizer
from replay.weights_olmo_sharded import sharded_model, sharded_optimizer

if TYPE_CHECKING:
    from data_index.remote.path import Place, RemotePath
    from data_index.remote.progress import Progress
    from data_index.remote.ranges import Stretch


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPart:
    """A parameter of the transformers model on disk: a stored tensor, or these rows of one; None means all."""

    tensor: StoredTensor
    rows: slice | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        if self.rows is None:
            return self.tensor.shape
        return (self.rows.stop - self.rows.start, *self.tensor.shape[1:])

    def read(self) -> torch.Tensor:
        whole = self.tensor.read()
        return whole if self.rows is None else whole[self.rows].clone()


def read_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All weights under transformers' names, in the trainer's order.

    Raises:
        MissingState, MissingFile, CorruptFile, UnsafeFile, UnsupportedRecipe
    """
    return dict(iterate_weights(checkpoint))


def iterate_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights one by one; a parameter that the trainer keeps fused with others is read once for all of them."""
    if not isinstance(checkpoint.location, Path):
        fetch_weights(checkpoint)
    return _read_parts(stored_weights(checkpoint))


def fetch_weights(checkpoint: Checkpoint, progress: Progress | None = None) -> None:
    """Fetch all weights of a checkpoint on a server at once: files of the hub whole, into its shared cache.

    Raises:
        MissingState, MissingFile, AccessDenied, Unreachable, Offline, ChangedFile, CorruptFile, DiskFull
    """
    if isinstance(checkpoint.location, Path):
        return
    _require(checkpoint, "weights", "model.safetensors")
    if checkpoint.layout == "hf":
        download_model(checkpoint.location, progress)
    elif checkpoint.layout == "olmo_core":
        fetch_dcp(checkpoint.location / "model_and_optim", "model.", progress)


def weights_on_servers(checkpoint: Checkpoint) -> list[RemotePath]:
    """The files on servers that hold a checkpoint's weights.

    Raises:
        MissingFile, CorruptFile, UnsafeFile, AccessDenied, Unreachable, Offline
    """
    if isinstance(checkpoint.location, Path):
        return []
    match checkpoint.layout:
        case "hf":
            return weight_files(checkpoint.location)
        case "olmo_core":
            return dcp_files(checkpoint.location / "model_and_optim", "model.")
        case "olmo":
            file = unsharded_file(checkpoint.location, "weights")
            return [] if isinstance(file, Path) else [file]
    return []  # of a layout that is read from disk only


def read_tensor(checkpoint: Checkpoint, name: str, moment: str | None = None) -> torch.Tensor:
    """One parameter, or a moment of it, without reading the others.

    Args:
        name: transformers' name.
        moment: `exp_avg`, `exp_avg_sq` or `step`; None means the weight itself.
    Raises:
        MissingState: the checkpoint has no such parameter, or no such moment.
        MissingFile, CorruptFile, UnsafeFile, UnsupportedRecipe
    """
    parts = stored_weights(checkpoint) if moment is None else stored_moments(checkpoint).get(moment, {})
    if name not in parts:
        raise MissingState(
            f"checkpoint {checkpoint.step} of {checkpoint.run} has no {moment or 'weight'} of {name!r}; it has "
            f"{len(parts)}, the first {next(iter(parts), 'none')!r}"
        )
    return parts[name].read()


def read_parts(parts: Mapping[str, StoredPart]) -> dict[str, torch.Tensor]:
    """Some of a checkpoint's weights, as `stored_weights` placed them, and nothing else of it.

    Raises:
        MissingFile, CorruptFile, UnsafeFile, AccessDenied, Unreachable, Offline
    """
    return dict(_read_parts(parts))


def bytes_of_parts(parts: Mapping[str, StoredPart]) -> int:
    """What reading them takes; a stored tensor that several are parts of counts once."""
    tensors = {id(part.tensor): part.tensor for part in parts.values()}
    return sum(tensor.num_bytes for tensor in tensors.values())


def stretches_of_parts(parts: Mapping[str, StoredPart]) -> list[Stretch]:
    """Where parts lie on servers, of those that lie there in one stretch; a stored tensor counts once."""
    tensors = {id(part.tensor): part.tensor for part in parts.values()}.values()
    placed = ((*tensor.place, tensor.num_bytes) for tensor in tensors if tensor.place is not None)
    return [(path, start, start + num_bytes) for path, start, num_bytes in placed]


def fetch_parts(parts: Mapping[str, StoredPart]) -> None:
    """Fetch some of a checkpoint's weights side by side, neighbours together; the others come as they are read.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline, ChangedFile, CorruptFile, DiskFull
    """
    if stretches := stretches_of_parts(parts):
        from data_index.remote.ranges import fetch_ranges

        fetch_ranges(stretches)


def read_optimizer(checkpoint: Checkpoint) -> dict[str, dict[str, torch.Tensor]]:
    """Adam state by moment (`exp_avg`, `exp_avg_sq`, `step`), each under transformers' parameter names.

    What else a trainer keeps for each parameter (`grad_norm_exp_avg`) is there under its name. A number that belongs to
    a fused parameter is repeated for each of its parts.

    Raises:
        MissingState: weights only were published.
        MissingFile, CorruptFile, UnsafeFile, UnsupportedRecipe
    """
    return {moment: dict(_read_parts(parts)) for moment, parts in stored_moments(checkpoint).items()}


def _read_parts(parts: Mapping[str, StoredPart]) -> Iterator[tuple[str, torch.Tensor]]:
    source: StoredTensor | None = None
    whole = torch.empty(0)
    for name, part in parts.items():
        shared = part.tensor is source
        if not shared:
            source, whole = part.tensor, part.tensor.read()
        # Each tensor has memory of its own: a count that parts share would else be raised once for each of them.
        yield name, whole[part.rows].clone() if part.rows is not None else whole.clone() if shared else whole


# --- where they are --------------------------------------------------------------------------------------------------


def stored_weights(checkpoint: Checkpoint) -> dict[str, StoredPart]:
    """Where each weight lies, under transformers' names; nothing is read yet.

    Raises:
        MissingState, MissingFile, CorruptFile, UnsafeFile, UnsupportedRecipe
        UnknownLayout: weights of that layout are not read.
    """
    folder = checkpoint.location
    match checkpoint.layout:
        case "native":
            return _plain(stored_safetensors(_require(checkpoint, "weights", "model.safetensors")))
        case "olmo_core":
            return _of_olmo_core(folder / "model_and_optim", "model.", "")
        case "olmo" | "olmo_sharded":
            _require(checkpoint, "weights", "model.pt")
            sharded = _is_sharded(checkpoint)
            tensors = sharded_model(checkpoint.folder) if sharded else unsharded_model(folder)
            return _renamed_parts(checkpoint, tensors, tensors)
        case "hf":
            _require(checkpoint, "weights", "model.safetensors")
            return _plain(hf_model(folder))
        case "neox":
            _require(checkpoint, "weights", "layer_00-model_00-model_states.pt")
            return _plain(neox_weights(checkpoint.folder))
    raise UnknownLayout(f"weights of the layout {checkpoint.layout!r} ({folder}) are not read")


def stored_moments(checkpoint: Checkpoint) -> dict[str, dict[str, StoredPart]]:
    """Where each moment lies, by moment and transformers' name; nothing is read yet.

    Raises:
        MissingState, MissingFile, CorruptFile, UnsafeFile, UnsupportedRecipe, UnknownLayout
    """
    folder = checkpoint.location
    match checkpoint.layout:
        case "native" | "hf":
            flat = stored_safetensors(_require(checkpoint, "optimizer", "optimizer.safetensors"))
            return {
                moment: _plain(
                    {todays_name(n[len(moment) + 1 :]): t for n, t in flat.items() if n.startswith(f"{moment}.")}
                )
                for moment in MOMENTS
            }
        case "olmo_core":
            return {m: _of_olmo_core(folder / "model_and_optim", "optim.state.", f".{m}") for m in MOMENTS}
        case "olmo" | "olmo_sharded":
            _require(checkpoint, "optimizer", "optim.pt")
            sharded = _is_sharded(checkpoint)
            moments = sharded_optimizer(checkpoint.folder) if sharded else unsharded_optimizer(folder)
            # A number for each parameter says nothing of its rows; the first moment has the parameter's shape.
            return {m: _renamed_parts(checkpoint, tensors, moments[MOMENTS[0]]) for m, tensors in moments.items()}
        case "neox":
            _require(checkpoint, "optimizer", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
            return {moment: _plain(tensors) for moment, tensors in neox_moments(checkpoint.folder).items()}
    raise UnknownLayout(f"optimizer states of the layout {checkpoint.layout!r} ({folder}) are not read")


def _require(checkpoint: Checkpoint, state: str, file: str) -> Place:
    if state not in checkpoint.states:
        raise MissingState(
            f"checkpoint {checkpoint.step} of {checkpoint.run} has no {state} state ({checkpoint.location / file} is "
            f"not there); it has {', '.join(checkpoint.states) or 'none'}"
        )
    return checkpoint.location / file


def _is_sharded(checkpoint: Checkpoint) -> bool:
    """By the files that are there: folders get renamed."""
    there = layout_of(checkpoint.folder) if isinstance(checkpoint.location, Path) else None
    return (there or checkpoint.layout) == "olmo_sharded"


def _plain(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredPart]:
    return {name: StoredPart(tensor=tensor) for name, tensor in tensors.items()}


def _renamed_parts(
    checkpoint: Checkpoint, tensors: Mapping[str, StoredTensor], shaped: Mapping[str, StoredTensor]
) -> dict[str, StoredPart]:
    """The legacy OLMo trainer's parameters, or moments of them, cut into transformers' parameters.

    Args:
        shaped: tensors of the parameters' shapes, asked where no config states the model's numbers.
    """
    if not tensors:
        return {}
    numbers = model_numbers(checkpoint.location) or numbers_from_shapes({n: t.shape for n, t in shaped.items()})
    found: dict[str, StoredPart] = {}
    for name, tensor in tensors.items():
        for part in parts_of(name, tensor.shape, numbers):
            if part.name in found:
                raise CorruptFile(f"{checkpoint.location} holds {part.name} twice, once as {name}")
            found[part.name] = StoredPart(tensor=tensor, rows=part.rows)
    return found


def _of_olmo_core(folder: Place, prefix: str, suffix: str) -> dict[str, StoredPart]:
    tensors = stored_dcp(folder, prefix, suffix)
    if not tensors:
        raise MissingState(f"{folder} holds no {prefix}*{suffix}: that state was not saved")
    return _plain({from_olmo_core(name): tensor for name, tensor in tensors.items()})


def read_dcp_tensor(entry: DcpEntry) -> torch.Tensor:
    """One tensor of a distributed checkpoint, put together from its pieces; nothing else is read.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    return of_dcp(entry).read()


# --- files -----------------------------------------------------------------------------------------------------------


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, checked by the library against its header.

    Raises:
        MissingFile, CorruptFile
    """
    return dict(iterate_safetensors(path))


def iterate_safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors one by one, in the file's order."""
    file = open_safetensors(path)
    try:
        for name in file.offset_keys():
            yield name, file.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFile(f"{path} is not a whole safetensors file ({error}): it was truncated or changed") from error


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors atomically; returns their content hash."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(contiguous, temporary)
    return content_hash(contiguous)


def content_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over name, dtype, shape and bytes of each tensor, names sorted. Container bytes do not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in C order, without a copy where it lies so on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def trainer_parameter_hash(tensors: Mapping[str, torch.Tensor], convention: str) -> str:
    """sha256 over the trainer's names, sorted, each followed by its fp32 bytes: what `params` records hold."""
    digest = hashlib.sha256()
    for name, parts in sorted(trainer_tensors(tensors, convention).items()):
        digest.update(name.encode())
        for part in parts:  # rows laid end to end, as their bytes are
            digest.update(tensor_bytes(tensors[part].float()))
    return digest.hexdigest()
