"""What can go wrong between a file and who asked for it: small records that spoil one honest answer.

A fault changes what the path seems to hold before the answer is made (`resource`), or the answer itself (`answer`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.servers.exchange import Answer, Asked, Resource, refusal, resource_of, span_asked


@dataclass(frozen=True)
class Fault:
    """No fault at all: in a queue it lets one request pass."""

    def resource(self, resource: Resource) -> Resource:
        return resource

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        """
        Args:
            resource: what the answer is about; None where it is a refusal or a redirect.
        """
        return answer


@dataclass(frozen=True)
class Fine(Fault):
    """Let one request pass."""


# --- other answers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NotFound(Fault):
    """404, for a hub with what it says was not found: RepoNotFound, RevisionNotFound, EntryNotFound."""

    error_code: str | None = None

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        return refusal(404, **({"X_Error_Code": self.error_code} if self.error_code else {}))


@dataclass(frozen=True)
class TooManyRequests(Fault):
    """429, with the seconds to wait where the server says how long."""

    retry_after: int | None = None

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        return refusal(429, **({} if self.retry_after is None else {"Retry_After": str(self.retry_after)}))


@dataclass(frozen=True)
class ServerError(Fault):
    status: int = 500

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        return refusal(self.status)


@dataclass(frozen=True)
class Redirect(Fault):
    to: str
    status: int = 302

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        return refusal(self.status, Location=self.to)


# --- other ranges ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongRange(Fault):
    """206 with as many bytes as were asked for, from `shift` bytes further on (past the end, from the start again).

    Content-Range names the bytes that are sent, which may lie past the end; where the server `lies`, those asked for.
    """

    shift: int = 1
    lies: bool = False

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        if resource is None or answer.status != 206:
            return answer
        size, shift = len(resource.content), self.shift % len(resource.content)
        span = span_asked(asked.headers["range"], size)
        assert span is not None
        turned = resource.content[shift:] + resource.content[:shift]
        said = answer.headers["Content-Range"]
        if not self.lies:
            said = f"bytes {span.start + self.shift}-{span.stop - 1 + self.shift}/{size}"
        return replace(answer, headers={**answer.headers, "Content-Range": said}, body=turned[span.start : span.stop])


@dataclass(frozen=True)
class IgnoresRange(Fault):
    """200 with the whole file, as a server that knows no ranges."""

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        if resource is None or answer.status != 206:
            return answer
        headers = {name: value for name, value in answer.headers.items() if name != "Content-Range"}
        return replace(answer, status=200, headers=headers, body=resource.content)


# --- other content ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChangedEtag(Fault):
    """Another file has come to lie there: `content`, else as many other bytes. Conditions are held against its ETag."""

    content: bytes | None = None

    def resource(self, resource: Resource) -> Resource:
        content = inverted(resource.content) if self.content is None else self.content
        return replace(resource, content=content, etag=resource_of(content).etag)


@dataclass(frozen=True)
class WrongContent(Fault):
    """The right size, the right ETag, other bytes: all of them, or the one at `at`."""

    at: int | None = None

    def resource(self, resource: Resource) -> Resource:
        content = resource.content
        if self.at is None:
            return replace(resource, content=inverted(content))
        spoiled = content[: self.at] + inverted(content[self.at : self.at + 1]) + content[self.at + 1 :]
        return replace(resource, content=spoiled)


@dataclass(frozen=True)
class WrongSize(Fault):
    """The right ETag, `more` bytes more (fewer where negative) than the file has, in every header that says so."""

    more: int = 1

    def resource(self, resource: Resource) -> Resource:
        size = len(resource.content) + self.more
        return replace(resource, content=resource.content[:size].ljust(size, b"\0"))


def inverted(content: bytes) -> bytes:
    """As many bytes, each another."""
    return content.translate(bytes(range(255, -1, -1)))


# --- other connections -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TruncatedBody(Fault):
    """The headers promise all, `after` bytes of it come, and the connection ends politely."""

    after: int

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        return replace(answer, stop_after=self.after)


@dataclass(frozen=True)
class ShortBody(Fault):
    """The range that was asked for by its header, and a body of `num_bytes` with just that length."""

    num_bytes: int

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        return answer if resource is None else replace(answer, body=answer.body[: self.num_bytes])


@dataclass(frozen=True)
class BrokenConnection(Fault):
    """The connection ends without an answer; or it is reset after so many bytes of the body."""

    after: int | None = None

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        return Answer(status=0) if self.after is None else replace(answer, stop_after=self.after, reset=True)


@dataclass(frozen=True)
class Slow(Fault):
    """Seconds of silence before the answer, and in the middle of its body."""

    before: float = 0.0
    inside: float = 0.0

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        return replace(answer, seconds_before=self.before, seconds_inside=self.inside)


@dataclass(frozen=True)
class Throttle(Fault):
    """A body that takes its time, so that a test can kill who downloads it."""

    bytes_per_second: float

    def answer(self, answer: Answer, asked: Asked, resource: Resource | None) -> Answer:
        return replace(answer, bytes_per_second=self.bytes_per_second)
