"""Packs as an attacker makes them: of the right form with anything in them, or zips of any other form."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_index.pack_file import MANIFEST, Form, PackedFile, manifest_bytes

TOLD = {"what": "finding", "name": "x", "command": "", "toolkit": "0", "environment": {}, "left_out": []}


def rows_of(files: Mapping[str, bytes]) -> list[PackedFile]:
    return [
        PackedFile(path=name, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    ]


def forged(
    path: Path,
    files: Mapping[str, bytes],
    *,
    rows: Sequence[PackedFile] | None = None,
    manifest: bytes | None = None,
    **told: Any,
) -> Path:
    """A file of the form of packs, whatever its manifest says; `rows`: what that names instead of the files."""
    content = manifest_bytes(TOLD | told, rows_of(files) if rows is None else rows) if manifest is None else manifest
    contents = {MANIFEST: content, **files}
    form = Form(sizes=[(name, len(inside)) for name, inside in contents.items()])
    crcs = {name: zlib.crc32(inside) for name, inside in contents.items()}
    parts = [form.header(name, len(inside), crcs[name]) + inside for name, inside in contents.items()]
    path.write_bytes(b"".join([*parts, form.end(crcs)]))
    return path


Entry = tuple[zipfile.ZipInfo, bytes]


def entry(name: str, content: bytes, **fields: Any) -> Entry:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o100644 << 16
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def zipped(path: Path, files: Mapping[str, bytes], more: Sequence[Entry], *, without: Sequence[str] = ()) -> Path:
    """A zip that Python wrote: a manifest that names `files`, those files, and whatever else is given."""
    manifest = entry(MANIFEST, manifest_bytes(TOLD, rows_of(files)))
    own = [entry(name, content) for name, content in files.items() if name not in without]
    with zipfile.ZipFile(path, "w") as out:
        for info, content in [manifest, *own, *more]:
            out.writestr(info, content, compress_type=info.compress_type)
    return path


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=allow_pickle)
    return out.getvalue()


def safetensors(header: bytes, content: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + content
