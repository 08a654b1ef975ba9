"""A pack: one file in which a finding or a run is sent to others.

    manifest.json    first: what it is, and of each other file its path, bytes and sha256
    …                the files that it names, in the order of their names

It is a zip of one form: nothing is compressed, times are fixed, and files lie end to end. The manifest therefore
determines every other byte of it, the same content gives the same bytes, and a pack that differs from its form anywhere
is refused (`data_index.pack_reading`). The hash of a pack is that of the whole file, as sha256sum prints it.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_index.errors import ChangedFile
from data_index.files import BLOCK_BYTES, atomic_file, open_existing, require_file, require_free_space, sha256_of_file

VERSION = 1
FORMAT = "forensics-pack"
MANIFEST = "manifest.json"
MAX_FILES = 20_000
MAX_MANIFEST_BYTES = 16 * 2**20
ENDINGS = ("toml", "json", "parquet", "npy", "safetensors", "png", "html")
PATH = re.compile(
    rf"(?:[A-Za-z0-9][A-Za-z0-9._-]{{0,149}}/){{0,4}}[A-Za-z0-9][A-Za-z0-9._-]{{0,149}}\.(?:{'|'.join(ENDINGS)})\Z"
)

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_WIDE_END = struct.Struct("<4sQ2H2L4Q")
_WIDE_LOCATOR = struct.Struct("<4sLQL")
_WIDE_LOCAL_EXTRA = struct.Struct("<2H2Q")
_WIDE_CENTRAL_EXTRA = struct.Struct("<2H3Q")
_DAY = 1 << 5 | 1  # 1980-01-01, the first that a zip can say
_UNIX, _REGULAR_FILE = 3 << 8, 0o100644 << 16
_LARGEST = 2**32 - 1
WIDE_FROM = _LARGEST  # bytes of a pack that needs numbers of 64 bits

# What a packed file holds: bytes, a file, or a file with a header before it.
Content = bytes | Path | tuple[bytes, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """A file inside a pack, as the manifest names it."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Form:
    """Where everything lies in a pack of some files: the bytes between their contents follow from names and sizes.

    Attributes:
        sizes: (path, bytes) of each file, in the order of the pack.
    """

    sizes: Sequence[tuple[str, int]]

    @cached_property
    def wide(self) -> bool:
        """Does it need numbers of 64 bits? Then all of its entries have them."""
        return self._num_bytes(wide=False) >= WIDE_FROM

    @cached_property
    def num_bytes(self) -> int:
        return self._num_bytes(wide=self.wide)

    def _num_bytes(self, *, wide: bool) -> int:
        extra = _WIDE_LOCAL_EXTRA.size + _WIDE_CENTRAL_EXTRA.size if wide else 0
        per_file = _LOCAL.size + _CENTRAL.size + extra
        tail = _END.size + (_WIDE_END.size + _WIDE_LOCATOR.size if wide else 0)
        return tail + sum(size + per_file + 2 * len(path) for path, size in self.sizes)

    def header_bytes(self, path: str) -> int:
        return _LOCAL.size + len(path) + (_WIDE_LOCAL_EXTRA.size if self.wide else 0)

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """Where the header of each file begins."""
        found, offset = {}, 0
        for path, size in self.sizes:
            found[path] = offset
            offset += self.header_bytes(path) + size
        return found

    def header(self, path: str, num_bytes: int, crc: int) -> bytes:
        """What stands before a file's content."""
        size = _LARGEST if self.wide else num_bytes
        extra = _WIDE_LOCAL_EXTRA.pack(1, 16, num_bytes, num_bytes) if self.wide else b""
        needed, name = 45 if self.wide else 20, path.encode()
        fixed = _LOCAL.pack(b"PK\x03\x04", needed, 0, 0, 0, _DAY, crc, size, size, len(name), len(extra))
        return fixed + name + extra

    def end(self, crcs: Mapping[str, int]) -> bytes:
        """What follows the last file: the directory, and where it lies."""
        entries = b"".join(self._entry(path, size, crcs[path]) for path, size in self.sizes)
        start, count = self.num_bytes - len(entries) - self._tail_bytes, len(self.sizes)
        if not self.wide:
            return entries + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(entries), start, 0)
        wide = _WIDE_END.pack(
            b"PK\x06\x06", _WIDE_END.size - 12, _UNIX | 45, 45, 0, 0, count, count, len(entries), start
        )
        locator = _WIDE_LOCATOR.pack(b"PK\x06\x07", 0, start + len(entries), 1)
        few = min(count, 2**16 - 1)
        return entries + wide + locator + _END.pack(b"PK\x05\x06", 0, 0, few, few, _LARGEST, _LARGEST, 0)

    @property
    def _tail_bytes(self) -> int:
        return _END.size + (_WIDE_END.size + _WIDE_LOCATOR.size if self.wide else 0)

    def _entry(self, path: str, num_bytes: int, crc: int) -> bytes:
        size, offset, extra, needed = num_bytes, self.offsets[path], b"", 20
        if self.wide:
            extra, needed = _WIDE_CENTRAL_EXTRA.pack(1, 24, num_bytes, num_bytes, offset), 45
            size = offset = _LARGEST
        name, made = path.encode(), _UNIX | needed
        rest = (len(name), len(extra), 0, 0, 0, _REGULAR_FILE, offset)
        return _CENTRAL.pack(b"PK\x01\x02", made, needed, 0, 0, 0, _DAY, crc, size, size, *rest) + name + extra


def manifest_bytes(told: Mapping[str, Any], files: Sequence[PackedFile]) -> bytes:
    """
    Args:
        told: what, name, command, toolkit, environment, left_out.
    """
    rows = [{"path": file.path, "num_bytes": file.num_bytes, "sha256": file.sha256} for file in files]
    whole = {"format": FORMAT, "version": VERSION, **told, "files": rows}
    return (json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode()


def write_pack(path: Path, told: Mapping[str, Any], files: Mapping[str, Content]) -> str:
    """Write a pack of some files, bytes or where they are; returns its hash. It appears whole, by rename.

    Args:
        told: what else its manifest says.
    Raises:
        DiskFull, NotWritable, MissingFile
        ChangedFile: a file changed while it was read.
    """
    named = [_described(name, files[name]) for name in sorted(files)]
    manifest = manifest_bytes(told, named)
    first = _described(MANIFEST, manifest)
    form = Form(sizes=[(file.path, file.num_bytes) for file in (first, *named)])
    require_free_space(path.absolute().parent, form.num_bytes, f"the pack {path.name}", option="-o")
    with atomic_file(path.absolute()) as temporary:
        with temporary.open("w+b") as out:
            contents = {**files, MANIFEST: manifest}
            crcs = {file.path: _append(out, form, file, contents[file.path]) for file in (first, *named)}
            out.write(form.end(crcs))
        return sha256_of_file(temporary)


def _described(name: str, content: Content) -> PackedFile:
    if not PATH.match(name):
        raise ValueError(f"{name!r} cannot name a file of a pack")
    digest = hashlib.sha256()
    for block in _blocks(content):
        digest.update(block)
    return PackedFile(path=name, num_bytes=content_bytes(content), sha256=digest.hexdigest())


def content_bytes(content: Content) -> int:
    """
    Raises:
        MissingFile, UnsafeFile
    """
    if isinstance(content, tuple):
        return len(content[0]) + require_file(content[1])
    return len(content) if isinstance(content, bytes) else require_file(content)


def _append(out: Any, form: Form, file: PackedFile, content: Content) -> int:
    """Write a file with its header, which holds its checksum and so is written last; returns the checksum."""
    start = out.tell()
    out.write(b"\0" * form.header_bytes(file.path))
    crc, digest, written = 0, hashlib.sha256(), 0
    for block in _blocks(content):
        out.write(block)
        crc, written = zlib.crc32(block, crc), written + len(block)
        digest.update(block)
    if (written, digest.hexdigest()) != (file.num_bytes, file.sha256):
        raise ChangedFile(f"{file.path} changed while it was packed: pack again")
    out.seek(start)
    out.write(form.header(file.path, file.num_bytes, crc))
    out.seek(0, 2)
    return crc


def _blocks(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    before, path = content if isinstance(content, tuple) else (b"", content)
    yield before
    with open_existing(path) as file:
        yield from iter(lambda: file.read(BLOCK_BYTES), b"")
