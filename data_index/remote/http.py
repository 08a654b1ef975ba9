"""Ranges of files over HTTP. With the hub's own library, the only network IO.

A request that fails midway goes on where it stopped; a server that is busy is asked again after a pause that doubles.
An answer is taken only if it says that it is what was asked for: this range, of a file of this size, unchanged. What
cannot be told from an answer itself (other bytes in the right number) is for hashes to tell.

Source: RFC 9110, sections 8.8 (ETag, Last-Modified), 10.2.3 (Retry-After), 14 (ranges) and 15 (status codes)
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data_index.errors import AccessDenied, ChangedFile, CorruptFile, IgnoresRanges, MissingFile, Unreachable
from data_index.remote.connection import TRAFFIC, Busy, answer_to, give_up, is_given_up

# Failures in a row without so many bytes gained, after which a server is given up.
MAX_FAILURES, LEAST_GAIN_BYTES = 6, 1024
BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.25, 60.0
# An answer that brings fewer than LEAST_GAIN_BYTES in so long has failed.
SLOW_SECONDS = 60.0
CHUNK_BYTES = 256 * 1024
# A file of a server without ranges that is worth fetching whole for a part of it.
SMALL_FILE_BYTES = 64 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteState:
    """What a server says of a file without sending it. `etag` is empty where it names none."""

    num_bytes: int
    etag: str = ""
    modified: str = ""


def head(url: str, headers: Mapping[str, str]) -> RemoteState:
    """Ask for a file's size and tag.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
    """
    failures = _Failures(url)
    while True:
        try:
            with answer_to("HEAD", url, headers) as answer:
                if answer.status not in (405, 501):
                    _require_ok(answer, url)
                    if (state := _state_of_headers(answer.headers)) is not None:
                        return state
                break  # no answer to HEAD here, or one without the size: one byte tells it
        except Busy as busy:
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
        other = self.tags and (
            _opaque(now.etag) != _opaque(before.etag)
            if before.etag and now.etag
            else bool(before.modified and now.modified and now.modified != before.modified)
        )
        if now.num_bytes != before.num_bytes or other:
            raise ChangedFile(
                f"{url} changed: it has {now.num_bytes:,} bytes and the tag {now.etag or now.modified or 'none'}; when "
                f"it was first looked at it had {before.num_bytes:,} and {before.etag or before.modified or 'none'}. "
                "What was fetched before does not go with it"
            )
        self.state = before if before.etag or before.modified else replace(now, num_bytes=before.num_bytes)


def get_range(
    url: str,
    start: int,
    stop: int,
    headers: Mapping[str, str],
    known: Known,
    abort: threading.Event | None = None,
) -> Iterator[bytes]:
    """Bytes [start, stop) of a file, in order, in pieces. One request, unless it breaks off.

    Args:
        known: an answer that contradicts it is refused.
    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
        ChangedFile: size or tag differ from `known`.
        CorruptFile: the server has fewer bytes, or sends another range than it was asked for.
    """
    failures = _Failures(url, abort)
    while start < stop:
        try:
            with answer_to("GET", url, {**headers, "Range": f"bytes={start}-{stop - 1}"}) as answer:
                skipped, expected = _check_answer(answer, url, start, stop, known)
                for piece in _pieces(answer, skipped):
                    if answer.status == 200:  # all of a small file: what lies behind the range is not wanted
                        piece = piece[: stop - start]
                    if len(piece) > expected - start:
                        raise CorruptFile(f"{url} sent more than the bytes {start}-{stop - 1} that were asked for")
                    start += len(piece)
                    failures.gained(len(piece))
                    yield piece
                    if start == stop and answer.status == 200:
                        answer.close()
                        break
                if start < expected:
                    raise Busy(f"the answer ended {expected - start:,} bytes early")
        except Busy as busy:
            failures.wait(busy)


def _pieces(answer: Any, skipped: int) -> Iterator[bytes]:
    """The body as it comes, without its first bytes, unless it comes too slowly.

    Raises:
        Busy
    """
    since, num_bytes = time.monotonic(), 0
    # read1 gives what came; read would wait for all of a piece, and lose it where the rest does not come.
    while piece := answer.read1(CHUNK_BYTES):
        TRAFFIC.add(num_bytes=len(piece))
        num_bytes += len(piece)
        if skipped:
            piece, skipped = piece[skipped:], max(skipped - len(piece), 0)
        if piece:
            yield piece
        if num_bytes >= LEAST_GAIN_BYTES:
            since, num_bytes = time.monotonic(), 0
        elif time.monotonic() - since > SLOW_SECONDS:
            raise Busy(f"{num_bytes} bytes came in {SLOW_SECONDS:.0f} s")


class _Failures:
    """Counts failures without progress, and waits longer after each."""

    def __init__(self, url: str, abort: threading.Event | None = None) -> None:
        self.url = url
        self.abort = abort or threading.Event()
        self.in_a_row = self.num_bytes = 0

    def gained(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self.num_bytes >= LEAST_GAIN_BYTES:
            self.in_a_row = self.num_bytes = 0

    def wait(self, busy: Busy) -> None:
        """
        Raises:
            Unreachable: that was once too often.
        """
        self.in_a_row += 1
        if self.in_a_row >= MAX_FAILURES or (not busy.connected and is_given_up(self.url)):
            if not busy.connected:
                give_up(self.url)
            raise Unreachable(
                f"{self.url}: {busy}, {self.in_a_row} times in a row; what was fetched is kept, and the same command "
                "goes on from there"
            ) from busy
        # Jitter, so that parallel requests do not come back together.
        doubled = BACKOFF_SECONDS * 2 ** (self.in_a_row - 1) * random.uniform(0.75, 1.25)
        if self.abort.wait(min(max(doubled, busy.wait_seconds or 0.0), MAX_BACKOFF_SECONDS)):
            raise Unreachable(f"{self.url}: {busy}; nobody waits for it any more") from busy


def _require_ok(answer: Any, url: str) -> None:
    """
    Raises:
        MissingFile, AccessDenied, Unreachable, Busy
    """
    status = answer.status
    if status in (200, 206):
        return
    if status in (404, 410):
        raise MissingFile(f"{url} is not there (the server answers {status})")
    if status in (401, 403):
        raise AccessDenied(
            f"{url} is not for everyone (the server answers {status}). On the hub: accept its terms on its page, and "
            "give a token with HF_TOKEN or hf auth login; elsewhere no token is sent"
        )
    if status in (408, 425, 429) or (500 <= status < 600 and status not in (501, 505)):
        raise Busy(f"the server answers {status}", _retry_after(answer.headers.get("Retry-After")))
    raise Unreachable(f"{url}: the server answers {status}, which is no answer to a read")


def _retry_after(text: str | None) -> float | None:
    """Seconds only: a date would need both clocks to agree."""
    return float(text) if text and re.fullmatch(r"\d{1,6}", text.strip()) else None


def _state_of_headers(headers: Mapping[str, str]) -> RemoteState | None:
    size = headers.get("Content-Length")
    if size is None or not re.fullmatch(r"\d{1,18}", size) or headers.get("Content-Encoding", "identity") != "identity":
        return None
    return RemoteState(num_bytes=int(size), etag=headers.get("ETag") or "", modified=headers.get("Last-Modified") or "")


def _check_answer(answer: Any, url: str, start: int, stop: int, known: Known) -> tuple[int, int]:
    """Is this the range? Returns how many bytes of the body come before it, and the byte before which the answer ends.

    A server may send less than was asked for.

    Raises:
        MissingFile, AccessDenied, Unreachable, ChangedFile, CorruptFile, Busy
    """
    if answer.status == 416:
        raise CorruptFile(f"{url} does not reach to byte {stop:,}: it is shorter than it was said to be")
    _require_ok(answer, url)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise Unreachable(f"{url}: the server packs its answers, so that ranges cannot be told")
    first, last, total = _range_of(answer, url, start, stop)
    etag, modified = answer.headers.get("ETag") or "", answer.headers.get("Last-Modified") or ""
    known.compare(url, RemoteState(num_bytes=total, etag=etag, modified=modified))
    if answer.status == 200:
        return start, min(total, stop)
    if first != start or not start <= last < stop:
        raise Busy(f"the server sent the bytes {first}-{last} when asked for {start}-{stop - 1}")
    return 0, last + 1


def _range_of(answer: Any, url: str, start: int, stop: int) -> tuple[int, int, int]:
    """First and last byte of an answer, and the size of the file."""
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range") or "")
        if match is None or match[3] == "*":
            raise Unreachable(f"{url}: the server does not say which range of how many bytes it sends")
        return int(match[1]), int(match[2]), int(match[3])
    size = answer.headers.get("Content-Length") or ""
    whole = size.isdecimal() and (int(size) <= SMALL_FILE_BYTES or (start == 0 and int(size) == stop))
    if not whole:
        raise IgnoresRanges(f"{url}: the server ignores ranges, and would send the whole file; nothing was taken")
    return 0, int(size) - 1, int(size)


def _opaque(etag: str) -> str:
    """Servers on one file may call a tag weak or strong."""
    return etag.removeprefix("W/").strip('"')
