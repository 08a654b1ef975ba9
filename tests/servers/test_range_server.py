"""The file server that other tests start behaves as a real one does, and spoils answers as it is told to."""

import hashlib
import http.client
import time
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from urllib3.exceptions import IncompleteRead, ProtocolError, ReadTimeoutError

from tests.servers.exchange import span_asked
from tests.servers.faults import (
    BrokenConnection,
    ChangedEtag,
    Fine,
    IgnoresRange,
    NotFound,
    Redirect,
    ServerError,
    Slow,
    Throttle,
    TooManyRequests,
    TruncatedBody,
    WrongContent,
    WrongRange,
    WrongSize,
    inverted,
)
from tests.servers.range_server import RangeServer

CONTENT = bytes(range(256)) * 4
PATH = "/data/some file.bin"


class Client:
    """A client that neither retries nor follows."""

    def __init__(self, server: RangeServer) -> None:
        self.server = server
        self.pool = urllib3.PoolManager(retries=False, timeout=5.0)

    def ask(self, method: str = "GET", path: str = PATH, timeout: float = 5.0, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.pool.request(method, self.server.url(path), headers=named, timeout=timeout, redirect=False)


@pytest.fixture
def client(range_server: RangeServer) -> Iterator[Client]:
    range_server.files[PATH] = CONTENT
    client = Client(range_server)
    yield client
    client.pool.clear()


# --- what it serves ------------------------------------------------------------------------------------------------


def test_a_file_comes_whole_with_what_names_it(client: Client) -> None:
    whole, head = client.ask(), client.ask("HEAD")

    assert (whole.status, whole.data, head.status, head.data) == (200, CONTENT, 200, b"")
    assert whole.headers["ETag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    assert (head.headers["Content-Length"], head.headers["Accept-Ranges"]) == ("1024", "bytes")
    same = ("ETag", "Last-Modified", "Content-Length")
    assert [whole.headers[name] for name in same] == [head.headers[name] for name in same]
    assert client.ask(path="/none").status == 404


@pytest.mark.parametrize(
    ("asked", "said", "part"),
    [
        ("bytes=0-0", "bytes 0-0/1024", CONTENT[:1]),
        ("bytes=10-19", "bytes 10-19/1024", CONTENT[10:20]),
        ("bytes=1000-", "bytes 1000-1023/1024", CONTENT[1000:]),
        ("bytes=1000-9999", "bytes 1000-1023/1024", CONTENT[1000:]),
        ("bytes=-24", "bytes 1000-1023/1024", CONTENT[1000:]),
        ("bytes=-9999", "bytes 0-1023/1024", CONTENT),
    ],
)
def test_a_range_comes_as_asked(asked: str, said: str, part: bytes, client: Client) -> None:
    answer = client.ask(Range=asked)

    assert (answer.status, answer.headers["Content-Range"], answer.data) == (206, said, part)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_that_the_file_has_nothing_of_is_416(asked: str, client: Client) -> None:
    answer = client.ask(Range=asked)

    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */1024")


@pytest.mark.parametrize("asked", ["bytes=9-3", "bytes=-", "bytes=0-1,4-5", "rows=0-1", "bytes=x-"])
def test_a_range_that_says_nothing_is_ignored(asked: str, client: Client) -> None:
    assert client.ask(Range=asked).status == 200
    assert span_asked(asked, 1024) is None


def test_conditions_are_held_against_what_lies_there_now(client: Client) -> None:
    first = client.ask("HEAD")
    tag, modified = first.headers["ETag"], first.headers["Last-Modified"]

    assert client.ask(Range="bytes=0-9", If_Match=tag).data == CONTENT[:10]
    assert client.ask(Range="bytes=0-9", If_Range=tag).status == 206
    assert client.ask(Range="bytes=0-9", If_Range=modified).status == 206
    assert client.ask(If_None_Match=tag).status == 304
    assert client.ask("HEAD", Range="bytes=0-9").status == 200
    client.server.files[PATH] = b"something else"
    assert client.ask(Range="bytes=0-9", If_Match=tag).status == 412
    assert client.ask(Range="bytes=0-9", If_Range=tag).data == b"something else"
    assert client.ask(If_None_Match=tag).status == 200


def test_the_log_knows_what_was_asked_over_one_kept_connection(client: Client) -> None:
    for first in range(5):
        client.ask(Range=f"bytes={first}-{first + 9}", User_Agent="someone")
    client.ask("HEAD")

    server = client.server
    assert (server.num_requests, server.body_bytes, server.num_connections) == ({"GET": 5, "HEAD": 1}, 50, 1)
    seen = server.log[2]
    assert (seen.method, seen.path, seen.range, seen.status, seen.body_bytes) == ("GET", PATH, "bytes=2-11", 206, 10)
    assert seen.headers["user-agent"] == "someone"
    assert server.requests_of(PATH, "HEAD") == server.log[5:]


def test_a_server_stops_while_clients_are_connected_or_waiting() -> None:
    with RangeServer({PATH: CONTENT}) as server:
        client = Client(server)
        client.ask()
        server.plant(PATH, Slow(before=60))
        with pytest.raises(ReadTimeoutError):
            client.ask(timeout=0.05)
        start = time.monotonic()
    assert time.monotonic() - start < 2
    client.pool.clear()


def test_what_goes_wrong_in_a_server_fails_the_test() -> None:
    server = RangeServer({PATH: "no bytes"})  # type: ignore[dict-item]
    with pytest.raises(TypeError), server:
        client = Client(server)
        with pytest.raises(ProtocolError):
            client.ask()
        client.pool.clear()


# --- its faults ------------------------------------------------------------------------------------------------------


def test_faults_come_in_the_order_in_which_they_were_planted(client: Client) -> None:
    client.server.plant(PATH, ServerError(503), Fine(), TooManyRequests(retry_after=7), NotFound("EntryNotFound"))

    answers = [client.ask() for _ in range(5)]

    assert [answer.status for answer in answers] == [503, 200, 429, 404, 200]
    assert answers[2].headers["Retry-After"] == "7"
    assert answers[3].headers["X-Error-Code"] == "EntryNotFound"


def test_the_last_fault_may_stay_and_a_fault_may_be_for_one_method(client: Client) -> None:
    client.server.plant(PATH, NotFound(), ServerError(), forever=True)
    assert [client.ask().status for _ in range(4)] == [404, 500, 500, 500]
    client.server.heal()
    client.server.plant(PATH, ServerError(), method="GET")
    assert [client.ask(method).status for method in ("HEAD", "HEAD", "GET", "GET")] == [200, 200, 500, 200]


def test_a_wrong_range_says_so_or_lies(client: Client) -> None:
    client.server.plant(PATH, WrongRange(shift=3), WrongRange(shift=3, lies=True), IgnoresRange())

    honest, lying, ignoring = (client.ask(Range="bytes=10-19") for _ in range(3))

    assert (honest.status, honest.headers["Content-Range"], honest.data) == (206, "bytes 13-22/1024", CONTENT[13:23])
    assert (lying.headers["Content-Range"], lying.data) == ("bytes 10-19/1024", CONTENT[13:23])
    assert (ignoring.status, ignoring.data, "Content-Range" in ignoring.headers) == (200, CONTENT, False)


def test_other_content_with_and_without_another_name(client: Client) -> None:
    tag = client.ask("HEAD").headers["ETag"]
    client.server.plant(PATH, ChangedEtag(), ChangedEtag(), WrongContent(), WrongContent(at=5), WrongSize(more=-4))

    changed = client.ask()
    assert (changed.data, changed.headers["ETag"] == tag) == (inverted(CONTENT), False)
    assert client.ask(Range="bytes=0-9", If_Match=tag).status == 412
    wrong, one, short = (client.ask() for _ in range(3))
    assert {answer.headers["ETag"] for answer in (wrong, one, short)} == {tag}
    assert (len(wrong.data), wrong.data[0], wrong.data == CONTENT) == (1024, 255, False)
    assert [n for n, (a, b) in enumerate(zip(one.data, CONTENT, strict=True)) if a != b] == [5]
    assert short.data == CONTENT[:-4]
    client.server.plant(PATH, WrongSize())
    assert client.ask(Range="bytes=0-9").headers["Content-Range"] == "bytes 0-9/1025"


def test_a_truncated_body_ends_before_what_was_promised(client: Client) -> None:
    client.server.plant(PATH, TruncatedBody(100))

    answer = client.pool.request("GET", client.server.url(PATH), preload_content=False)
    with pytest.raises(ProtocolError) as caught:
        answer.read()

    assert answer.headers["Content-Length"] == "1024"
    assert isinstance(caught.value.args[1], IncompleteRead | http.client.IncompleteRead)
    assert client.server.log[0].body_bytes == 100
    assert client.ask().data == CONTENT


def test_a_broken_connection_is_closed_or_reset(client: Client) -> None:
    client.server.plant(PATH, BrokenConnection(), BrokenConnection(after=100))

    with pytest.raises(ProtocolError, match="Remote end closed connection without response"):
        client.ask()
    with pytest.raises(ProtocolError, match="reset"):
        client.ask()

    assert [(seen.status, seen.body_bytes) for seen in client.server.log] == [(0, 0), (200, 100)]
    assert client.ask().data == CONTENT


def test_slowness_lies_before_the_answer_or_inside_it(client: Client) -> None:
    client.server.plant(PATH, Slow(before=0.3), Slow(inside=0.3), Throttle(bytes_per_second=4096))

    with pytest.raises(ReadTimeoutError):
        client.ask(timeout=0.1)
    answer = client.pool.request("GET", client.server.url(PATH), preload_content=False, timeout=0.1)
    with pytest.raises(ReadTimeoutError):
        answer.read()
    start = time.monotonic()
    assert client.ask().data == CONTENT
    assert time.monotonic() - start > 0.2


def test_bytes_under_way_can_be_waited_for(client: Client) -> None:
    """As a test does that kills a download."""
    client.server.plant(PATH, Throttle(bytes_per_second=4096))

    answer = client.pool.request("GET", client.server.url(PATH), preload_content=False)
    client.server.wait_for_bytes(300)
    answer.close()

    assert 300 <= client.server.body_bytes < 1024
    with pytest.raises(TimeoutError, match="of 5000 bytes were sent in 0.01 s"):
        client.server.wait_for_bytes(5000, seconds=0.01)


def test_a_redirect_leads_elsewhere(client: Client) -> None:
    client.server.plant(PATH, Redirect("/other"))

    answer = client.ask()

    assert (answer.status, answer.headers["Location"]) == (302, "/other")
