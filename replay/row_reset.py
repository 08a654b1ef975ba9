"""Rows of stored embedding matrices set to a value: in a copy of a safetensors file, where no other byte changes, or in
tensors on their way into new files.

Source: the format's description in huggingface/safetensors @ 24b0b28, README.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from data_index.errors import CorruptFile, UnsupportedRecipe
from data_index.files import overwrite, parse_json, read_range, require_file
from replay.embedding_weights import role_of
from replay.stored_tensors import StoredTensor, stored_safetensors
from replay.weights import tensor_bytes

if TYPE_CHECKING:
    from data_index.remote.path import Place

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowReset:
    """Rows of one tensor and what they become.

    Attributes:
        name: as it is stored.
        role: `input`, `output` or `bias`.
        ids: int64, rising.
        before: what these rows are, [rows, width]; of a bias, [rows].
        value: what each becomes, [width] of the tensor's dtype; of a bias, of shape [].
    """

    name: str
    role: str
    ids: np.ndarray
    before: torch.Tensor
    value: torch.Tensor


def row_reset(name: str, role: str, matrix: torch.Tensor, ids: np.ndarray, mean: torch.Tensor) -> RowReset:
    """
    Args:
        mean: float32, what the rows become; rounded to the matrix's dtype here.
    Raises:
        UnsupportedRecipe: the matrix holds no plain floating-point numbers.
    """
    if matrix.dtype not in DTYPES:
        raise UnsupportedRecipe(
            f"{name} is of dtype {str(matrix.dtype).removeprefix('torch.')}: rows are reset in matrices of fp64, fp32, "
            "fp16 and bf16, not in quantised ones; repair the model that it was made from"
        )
    before = matrix[torch.from_numpy(ids)]
    return RowReset(name=name, role=role, ids=ids, before=before, value=mean.to(matrix.dtype))


def with_rows_reset(tensor: torch.Tensor, reset: RowReset) -> torch.Tensor:
    """A copy of the tensor with these rows replaced."""
    changed = tensor.clone()
    changed[torch.from_numpy(reset.ids)] = reset.value.to(tensor.dtype)
    return changed


def embedding_tensors(path: Place) -> dict[str, tuple[str, StoredTensor]]:
    """Of a safetensors file, the tensors that are embedding matrices or the output's bias: role and tensor by name.

    Raises:
        MissingFile, CorruptFile
    """
    stored = stored_safetensors(path)
    return {name: (role, tensor) for name, tensor in stored.items() if (role := role_of(name)) is not None}


def reset_stored_rows(path: Path, resets: Sequence[RowReset]) -> int:
    """Replace rows in a safetensors file, in place; the file is a copy that is still being built.

    Returns:
        How many bytes were replaced.
    Raises:
        MissingFile
        CorruptFile: the file does not hold the rows that were read.
    """
    places = _places(path)
    stretches: list[tuple[int, bytes]] = []
    for reset in resets:
        start = places[reset.name]
        value = bytes(tensor_bytes(reset.value))
        for first, rows in _runs(reset.ids):
            at, before = start + int(reset.ids[first]) * len(value), reset.before[first : first + rows]
            if read_range(path, at, at + rows * len(value)) != bytes(tensor_bytes(before)):
                raise CorruptFile(f"{path}: {reset.name} is not what was read of it before; was it changed meanwhile?")
            stretches.append((at, value * rows))
    overwrite(path, stretches)
    return sum(len(content) for _, content in stretches)


def _places(path: Path) -> dict[str, int]:
    """Where the bytes of each tensor begin in the file; its header has been checked when its tensors were read."""
    size = require_file(path)
    length = int.from_bytes(read_range(path, 0, _LENGTH_BYTES), "little")
    if length > size - _LENGTH_BYTES:
        raise CorruptFile(f"{path} claims a header of {length:,} bytes in a file of {size:,}")
    header = parse_json(read_range(path, _LENGTH_BYTES, _LENGTH_BYTES + length), path)
    first = _LENGTH_BYTES + length
    return {name: first + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _runs(ids: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches of ids that follow each other: where one begins in `ids`, and how many it has."""
    begins = np.flatnonzero(np.diff(ids, prepend=-2) != 1)
    for first, stop in zip(begins.tolist(), [*begins[1:].tolist(), len(ids)], strict=True):
        yield first, stop - first
