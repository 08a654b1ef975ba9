"""Checkpoints to tensors, whole or one by one; the only weight IO."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data_index.dcp import DcpEntry, read_dcp_metadata
from data_index.errors import CorruptFile, MissingFile, MissingState, UnsafeFile
from data_index.files import atomic_file
from data_index.pickles import TorchArchive
from data_index.run import Checkpoint
from replay.models import NAME_MAPS, trainer_parameters

MAX_SAFETENSORS_HEADER_BYTES = 100 * 2**20


def read_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All weights under transformers' names, in the trainer's order.

    Raises:
        MissingState, MissingFile, CorruptFile, UnsafeFile
    """
    if checkpoint.layout == "olmo_core":
        return _read_dcp(checkpoint.location / "model_and_optim", "model.", "")
    return read_safetensors(_require(checkpoint, "weights", "model.safetensors"))


def read_optimizer(checkpoint: Checkpoint) -> dict[str, dict[str, torch.Tensor]]:
    """Adam state by moment (`exp_avg`, `exp_avg_sq`, `step`), each under transformers' parameter names.

    Raises:
        MissingState: weights only were published.
        MissingFile, CorruptFile, UnsafeFile
    """
    moments = ("exp_avg", "exp_avg_sq", "step")
    if checkpoint.layout == "olmo_core":
        folder = checkpoint.location / "model_and_optim"
        return {moment: _read_dcp(folder, "optim.state.", f".{moment}") for moment in moments}
    flat = read_safetensors(_require(checkpoint, "optimizer", "optimizer.safetensors"))
    return {
        moment: {name[len(moment) + 1 :]: t for name, t in flat.items() if name.startswith(f"{moment}.")}
        for moment in moments
    }


def _require(checkpoint: Checkpoint, state: str, file: str) -> Path:
    if state not in checkpoint.states:
        raise MissingState(
            f"checkpoint {checkpoint.step} of {checkpoint.run} has no {state} state ({checkpoint.location / file} is "
            f"not there); it has {', '.join(checkpoint.states) or 'none'}"
        )
    return checkpoint.location / file


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, checked by the library against its header.

    Raises:
        MissingFile, CorruptFile
    """
    return dict(iterate_safetensors(path))


def iterate_safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors one by one, in the file's order."""
    if not path.exists():
        raise MissingFile(f"{path} is not there")
    try:
        with safe_open(path, framework="pt") as file:
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
    for name, ours in sorted(trainer_parameters(tensors, convention).items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensors[ours].float()))
    return digest.hexdigest()


# --- distributed checkpoints ---------------------------------------------------------------------------------------


def _read_dcp(folder: Path, prefix: str, suffix: str) -> dict[str, torch.Tensor]:
    rename: Callable[[str], str] = NAME_MAPS["olmo_core"]
    entries = {
        name[len(prefix) : len(name) - len(suffix)]: entry
        for name, entry in read_dcp_metadata(folder).items()
        if name.startswith(prefix) and name.endswith(suffix) and entry.dtype is not None
    }
    if not entries:
        raise MissingState(f"{folder} holds no {prefix}*{suffix}: that state was not saved")
    return {rename(name): read_dcp_tensor(entry) for name, entry in entries.items()}


def read_dcp_tensor(entry: DcpEntry) -> torch.Tensor:
    """One tensor of a distributed checkpoint, put together from its pieces; nothing else is read.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    dtype = getattr(torch, entry.dtype or "none")
    whole: torch.Tensor | None = None
    for piece in entry.pieces:
        archive = piece.open()
        tensor = tensor_of_archive(archive, archive.value)
        if tuple(tensor.shape) != piece.sizes or tensor.dtype != dtype:
            raise CorruptFile(
                f"{archive.source}: {entry.name} is {tensor.dtype} {tuple(tensor.shape)}, not as declared"
            )
        if piece.sizes == entry.shape:
            return tensor
        # The declared shape is the sum of pieces that are really there, so this allocation is backed by bytes.
        whole = torch.empty(entry.shape, dtype=dtype) if whole is None else whole
        whole[tuple(slice(a, a + n) for a, n in zip(piece.starts, piece.sizes, strict=True))] = tensor
    if whole is None:
        raise CorruptFile(f"{entry.name} has no pieces")
    return whole


def tensor_of_archive(archive: TorchArchive, record: Any) -> torch.Tensor:
    """The tensor that a record of the archive describes."""
    if not hasattr(record, "storage"):
        raise UnsafeFile(f"{archive.source} holds no tensor where one was expected")
    raw = archive.storage_bytes(record)
    if not raw:
        return torch.empty(record.shape, dtype=getattr(torch, record.storage.dtype))
    flat = torch.frombuffer(bytearray(raw), dtype=getattr(torch, record.storage.dtype))
    return flat.as_strided(record.shape, record.strides, record.offset).clone()
