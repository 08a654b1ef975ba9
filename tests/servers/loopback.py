"""A real HTTP/1.1 server on loopback: connections that are kept, a log of what was asked, faults planted by path.

What a path holds is up to the server that builds on it (`find`); what HTTP makes of that is in `exchange`.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tests.servers.exchange import Answer, Asked, Resource, answer_about
from tests.servers.faults import Fault, Fine

CHUNK_BYTES = 64 * 1024
WITHOUT_BODY = (204, 304)


@dataclass(slots=True, kw_only=True)
class Request:
    """One line of a server's log.

    Attributes:
        range: the Range header as sent. headers: all that came, names in lower case.
        status: 0 where the connection was closed without an answer.
        body_bytes: of the answer, as far as they were sent; still growing while they are.
    """

    method: str
    path: str
    range: str | None
    headers: Mapping[str, str]
    status: int
    body_bytes: int = 0


class LoopbackServer:
    """Serves on 127.0.0.1 at a port of its own while a `with` block lasts."""

    def __init__(self) -> None:
        self.log: list[Request] = []
        self.num_connections = 0
        self.errors: list[BaseException] = []
        self.stopping = threading.Event()
        self._faults: dict[str, deque[tuple[Fault, str | None, bool]]] = {}
        self._lock = threading.Lock()
        self._http = _Server(self)

    def find(self, asked: Asked) -> Resource | Answer:
        """What a path holds, or another answer."""
        raise NotImplementedError

    # --- for tests ---------------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """http://127.0.0.1:PORT"""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def url(self, path: str) -> str:
        """Where a path is; it starts with a slash."""
        return self.address + quote(path)

    def plant(self, path: str, *faults: Fault, forever: bool = False, method: str | None = None) -> None:
        """Spoil the next answers about a path, one fault an answer in this order.

        Args:
            path: decoded, without a query; for a revision with a slash, what the slash decodes to.
            forever: the last of them stays.
            method: only answers to it take these faults; others pass meanwhile.
        """
        queue = self._faults.setdefault(path, deque())
        for number, fault in enumerate(faults, start=1):
            queue.append((fault, method, forever and number == len(faults)))

    def heal(self) -> None:
        """Forget every planted fault."""
        self._faults.clear()

    @property
    def num_requests(self) -> Counter[str]:
        """By method."""
        return Counter(request.method for request in self.log)

    @property
    def body_bytes(self) -> int:
        """Of all answers together."""
        return sum(request.body_bytes for request in self.log)

    def requests_of(self, path: str, method: str | None = None) -> list[Request]:
        return [request for request in self.log if request.path == path and method in (None, request.method)]

    def wait_for_bytes(self, num_bytes: int, seconds: float = 10.0) -> None:
        """Until so many bytes of bodies were sent: the moment to kill who downloads them.

        Raises:
            TimeoutError
        """
        end = time.monotonic() + seconds
        while self.body_bytes < num_bytes:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.body_bytes} of {num_bytes} bytes were sent in {seconds} s")
            time.sleep(0.005)

    # --- its life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Stop, whoever is still connected; what went wrong in the server itself is raised here."""
        self.stopping.set()
        self._http.shutdown()
        self._http.hang_up()
        self._http.server_close()
        if self.errors and kind is None:
            raise self.errors[0]

    def respond(self, asked: Asked) -> Answer:
        fault, found = self._take(asked), self.find(asked)
        if isinstance(found, Answer):
            return fault.answer(found, asked, None)
        found = fault.resource(found)
        return fault.answer(answer_about(found, asked), asked, found)

    def _take(self, asked: Asked) -> Fault:
        with self._lock:
            queue = self._faults.get(asked.path)
            if not queue or queue[0][1] not in (None, asked.method):
                return Fine()
            fault, _, forever = queue[0]
            if not forever:
                queue.popleft()
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    request_queue_size = 64

    def __init__(self, owner: LoopbackServer) -> None:
        self.owner = owner
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        self.owner.num_connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Connections that are kept would be waited for until their clients end."""
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # gone already
                pass

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.owner.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        asked = self._asked()
        answer = self.server.owner.respond(asked)
        entry = Request(
            method=asked.method,
            path=asked.path,
            range=asked.headers.get("range"),
            headers=asked.headers,
            status=answer.status,
        )
        # Before anything is sent: who has the answer may look at the log at once.
        self.server.owner.log.append(entry)
        try:
            self._send(answer, entry)
        except OSError:  # the client went away
            self.close_connection = True

    do_HEAD = do_GET

    def _asked(self) -> Asked:
        parts = urlsplit(self.path)
        return Asked(
            method=self.command,
            path=unquote(parts.path),
            raw_path=parts.path,
            query=dict(parse_qsl(parts.query)),
            headers={name.lower(): value for name, value in self.headers.items()},
        )

    def _send(self, answer: Answer, entry: Request) -> None:
        self._wait(answer.seconds_before)
        if answer.status == 0:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | dict(answer.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or answer.status in WITHOUT_BODY:
            return
        self._send_body(answer, entry)
        if answer.stop_after is not None:
            self._end(answer.reset)

    def _send_body(self, answer: Answer, entry: Request) -> None:
        body, chunk_bytes = answer.body[: answer.stop_after], CHUNK_BYTES
        if answer.bytes_per_second is not None:
            chunk_bytes = max(int(answer.bytes_per_second / 50), 1)
        half = len(body) // 2
        for part, seconds in ((body[:half], answer.seconds_inside), (body[half:], 0.0)):
            for start in range(0, len(part), chunk_bytes):
                chunk = part[start : start + chunk_bytes]
                entry.body_bytes += len(chunk)
                self.wfile.write(chunk)
                self._wait(len(chunk) / answer.bytes_per_second if answer.bytes_per_second else 0.0)
            self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        if seconds and self.server.owner.stopping.wait(seconds):
            raise ConnectionAbortedError("the server stops")

    def _end(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            # Without a goodbye: linger for no time, and keep the socket from being shut down in order.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def log_message(self, format: str, *args: object) -> None:
        """The log is the server's list."""
