"""What a client asked, what a path holds, and the answer that HTTP gives: ranges and conditions, no sockets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus

_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")
START_OF_TIME = formatdate(1_700_000_000, usegmt=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as it came.

    Attributes:
        path: decoded, without the query. raw_path: as sent, which tells a slash inside a revision's name from others.
        headers: names in lower case.
    """

    method: str
    path: str
    raw_path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What a path holds. `etag` is strong and in quotes; `headers` come with every answer about it."""

    content: bytes
    etag: str
    modified: str = START_OF_TIME
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, and how the connection treats it on its way.

    Attributes:
        status: 0 closes the connection without any answer.
        headers: Content-Length is the body's unless it is here.
        seconds_before, seconds_inside: waited before the status line, and in the middle of the body.
        stop_after: bytes of the body after which the connection ends; the headers promise all of it.
        reset: it ends as by a crash (RST), not by a goodbye (FIN).
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds_before: float = 0.0
    seconds_inside: float = 0.0
    bytes_per_second: float | None = None
    stop_after: int | None = None
    reset: bool = False


def resource_of(content: bytes, *, modified: str = START_OF_TIME, **headers: str) -> Resource:
    """A resource named by the hash of its content; `Content_Type="…"` is the header Content-Type."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Resource(content=content, etag=f'"{hashlib.sha256(content).hexdigest()}"', modified=modified, headers=named)


def refusal(status: int, **headers: str) -> Answer:
    """An answer that says no more than its status; `Retry_After="1"` is the header Retry-After."""
    headers = {"Content-Type": "text/plain"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, headers=headers, body=HTTPStatus(status).phrase.encode())


def answer_about(resource: Resource, asked: Asked) -> Answer:
    """What an honest server says about a resource: whole, a range of it, or that a condition does not hold.

    Source: RFC 9110, 13 (conditions) and 14 (ranges); several ranges at once may be ignored, and are.
    """
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        "ETag": resource.etag,
        "Last-Modified": resource.modified,
        **resource.headers,
    }
    if not _matches(asked.headers.get("if-match", "*"), resource.etag):
        return refusal(412, ETag=resource.etag)
    if _matches(asked.headers.get("if-none-match", ""), resource.etag):
        return Answer(status=304, headers=headers)
    span = _span(resource, asked)
    if span is None:
        return Answer(status=200, headers=headers, body=resource.content)
    size = len(resource.content)
    if not span:
        return refusal(416, Content_Range=f"bytes */{size}", ETag=resource.etag)
    headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
    return Answer(status=206, headers=headers, body=resource.content[span.start : span.stop])


def span_asked(header: str, size: int) -> range | None:
    """Bytes that a Range header asks for; empty where the file has none of them, None where the header is ignored."""
    match = _RANGE.match(header.replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return range(max(size - int(match[2]), 0), size)
    first, last = int(match[1]), int(match[2]) if match[2] else max(size - 1, int(match[1]))
    return range(first, min(last + 1, size)) if last >= first else None


def _span(resource: Resource, asked: Asked) -> range | None:
    """The range that the answer is about; None for all of it. GET is the only method that knows ranges."""
    header = asked.headers.get("range")
    if header is None or asked.method != "GET":
        return None
    if asked.headers.get("if-range", resource.etag) not in (resource.etag, resource.modified):
        return None
    return span_asked(header, len(resource.content))


def _matches(condition: str, etag: str) -> bool:
    return etag in [tag.strip() for tag in condition.split(",")] or condition.strip() == "*"
