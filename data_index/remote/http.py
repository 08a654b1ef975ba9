"""Ranges of files over HTTP. With the hub's own library, the only network IO.

A request that fails midway goes on where it stopped; a server that is busy is asked again after a pause that doubles.
An answer is taken only if it says that it is what was asked for: this range, of a file of this size, unchanged. What
cannot be told from an answer itself (other bytes in the right number) is for hashes to tell.

Source: RFC 9110, sections 13 (If-Match), 14 (ranges), 15 (status codes) and 10.2.3 (Retry-After)
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from data_index.errors import AccessDenied, ChangedFile, CorruptFile, MissingFile, Offline, Unreachable

# Failures in a row without a byte gained, after which a server is given up.
MAX_FAILURES = 6
BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.25, 60.0
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
PARALLEL_REQUESTS = 16
CHUNK_BYTES = 256 * 1024
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class Traffic:
    """What this process asked of servers, and what came: bodies only, those of failed answers too."""

    def __init__(self) -> None:
        self.num_requests = 0
        self.num_bytes = 0
        self._lock = threading.Lock()

    def add(self, *, requests: int = 0, num_bytes: int = 0) -> None:
        with self._lock:
            self.num_requests += requests
            self.num_bytes += num_bytes


TRAFFIC = Traffic()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteState:
    """What a server says of a file without sending it. `etag` is empty where it names none."""

    num_bytes: int
    etag: str = ""
    modified: str = ""


class _Busy(Exception):
    """An answer that may be another one later."""

    def __init__(self, said: str, wait_seconds: float | None = None) -> None:
        super().__init__(said)
        self.wait_seconds = wait_seconds


def is_offline() -> bool:
    """Did the user forbid the network? The hub's own switch; it counts for every server here."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


_pool: Any = None
_pool_lock = threading.Lock()


def _connections() -> Any:
    global _pool
    with _pool_lock:
        if _pool is None:
            import urllib3

            _pool = urllib3.PoolManager(num_pools=32, maxsize=PARALLEL_REQUESTS)
        return _pool


def head(url: str, headers: Mapping[str, str]) -> RemoteState:
    """Ask for a file's size and tag.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
    """
    failures = _Failures(url)
    while True:
        try:
            with _answer("HEAD", url, headers) as answer:
                if answer.status in (405, 501):  # no HEAD here: one byte tells the same
                    break
                _require_ok(answer, url)
                return _state_of_headers(answer.headers, url)
        except _Busy as busy:
            failures.wait(busy)
    known = Known()
    for _ in get_range(url, 0, 1, headers, known):
        pass
    assert known.state is not None
    return known.state


@dataclass(slots=True)
class Known:
    """What a file was when it was first looked at; an answer fills in what was not known.

    Attributes:
        tags: compare tags. Where an address names its content, a tag is only that of some machine which served it.
    """

    state: RemoteState | None = None
    tags: bool = True

    def compare(self, url: str, now: RemoteState) -> None:
        """
        Raises:
            ChangedFile
        """
        before = self.state or now
        tagged = self.tags and before.etag and now.etag
        if now.num_bytes != before.num_bytes or (tagged and _opaque(now.etag) != _opaque(before.etag)):
            raise ChangedFile(
                f"{url} changed: it has {now.num_bytes:,} bytes and the tag {now.etag or 'none'}; when it was first "
                f"looked at it had {before.num_bytes:,} and {before.etag or 'none'}. What was fetched before does not "
                "go with it"
            )
        self.state = before if before.etag else replace(now, num_bytes=before.num_bytes)


def get_range(url: str, start: int, stop: int, headers: Mapping[str, str], known: Known) -> Iterator[bytes]:
    """Bytes [start, stop) of a file, in order, in pieces. One request, unless it breaks off.

    Args:
        known: an answer that contradicts it is refused.
    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
        ChangedFile: size or tag differ from `known`.
        CorruptFile: the server has fewer bytes, or sends another range than it was asked for.
    """
    failures = _Failures(url)
    while start < stop:
        try:
            with _answer("GET", url, {**headers, "Range": f"bytes={start}-{stop - 1}"}) as answer:
                expected = _check_answer(answer, url, start, stop, known)
                for piece in answer.stream(CHUNK_BYTES):
                    TRAFFIC.add(num_bytes=len(piece))
                    if len(piece) > expected - start:
                        raise CorruptFile(f"{url} sent more than the bytes {start}-{stop - 1} that were asked for")
                    start += len(piece)
                    failures.in_a_row = 0
                    yield piece
                if start < expected:
                    raise _Busy(f"the answer ended {expected - start:,} bytes early")
        except _Busy as busy:
            failures.wait(busy)


class _Failures:
    """Counts failures without progress, and waits longer after each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.in_a_row = 0

    def wait(self, busy: _Busy) -> None:
        """
        Raises:
            Unreachable: that was once too often.
        """
        self.in_a_row += 1
        if self.in_a_row >= MAX_FAILURES:
            raise Unreachable(
                f"{self.url}: {busy}, {self.in_a_row} times in a row; what was fetched is kept, and the same command "
                "goes on from there"
            ) from busy
        # Jitter, so that parallel requests do not come back together.
        doubled = BACKOFF_SECONDS * 2 ** (self.in_a_row - 1) * random.uniform(0.75, 1.25)
        time.sleep(min(max(doubled, busy.wait_seconds or 0.0), MAX_BACKOFF_SECONDS))


@contextmanager
def _answer(method: str, url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """An open answer, its body not read; errors of the connection become `_Busy`."""
    import urllib3

    if is_offline():
        raise Offline(f"{url} is not kept here, and HF_HUB_OFFLINE is set: unset it to fetch what is missing")
    if urlsplit(url).scheme not in ("http", "https"):
        raise Unreachable(f"{url} is no address of http or https")
    TRAFFIC.add(requests=1)
    answer = None
    try:
        answer = _connections().request(
            method,
            url,
            # A range counts bytes of the file, not of a packed form of it.
            headers={"User-Agent": "checkpoint-forensics", "Accept-Encoding": "identity", **headers},
            preload_content=False,
            decode_content=False,
            # Redirects are followed; a token is not taken along to another host.
            retries=urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5),
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        )
        yield answer
        answer.drain_conn() if method == "HEAD" else None
        answer.release_conn()
        answer = None
    except urllib3.exceptions.LocationValueError as error:
        raise Unreachable(f"{url} is no address: {error}") from error
    except urllib3.exceptions.HTTPError as error:
        raise _Busy(_short(error)) from error
    finally:
        if answer is not None:
            answer.close()  # a body left unread cannot be followed by another answer


def _short(error: Exception) -> str:
    """urllib3 wraps the reason in its own requests' words."""
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}"[:300]


def _require_ok(answer: Any, url: str) -> None:
    """
    Raises:
        MissingFile, AccessDenied, Unreachable, _Busy
    """
    status = answer.status
    if status in (200, 206):
        return
    if status in (404, 410):
        raise MissingFile(f"{url} is not there (the server answers {status})")
    if status in (401, 403):
        raise AccessDenied(
            f"{url} is not for everyone (the server answers {status}): accept its terms on its page if it has any, and "
            "give a token with HF_TOKEN or hf auth login"
        )
    if status in _BUSY:
        raise _Busy(f"the server answers {status}", _retry_after(answer.headers.get("Retry-After")))
    raise Unreachable(f"{url}: the server answers {status}, which is no answer to a read")


def _retry_after(text: str | None) -> float | None:
    """Seconds only: a date would need both clocks to agree."""
    return float(text) if text and re.fullmatch(r"\d{1,6}", text.strip()) else None


def _state_of_headers(headers: Mapping[str, str], url: str) -> RemoteState:
    size = headers.get("Content-Length")
    if size is None or not re.fullmatch(r"\d{1,18}", size):
        raise Unreachable(f"{url}: the server does not say how many bytes it has")
    return RemoteState(num_bytes=int(size), etag=headers.get("ETag") or "", modified=headers.get("Last-Modified") or "")


def _check_answer(answer: Any, url: str, start: int, stop: int, known: Known) -> int:
    """Is this the range? Returns the byte before which the answer ends; a server may send less than was asked for.

    Raises:
        MissingFile, AccessDenied, Unreachable, ChangedFile, CorruptFile, _Busy
    """
    if answer.status == 416:
        raise CorruptFile(f"{url} does not reach to byte {stop:,}: it is shorter than it was said to be")
    _require_ok(answer, url)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise Unreachable(f"{url}: the server packs its answers, so that ranges cannot be told")
    first, last, total = _range_of(answer, url, stop if start == 0 else None)
    if first != start or not start <= last < stop:
        raise _Busy(f"the server sent the bytes {first}-{last} when asked for {start}-{stop - 1}")
    etag, modified = answer.headers.get("ETag") or "", answer.headers.get("Last-Modified") or ""
    known.compare(url, RemoteState(num_bytes=total, etag=etag, modified=modified))
    return last + 1


def _range_of(answer: Any, url: str, whole: int | None) -> tuple[int, int, int]:
    """First and last byte of an answer, and the size of the file.

    Args:
        whole: the size at which a file sent whole is what was asked for.
    """
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range") or "")
        if match is None or match[3] == "*":
            raise Unreachable(f"{url}: the server does not say which range of how many bytes it sends")
        return int(match[1]), int(match[2]), int(match[3])
    if answer.headers.get("Content-Length") != str(whole):
        raise Unreachable(f"{url}: the server ignores ranges, and would send the whole file; nothing was taken")
    return 0, int(whole or 0) - 1, int(whole or 0)


def _opaque(etag: str) -> str:
    """Servers on one file may call a tag weak or strong."""
    return etag.removeprefix("W/").strip('"')
