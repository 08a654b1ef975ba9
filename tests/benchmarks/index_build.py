"""Building an index from a manifest, and asking it: `python -m tests.benchmarks.run index_build`.

    python -m tests.benchmarks.index_build 950933504 DIR    at the size of OLMo 2 7B's first stage, in a folder

The shuffle alone and the build are processes of their own, one after the other, so that each one's peak memory is its
own. No token is needed; documents are made up, as many to an instance as stated.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_index.batch_queries import readings_of_instances
from data_index.document_queries import instances_of_document
from data_index.index import build_index
from data_index.orders.olmo import global_indices
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile
from data_index.run_file import write_run
from data_index.shares import file_shares
from data_index.store import connect
from data_index.workspace import Workspace, learn

# OLMo 2 7B, stage 1: 928,646 steps of 1,024 instances of 4,096 tokens, read from 1,122 files.
FULL_SIZE, FILES, LENGTH, BATCH = 928_646 * 1024, 1122, 4096, 1024
SMALL = 4_000_000
DOCUMENTS_PER_INSTANCE = 0.01
ORDER = {"seed": 6198, "drop_last": True, "world_size": 1024}


def manifest(num_instances: int) -> Run:
    """A run of one epoch over files of unequal sizes; no token file is needed."""
    weights = np.random.default_rng(0).uniform(0.1, 1.9, FILES)
    borders = np.round(np.append(0, np.cumsum(weights)) / weights.sum() * num_instances).astype(int)
    files = tuple(
        TokenFile(
            name=f"part-{n:04}.npy",
            path=Path(f"/none/part-{n:04}.npy"),
            dtype="uint32",
            num_bytes=int(stop - start) * LENGTH * 4,
            first_instance=int(start),
            num_instances=int(stop - start),
        )
        for n, (start, stop) in enumerate(zip(borders[:-1], borders[1:], strict=True))
    )
    segment = Segment(
        first_step=1, num_steps=num_instances // BATCH, epoch=1, first_position=0, instances_per_batch=BATCH
    )
    return Run(
        name="synthetic",
        layout="native",
        source=Path("/none"),
        sequence_length=LENGTH,
        files=files,
        order=Order(rule="olmo", parameters=ORDER),
        segments=(segment,),
        trust=OrderTrust(level="derived", witness="manifest"),
        config_format="olmo",
        config={},
    )


def timed(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def apart(action: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Run something in a process of its own; its seconds, and its peak memory in GB."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(sender, action, arguments))
    process.start()
    found: tuple[float, float] = receiver.recv()
    process.join()
    return found


def _measured(sender: Any, action: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    seconds = timed(lambda: action(*arguments))
    sender.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9))


def shuffle_alone(num_instances: int) -> None:
    global_indices(num_instances, epoch=0, **ORDER)


def build(num_instances: int, path: Path) -> None:
    began = time.perf_counter()
    build_index(
        manifest(num_instances),
        path,
        lambda message: print(f"  {time.perf_counter() - began:6.1f} s  {message}", flush=True),
        partial=path.with_name("partial.duckdb"),
    )


def main(num_instances: int = SMALL, folder: Path | None = None) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as made:
        workspace = Workspace(made)
        workspace.create()
        home = workspace.folder / "runs" / "synthetic"
        home.mkdir(parents=True)
        write_run(manifest(num_instances), home)
        shuffle, shuffle_memory = apart(shuffle_alone, num_instances)
        seconds, memory = apart(build, num_instances, home / "index.duckdb")
        size = (home / "index.duckdb").stat().st_size
        print(f"{num_instances:,} instances, {num_instances * LENGTH / 1e9:,.1f}G tokens, index of {size / 1e9:.2f} GB")
        print(f"build {seconds:.1f} s, shuffle alone {shuffle:.1f} s, ratio {seconds / shuffle:.2f}")
        print(f"peak memory: build {memory:.2f} GB, shuffle alone {shuffle_memory:.2f} GB")
        learn_documents(home, num_instances)
        warm(home / "index.duckdb")
        ask(workspace, num_instances)


def warm(path: Path) -> None:
    """Read a file once, so that it lies in memory as that of a run that is being looked at."""
    with path.open("rb") as file:
        while file.read(2**24):
            pass


def learn_documents(home: Path, num_instances: int) -> None:
    """Documents of equal length that tile the files, crossing instances."""
    import pyarrow

    run = manifest(num_instances)
    length = int(LENGTH / DOCUMENTS_PER_INSTANCE)
    parts: list[tuple[str, np.ndarray, int]] = []
    for file in run.files:
        num_tokens = file.num_instances * LENGTH
        parts.append((file.name, np.arange(0, num_tokens, length), num_tokens))
    start = np.concatenate([starts for _, starts, _ in parts])
    end = np.concatenate([np.append(starts[1:], num_tokens) for _, starts, num_tokens in parts])
    names = np.repeat([name for name, _, _ in parts], [len(starts) for _, starts, _ in parts])
    count = len(start)
    print(f"{count:,} documents")
    nothing = pyarrow.nulls(count, pyarrow.int64())
    learn(
        home,
        "documents",
        pyarrow.table(
            {
                "document_id": np.arange(count),
                "file": names,
                "start": start,
                "end": end,
                "source": pyarrow.nulls(count, pyarrow.string()),
                "source_start": nothing,
                "source_end": nothing,
                "tags": pyarrow.nulls(count, pyarrow.list_(pyarrow.string())),
            }
        ),
    )


def ask(workspace: Workspace, num_instances: int) -> None:
    run = workspace.run("synthetic")
    connection = connect(workspace, ["synthetic"])
    random = np.random.default_rng(0)
    (num_documents,) = connection.execute("SELECT count(*) FROM documents").fetchone() or (0,)

    def step() -> None:
        s = int(random.integers(1, run.last_step + 1))
        assert len(connection.execute(f"FROM batch('synthetic', {s})").fetchall()) == BATCH

    def instance() -> None:
        i = int(random.integers(0, num_instances))
        assert len(connection.execute(f"FROM steps_of_instance('synthetic', {i})").fetchall()) == 1

    def document() -> None:
        instances = instances_of_document(workspace, run, int(random.integers(0, num_documents)))
        assert readings_of_instances(workspace, run, instances).num_rows > 0

    def many() -> None:
        found = readings_of_instances(workspace, run, random.integers(0, run.num_instances, 10_000).tolist())
        assert found.num_rows > 9_000

    for name, question, times in (
        ("step -> its instances", step, 101),
        ("instance -> its steps", instance, 101),
        ("document -> its steps", document, 101),
        ("10,000 instances -> their steps", many, 5),
    ):
        seconds = [timed(question) for _ in range(times)]
        print(f"{name:34} median {statistics.median(seconds) * 1e3:8.1f} ms, worst {max(seconds) * 1e3:8.1f} ms")
    seconds = [timed(lambda: file_shares(workspace, run, 1000)) for _ in range(2)]
    print(f"{'shares of files per 1,000 steps':34} {' and '.join(f'{s:.1f}' for s in seconds)} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SMALL, Path(sys.argv[2]) if len(sys.argv) > 2 else None)
