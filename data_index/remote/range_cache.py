"""Bytes of one remote file, kept on disk as they come, in any order.

    about.json      where the file is, how large it is, its tag when it was first looked at
    bytes           the file itself, with holes where nothing was fetched
    extents         which stretches are there: start, stop and sha256 of each, appended after its bytes
    checked         the sha256 of the whole, once all of it was here and compared with what the publisher states

Nothing is believed because it lies there: a stretch is read only if its bytes have its hash. So a writer that died, a
disk that lost a page and a torn last record all end the same way, with a stretch that is fetched again.
"""

from __future__ import annotations

import bisect
import fcntl
import hashlib
import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from data_index.errors import CorruptFile
from data_index.files import disk_errors, read_json_object, write_bytes, write_json
from data_index.remote.http import RemoteState

_RECORD = struct.Struct("<QQ32s")
_FORGOTTEN = (0, 0, bytes(32))


class RangeCache:
    """What is kept of one file. Threads and processes may share its folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self._lock = threading.Lock()
        self._read_records = 0
        self._starts: list[int] = []
        self._extents: list[tuple[int, int, bytes]] = []  # by start; they do not overlap
        self._trusted: set[tuple[int, int, bytes]] = set()

    @property
    def bytes_path(self) -> Path:
        return self.folder / "bytes"

    # --- the file's state ---------------------------------------------------------------------------------------

    def state(self) -> RemoteState | None:
        """What the file was when it was first looked at; None if it never was."""
        path = self.folder / "about.json"
        if not path.is_file():
            return None
        try:
            about = read_json_object(path)
        except CorruptFile:
            return None
        size, etag, modified = about.get("num_bytes"), about.get("etag", ""), about.get("modified", "")
        if about.get("url") != self.url or type(size) is not int or size < 0 or not isinstance(etag, str):
            return None
        return RemoteState(num_bytes=size, etag=etag, modified=str(modified))

    def age_seconds(self) -> float:
        """How long ago it was last looked at what the file is."""
        path = self.folder / "about.json"
        return time.time() - path.stat().st_mtime if path.is_file() else float("inf")

    def begin_anew(self, state: RemoteState) -> None:
        """Keep what the file is now; what was fetched of another one is forgotten."""
        before = self.state()
        if before is not None and before.num_bytes == state.num_bytes and before.etag == state.etag:
            os.utime(self.folder / "about.json")
            return
        self.forget()
        with self._locked():
            self._write_about(state)

    def remember(self, state: RemoteState) -> RemoteState:
        """Keep what the file is, unless its tag is known already; returns what is known of it now."""
        with self._locked():
            before = self.state()
            if before is not None and (before.etag or not state.etag) and (before.modified or not state.modified):
                return before
            self._write_about(state)
            return state

    def _write_about(self, state: RemoteState) -> None:
        write_json(self.folder / "about.json", {"url": self.url, **asdict(state)})

    @property
    def checked(self) -> str | None:
        """The sha256 that all of the file was found to have."""
        path = self.folder / "checked"
        return path.read_text() if path.is_file() else None

    def mark_checked(self, sha256: str) -> None:
        write_bytes(self.folder / "checked", sha256.encode())

    # --- what is there ------------------------------------------------------------------------------------------

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The stretches of [start, stop) that are not there, or not as they were written."""
        with self._lock:
            self._refresh()
            return self._gaps(start, stop)

    def _gaps(self, start: int, stop: int) -> list[tuple[int, int]]:
        gaps = []
        for first, last, sha256 in self._covering(start, stop):
            if not self._holds(first, last, sha256):
                continue
            if first > start:
                gaps.append((start, first))
            start = max(start, last)
        return [*gaps, (start, stop)] if start < stop else gaps

    def covers(self, start: int, stop: int) -> bool:
        """Was all of it fetched? What it is now is not looked at."""
        with self._lock:
            self._refresh()
            for first, last, _ in self._covering(start, stop):
                if first > start:
                    return False
                start = max(start, last)
            return start >= stop

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), all of which are there.

        Raises:
            CorruptFile: they are not, or were damaged since `missing` said so.
        """
        if self.missing(start, stop):
            raise CorruptFile(f"{self.bytes_path} does not hold the bytes {start}..{stop} of {self.url}")
        if start >= stop:
            return b""
        return self._read_bytes(start, stop)

    def _read_bytes(self, start: int, stop: int) -> bytes:
        """What lies there now, fewer bytes where the file ends. (One os.pread gives 2 GiB at most.)"""
        with self.bytes_path.open("rb") as file:
            file.seek(start)
            return file.read(max(min(stop, os.fstat(file.fileno()).st_size) - start, 0))

    def write(self, start: int, content: bytes) -> None:
        """Keep a stretch, without what another thread or process kept meanwhile; bytes first, then the record."""
        with self._locked():
            self._refresh()
            for first, stop in self._gaps(start, start + len(content)):
                self._write(first, content[first - start : stop - start])

    def _write(self, start: int, content: bytes) -> None:
        with disk_errors(self.bytes_path), self.bytes_path.open("r+b") as file:
            file.seek(start)
            file.write(content)
        record = (start, start + len(content), hashlib.sha256(content).digest())
        self._append(record)
        self._add(*record)
        self._trusted.add(record)

    def _append(self, record: tuple[int, int, bytes]) -> None:
        with disk_errors(self.bytes_path), (self.folder / "extents").open("r+b") as log:
            # What a dead writer left of a record is no record.
            log.seek(self._read_records * _RECORD.size)
            log.truncate()
            log.write(_RECORD.pack(*record))
        self._read_records += 1

    def forget(self) -> None:
        """Nothing of it is to be believed: as if nothing had been fetched. A record says so to other processes too."""
        with self._locked():
            self._refresh()
            self._append(_FORGOTTEN)
            self._clear()
            with disk_errors(self.bytes_path):
                os.truncate(self.bytes_path, 0)
            (self.folder / "checked").unlink(missing_ok=True)

    def extents(self) -> tuple[tuple[int, int], ...]:
        """The stretches that were fetched, rising."""
        with self._lock:
            self._refresh()
            return tuple((start, stop) for start, stop, _ in self._extents)

    def keep_only(self, extents: Sequence[tuple[int, int]]) -> None:
        """Forget what was fetched besides these stretches."""
        if set(self.extents()) <= set(extents):
            return
        # What is good of them is written anew: only a file that was cut short gives its disk back.
        kept = [(start, self.read(start, stop)) for start, stop in extents if not self.missing(start, stop)]
        self.forget()
        for start, content in kept:
            self.write(start, content)

    def _clear(self) -> None:
        for known in (self._starts, self._extents, self._trusted):
            known.clear()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with disk_errors(self.folder), self._lock, (self.folder / "extents").open("a+b") as log:
            self.bytes_path.touch()
            fcntl.flock(log, fcntl.LOCK_EX)
            yield

    def _refresh(self) -> None:
        """Take in what other processes recorded."""
        path = self.folder / "extents"
        if not path.is_file():
            return
        with path.open("rb") as log:
            if os.fstat(log.fileno()).st_size < self._read_records * _RECORD.size:  # deleted, and begun anew
                self._clear()
                self._read_records = 0
            log.seek(self._read_records * _RECORD.size)
            content = log.read()
        for at in range(0, len(content) - _RECORD.size + 1, _RECORD.size):
            start, stop, sha256 = _RECORD.unpack_from(content, at)
            if (start, stop, sha256) == _FORGOTTEN:
                self._clear()
            elif start < stop <= 2**62:
                self._add(start, stop, sha256)
            self._read_records += 1

    def _add(self, start: int, stop: int, sha256: bytes) -> None:
        """A later record counts; what it overlaps with was fetched again, because it was no good."""
        for extent in self._covering(start, stop):
            self._drop(extent)
        at = bisect.bisect_left(self._starts, start)
        self._starts.insert(at, start)
        self._extents.insert(at, (start, stop, sha256))

    def _drop(self, extent: tuple[int, int, bytes]) -> None:
        at = bisect.bisect_left(self._starts, extent[0])
        del self._extents[at], self._starts[at]
        self._trusted.discard(extent)

    def _covering(self, start: int, stop: int) -> list[tuple[int, int, bytes]]:
        found = []
        for number in range(max(bisect.bisect_right(self._starts, start) - 1, 0), len(self._extents)):
            extent = self._extents[number]
            if extent[0] >= stop:
                break
            if extent[1] > start:
                found.append(extent)
        return found

    def _holds(self, start: int, stop: int, sha256: bytes) -> bool:
        """Are the bytes those that were written? Asked once in a process."""
        extent = (start, stop, sha256)
        if extent not in self._trusted:
            there = self.bytes_path.is_file()
            if not there or hashlib.sha256(self._read_bytes(start, stop)).digest() != sha256:
                self._drop(extent)
                return False
            self._trusted.add(extent)
        return True
