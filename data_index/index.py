"""Builds a run's index.duckdb: only what its manifest determines (segments, files, order, inverse).

Per epoch one table in consumption order and one in instance order, both with the step beside the instance: a step's
rows and an instance's steps are then found by zone maps, without scanning. The file appears by rename.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import OrderMismatch
from data_index.files import atomic_file
from data_index.orders import epoch_order
from data_index.pieces import read_pieces
from data_index.run import Run, Segment
from data_index.run_check import LINES, TOKEN_DTYPE_BYTES
from data_index.tokens import pieces_of_instances

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
                if (stretches := stretches_read_through(run, epoch)) is not None:
                    progress(f"epoch {epoch}: writing {run.num_instances:,} instances")
                    _write_read_through(connection, epoch, stretches)
                    continue
                progress(f"epoch {epoch}: computing the order")
                order = epoch_order(run, epoch)
                progress(f"epoch {epoch}: writing {len(order):,} instances")
                _write_epoch(connection, run, epoch, order)
            connection.execute(_views(run))
            # close() would checkpoint too, and keep silent about a full disk.
            connection.execute("CHECKPOINT")
        finally:
            connection.close()
            temporary.with_name(f"{temporary.name}.wal").unlink(missing_ok=True)


def _write_manifest(connection: Any, run: Run) -> None:
    import pyarrow

    whole, text = pyarrow.int64(), pyarrow.string()

    def table(records: Sequence[Any], columns: Mapping[str, Any]) -> Any:
        return pyarrow.table(
            {name: pyarrow.array([value(r) for r in records], t) for name, (t, value) in columns.items()}
        )

    def fields(names: str, kind: Any) -> dict[str, Any]:
        return {name: (kind, attrgetter(name)) for name in names.split()}

    numbers = "first_step num_steps attempt epoch first_position instances_per_batch loss_denominator"
    segments = table(run.segments, fields(numbers, whole) | fields("outcome", text))
    named = {"file": (text, attrgetter("name")), "path": (text, lambda file: str(file.path))}
    sizes = fields("num_bytes first_instance num_instances first_token", whole)
    files = table(run.files, named | fields("dtype", text) | sizes)
    tables = {"segments": segments, "files": files, "pieces": _pieces_table(run)}
    for name, rows in tables.items():
        connection.register("source", rows)
        connection.execute(f"CREATE TABLE {name} AS FROM source")
        connection.unregister("source")


def _pieces_table(run: Run) -> Any:
    """Every piece of every instance that is not cut from one place; empty for most runs.

    `first_token` is the piece's place in its row; an instance that is all padding has no row here.
    """
    import pyarrow

    pieces = read_pieces(run.pieces) if run.pieces else pieces_of_instances(run, straddling_instances(run))
    instances = np.arange(run.pieces.num_instances) if run.pieces else np.array(straddling_instances(run), np.int64)
    lengths = pieces.stop - pieces.start
    before = np.append(0, np.cumsum(lengths))
    counts = np.diff(pieces.first)
    return pyarrow.table(
        {
            "instance": np.repeat(instances, counts),
            "first_token": before[:-1] - np.repeat(before[pieces.first[:-1]], counts),
            "file": pyarrow.array([file.name for file in run.files], pyarrow.string()).take(pyarrow.array(pieces.file)),
            "start": pieces.start,
            "stop": pieces.stop,
        }
    )


def straddling_instances(run: Run) -> list[int]:
    """Instances cut from files that begin in one file and end in a later one."""
    found = []
    for file in run.files:
        if file.num_instances and file.dtype != LINES:
            end = file.first_token + file.num_instances * run.sequence_length
            if end * TOKEN_DTYPE_BYTES[file.dtype] > file.num_bytes:
                found.append(file.first_instance + file.num_instances - 1)
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readings:
    """Rows of an epoch's tables, int64 arrays of one length. step 0 means: never read in this epoch."""

    instance: np.ndarray
    step: np.ndarray
    attempt: np.ndarray
    position: np.ndarray

    def take(self, rows: np.ndarray) -> Readings:
        return Readings(
            instance=self.instance[rows],
            step=self.step[rows],
            attempt=self.attempt[rows],
            position=self.position[rows],
        )


def readings_by_position(segments: list[Segment], order: np.ndarray) -> Readings:
    """Who read each position of an epoch: a row for each reading, and one for each position never read.

    Raises:
        OrderMismatch: a segment reaches past the order.
    """
    positions, steps, attempts = [], [], []
    unread = np.ones(len(order), dtype=bool)
    for segment in segments:
        start = segment.first_position
        stop = start + segment.num_steps * segment.instances_per_batch
        if stop > len(order):
            raise OrderMismatch(
                f"steps {segment.first_step}..{segment.last_step} need {stop:,} positions of epoch {segment.epoch}; "
                f"its order has {len(order):,}"
            )
        unread[start:stop] = False
        positions.append(np.arange(start, stop))
        steps.append(np.repeat(np.arange(segment.first_step, segment.last_step + 1), segment.instances_per_batch))
        attempts.append(np.full(stop - start, segment.attempt))
    (rest,) = np.nonzero(unread)
    position = np.concatenate([*positions, rest])
    rows = Readings(
        instance=order[position].astype(np.int64),
        step=np.concatenate([*steps, np.zeros(len(rest), dtype=np.int64)]),
        attempt=np.concatenate([*attempts, np.ones(len(rest), dtype=np.int64)]),
        position=position,
    )
    in_order = bool((position[1:] > position[:-1]).all())
    return rows if in_order else rows.take(np.lexsort((rows.attempt, position)))


def readings_by_instance(rows: Readings, num_instances: int) -> Readings:
    """The same readings in instance order; an instance that was never read has one row with step and position 0."""
    (read,) = np.nonzero(rows.step)
    instance = rows.instance[read]
    times = np.bincount(instance, minlength=num_instances)
    if times.max(initial=0) <= 1:
        # Every instance at most once, as in almost every run: scatter, no sort.
        place = np.zeros(num_instances, dtype=np.int64)
        place[instance] = read + 1
        found = Readings(
            instance=np.arange(num_instances),
            step=np.append(0, rows.step)[place],
            attempt=np.append(1, rows.attempt)[place],
            position=np.append(0, rows.position)[place],
        )
        return found
    (never,) = np.nonzero(times == 0)
    by_instance = read[np.lexsort((rows.position[read], rows.step[read], instance))]
    taken = rows.take(by_instance)
    nothing = np.zeros(len(never), dtype=np.int64)
    merged = Readings(
        instance=np.append(taken.instance, never),
        step=np.append(taken.step, nothing),
        attempt=np.append(taken.attempt, nothing + 1),
        position=np.append(taken.position, nothing),
    )
    return merged.take(np.argsort(merged.instance, kind="stable"))


def _write_epoch(connection: Any, run: Run, epoch: int, order: np.ndarray) -> None:
    rows = readings_by_position([segment for segment in run.segments if segment.epoch == epoch], order)
    _write_readings(connection, f"order_{epoch}", rows, position="position")
    _write_readings(
        connection,
        f"inverse_{epoch}",
        readings_by_instance(rows, run.num_instances),
        position="CASE WHEN step > 0 THEN position END AS position",
    )


def stretches_read_through(run: Run, epoch: int) -> list[tuple[int, int, Segment | None]] | None:
    """Stretches (first, stop, segment) of an epoch whose data lie in training order and are read once; None for others.

    Their positions are their instances, so that no array of them is needed: Pythia's sets have 146 million. Segment
    None: nothing read that stretch.
    """
    segments = sorted((s for s in run.segments if s.epoch == epoch), key=lambda segment: segment.first_position)
    if run.order.rule != "sequential":
        return None
    stretches: list[tuple[int, int, Segment | None]] = []
    at = 0
    for segment in segments:
        first, stop = segment.first_position, segment.first_position + segment.num_steps * segment.instances_per_batch
        if first < at or stop > run.num_instances:
            return None
        stretches += [(at, first, None), (first, stop, segment)]
        at = stop
    return [stretch for stretch in (*stretches, (at, run.num_instances, None)) if stretch[0] < stretch[1]]


def _write_read_through(connection: Any, epoch: int, stretches: list[tuple[int, int, Segment | None]]) -> None:
    connection.execute(f"CREATE TABLE order_{epoch} (instance BIGINT, step BIGINT, attempt INTEGER, position BIGINT)")
    for first, stop, segment in stretches:
        step, attempt = "NULL", 1
        if segment is not None:
            step = f"{segment.first_step} + (range - {segment.first_position}) // {segment.instances_per_batch}"
            attempt = segment.attempt
        connection.execute(
            f"INSERT INTO order_{epoch} SELECT range, {step}, {attempt}, range FROM range({first}, {stop})"
        )
    connection.execute(
        f"CREATE TABLE inverse_{epoch} AS SELECT instance, step, attempt, CASE WHEN step IS NOT NULL THEN position END "
        f"AS position FROM order_{epoch}"
    )


def _write_readings(connection: Any, table: str, rows: Readings, position: str) -> None:
    import pyarrow

    columns = {"instance": rows.instance, "step": rows.step, "attempt": rows.attempt, "position": rows.position}
    connection.register("source", pyarrow.table(columns))
    connection.execute(
        f"CREATE TABLE {table} AS SELECT instance, nullif(step, 0) AS step, attempt::INTEGER AS attempt, {position} "
        "FROM source"
    )
    connection.unregister("source")


def _views(run: Run) -> str:
    def union(table: str) -> str:
        if not run.epochs:  # nothing is known of what it read
            nothing = ("instance BIGINT", "step BIGINT", "attempt INTEGER", "position BIGINT")
            columns = (f"NULL::{kind} AS {name}" for name, kind in map(str.split, ("epoch INTEGER", *nothing)))
            return f"SELECT {', '.join(columns)} WHERE false"
        return " UNION ALL ".join(f"SELECT {epoch} AS epoch, * FROM {table}_{epoch}" for epoch in run.epochs)

    template = (resources.files("data_index") / "sql" / "index.sql").read_text()
    return (
        template.replace("{consumption}", union("order"))
        .replace("{inverse}", union("inverse"))
        .replace("{sequence_length}", str(run.sequence_length))
    )
