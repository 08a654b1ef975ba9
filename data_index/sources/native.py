"""The native run format: what any training loop can write to be forensics-ready.

    run.toml                 name, config, data files, order, segments, environment     (see data_index/run.py)
    tokens/*.bin             raw little-endian token ids                heldout/*.bin   never in an order
    order/epoch-<e>.npy      instances in consumption order, epochs from 1
    documents.parquet        document_id, file, start, end, source, source_start, source_end, tags; may have
                             external_id, line (start, end: tokens of the file; source_*: characters of the source;
                             ends exclusive; external_id: the publisher's own; line: of the source, from 1)
    masks.parquet            step, attempt, position, instance, start, stop, reason        (only where there are any)
    metrics/*.parquet        step, attempt, name, value, original_name
    consumed/*.parquet       step, attempt, instances, input_ids_sha256    what the trainer handed to the model
    checkpoints/step<N>/     model.safetensors, optimizer.safetensors, state.json

Pieces in metrics/ and consumed/ are named <first>-<last>.parquet. A piece counts once the checkpoint of its last step
is there; later ones are left over from a writer that died.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_index.errors import UNFORESEEN, CorruptFile, UnknownLayout, UnsafeFile
from data_index.files import TEMPORARY_PREFIX, is_absurd, require_file
from data_index.kinds import conform
from data_index.run import Checkpoint, OrderTrust, Run
from data_index.run_file import read_run
from data_index.sources import Imported
from data_index.sources.folder import refuse_settings

if TYPE_CHECKING:
    import pyarrow

    from data_index.remote.files import Data

NO_RECORD = "a record of the batches that were consumed"
_STEP = re.compile(r"step(\d{1,18})$")
_PIECE = re.compile(r"(\d{1,18})-(\d{1,18})\.[a-z0-9]+$")


def recognises(folder: Path) -> bool:
    return (folder / "run.toml").is_file()


def read(folder: Path, name: str | None, data: Data, settings: Mapping[str, Any]) -> Imported:
    """Read a native run folder.

    Raises:
        MissingFile, CorruptFile, NewerWorkspace, UnknownLayout: `data` was given, and run.toml names its own files.
    """
    refuse_settings(settings, "run.toml")
    if data is not None:
        raise UnknownLayout(f"--data is not for a native run: {folder}/run.toml names its own token files")
    run = read_run(folder)
    if run.layout != "native":
        raise CorruptFile(f"{folder}/run.toml describes a run in layout {run.layout!r}, not a native run folder")
    stated = replace(run, name=name or run.name, source=folder.absolute(), trust=_believed(run.trust))
    return Imported(run=stated, tables=learned_tables(folder))


def _believed(stated: OrderTrust) -> OrderTrust:
    """What a run says of its own order proves nothing: its record of batches is compared, or is missing."""
    if stated.level == "unknown":
        return replace(stated, proved=())
    level: Literal["derived", "chunk"] = "chunk" if stated.level == "chunk" else "derived"
    return OrderTrust(level=level, witness=stated.witness, missing=stated.missing or NO_RECORD)


def learned_tables(folder: Path) -> dict[str, Any]:
    """The tables of a native folder, by kind; kinds without a file are absent."""
    tables = {}
    for kind in ("documents", "masks"):
        path = folder / f"{kind}.parquet"
        if (table := read_table(path)) is not None:
            tables[kind] = conform(table, kind, path)
    tables |= {kind: read_pieces(folder, kind) for kind in ("metrics", "consumed")}
    return {kind: table for kind, table in tables.items() if table is not None}


def read_table(path: Path) -> pyarrow.Table | None:
    """A Parquet file, or None where there is none.

    Raises:
        CorruptFile
    """
    import pyarrow.parquet

    if not path.exists():
        return None
    size = require_file(path)
    try:
        require_plausible_table(path, size, path)
        return pyarrow.parquet.read_table(path, partitioning=None)
    except UnsafeFile:
        raise
    except (*UNFORESEEN, pyarrow.ArrowException) as error:
        raise CorruptFile(f"{path} is not a whole Parquet file: {error}") from error


def require_plausible_table(source: Any, num_bytes: int, name: object) -> None:
    """Equal values take next to no room in a file, so that a small one may hold a column of any length.

    Args:
        source: a Parquet file: its path, or it opened.
    Raises:
        UnsafeFile
    """
    import pyarrow.parquet

    described = pyarrow.parquet.read_metadata(source)
    # Not by column: pyarrow ends the process where a column's statistics are damaged.
    packed = sum(described.row_group(number).total_byte_size for number in range(described.num_row_groups))
    if is_absurd(max(8 * described.num_rows * described.num_columns, packed), num_bytes):
        raise UnsafeFile(f"{name} claims {described.num_rows:,} rows and {packed:,} bytes; it has {num_bytes:,}")


def read_pieces(folder: Path, kind: str) -> pyarrow.Table | None:
    """All committed pieces of a kind as one table, or None where there are none."""
    import pyarrow

    pieces = [(read_table(path), path) for path in committed_pieces(folder, kind)]
    tables = [conform(table, kind, path) for table, path in pieces if table is not None]
    return pyarrow.concat_tables(tables) if tables else None


def metrics_by_step(folder: Path) -> dict[int, dict[str, float]]:
    """What a run folder has saved of each step: step -> name -> value."""
    table = read_pieces(folder, "metrics")
    metrics: dict[int, dict[str, float]] = {}
    for row in table.to_pylist() if table is not None else []:
        metrics.setdefault(row["step"], {})[row["name"]] = row["value"]
    return metrics


def committed_pieces(folder: Path, kind: str) -> list[Path]:
    """Pieces whose last step has been saved, in step order."""
    last = max(saved_steps(folder), default=-1)
    return [path for (_, stop), path in all_pieces(folder, kind) if stop <= last]


def all_pieces(folder: Path, kind: str) -> list[tuple[tuple[int, int], Path]]:
    """Pieces with their (first, last) step, in step order, committed or not."""
    found = []
    for path in (folder / kind).glob("*"):
        match = _PIECE.match(path.name)
        if match and not path.name.startswith(TEMPORARY_PREFIX):
            found.append(((int(match[1]), int(match[2])), path))
    return sorted(found)


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint folder; it appears by rename, so it is whole."""
    steps = [int(match[1]) for path in (folder / "checkpoints").glob("step*") if (match := _STEP.match(path.name))]
    return sorted(steps)


def checkpoint_folder(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step{step}"


def list_checkpoints(run: Run) -> list[Checkpoint]:
    found = []
    for step in saved_steps(run.source):
        location = checkpoint_folder(run.source, step)
        files = {"model.safetensors": "weights", "optimizer.safetensors": "optimizer", "state.json": "trainer"}
        found.append(
            Checkpoint(
                run=run.name,
                step=step,
                tokens=run.tokens_after(step),
                location=location,
                layout="native",
                states=tuple(state for file, state in files.items() if (location / file).exists()),
                issues=tuple(f"{file} is missing" for file in files if not (location / file).exists()),
            )
        )
    return found
