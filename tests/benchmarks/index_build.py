"""Building an index from a manifest, and asking it: tokens indexed per second, against the shuffle alone."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

from data_index.index import build_index
from data_index.orders.olmo_core_fsl import global_indices
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile

INSTANCES, LENGTH, BATCH = 4_000_000, 4096, 1024
REPEATS = 3


@dataclass(frozen=True)
class Question:
    name: str
    sql: str


QUESTIONS = (
    Question("a step's rows", "SELECT * FROM batches WHERE step = {step}"),
    Question("an instance's steps", "SELECT * FROM instances WHERE instance = {instance}"),
)


def manifest() -> Run:
    """A run of one epoch over 40 files; no token file is needed."""
    per_file = INSTANCES // 40
    files = tuple(
        TokenFile(
            name=f"part-{n:02}.npy",
            path=Path(f"/none/part-{n:02}.npy"),
            dtype="uint32",
            num_bytes=per_file * LENGTH * 4,
            first_instance=n * per_file,
            num_instances=per_file,
        )
        for n in range(40)
    )
    steps = INSTANCES // BATCH
    segment = Segment(first_step=1, num_steps=steps, epoch=1, first_position=0, instances_per_batch=BATCH)
    return Run(
        name="synthetic",
        layout="olmo_core",
        source=Path("/none"),
        sequence_length=LENGTH,
        files=files,
        order=Order(rule="olmo_core_fsl", parameters={"seed": 1, "chunk_size": 1}),
        segments=(segment,),
        trust=OrderTrust(level="derived", witness="manifest"),
        config_format="olmo_core",
        config={},
    )


def timed(action: object) -> float:
    began = time.perf_counter()
    action()  # type: ignore[operator]
    return time.perf_counter() - began


def main() -> None:
    run = manifest()
    shuffles, builds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(REPEATS):
            shuffles.append(timed(lambda: global_indices(INSTANCES, seed=1, epoch=1)))
            path = Path(folder) / f"index-{repeat}.duckdb"
            builds.append(timed(lambda path=path: build_index(run, path)))
        size = path.stat().st_size
        build, shuffle = statistics.median(builds), statistics.median(shuffles)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{INSTANCES:,} instances, {INSTANCES * LENGTH / 1e9:.1f}G tokens, {size / 1e6:.0f} MB")
        print(f"build {build:.2f} s, shuffle alone {shuffle:.2f} s, ratio {build / shuffle:.1f}")
        print(f"{INSTANCES * LENGTH / build / 1e9:.2f}G tokens/s, peak memory of the process {peak:.1f} GB")
        _ask(path)


def _ask(path: Path) -> None:
    connection = duckdb.connect(str(path), read_only=True)
    generator = np.random.default_rng(0)
    for question in QUESTIONS:
        times = []
        for _ in range(50):
            values = {
                "step": int(generator.integers(1, INSTANCES // BATCH)),
                "instance": int(generator.integers(0, INSTANCES)),
            }
            times.append(timed(lambda q=question.sql.format(**values): connection.execute(q).fetchall()))
        print(f"{question.name:20} median {statistics.median(times) * 1e3:.1f} ms, worst {max(times) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
