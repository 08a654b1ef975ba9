"""Connections to servers: one pool for the process, proxies, redirects, what may be tried again, what it all cost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from data_index.errors import Offline, Unreachable

PARALLEL_REQUESTS = 16
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
MAX_REDIRECTS = 5
# A host that was just given up is tried once, not again and again: else a run's hundred files would each wait for it.
GIVEN_UP_SECONDS = 60.0


class Traffic:
    """What this process asked of servers, and what came: bodies only, broken ones too.

    What the hub's own library asks and downloads is counted by call and by file.
    """

    def __init__(self) -> None:
        self.num_requests = 0
        self.num_bytes = 0
        self._lock = threading.Lock()

    def add(self, *, requests: int = 0, num_bytes: int = 0) -> None:
        with self._lock:
            self.num_requests += requests
            self.num_bytes += num_bytes


TRAFFIC = Traffic()
_given_up: dict[str, float] = {}


class Busy(Exception):
    """An answer that may be another one later."""

    def __init__(self, said: str, wait_seconds: float | None = None, *, connected: bool = True) -> None:
        super().__init__(said)
        self.wait_seconds = wait_seconds
        self.connected = connected


def is_offline() -> bool:
    """Did the user forbid the network? The hub's own switches; they count for every server here."""
    switches = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(switch in ("1", "ON", "YES", "TRUE") for switch in switches)


def give_up(url: str) -> None:
    _given_up[urlsplit(url).netloc] = time.monotonic()


def is_given_up(url: str) -> bool:
    since = _given_up.get(urlsplit(url).netloc)
    return since is not None and time.monotonic() - since < GIVEN_UP_SECONDS


@cache
def _pool(proxy: str | None) -> Any:
    import urllib3

    if proxy is None:
        return urllib3.PoolManager(num_pools=32, maxsize=PARALLEL_REQUESTS)
    return urllib3.ProxyManager(proxy, num_pools=32, maxsize=PARALLEL_REQUESTS)


def _pool_for(url: str) -> Any:
    address = urlsplit(url)
    proxy = getproxies().get(address.scheme)
    return _pool(None if proxy is None or proxy_bypass(address.hostname or "") else proxy)


@contextmanager
def answer_to(method: str, url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """An open answer, its body not read; what goes wrong with the connection becomes `Busy`.

    Raises:
        Offline, Unreachable, Busy
    """
    import urllib3

    if is_offline():
        raise Offline(f"{url} is not kept here, and HF_HUB_OFFLINE is set: unset it to fetch what is missing")
    if urlsplit(url).scheme not in ("http", "https"):
        raise Unreachable(f"{url} is no address of http or https")
    TRAFFIC.add(requests=1)
    answer = None
    try:
        answer = _request(method, url, headers)
        _given_up.pop(urlsplit(url).netloc, None)
        yield answer
        if method == "HEAD":
            answer.drain_conn()
        answer.release_conn()
        answer = None
    except urllib3.exceptions.HTTPError as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, urllib3.exceptions.ResponseError):  # urllib3's word for redirects without end
            raise Unreachable(f"{url}: {reason}") from error
        raise Busy(f"{type(reason).__name__}: {reason}"[:300], connected=answer is not None) from error
    finally:
        if answer is not None:
            answer.close()  # a body left unread cannot be followed by another answer


def _request(method: str, url: str, headers: Mapping[str, str]) -> Any:
    import urllib3

    try:
        return _pool_for(url).request(
            method,
            url,
            # A range counts bytes of the file, not of a packed form of it.
            headers={"User-Agent": "checkpoint-forensics", "Accept-Encoding": "identity", **headers},
            preload_content=False,
            decode_content=False,
            # Redirects are followed; a token is not taken along to another host.
            retries=urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=MAX_REDIRECTS),
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        )
    except (urllib3.exceptions.LocationValueError, UnicodeError, ValueError) as error:
        raise Unreachable(f"{url}, or what it leads to, is no address: {error}") from error
