"""Bytes of one remote file, kept on disk as they come, in any order.

    about.json      where the file is, how large it is, its tag when it was first looked at
    bytes           the file itself, with holes where nothing was fetched
    extents         which stretches are there: start, stop and sha256 of each, appended after its bytes

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_index.errors import CorruptFile
from data_index.files import disk_errors, read_json_object, write_json
from data_index.remote.http import RemoteState

_RECORD = struct.Struct("<QQ32s")


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
        about = read_json_object(path)
        size, etag, modified = about.get("num_bytes"), about.get("etag", ""), about.get("modified", "")
        if about.get("url") != self.url or type(size) is not int or size < 0 or not isinstance(etag, str):
            raise CorruptFile(f"{path} does not describe {self.url}: delete {self.folder}, and it is fetched again")
        return RemoteState(num_bytes=size, etag=etag, modified=str(modified))

    def remember(self, state: RemoteState) -> None:
        write_json(
            self.folder / "about.json",
            {"url": self.url, "num_bytes": state.num_bytes, "etag": state.etag, "modified": state.modified},
        )

    # --- what is there ------------------------------------------------------------------------------------------

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The stretches of [start, stop) that are not there, or not as they were written."""
        with self._lock:
            self._refresh()
            gaps = []
            for first, last, sha256 in self._covering(start, stop):
                if not self._holds(first, last, sha256):
                    continue
                if first > start:
                    gaps.append((start, first))
                start = max(start, last)
            return [*gaps, (start, stop)] if start < stop else gaps

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), all of which are there.

        Raises:
            CorruptFile: they are not, or were damaged since `missing` said so.
        """
        if self.missing(start, stop):
            raise CorruptFile(f"{self.bytes_path} does not hold the bytes {start}..{stop} of {self.url}")
        if start >= stop:
            return b""
        with self.bytes_path.open("rb") as file:
            return os.pread(file.fileno(), stop - start, start)

    def write(self, start: int, content: bytes) -> None:
        """Keep a stretch: first its bytes, then the record that says so."""
        with self._locked():
            self._refresh()
            with disk_errors(self.bytes_path), self.bytes_path.open("r+b") as file:
                file.seek(start)
                file.write(content)
            record = (start, start + len(content), hashlib.sha256(content).digest())
            with disk_errors(self.bytes_path), (self.folder / "extents").open("r+b") as log:
                # What a dead writer left of a record is no record.
                log.seek(self._read_records * _RECORD.size)
                log.truncate()
                log.write(_RECORD.pack(*record))
            self._add(*record)
            self._read_records += 1
            self._trusted.add(record)

    def forget(self) -> None:
        """Nothing of it is to be believed: as if nothing had been fetched."""
        with self._locked(), (self.folder / "extents").open("r+b") as log:
            log.truncate(0)
            self._clear()

    def _clear(self) -> None:
        self._read_records = 0
        for known in (self._starts, self._extents, self._trusted):
            known.clear()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock, (self.folder / "extents").open("a+b") as log:
            self.bytes_path.touch()
            fcntl.flock(log, fcntl.LOCK_EX)
            yield

    def _refresh(self) -> None:
        """Take in what other processes recorded."""
        path = self.folder / "extents"
        if not path.is_file():
            return
        with path.open("rb") as log:
            if os.fstat(log.fileno()).st_size < self._read_records * _RECORD.size:  # another process forgot it all
                self._clear()
            log.seek(self._read_records * _RECORD.size)
            content = log.read()
        for at in range(0, len(content) - _RECORD.size + 1, _RECORD.size):
            start, stop, sha256 = _RECORD.unpack_from(content, at)
            if start < stop <= 2**62:
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
        at = self._extents.index(extent)
        del self._extents[at], self._starts[at]
        self._trusted.discard(extent)

    def _covering(self, start: int, stop: int) -> list[tuple[int, int, bytes]]:
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        found = []
        for extent in self._extents[first:]:
            if extent[0] >= stop:
                break
            if extent[1] > start:
                found.append(extent)
        return found

    def _holds(self, start: int, stop: int, sha256: bytes) -> bool:
        """Are the bytes those that were written? Asked once in a process."""
        extent = (start, stop, sha256)
        if extent not in self._trusted:
            with self.bytes_path.open("rb") as file:
                content = os.pread(file.fileno(), stop - start, start)
            if hashlib.sha256(content).digest() != sha256:
                self._drop(extent)
                return False
            self._trusted.add(extent)
        return True
