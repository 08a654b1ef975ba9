"""The explorer in a real browser: the system's Chromium, through Playwright."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_index.workspace import Workspace

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = "no Chromium is installed (Debian: apt-get install chromium)"
SECONDS = 60.0
AT_REST = "document.querySelector('[data-testid=stApp]')?.getAttribute('data-test-script-state') === 'notRunning'"
# Where a point of a line lies on the screen.
POINT = """([name, x]) => {
    const chart = document.querySelector('.js-plotly-plot');
    const line = chart._fullData.find(trace => trace.name === name);
    const [xAxis, yAxis] = [line.xaxis, line.yaxis].map(
        axis => chart._fullLayout[axis.replace(/^([xy])(.*)$/, '$1axis$2')]);
    const place = chart.getBoundingClientRect();
    const y = line.y[Array.from(line.x).indexOf(x)];
    return [place.x + xAxis._offset + xAxis.d2p(x), place.y + yAxis._offset + yAxis.d2p(y)];
}"""
LARGEST = """name => {
    const line = document.querySelector('.js-plotly-plot')._fullData.find(trace => trace.name === name);
    return Math.max(...Array.from(line.y).filter(value => value !== null && !isNaN(value)));
}"""


def chromium() -> str:
    """The browser's program; a test that needs it is skipped where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(NO_BROWSER)
    return found


@contextlib.contextmanager
def served(workspace: Workspace, *options: str) -> Iterator[str]:
    """`forensics app` on a workspace; its address."""
    program = Path(sys.executable).with_name("forensics")
    with socket.socket() as probe:  # two tests at once would choose the same first free one
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--workspace", str(workspace.folder), "--port", str(port)]
    command = [str(program), "app", *where, "--no-browser", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        (url,) = re.findall(r"http://\S+", said)
        _wait_for(url, process)
        yield url
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
        assert "Traceback" not in err, err
    finally:
        process.kill()
        process.communicate()


def _wait_for(url: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} never answered")


class Visitor:
    """Somebody who looks at pages and clicks; what the browser complains of is kept."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        page.set_default_timeout(SECONDS * 1000)
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def open(self, link: str = "/") -> None:
        self.page.goto(f"{self.url}{link}")
        self.page.wait_for_selector("h1")
        self.settle()

    def settle(self) -> None:
        """Wait until what was clicked is done and drawn."""
        self.page.wait_for_timeout(300)
        self.page.wait_for_function(AT_REST)
        assert self.page.locator(".stException").count() == 0, self.page.inner_text("body")
        self.page.wait_for_timeout(200)

    def click(self, text: str, role: str | None = None) -> None:
        found = self.page.get_by_role(role, name=text, exact=True) if role else self.page.get_by_text(text, exact=True)
        found.first.click()
        self.settle()

    def choose_row(self, number: int, table: int = 0) -> None:
        """Click the box of a row of a table."""
        box = self.page.locator("[data-testid=stDataFrame]").nth(table).bounding_box()
        self.page.mouse.click(box["x"] + 15, box["y"] + 50 + 33 * number)
        self.settle()

    def wait_for_chart(self) -> None:
        self.page.wait_for_selector(".js-plotly-plot .main-svg")
        self.settle()

    def click_point(self, line: str, x: int) -> None:
        """Click a point of a line of the first chart."""
        self.wait_for_chart()
        place = self.page.evaluate(POINT, [line, x])
        self.page.mouse.move(*place)
        self.page.wait_for_timeout(200)
        self.page.mouse.click(*place)
        self.page.wait_for_timeout(300)
        self.settle()

    def largest(self, line: str) -> float:
        """The largest value that the first chart draws of a line."""
        self.wait_for_chart()
        return float(self.page.evaluate(LARGEST, line))

    def link(self) -> str:
        return str(self.page.url).removeprefix(self.url)

    def text(self) -> str:
        return str(self.page.inner_text("[data-testid=stMain]"))


@contextlib.contextmanager
def visiting(url: str, **context: Any) -> Iterator[Visitor]:
    """A browser of its own; it must have had nothing to complain of."""
    from playwright.sync_api import sync_playwright

    program = chromium()
    with sync_playwright() as playwright:
        flags = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        try:
            page = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context}).new_page()
            visitor = Visitor(page, url)
            yield visitor
            assert visitor.complaints == []
        finally:
            browser.close()
