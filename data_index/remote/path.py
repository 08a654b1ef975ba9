"""Files on servers: read as if they were here, each byte fetched once.

A `RemotePath` is to such a file what a Path is to one on disk. `read` fetches what is not kept yet and nothing besides;
`ranges.fetch_ranges` does so for many stretches at once. What was fetched lies in the workspace's `cache/`
(`range_cache`); files of the hub that its own cache holds whole are read there.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

from data_index.errors import ChangedFile, CorruptFile, IgnoresRanges, MissingFile, Unreachable
from data_index.files import read_range, sha256_of_file
from data_index.remote import hub, hub_files
from data_index.remote.http import Known, RemoteState, get_range, head
from data_index.remote.progress import Progress
from data_index.remote.range_cache import RangeCache

# One request asks for no more: what is kept of a download that dies is whole requests.
REQUEST_BYTES = 16 * 2**20
# What came is kept as soon as it is so much: of a process that is killed, no more is lost for each of its requests.
KEEP_BYTES = 4 * 2**20
# A file of a hub without ranges (a mirror, say) is downloaded for a part of it up to this size.
WHOLE_FILE_BYTES = 64 * 2**20
DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What of a file on a server is on disk: all of it, or stretches (first byte, last byte + 1)."""

    whole: bool
    extents: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A file or folder on a server.

    Attributes:
        cache: the folder below which what is fetched is kept.
        num_bytes: what a listing or manifest says the file has; where None, the server is asked.
        sha256: what the publisher says of the whole file. Stretches of it cannot be compared with that; the whole can.
    """

    url: str
    cache: Path
    num_bytes: int | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url.rstrip('/')}/{quote(name, safe='/+@~')}", self.cache)

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.url).path.rstrip("/").rpartition("/")[2])

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.rstrip("/").rpartition("/")[0], self.cache)

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def size(self) -> int:
        """Bytes of the file.

        Raises:
            MissingFile, AccessDenied, Unreachable, Offline
        """
        if self.num_bytes is not None:
            return self.num_bytes
        copy = self.copy()
        return copy.stat().st_size if copy else self._state().num_bytes

    def copy(self) -> Path | None:
        """The file on disk, where it is there whole and as its publisher states; nothing is fetched."""
        return hub_files.checked_copy(self.url, self.cache)

    def is_file(self) -> bool:
        """
        Raises:
            AccessDenied, Unreachable, Offline
        """
        try:
            self.size()
        except MissingFile:
            return False
        return True

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop).

        Raises:
            MissingFile, AccessDenied, Unreachable, Offline
            CorruptFile: the file ends before `stop`.
            ChangedFile: the server has another file now.
        """
        if stop <= start:
            return b""
        if (copy := self.copy()) is not None:
            return read_range(copy, start, stop)
        kept = self.kept()
        missing = kept.missing(start, stop)
        if sum(last - first for first, last in missing) > REQUEST_BYTES:
            from data_index.remote.ranges import fetch_ranges

            fetch_ranges([(self, start, stop)])
        else:
            for first, last in missing:
                self.fetch(first, last)
            self.check_whole()
        if (copy := self.copy()) is not None:  # its server gave it whole or not at all
            return read_range(copy, start, stop)
        return kept.read(start, stop)

    def read_all(self) -> bytes:
        return self.read(0, self.size())

    def open(self) -> BinaryIO:
        """The file to read and seek in; 64 KiB are fetched for the smallest read."""
        return io.BufferedReader(_Seekable(self), 64 * 1024)

    def download(self, progress: Progress | None = None) -> Path:
        """The whole file on disk, its hash compared with what the publisher states.

        Raises:
            MissingFile, AccessDenied, Unreachable, Offline, ChangedFile, DiskFull
            CorruptFile: right size, wrong content.
        """
        if hub.address_of(self.url) is not None:
            return hub_files.download(self.url, self.cache)
        from data_index.remote.ranges import fetch_ranges

        whole = replace(self, num_bytes=self.size())
        fetch_ranges([(whole, 0, self.size())], progress)
        whole.check_whole()
        return self.kept().bytes_path

    def check(self) -> RemoteState:
        """Ask the server, whatever is kept.

        Raises:
            MissingFile, AccessDenied, Unreachable, Offline
        """
        if hub.address_of(self.url) is not None:  # its answers to HEAD come from where a file lies, if at all
            return RemoteState(num_bytes=hub_files.stated(self.url, self.cache).num_bytes)
        return head(self.url, hub.headers_for(self.url))

    def check_whole(self) -> None:
        """As soon as all of a file is here, compare it with what its publisher states.

        Raises:
            CorruptFile: the content is wrong, if in the right number of bytes; none of it is kept.
        """
        kept, size = self.kept(), self.num_bytes
        if self.sha256 is None or size is None or kept.checked == self.sha256 or not kept.covers(0, size):
            return
        actual = sha256_of_file(kept.bytes_path)
        if actual != self.sha256:
            kept.forget()
            raise CorruptFile(
                f"{self.url} has sha256 {actual[:12]}… instead of {self.sha256[:12]}…, as its publisher states: the "
                "server sent wrong content in the right size. Nothing of it was kept; ask again"
            )
        kept.mark_checked(self.sha256)

    def kept(self) -> RangeCache:
        return _range_cache(self.cache, self.url)

    def held(self) -> Held:
        """What of it is on disk now; nothing is asked."""
        return Held(whole=self.copy() is not None, extents=self.kept().extents())

    def forget_since(self, before: Held) -> None:
        """Delete what of it came to disk since, whoever fetched it."""
        if not before.whole:
            hub_files.forget(self.url)
        self.kept().keep_only(before.extents)

    def _state(self) -> RemoteState:
        """What the file is, as first seen; a manifest's word about its size is enough to begin with."""
        kept = self.kept()
        state = kept.state()
        if state is None:
            state = RemoteState(num_bytes=self.num_bytes) if self.num_bytes is not None else self.check()
            state = kept.remember(state)
        if self.num_bytes not in (None, state.num_bytes):
            raise ChangedFile(
                f"{self.url} had {state.num_bytes:,} bytes when it was first looked at, not {self.num_bytes:,}: delete "
                f"{kept.folder} to begin anew"
            )
        return state

    def fresh_size(self) -> int:
        """Like `size`, asked of the server anew where it was last asked more than a day ago.

        Raises:
            MissingFile, AccessDenied, Unreachable, Offline
        """
        if hub.address_of(self.url) is None and self.kept().age_seconds() > DAY_SECONDS:
            self.kept().begin_anew(self.check())
        return self.size()

    def fetch(self, start: int, stop: int, abort: threading.Event | None = None) -> None:
        """Fetch a stretch and keep it; what came before a failure is kept too."""
        size = self._state().num_bytes
        if stop > size:
            raise CorruptFile(f"{self.url} has {size:,} bytes; byte {stop:,} was asked for")
        try:
            for first in range(start, stop, REQUEST_BYTES):
                self._fetch_once(first, min(first + REQUEST_BYTES, stop), abort)
        except IgnoresRanges:
            if hub.address_of(self.url) is None or size > WHOLE_FILE_BYTES:
                raise
            hub_files.download(self.url, self.cache)

    def _fetch_once(self, start: int, stop: int, abort: threading.Event | None) -> None:
        kept, state, content = self.kept(), self._state(), bytearray()
        # Where an address names its content, a tag is only that of some machine which served it.
        known = Known(state, tags=hub.address_of(self.url) is None)
        try:
            for piece in get_range(self.url, start + len(content), stop, hub.headers_for(self.url), known, abort):
                if known.state is not None and known.state != state:
                    state = self._agree(known)
                content += piece
                if len(content) >= KEEP_BYTES:
                    kept.write(start, bytes(content))
                    start, content = start + len(content), bytearray()
                if abort is not None and abort.is_set():
                    raise Unreachable("stopped")
        except ChangedFile as error:
            raise ChangedFile(f"{error}: delete {kept.folder} to begin anew") from error
        finally:
            if content:
                kept.write(start, bytes(content))

    def _agree(self, known: Known) -> RemoteState:
        """Keep what an answer told of the file; another thread or process may have been told first, of another file.

        Raises:
            ChangedFile
        """
        assert known.state is not None
        told, known.state = known.state, self.kept().remember(known.state)
        known.compare(self.url, told)
        return known.state


Place = Path | RemotePath  # where a file is


class _Seekable(io.RawIOBase):
    def __init__(self, remote: RemotePath) -> None:
        self._remote = remote
        self._size = remote.size()
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self._at + len(buffer), self._size)
        content = self._remote.read(self._at, stop)
        buffer[: len(content)] = content
        self._at = max(self._at, stop)
        return len(content)


@lru_cache(maxsize=4096)
def _range_cache(cache: Path, url: str) -> RangeCache:
    host = re.sub(r"[^A-Za-z0-9.-]", "_", urlsplit(url).netloc)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", url.rpartition("/")[2])[-60:]
    return RangeCache(cache / host / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}", url)
