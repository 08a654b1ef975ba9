"""Reading packs of others: nothing of one is written, or even looked at, before all of it was verified.

The manifest says which files there are and how large each is. From that follows where every byte lies; what stands
there is compared with it, and each file with its hash and its kind. A pack of another form is refused as a whole.
"""

from __future__ import annotations

import hashlib
import json
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data_index.errors import UNFORESEEN, ForensicsError, RefusedPack
from data_index.files import BLOCK_BYTES, copy_stretch, open_existing, parse_json, read_range, require_file
from data_index.pack_contents import Read, check_content
from data_index.pack_file import (
    FORMAT,
    MANIFEST,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    PATH,
    VERSION,
    Form,
    PackedFile,
    manifest_bytes,
)

_KINDS = ("finding", "run")


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A pack that was verified.

    Attributes:
        sha256: of the whole file, as it was verified.
        told: its manifest without the files: what, name, command, toolkit, environment, left_out …
    """

    path: Path
    sha256: str
    told: Mapping[str, Any]
    files: Mapping[str, PackedFile]
    form: Form

    @property
    def what(self) -> str:
        return str(self.told["what"])

    @property
    def name(self) -> str:
        return str(self.told["name"])

    def below(self, folder: str) -> list[str]:
        """Paths of the files in a folder, sorted."""
        return [path for path in self.files if path.startswith(f"{folder}/")]

    def read(self, path: str) -> bytes:
        """A file whole.

        Raises:
            RefusedPack: it is not in the pack, or the pack was changed meanwhile.
        """
        if path not in self.files:
            _refuse(self.path, f"it has no {path}, which the pack of a {self.what} needs")
        start, file = self._start(path), self.files[path]
        content = read_range(self.path, start, start + file.num_bytes)
        self._require(file, hashlib.sha256(content).hexdigest())
        return content

    def unpack(self, path: str, target: Path, *, skip_bytes: int = 0) -> None:
        """Copy a file into a folder that is being built.

        Args:
            skip_bytes: of its beginning that are left out.
        Raises:
            DiskFull
            RefusedPack: the pack was changed meanwhile.
        """
        start, file = self._start(path), self.files[path]
        self._require(file, copy_stretch(self.path, start, start + file.num_bytes, target, skip_bytes=skip_bytes))

    def _start(self, path: str) -> int:
        return self.form.offsets[path] + self.form.header_bytes(path)

    def _require(self, file: PackedFile, sha256: str) -> None:
        if sha256 != file.sha256:
            _refuse(self.path, f"{file.path} was changed while the pack was opened")


def read_pack(path: Path) -> Pack:
    """Verify a pack, every byte of it.

    Raises:
        MissingFile, UnsafeFile
        RefusedPack: it is none, or was changed; the message says where.
    """
    size = require_file(path)
    try:
        content = _manifest(path, size)
        told, files = _told(path, content)
        form = Form(sizes=[(MANIFEST, len(content)), *((file.path, file.num_bytes) for file in files)])
        if size != form.num_bytes:
            _refuse(path, f"it has {size:,} bytes; its manifest makes them {form.num_bytes:,}", diagnose=True)
        manifest = PackedFile(path=MANIFEST, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        sha256 = _verify(path, form, [manifest, *files])
    except ForensicsError as error:
        if isinstance(error, RefusedPack):
            raise
        _refuse(path, str(error))
    except (*UNFORESEEN, EOFError, MemoryError) as error:
        _refuse(path, f"it cannot be read: {error!r}")
    return Pack(path=path, sha256=sha256, told=told, files={file.path: file for file in files}, form=form)


def _refuse(path: Path, why: str, *, diagnose: bool = False) -> NoReturn:
    why = (_seen_by_others(path) if diagnose else None) or why
    raise RefusedPack(f"{path} is refused: {why}; nothing of it was written. Ask its sender for another copy")


# --- the manifest ----------------------------------------------------------------------------------------------------


def _manifest(path: Path, size: int) -> bytes:
    """The content of the first file, which must be the manifest."""
    head = read_range(path, 0, min(size, 30 + len(MANIFEST) + 20))
    if head[:4] != b"PK\x03\x04" or head[30 : 30 + len(MANIFEST)] != MANIFEST.encode():
        _refuse(path, f"it does not begin with {MANIFEST}, as every pack does", diagnose=True)
    num_bytes, name_bytes, extra_bytes = struct.unpack("<L2H", head[22:30])
    if extra_bytes:
        (num_bytes,) = struct.unpack("<Q", head[30 + len(MANIFEST) + 4 : 30 + len(MANIFEST) + 12])
    start = 30 + name_bytes + extra_bytes
    if num_bytes > min(MAX_MANIFEST_BYTES, size - start):
        _refuse(path, f"its {MANIFEST} claims {num_bytes:,} bytes", diagnose=True)
    return read_range(path, start, start + num_bytes)


def _told(path: Path, content: bytes) -> tuple[dict[str, Any], list[PackedFile]]:
    """What the manifest says, and the files that it names."""
    told = parse_json(content, f"{MANIFEST} in it")
    if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
        _refuse(path, f'its {MANIFEST} does not say format "{FORMAT}"', diagnose=True)
    if (version := told.pop("version", None)) != VERSION or isinstance(version, bool):
        _refuse(path, f"it is a pack of version {str(version)[:20]}, this toolkit reads version {VERSION}: update it")
    rows = told.pop("files", None)
    if not isinstance(rows, list) or len(rows) > MAX_FILES:
        _refuse(path, f"its {MANIFEST} names no list of at most {MAX_FILES:,} files")
    files = [_named(path, row) for row in rows]
    _require_apart(path, [file.path for file in files])
    if told.get("what") not in _KINDS or not isinstance(told.get("name"), str):
        _refuse(path, f"it is neither of a finding nor of a run: {str(told.get('what'))[:40]!r}")
    if manifest_bytes(told, files) != content:
        _refuse(path, f"its {MANIFEST} is not written as packs write it")
    return told, files


def _named(path: Path, row: Any) -> PackedFile:
    if not isinstance(row, dict) or set(row) != {"path", "num_bytes", "sha256"}:
        _refuse(path, f"its {MANIFEST} describes a file wrongly")
    name, num_bytes, sha256 = row["path"], row["num_bytes"], row["sha256"]
    if not isinstance(name, str) or not PATH.match(name):
        _refuse(path, f"it names a file {str(name)[:80]!r}, which no pack holds")
    if type(num_bytes) is not int or not 0 <= num_bytes < 2**62 or not isinstance(sha256, str) or len(sha256) != 64:
        _refuse(path, f"its {MANIFEST} describes {name} wrongly")
    return PackedFile(path=name, num_bytes=num_bytes, sha256=sha256)


def _require_apart(path: Path, names: Sequence[str]) -> None:
    """Each name once, also where letters of either case are one, and none the folder of another; in order."""
    if list(names) != sorted(set(names)):
        _refuse(path, "its files are named twice, or not in order")
    lower = [name.lower() for name in [MANIFEST, *names]]
    folders = {name.rsplit("/", depth)[0] for name in lower for depth in range(1, name.count("/") + 1)}
    if len(set(lower)) != len(lower) or folders & set(lower):
        _refuse(path, "it names files that some disks cannot tell apart")


# --- every byte ------------------------------------------------------------------------------------------------------


def _verify(path: Path, form: Form, files: Sequence[PackedFile]) -> str:
    """Compare all of a pack with its form and its hashes; returns the hash of the whole."""
    whole, crcs = hashlib.sha256(), {}
    with open_existing(path) as pack:
        for file in files:
            header = pack.read(form.header_bytes(file.path))
            digest, crc = hashlib.sha256(), 0
            whole.update(header)
            for block in _blocks(pack, file.num_bytes):
                digest.update(block)
                whole.update(block)
                crc = zlib.crc32(block, crc)
            if digest.hexdigest() != file.sha256:
                _refuse(path, f"{file.path} in it is not the file that its manifest names: it changed", diagnose=True)
            if header != form.header(file.path, file.num_bytes, crc):
                _refuse(path, f"what stands before {file.path} in it was changed", diagnose=True)
            crcs[file.path] = crc
        end = pack.read()
        whole.update(end)
    if end != form.end(crcs):
        _refuse(path, "its directory was changed", diagnose=True)
    for file in files:
        check_content(file.path, file.num_bytes, _reader(path, form.offsets[file.path] + form.header_bytes(file.path)))
    return whole.hexdigest()


def _reader(path: Path, start: int) -> Read:
    return lambda first, last: read_range(path, start + first, start + last)


def _blocks(pack: Any, num_bytes: int) -> Iterator[bytes]:
    while num_bytes:
        block = pack.read(min(BLOCK_BYTES, num_bytes))
        if not block:
            raise EOFError("it ends early")
        num_bytes -= len(block)
        yield block


# --- why not ---------------------------------------------------------------------------------------------------------


def _seen_by_others(path: Path) -> str | None:
    """What a zip program would find in a file that is no pack, and what is wrong with it; None: nothing of these."""
    try:
        with zipfile.ZipFile(path) as found:
            entries = found.infolist()
            if (told := next((entry for entry in entries if entry.filename == MANIFEST), None)) is None:
                return f"it has no {MANIFEST}: it is no pack"
            plain = told.compress_type == zipfile.ZIP_STORED and told.file_size <= MAX_MANIFEST_BYTES
            named = _sizes_by_name(found.read(told)) if plain and not told.flag_bits & 1 else {}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, *UNFORESEEN) as error:
        return f"it is no whole zip ({error})"
    counts = Counter(entry.filename for entry in entries)
    for entry in entries:
        if wrong := _wrong_with(entry, counts, named):
            return f"{entry.filename[:80]!r} in it {wrong}"
    return None


def _sizes_by_name(manifest: bytes) -> dict[str, int]:
    rows = json.loads(manifest)["files"]
    return {str(row["path"]): row["num_bytes"] for row in rows} | {MANIFEST: len(manifest)}


def _wrong_with(entry: zipfile.ZipInfo, counts: Mapping[str, int], named: Mapping[str, int]) -> str | None:
    name = entry.orig_filename
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "is a link, a folder or a special file"
    if entry.flag_bits & 1:
        return "is encrypted"
    if name != MANIFEST and not PATH.match(name):
        return "has a name that no file of a pack has"
    if counts[name] > 1:
        return "is there more than once"
    if named and name not in named:
        return f"is not named by {MANIFEST}"
    if entry.compress_type != zipfile.ZIP_STORED:
        return "is compressed, as no file of a pack is: what it would take on disk is not known"
    if named and entry.file_size != named[name]:
        return f"claims {entry.file_size:,} bytes; {MANIFEST} says {named[name]:,}"
    return None
