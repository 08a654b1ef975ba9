"""Tensors of GGUF files, one by one; quantised blocks become float32 as the format's own library computes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data_index.errors import CorruptFile, MissingState, UnsupportedRecipe
from data_index.files import read_range
from data_index.gguf_file import GgufFile, GgufTensor

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BYTES_AT_ONCE = 32 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufMatrix:
    """A matrix in a file, not read yet. `type_name`: how its numbers are stored; `num_bytes`: in the file."""

    file: GgufFile
    tensor: GgufTensor
    type_name: str
    num_bytes: int

    def read(self) -> torch.Tensor:
        """In the file's dtype where it is one of torch's, else dequantised to float32, some rows at a time."""
        rows, width = self.tensor.shape
        row_bytes = self.num_bytes // max(rows, 1)
        together = max(_BYTES_AT_ONCE // max(row_bytes, 1), 1)
        whole = torch.empty(rows, width, dtype=_PLAIN.get(self.type_name, torch.float32))
        for start in range(0, rows, together):
            stop = min(start + together, rows)
            at = self.tensor.offset
            content = bytearray(read_range(self.file.place, at + start * row_bytes, at + stop * row_bytes))
            whole[start:stop] = self._numbers(content, stop - start)
        return whole

    def _numbers(self, content: bytearray, rows: int) -> torch.Tensor:
        if self.type_name in _PLAIN:
            return torch.frombuffer(content, dtype=_PLAIN[self.type_name]).reshape(rows, -1)
        from gguf import GGMLQuantizationType, quants

        blocks = np.frombuffer(content, dtype=np.uint8).reshape(rows, -1)
        with np.errstate(all="ignore"):  # a block's scale may be anything in a damaged file
            return torch.from_numpy(quants.dequantize(blocks, GGMLQuantizationType[self.type_name]))


def gguf_matrix(file: GgufFile, name: str) -> GgufMatrix:
    """
    Raises:
        MissingState: the file has no such tensor.
        CorruptFile: it is no matrix, or larger than the file.
        UnsupportedRecipe: of a storage type that the library does not know.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if name not in file.tensors:
        raise MissingState(f"{file.place} has no tensor {name!r}; it has {len(file.tensors)}")
    tensor = file.tensors[name]
    try:
        kind = GGMLQuantizationType(tensor.type_number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise UnsupportedRecipe(f"{file.place}: {name} is stored as type {tensor.type_number}, not known") from error
    if len(tensor.shape) != 2 or tensor.shape[1] % block:
        raise CorruptFile(f"{file.place}: {name} of shape {tensor.shape} is no matrix in blocks of {block}")
    num_bytes = tensor.num_elements // block * block_bytes
    if tensor.offset + num_bytes > file.num_bytes:
        raise CorruptFile(
            f"{file.place}: {name} needs {num_bytes:,} bytes from {tensor.offset:,}; the file ends before"
        )
    return GgufMatrix(file=file, tensor=tensor, type_name=kind.name, num_bytes=num_bytes)
