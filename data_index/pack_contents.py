"""Is a file of a pack what its ending says? Asked before anything of a pack is written.

Nothing that these kinds hold is code: numbers without objects, tables, tensors, records, a raster picture. The page is
for the reader's browser alone: it begins with a policy that allows no script and no address, and is never unpacked.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from data_index.errors import UNFORESEEN, CorruptFile, ForensicsError, UnsafeFile
from data_index.files import MAX_JSON_BYTES, parse_json
from data_index.run_file import MAX_RUN_BYTES, parse_toml
from data_index.sources.native import require_plausible_table

# The beginning of every page in a pack.
PAGE_START = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'\">\n"
)
MAX_PAGE_BYTES = 256 * 2**20
MAX_PICTURE_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 100 * 2**20  # of safetensors, as the format itself allows
_NPY_HEADER_BYTES = 2**16
_TENSOR_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2},
    **{"I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8},
}

# Bytes start .. stop of a file.
Read = Callable[[int, int], bytes]


def check_content(path: str, num_bytes: int, read: Read) -> None:
    """
    Raises:
        CorruptFile, UnsafeFile: the file is something else than its ending says, or claims what it does not hold.
    """
    try:
        _CHECKS[path.rpartition(".")[2]](path, num_bytes, read)
    except ForensicsError:
        raise
    except UNFORESEEN as error:
        raise CorruptFile(f"{path} in it cannot be read: {error!r}") from error


def _json(path: str, num_bytes: int, read: Read) -> None:
    parse_json(_whole(path, num_bytes, read, MAX_JSON_BYTES), f"{path} in it")


def _toml(path: str, num_bytes: int, read: Read) -> None:
    parse_toml(_whole(path, num_bytes, read, MAX_RUN_BYTES), f"{path} in it")


def _page(path: str, num_bytes: int, read: Read) -> None:
    if not _whole(path, num_bytes, read, MAX_PAGE_BYTES).decode().startswith(PAGE_START):
        raise UnsafeFile(f"{path} in it does not forbid scripts as the pages of packs do")


def _npy(path: str, num_bytes: int, read: Read) -> None:
    """An array of numbers; objects would be pickles."""
    import numpy as np

    head = io.BytesIO(read(0, min(num_bytes, _NPY_HEADER_BYTES)))
    version = np.lib.format.read_magic(head)
    readers: Mapping[Any, Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise CorruptFile(f"{path} in it is an array of version {version}")
    shape, _, dtype = readers[version](head)
    if dtype.kind not in "biuf":
        raise UnsafeFile(f"{path} in it holds {dtype}, no plain numbers")
    if any(size < 0 for size in shape) or head.tell() + math.prod(shape) * dtype.itemsize != num_bytes:
        raise UnsafeFile(f"{path} in it claims {shape} of {dtype} and has {num_bytes:,} bytes")


def _safetensors(path: str, num_bytes: int, read: Read) -> None:
    """Tensors that tile the file after its header, as the format demands."""
    (size,) = struct.unpack("<Q", read(0, 8)) if num_bytes >= 8 else (num_bytes,)
    if size > min(num_bytes - 8, MAX_HEADER_BYTES):
        raise UnsafeFile(f"{path} in it claims a header of {size:,} bytes and has {num_bytes:,}")
    header = json.loads(read(8, 8 + size))
    if not isinstance(header, dict):
        raise CorruptFile(f"{path} in it has a header that names no tensors")
    header.pop("__metadata__", None)
    end = 0
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = tensor["data_offsets"]
        count = math.prod(tensor["shape"])
        if start != end or stop - start != count * _TENSOR_BYTES[tensor["dtype"]] or count < 0:
            raise UnsafeFile(f"{path} in it misstates where the tensor {name[:80]!r} lies")
        end = stop
    if end != num_bytes - 8 - size:
        raise UnsafeFile(f"{path} in it claims {end:,} bytes of tensors and has {num_bytes - 8 - size:,}")


def _table(path: str, num_bytes: int, read: Read) -> None:
    import pyarrow

    try:
        require_plausible_table(pyarrow.PythonFile(_Window(num_bytes, read), mode="r"), num_bytes, f"{path} in it")
    except ForensicsError:
        raise
    except (*UNFORESEEN, pyarrow.ArrowException) as error:
        raise CorruptFile(f"{path} in it is no Parquet: {error}") from error


def _picture(path: str, num_bytes: int, read: Read) -> None:
    """A PNG from its first to its last chunk."""
    content = _whole(path, num_bytes, read, MAX_PICTURE_BYTES)
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR":
        raise CorruptFile(f"{path} in it is no PNG")
    place, kind = 8, b""
    while place < num_bytes and kind != b"IEND":
        length, kind = struct.unpack(">L4s", content[place : place + 8])
        body = content[place + 4 : place + 8 + length]
        if content[place + 8 + length : place + 12 + length] != struct.pack(">L", zlib.crc32(body)):
            raise CorruptFile(f"{path} in it is a damaged PNG")
        place += 12 + length
    if place != num_bytes or kind != b"IEND":
        raise CorruptFile(f"{path} in it is a PNG with something else behind it")


_CHECKS: Mapping[str, Callable[[str, int, Read], None]] = {
    "json": _json,
    "toml": _toml,
    "html": _page,
    "npy": _npy,
    "safetensors": _safetensors,
    "parquet": _table,
    "png": _picture,
}


def _whole(path: str, num_bytes: int, read: Read, most: int) -> bytes:
    if num_bytes > most:
        raise UnsafeFile(f"{path} in it has {num_bytes:,} bytes, more than any file of its kind")
    return read(0, num_bytes)


class _Window(io.RawIOBase):
    """A file inside the pack, as Python's files are read."""

    def __init__(self, num_bytes: int, read: Read) -> None:
        self._num_bytes, self._read, self._place = num_bytes, read, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._num_bytes)[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        stop = self._num_bytes if size is None or size < 0 else min(self._place + size, self._num_bytes)
        content = self._read(self._place, stop) if stop > self._place else b""
        self._place += len(content)
        return content
