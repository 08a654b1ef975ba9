"""Builds a run's index.duckdb: only what its manifest determines (segments, files, order, inverse).

Per epoch one table in consumption order and one in instance order, both with the step beside the instance: a step's
rows and an instance's steps are then found by zone maps, without scanning. The file appears by rename.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import OrderMismatch
from data_index.files import atomic_file
from data_index.orders import epoch_order
from data_index.run import Run, Segment

Progress = Callable[[str], None]


def build_index(run: Run, path: Path, progress: Progress = lambda message: None) -> None:
    """Write the index of a run to `path`.

    Raises:
        OrderMismatch: the segments reach past the order.
        MissingFile, CorruptFile: a recorded order is damaged.
        DiskFull
    """
    import duckdb

    with atomic_file(path) as temporary:
        connection = duckdb.connect(str(temporary))
        try:
            _write_manifest(connection, run)
            for epoch in run.epochs:
                progress(f"epoch {epoch}: computing the order")
                order = epoch_order(run, epoch)
                progress(f"epoch {epoch}: writing {len(order):,} instances")
                _write_epoch(connection, run, epoch, order)
            connection.execute(_views(run))
        finally:
            connection.close()


def _write_manifest(connection: Any, run: Run) -> None:
    import pyarrow

    segments = pyarrow.table(
        {
            "first_step": [s.first_step for s in run.segments],
            "num_steps": [s.num_steps for s in run.segments],
            "attempt": [s.attempt for s in run.segments],
            "epoch": [s.epoch for s in run.segments],
            "first_position": [s.first_position for s in run.segments],
            "instances_per_batch": [s.instances_per_batch for s in run.segments],
            "loss_denominator": pyarrow.array([s.loss_denominator for s in run.segments], pyarrow.int64()),
        }
    )
    used = [file for file in run.files if file.num_instances]
    files = pyarrow.table(
        {
            "file": [file.name for file in used],
            "path": [str(file.path) for file in used],
            "dtype": [file.dtype for file in used],
            "num_bytes": [file.num_bytes for file in used],
            "first_instance": pyarrow.array([file.first_instance for file in used], pyarrow.int64()),
            "num_instances": pyarrow.array([file.num_instances for file in used], pyarrow.int64()),
        }
    )
    for name, table in (("segments", segments), ("files", files)):
        connection.register("source", table)
        connection.execute(f"CREATE TABLE {name} AS FROM source")
        connection.unregister("source")


def steps_of_positions(segments: list[Segment], num_positions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who read each position of an epoch.

    Returns:
        position, step and attempt, one row for each reading and one with step 0 for each position never read,
        by position.
    Raises:
        OrderMismatch: a segment reaches past the order.
    """
    read = np.zeros(num_positions, dtype=bool)
    positions, steps, attempts = [], [], []
    for segment in segments:
        start = segment.first_position
        stop = start + segment.num_steps * segment.instances_per_batch
        if stop > num_positions:
            raise OrderMismatch(
                f"steps {segment.first_step}..{segment.last_step} need {stop:,} positions of epoch {segment.epoch}; "
                f"its order has {num_positions:,}"
            )
        read[start:stop] = True
        positions.append(np.arange(start, stop, dtype=np.int64))
        steps.append(np.repeat(np.arange(segment.first_step, segment.last_step + 1), segment.instances_per_batch))
        attempts.append(np.full(stop - start, segment.attempt, dtype=np.int32))
    unread = np.flatnonzero(~read)
    position = np.concatenate([*positions, unread])
    step = np.concatenate([*steps, np.zeros(len(unread), dtype=np.int64)])
    attempt = np.concatenate([*attempts, np.ones(len(unread), dtype=np.int32)])
    by_position = np.lexsort((attempt, position))
    return position[by_position], step[by_position], attempt[by_position]


def _write_epoch(connection: Any, run: Run, epoch: int, order: np.ndarray) -> None:
    import pyarrow

    segments = [segment for segment in run.segments if segment.epoch == epoch]
    position, step, attempt = steps_of_positions(segments, len(order))
    rows = pyarrow.table(
        {"instance": order[position].astype(np.int64), "step": step, "attempt": attempt, "position": position}
    )
    never = np.setdiff1d(np.arange(run.num_instances, dtype=np.int64), order[position[step > 0]])
    connection.register("source", rows)
    connection.register("never", pyarrow.table({"instance": never}))
    connection.execute(
        f"CREATE TABLE order_{epoch} AS SELECT instance, nullif(step, 0) AS step, attempt, position FROM source"
    )
    connection.execute(
        f"""CREATE TABLE inverse_{epoch} AS
            SELECT instance, step, attempt, position FROM source WHERE step > 0
            UNION ALL SELECT instance, NULL, 1, NULL FROM never
            ORDER BY instance, step, position"""
    )
    connection.unregister("source")
    connection.unregister("never")


def _views(run: Run) -> str:
    def union(table: str) -> str:
        return " UNION ALL ".join(f"SELECT {epoch} AS epoch, * FROM {table}_{epoch}" for epoch in run.epochs)

    template = (resources.files("data_index") / "sql" / "index.sql").read_text()
    return (
        template.replace("{consumption}", union("order"))
        .replace("{inverse}", union("inverse"))
        .replace("{sequence_length}", str(run.sequence_length))
    )
