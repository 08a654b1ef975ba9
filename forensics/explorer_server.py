"""The explorer's server: Streamlit in this process, every setting given here, none left to files of the user's.

`app` is found, not imported: it stands above this package.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from data_index.errors import AddressInUse, InvalidRange, MissingFile

FIRST_PORT, NUM_PORTS = 8501, 50
THIS_MACHINE, ALL_ADDRESSES = "127.0.0.1", "0.0.0.0"
SECONDS_TO_START = 60.0
ROOT_SCRIPT = b"<script>window.__streamlit = {BACKEND_BASE_URL: location.origin}</script>"

# Blue of Okabe and Ito, as in the pictures; grey surfaces, so that colour is left to the data.
LIGHT = {
    "primaryColor": "#0072B2",
    "backgroundColor": "#ffffff",
    "secondaryBackgroundColor": "#f3f5f7",
    "textColor": "#1c2127",
    "linkColor": "#00598c",
    "borderColor": "#d9dee3",
}
DARK = {
    "primaryColor": "#2A86C4",
    "backgroundColor": "#14181d",
    "secondaryBackgroundColor": "#1f252c",
    "textColor": "#e6e9ec",
    "linkColor": "#7cc4ee",
    "borderColor": "#363e47",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the explorer listens; `shared`: to other machines too."""

    port: int
    shared: bool

    @property
    def host(self) -> str:
        return ALL_ADDRESSES if self.shared else THIS_MACHINE

    @property
    def url(self) -> str:
        """For a browser on this machine."""
        return f"http://{THIS_MACHINE}:{self.port}"


def settings(address: Address) -> dict[str, Any]:
    """Every setting of Streamlit that matters, by its name."""
    found: dict[str, Any] = {
        "server.headless": True,  # else it asks for an e-mail address where the home is empty
        "server.address": address.host,
        "server.port": address.port,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "server.enableStaticServing": False,
        "server.enableXsrfProtection": True,
        "server.enableCORS": True,
        # Else a page of any site whose name is made to lead here would count as this explorer's own.
        "server.allowedHosts": [] if address.shared else [THIS_MACHINE, "localhost"],
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none" if address.shared else "full",
        "client.showErrorLinks": False,
        "global.developmentMode": False,
        "logger.hideWelcomeMessage": True,
        "logger.level": "warning",
        "runner.magicEnabled": False,
        "theme.font": "sans-serif",
        "theme.headingFontSizes": ["1.75rem", "1.3rem", "1.15rem", "1rem", "0.9rem", "0.85rem"],
        "theme.baseFontSize": 15,
        "theme.baseRadius": "4px",
        "theme.showWidgetBorder": True,
    }
    for name, colours in (("light", LIGHT), ("dark", DARK)):
        found |= {f"theme.{name}.{key}": colour for key, colour in colours.items()}
    return found


def main_script() -> Path:
    """The explorer's first file, as it is installed.

    Raises:
        MissingFile
    """
    found = find_spec("app")
    path = Path(found.origin).with_name("main.py") if found is not None and found.origin else Path("app/main.py")
    if not path.is_file():
        raise MissingFile(f"the explorer is not installed ({path} is not there): install checkpoint-forensics again")
    return path


def chosen_address(port: int | None, *, shared: bool) -> Address:
    """
    Args:
        port: None: the first free one from 8501 on.
    Raises:
        InvalidRange, AddressInUse
    """
    if port is not None and not 1 <= port <= 65_535:
        raise InvalidRange(f"--port takes 1 to 65535, not {port}")
    wanted = [port] if port is not None else list(range(FIRST_PORT, FIRST_PORT + NUM_PORTS))
    for number in wanted:
        address = Address(port=number, shared=shared)
        if _is_free(address):
            return address
    named = f"port {port} is" if port is not None else f"ports {wanted[0]} to {wanted[-1]} are"
    raise AddressInUse(
        f"{named} in use, perhaps by another explorer; choose another with --port N, or leave --port out and the first "
        f"free one from {FIRST_PORT} on is taken"
    )


def _is_free(address: Address) -> bool:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a closed one lingers
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            if error.errno == errno.EACCES:
                raise AddressInUse(f"port {address.port} is not for every user; choose one from 1024 on") from error
            return False
    return True


def serve(address: Address, *, browser: bool) -> None:
    """Answer until Ctrl-C.

    Args:
        browser: open one once the first page can be had.
    """
    from streamlit.starlette import App

    explorer = App(main_script(), middleware=[Middleware(KnowsItsRoot)])
    # The server ends in good order for either signal, and then raises it again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_import_early, daemon=True).start()
    with _opening(address) if browser else contextlib.nullcontext(), contextlib.suppress(KeyboardInterrupt):
        explorer.run(config=settings(address))


def _import_early() -> None:
    """What the first pages need, while the browser still loads them."""
    for module in ("duckdb", "pyarrow", "plotly.subplots", "plotly.graph_objects", "forensics.ribbon_picture"):
        import_module(module)


class KnowsItsRoot(BaseHTTPMiddleware):
    """Tells each page where the server's root is.

    Of a page `/run`, Streamlit's script first asks for a server at `/run/…`, and a browser logs each such question as
    an error. It asks nothing where the page says so, in the way that is meant for sites which show Streamlit inside
    theirs.
    """

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        if request.method != "GET" or "." in request.url.path or "/_stcore/" in request.url.path:
            return await call_next(request)  # a file, or a question to the server; all else is answered with the page
        # Else it comes compressed, or not at all.
        unwanted = (b"accept-encoding", b"if-none-match", b"if-modified-since", b"range")
        request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] not in unwanted]
        answer: Any = await call_next(request)
        page = b"".join([part async for part in answer.body_iterator]).replace(b"<head>", b"<head>" + ROOT_SCRIPT, 1)
        kept = {name: value for name, value in answer.headers.items() if name not in ("content-length", "etag")}
        return Response(page, answer.status_code, kept)


@contextlib.contextmanager
def _opening(address: Address) -> Iterator[None]:
    ended = threading.Event()
    threading.Thread(target=open_when_ready, args=(address.url, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def open_when_ready(url: str, ended: threading.Event) -> None:
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until and not ended.is_set():
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=2).close()
            webbrowser.open(url)
            return
        ended.wait(0.2)
