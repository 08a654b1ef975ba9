"""The explorer in a browser, on a run of 1.5 million steps whose index has 951 million instances.

    python -m tests.benchmarks.explorer_browser DIR    makes the run in a folder (12 GB, minutes) where it is not there

Seconds from what a user does until the page is at rest again with its new picture drawn; the server and the browser
share the machine. No token is needed, so that a step shows its rows and what is known of them, not their text.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_index.index import build_index
from data_index.run import Segment
from data_index.run_file import write_run
from data_index.workspace import Workspace
from forensics.imported_metrics import import_metrics
from tests.app.browser import AT_REST, Visitor, served, visiting
from tests.benchmarks.explorer import NUM_STEPS, SPIKE, SPIKE_STEP, a_log
from tests.benchmarks.index_build import manifest, warm

BATCH = 634
NUM_INSTANCES = 928_711 * 1024  # the least of which the order's rule leaves out none, and which the steps do not use up
NUM_PAINTS, NUM_TIMES = 5, 12
DRAWN = """() => {
    const chart = document.querySelector('.js-plotly-plot');
    return chart ? chart._fullLayout.xaxis.range.map(end => Math.round(end)).join() : '';
}"""


def big_run(folder: Path) -> Workspace:
    """The run, with its log; made once."""
    workspace = Workspace(folder)
    home = folder / "runs" / "long"
    if not (home / "current.json").exists():
        workspace.create()
        home.mkdir(parents=True, exist_ok=True)
        segment = Segment(first_step=1, num_steps=NUM_STEPS, epoch=1, first_position=0, instances_per_batch=BATCH)
        run = replace(manifest(NUM_INSTANCES), name="long", segments=(segment,))
        write_run(run, home)
        build_index(run, home / "index.duckdb", print, partial=home / "partial.duckdb")
        a_log(folder / "log.parquet")
        import_metrics("long", folder / "log.parquet", workspace=workspace)
    return workspace


def told(what: str, seconds: list[float]) -> None:
    longest = f"longest of {len(seconds)} {max(seconds):.2f} s"
    print(f"{what}: median {statistics.median(seconds):.2f} s, {longest}", flush=True)


def first_paints(url: str, link: str) -> list[float]:
    """Each in a browser that knows nothing of the explorer yet; until the title is there, and until all is drawn."""
    found = []
    for _ in range(NUM_PAINTS):
        with visiting(url) as visitor:
            start = time.perf_counter()
            visitor.page.goto(f"{url}{link}", wait_until="commit")
            visitor.page.wait_for_selector("h1")
            found.append(time.perf_counter() - start)
            visitor.page.wait_for_function(AT_REST)
    return found


def until_changed(visitor: Visitor, look: str, act: Callable[[], Any]) -> float:
    """Seconds until what JavaScript sees has changed and the page is at rest."""
    before = visitor.page.evaluate(look)
    start = time.perf_counter()
    act()
    visitor.page.wait_for_function(f"before => ({look})() !== before", arg=before)
    visitor.page.wait_for_function(AT_REST)
    return time.perf_counter() - start


def zooms(visitor: Visitor) -> list[float]:
    """By the two numbers beside the picture, to widths from all to a few steps; the peak is drawn at each of them."""
    random, found = np.random.default_rng(1), []
    visitor.open("/run?run=long")
    visitor.wait_for_chart()
    for width in [1_000_000, 300_000, 30_000, 1_000] * (NUM_TIMES // 4):
        start = int(random.integers(max(SPIKE_STEP - width, 0), min(SPIKE_STEP, NUM_STEPS - width - 7)))
        link = f"/run?run=long&first={start}&last={start + width}"
        visitor.open(link)
        visitor.wait_for_chart()
        assert visitor.largest("loss") == SPIKE
        last = visitor.page.get_by_label("to checkpoint")
        last.fill(str(start + width + 7))
        found.append(until_changed(visitor, DRAWN, lambda: last.press("Enter")))  # noqa: B023
        assert visitor.largest("loss") == SPIKE
    return found


def steps(visitor: Visitor) -> list[float]:
    random, found = np.random.default_rng(2), []
    visitor.open("/step?run=long&step=5")
    heading = "() => document.querySelector('h3')?.innerText"
    for step in random.integers(1, NUM_STEPS, NUM_TIMES):
        field = visitor.page.get_by_label("Step, 1 to")
        field.fill(str(step))
        found.append(until_changed(visitor, heading, lambda: field.press("Enter")))  # noqa: B023
    return found


def main(folder: Path) -> None:
    workspace = big_run(folder)
    warm(workspace.home("long") / "index.duckdb")
    print(f"{workspace.run('long').num_instances:,} instances, {NUM_STEPS:,} steps")
    with served(workspace) as url:
        for link in ("/", "/run?run=long", "/step?run=long&step=777777"):
            told(f"first paint of {link}", first_paints(url, link))
        with visiting(url) as visitor:
            told("another stretch of the run", zooms(visitor))
            told("another step", steps(visitor))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
