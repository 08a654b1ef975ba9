"""The explorer on a log of 1.5 million steps: how long its run page takes to compute, whole and at random zooms.

What a browser adds (drawing some 4,000 points a line) is not in it. The values of the whole run are asked both ways in
pairs: as the page does, and as points that all leave the database and are thinned then. Besides: the scatter of the
tokens of a large vocabulary.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_index.kinds import arrow_schema
from data_index.workspace import Workspace, learn
from forensics.imported_metrics import import_metrics
from forensics.logged_series import series_of_run
from forensics.ribbon import METRICS, ribbon
from forensics.thinned import thinned
from forensics.token_scatter import AS_TARGET, CANDIDATE, INDICATOR, RANK, REPEATED, scatter

NUM_STEPS, NUM_ZOOMS, PAIRS = 1_500_000, 30, 5
SPIKE_STEP, SPIKE = 777_777, 9.5
NUM_TOKENS, NUM_CANDIDATES = 250_000, 4_000


def a_log(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    random, steps = np.random.default_rng(0), np.arange(1, NUM_STEPS + 1)
    loss = 2 + 3 / np.sqrt(steps) + 0.05 * random.normal(size=NUM_STEPS)
    loss[SPIKE_STEP - 1] = SPIKE
    norm = np.exp(0.2 * random.normal(size=NUM_STEPS))
    pyarrow.parquet.write_table(pyarrow.table({"step": steps, "loss": loss, "grad_norm": norm}), path)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def page_seconds(workspace: Workspace) -> tuple[float, float, list[float]]:
    """The run page: at first, again with what is kept, and at zooms that were not asked before."""
    from streamlit.testing.v1 import AppTest

    from forensics.explorer_server import main_script

    os.environ["FORENSICS_WORKSPACE"] = str(workspace.folder)
    page = AppTest.from_file(str(main_script()), default_timeout=120).run()
    page.query_params["run"] = "long"
    page.switch_page("views/run.py")
    first, again = seconds(page.run), seconds(page.run)
    random, zooms = np.random.default_rng(1), []
    for _ in range(NUM_ZOOMS):
        width = int(random.choice([1_000, 30_000, 300_000]))
        start = int(random.integers(0, NUM_STEPS - width))
        page.query_params["first"], page.query_params["last"] = str(start), str(start + width)
        zooms.append(seconds(page.run))
        assert not page.exception
    return first, again, zooms


def tokens_of_a_large_vocabulary(workspace: Workspace) -> None:
    """Indicators that grow with exposures; the 4,000 lowest are candidates, and were prompted."""
    import pyarrow

    random = np.random.default_rng(2)
    counts = np.floor(np.exp(random.normal(7, 3, NUM_TOKENS))).astype(np.int64)
    values = np.abs(np.log1p(counts) / 20 + 0.03 * random.normal(size=NUM_TOKENS))
    rank = np.empty(NUM_TOKENS, dtype=np.int64)
    rank[np.argsort(values)] = np.arange(1, NUM_TOKENS + 1)
    candidate, ids = rank <= NUM_CANDIDATES, np.arange(NUM_TOKENS)
    step = np.full(NUM_TOKENS, NUM_STEPS)
    known = {
        "tokens": {
            **{"step": step, "token_id": ids, "text": [f" token {n}" for n in ids], "category": ["ok"] * NUM_TOKENS},
            **{"indicator_name": ["input_norm"] * NUM_TOKENS, "indicator": values, "rank": rank},
            **{"candidate": candidate, "verified": pyarrow.array(values < 0.02, mask=~candidate)},
        },
        "exposures": {"step": step, "token_id": ids, "as_input": counts, "as_target": counts},
    }
    for kind, columns in known.items():
        schema = arrow_schema(kind)
        arrays = [pyarrow.array(columns[f.name]) if f.name in columns else pyarrow.nulls(NUM_TOKENS) for f in schema]
        learn(workspace.home("long"), kind, pyarrow.table(arrays, names=schema.names).cast(schema))


def scatter_seconds(workspace: Workspace) -> None:
    for x, y in ((AS_TARGET, INDICATOR), (RANK, INDICATOR)):
        found = scatter("long", NUM_STEPS, x, y, workspace=workspace)
        drawn = {token for points in found.points.values() for token, *_ in points}
        lost = NUM_CANDIDATES - sum(len(found.points.get(kind, ())) for kind in (CANDIDATE, REPEATED))
        times = [seconds(lambda x=x, y=y: scatter("long", NUM_STEPS, x, y, workspace=workspace)) for _ in range(PAIRS)]
        print(
            f"{y} of {NUM_TOKENS:,} tokens along {x}: median {statistics.median(times):.2f} s, {len(drawn):,} points, "
            f"{lost} of {NUM_CANDIDATES:,} candidates lost"
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name) / "workspace")
        a_log(Path(name) / "log.parquet")
        import_metrics("long", Path(name) / "log.parquet", new=True, workspace=workspace)
        run = workspace.run("long")

        def all_points() -> None:
            for metric in METRICS:
                series = series_of_run(workspace, run, metric)
                assert series is not None
                thinned(series.kept.steps, series.kept.values, most=4_000)

        for width in (NUM_STEPS, 200_000, 2_000):
            start = min(SPIKE_STEP - width // 3, NUM_STEPS - width) if width < NUM_STEPS else 0
            (loss, _) = ribbon("long", start, start + width, workspace=workspace).lines
            assert dict(zip(loss.steps, loss.values, strict=True))[SPIKE_STEP] == SPIKE
        ratios = []
        for _ in range(PAIRS):
            stretches = seconds(lambda: ribbon("long", workspace=workspace))
            ratios.append(seconds(all_points) / stretches)
            print(f"whole run in stretches {stretches:.2f} s; all points, then thinned: {ratios[-1]:.1f} times as long")
        tokens_of_a_large_vocabulary(workspace)
        scatter_seconds(workspace)
        first, again, zooms = page_seconds(workspace)
        print(f"median of {PAIRS} ratios: {statistics.median(ratios):.1f}")
        print(f"page of the whole run: {first:.2f} s at first, {again:.2f} s again")
        print(f"zooms: median {statistics.median(zooms):.2f} s, longest of {NUM_ZOOMS} {max(zooms):.2f} s")


if __name__ == "__main__":
    main()
