"""What reading from a server costs: bytes over what is needed, rows side by side against one after another, the cache.

The server is on loopback and waits 20 ms before it answers, as one far away does; the ratios are what counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_index.remote.path import RemotePath
from data_index.remote.ranges import fetch_ranges
from tests.servers import faults
from tests.servers.range_server import RangeServer

FILES, ROWS, ROW_BYTES, LATENCY = 64, 1024, 16 * 1024, 0.02
BATCH_BYTES = 1024 * 2049 * 2  # of Pythia's
REPEATS = 5


@contextmanager
def served(sizes: dict[str, int]) -> Iterator[RangeServer]:
    random = np.random.default_rng(0)
    contents = {path: random.integers(0, 256, size, dtype=np.uint8).tobytes() for path, size in sizes.items()}
    with RangeServer(contents) as server:
        for path in contents:
            server.plant(path, faults.Slow(before=LATENCY), forever=True)
        yield server


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def small_rows() -> None:
    """As a batch of OLMo's: 1,024 rows of 16 KiB in 64 files; 128 of them one after another for comparison."""
    random = np.random.default_rng(1)
    size = 256 * ROW_BYTES
    with served({f"/{number}": size for number in range(FILES)}) as server:
        ratios, rates, over = [], [], []
        for _ in range(REPEATS):
            rows = [(f"/{n}", int(at) * ROW_BYTES) for n in range(FILES) for at in random.choice(256, ROWS // FILES)]
            with tempfile.TemporaryDirectory() as folder:
                places = [
                    (RemotePath(server.url(path), Path(folder), num_bytes=size), at, at + ROW_BYTES)
                    for path, at in rows
                ]
                before = server.body_bytes
                side_by_side = seconds(lambda places=places: fetch_ranges(places))
                over.append((server.body_bytes - before) / (len(set(rows)) * ROW_BYTES))
            with tempfile.TemporaryDirectory() as folder:
                some = [(RemotePath(p.url, Path(folder), num_bytes=size), a, b) for p, a, b in places[::8]]
                one_by_one = seconds(lambda some=some: [path.read(start, stop) for path, start, stop in some])
            ratios.append(one_by_one / len(some) / (side_by_side / ROWS))
            rates.append(ROWS * ROW_BYTES / side_by_side / 1e6)
    print(f"1,024 rows of 16 KiB: {statistics.median(rates):.0f} MB/s, {statistics.median(ratios):.1f} x one by one")
    print(f"bytes fetched over bytes needed: {statistics.median(over):.4f} (worst {max(over):.4f})")


def batches() -> None:
    """Batches as Pythia's, one range each: from the server, and again from what is kept."""
    with served({"/data": 16 * BATCH_BYTES}) as server, tempfile.TemporaryDirectory() as folder:
        path = RemotePath(server.url("/data"), Path(folder), num_bytes=16 * BATCH_BYTES)
        first, again = [], []
        for number in range(16):
            start, stop = number * BATCH_BYTES, (number + 1) * BATCH_BYTES
            first.append(seconds(lambda a=start, b=stop: path.read(a, b)))
            again.append(seconds(lambda a=start, b=stop: path.read(a, b)))
        print(
            f"a batch of {BATCH_BYTES:,} bytes: {statistics.median(first) * 1e3:.0f} ms, kept "
            f"{statistics.median(again) * 1e3:.2f} ms; {server.body_bytes / (16 * BATCH_BYTES):.4f} of its bytes in "
            f"{sum(server.num_requests.values()) / 16:.2f} requests"
        )


def main() -> None:
    small_rows()
    batches()


if __name__ == "__main__":
    main()
