"""Builds a run's index.duckdb: only what its manifest determines (segments, files, order, inverse).

Of each epoch e:

    order_e            row p is position p: the instance there, and the step that read it in a first attempt, if any
    rereadings_e       all other readings: later attempts, positions that were read once more
    inverse_e          row i is instance i: its first position, NULL where the order leaves it out
    inverse_blocks_e   the same, `BLOCK_INSTANCES` in a row: 10,000 instances at once are found in a tenth of a second
    inverse_more_e     further positions of instances that stand at several

A row's number is what DuckDB calls its rowid: tables are written once, in order, and nothing is deleted. Which steps
read an instance follows from its positions and the segments. A large index is written beside its place, stretch by
stretch; a build that was interrupted goes on from the last one. The finished file appears by rename.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import Busy, ForensicsError
from data_index.files import atomic_file, canonical_json, disk_errors, fsync_file, fsync_folder
from data_index.orders import epoch_order
from data_index.pieces import read_pieces
from data_index.readings import EpochOrder, places_of_instances, readings_of_stretch, require_inside
from data_index.run import Run, Segment
from data_index.run_check import LINES, TOKEN_DTYPE_BYTES
from data_index.run_file import run_to_table
from data_index.tokens import pieces_of_instances
from data_index.waiting import wait_for

Progress = Callable[[str], None]

# Raised where an unfinished index of before cannot be gone on with.
INDEX_VERSION = 1
BLOCK_INSTANCES = 128
# Rows written together: whole row groups of DuckDB (122,880), whole blocks.
STRETCH = 128 * 122_880
# Instances whose inverse is made at once. With an order of 10^9 in memory beside it, this keeps a build below 9 GB.
PART = 34 * STRETCH
# Files are found by blocks of instances, of a size that gives no more than so many.
MAX_FILE_BLOCKS = 2**13
BUILD_MEMORY = "1GB"
_NOTHING = (
    "SELECT NULL::INTEGER AS epoch, NULL::BIGINT AS instance, NULL::BIGINT AS step, NULL::INTEGER AS attempt, "
    "NULL::BIGINT AS position WHERE false"
)


def build_index(
    run: Run, path: Path, progress: Progress = lambda message: None, *, partial: Path | None = None
) -> None:
    """Write the index of a run to `path`.

    Args:
        partial: where it is written, on the same disk; a later build with the same file there goes on with it. It must
            be of this run alone. Default: a temporary file, and an interrupted build starts anew.
    Raises:
        OrderMismatch: the segments reach past the order.
        MissingFile, CorruptFile: a recorded order is damaged.
        Busy: another process builds it.
        DiskFull
    """
    with atomic_file(path) if partial is None else _resumed(partial, path) as temporary:
        connection = _open(temporary)
        try:
            _write_manifest(connection, run)
            for epoch in run.epochs:
                _write_epoch(connection, run, epoch, progress)
            connection.execute(_views(run))
            # close() would checkpoint too, and keep silent about a full disk.
            connection.execute("CHECKPOINT")
        finally:
            connection.close()
            if partial is None:
                _log_of(temporary).unlink(missing_ok=True)


@contextmanager
def _resumed(partial: Path, path: Path) -> Iterator[Path]:
    """Write `partial`, which becomes `path`. Interrupted, or with the disk full, it stays; not where it is wrong."""
    with disk_errors(path):
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
        except Busy:
            raise
        except ForensicsError:
            _remove(partial)
            raise
        fsync_file(partial)
        os.replace(partial, path)
        fsync_folder(path.parent)


def index_key(run: Run) -> str:
    """A name for the content of a run's index: what it is built from, hashed."""
    table = run_to_table(run, run.source)
    parts = {name: table.get(name) for name in ("sequence_length", "order", "files", "segments", "pieces")}
    return hashlib.sha256(canonical_json([INDEX_VERSION, parts])).hexdigest()[:24]


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _log_of(path).unlink(missing_ok=True)


def _open(path: Path) -> Any:
    """Go on with a file, or make it; what is no index any more cannot be gone on with."""
    import duckdb

    try:
        connection = duckdb.connect(str(path))
    except duckdb.Error as error:
        if "Could not set lock" in str(error):
            raise Busy(f"{path} is being built by another process: wait for it, or end it") from error
        if not path.exists():
            raise
        _remove(path)
        connection = duckdb.connect(str(path))
    connection.execute(f"SET memory_limit = '{BUILD_MEMORY}'")
    connection.execute("SET enable_progress_bar = false")
    return connection


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
        connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM source")
        connection.unregister("source")
    connection.execute("CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER, num_positions BIGINT)")
    connection.execute(
        f"CREATE OR REPLACE TABLE file_blocks AS SELECT unnest(range(first_instance // {file_block(run)}, "
        f"(first_instance + num_instances - 1) // {file_block(run)} + 1)) AS block, first_instance, "
        "first_instance + num_instances AS stop_instance, file, first_token FROM files WHERE num_instances > 0"
    )


def file_block(run: Run) -> int:
    """Instances of a block of the table `file_blocks`."""
    return -(-max(run.num_instances, 1) // MAX_FILE_BLOCKS)


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


# --- an epoch --------------------------------------------------------------------------------------------------------


def _write_epoch(connection: Any, run: Run, epoch: int, progress: Progress) -> None:
    if _count(connection, f"inverse_{epoch}") == run.num_instances and _count(connection, f"order_{epoch}") is not None:
        return  # by an earlier build
    order = _order_of(connection, run, epoch, progress)
    segments = [segment for segment in run.segments if segment.epoch == epoch]
    require_inside(segments, order)
    _create_tables(connection, epoch, order)
    _write_order(connection, epoch, segments, order, progress)
    _write_inverse(connection, epoch, segments, order, progress)


def _count(connection: Any, table: str) -> int | None:
    """Rows of a table; None where there is none yet."""
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [table]).fetchall():
        return None
    ((count,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(count)


def _order_of(connection: Any, run: Run, epoch: int, progress: Progress) -> EpochOrder:
    """The order of an epoch: computed, or read back from a build that had written all of it."""
    if run.order.rule == "sequential":
        return EpochOrder(instances=None, num_positions=run.num_instances, num_instances=run.num_instances)
    known = connection.execute("SELECT num_positions FROM epochs WHERE epoch = ?", [epoch]).fetchall()
    if known and _count(connection, f"order_{epoch}") == known[0][0]:
        progress(f"epoch {epoch}: going on with the order of an earlier build")
        return _read_order(connection, run, epoch, known[0][0])
    progress(f"epoch {epoch}: computing the order of {run.num_instances:,} instances")
    instances = wait_for(
        lambda: epoch_order(run, epoch),
        lambda seconds: progress(f"epoch {epoch}: computing the order, {seconds:.0f} s"),
    )
    if not known:
        connection.execute("INSERT INTO epochs VALUES (?, ?)", [epoch, len(instances)])
    return EpochOrder(instances=instances, num_positions=len(instances), num_instances=run.num_instances)


def _read_order(connection: Any, run: Run, epoch: int, num_positions: int) -> EpochOrder:
    instances = np.empty(num_positions, dtype=np.uint32 if run.num_instances < 2**32 - 1 else np.uint64)
    filled = 0
    for batch in connection.sql(f"SELECT instance FROM order_{epoch}").to_arrow_reader(2**20):
        instances[filled : filled + batch.num_rows] = batch.column(0).to_numpy()
        filled += batch.num_rows
    return EpochOrder(instances=instances, num_positions=num_positions, num_instances=run.num_instances)


def _create_tables(connection: Any, epoch: int, order: EpochOrder) -> None:
    number = "UINTEGER" if order.dtype == np.uint32 else "UBIGINT"
    connection.execute(
        f"""
        CREATE TABLE IF NOT EXISTS order_{epoch} (instance {number}, step BIGINT);
        CREATE TABLE IF NOT EXISTS rereadings_{epoch} (instance BIGINT, step BIGINT, attempt INTEGER, position BIGINT);
        CREATE TABLE IF NOT EXISTS inverse_{epoch} (position {number});
        CREATE TABLE IF NOT EXISTS inverse_blocks_{epoch} (positions {number}[{BLOCK_INSTANCES}]);
        CREATE TABLE IF NOT EXISTS inverse_more_{epoch} (instance BIGINT, position BIGINT);
        """
    )


def _write_order(
    connection: Any, epoch: int, segments: Sequence[Segment], order: EpochOrder, progress: Progress
) -> None:
    for start in range(_count(connection, f"order_{epoch}") or 0, order.num_positions, STRETCH):
        stop = min(start + STRETCH, order.num_positions)
        step, others = readings_of_stretch(segments, order, start, stop)
        with _together(connection):
            columns = {"instance": order.stretch(start, stop), "step": step}
            _insert(connection, f"order_{epoch}", columns, "instance, nullif(step, 0)")
            if len(others.step):
                columns = {name: getattr(others, name) for name in ("instance", "step", "attempt", "position")}
                _insert(connection, f"rereadings_{epoch}", columns)
        progress(f"epoch {epoch}: wrote the order of {stop:,} of {order.num_positions:,} positions")


def _write_inverse(
    connection: Any, epoch: int, segments: Sequence[Segment], order: EpochOrder, progress: Progress
) -> None:
    done = _count(connection, f"inverse_{epoch}") or 0
    for first in range(done // PART * PART, order.num_instances, PART):
        last = min(first + PART, order.num_instances)
        places = places_of_instances(segments, order, first, last)
        for start in range(max(done, first), last, STRETCH):
            stop = min(start + STRETCH, last)
            position = places.position[start - first : stop - first]
            with _together(connection):
                if start == first and len(places.more_instances):
                    columns = {"instance": places.more_instances, "position": places.more_positions}
                    _insert(connection, f"inverse_more_{epoch}", columns)
                _insert(connection, f"inverse_{epoch}", {"position": position}, f"nullif(position, {order.nowhere})")
                _insert(connection, f"inverse_blocks_{epoch}", {"positions": _in_blocks(position, order.nowhere)})
            progress(f"epoch {epoch}: wrote the places of {stop:,} of {order.num_instances:,} instances")
        del places, position  # before the next ones are made


def _in_blocks(position: np.ndarray, nowhere: int) -> Any:
    """Rows of `BLOCK_INSTANCES` positions; the last is filled up with `nowhere`."""
    import pyarrow

    missing = -len(position) % BLOCK_INSTANCES
    padded = np.append(position, np.full(missing, nowhere, dtype=position.dtype)) if missing else position
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(padded), BLOCK_INSTANCES)


@contextmanager
def _together(connection: Any) -> Iterator[None]:
    """What is inserted inside is there as a whole, or not at all."""
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _insert(connection: Any, table: str, columns: Mapping[str, Any], select: str = "*") -> None:
    import pyarrow

    connection.register("source", pyarrow.table(columns))
    connection.execute(f"INSERT INTO {table} SELECT {select} FROM source")
    connection.unregister("source")


# --- views -----------------------------------------------------------------------------------------------------------


def _views(run: Run) -> str:
    def union(name: str) -> str:
        text = (resources.files("data_index") / "sql" / f"{name}.sql").read_text().replace("{index}", "")
        parts = [text.replace("{epoch}", str(epoch)) for epoch in run.epochs]
        return " UNION ALL ".join(parts) or _NOTHING  # it is not known what the run read

    text = (resources.files("data_index") / "sql" / "index.sql").read_text()
    for name in ("consumption", "consumed_instances", "readings_of"):
        text = text.replace("{" + name + "}", union(name))
    numbers = {"sequence_length": run.sequence_length, "file_block": file_block(run), "block": BLOCK_INSTANCES}
    for name, number in numbers.items():
        text = text.replace("{" + name + "}", str(number))
    return text
