"""Kinds of learned tables: their columns, and the check that a table has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_index.errors import CorruptFile

# Columns with DuckDB's types; in the workspace's views a column `run` stands before them.
KINDS: Mapping[str, Mapping[str, str]] = {
    "documents": {
        "document_id": "BIGINT",
        "file": "VARCHAR",
        "start": "BIGINT",
        "end": "BIGINT",
        "source": "VARCHAR",
        "source_start": "BIGINT",
        "source_end": "BIGINT",
        "tags": "VARCHAR[]",
        "external_id": "VARCHAR",
        "line": "BIGINT",
    },
    "tags": {"document_id": "BIGINT", "tag": "VARCHAR", "origin": "VARCHAR"},
    "masks": {
        "step": "BIGINT",
        "attempt": "INTEGER",
        "position": "BIGINT",
        "instance": "BIGINT",
        "start": "BIGINT",
        "stop": "BIGINT",
        "reason": "VARCHAR",
    },
    "metrics": {
        "step": "BIGINT",
        "attempt": "INTEGER",
        "name": "VARCHAR",
        "value": "DOUBLE",
        "original_name": "VARCHAR",
        "source": "VARCHAR",
    },
    "consumed": {
        "step": "BIGINT",
        "attempt": "INTEGER",
        "instances": "BIGINT[]",
        "input_ids_sha256": "VARCHAR",
    },
    "checkpoints": {
        "step": "BIGINT",
        "tokens": "BIGINT",
        "location": "VARCHAR",
        "layout": "VARCHAR",
        "states": "VARCHAR[]",
        "issues": "VARCHAR[]",
        "revision": "VARCHAR",
        "commit": "VARCHAR",
        "available": "BOOLEAN",
        "checked_at": "VARCHAR",
    },
    "parameter_hashes": {"step": "BIGINT", "attempt": "INTEGER", "sha256": "VARCHAR"},
    "block_hashes": {"file": "VARCHAR", "block": "BIGINT", "sha256": "VARCHAR", "seen": "VARCHAR"},
    "file_hashes": {
        "file": "VARCHAR",
        "step": "BIGINT",
        "num_bytes": "BIGINT",
        "sha256": "VARCHAR",
        "seen": "VARCHAR",
    },
    "audit": {
        "artifact": "VARCHAR",
        "step": "BIGINT",
        "check": "VARCHAR",
        "result": "VARCHAR",
        "detail": "VARCHAR",
        "num_bytes": "BIGINT",
        "checked_at": "VARCHAR",
    },
    "hidden": {
        "step": "BIGINT",
        "attempt": "INTEGER",
        "position": "BIGINT",
        "instance": "BIGINT",
        "start": "BIGINT",
        "stop": "BIGINT",
        "reason": "VARCHAR",
    },
    "exposures": {
        "step": "BIGINT",
        "token_id": "BIGINT",
        "as_input": "BIGINT",
        "as_target": "BIGINT",
        "masked_target": "BIGINT",
        "filtered_input": "BIGINT",
        "filtered_target": "BIGINT",
        "not_applied": "BIGINT",
        "first_step": "BIGINT",
        "last_step": "BIGINT",
    },
    "evaluations": {
        "step": "BIGINT",
        "task": "VARCHAR",
        "metric": "VARCHAR",
        "value": "DOUBLE",
        "stderr": "DOUBLE",
        "num_fewshot": "BIGINT",
        "source": "VARCHAR",
        "unit": "VARCHAR",
    },
    # What `probe` measured. `settings`: what the number depends on besides the weights, as JSON.
    "probes": {
        "step": "BIGINT",
        "tokens": "BIGINT",
        "probe": "VARCHAR",
        "metric": "VARCHAR",
        "value": "DOUBLE",
        "low": "DOUBLE",
        "high": "DOUBLE",
        "unit": "VARCHAR",
        "text": "VARCHAR",
        "settings": "VARCHAR",
    },
    # What `spikes` found. `offset` would be a word of SQL.
    "spikes": {
        "onset": "BIGINT",
        "peak": "BIGINT",
        "last": "BIGINT",
        "recovery": "BIGINT",
        "kind": "VARCHAR",
        "lead_steps": "BIGINT",
        "attempt": "INTEGER",
        "series": "VARCHAR[]",
        "level": "DOUBLE",
        "peak_value": "DOUBLE",
        "peak_z": "DOUBLE",
        "area": "DOUBLE",
        "lasting_offset": "DOUBLE",
        "detail": "VARCHAR",
        "definition": "VARCHAR",
        "parameters": "VARCHAR",
    },
    # What `tokens` found at a checkpoint.
    "tokens": {
        "step": "BIGINT",
        "token_id": "BIGINT",
        "text": "VARCHAR",
        "category": "VARCHAR",
        "indicator_name": "VARCHAR",
        "indicator": "DOUBLE",
        "rank": "BIGINT",
        "candidate": "BOOLEAN",
        "below_gap": "BOOLEAN",
        "below_2_percent": "BOOLEAN",
        "in_unused_set": "BOOLEAN",
        "never_updated": "BOOLEAN",
        "evidence": "VARCHAR[]",
        "max_probability": "DOUBLE",
        "verified": "BOOLEAN",
    },
    # What `tokens --track` found at each checkpoint, and over the steps.
    "token_paths": {
        "step": "BIGINT",
        "token_id": "BIGINT",
        "indicator_name": "VARCHAR",
        "indicator": "DOUBLE",
        "distance_to_unused": "DOUBLE",
        "untrained": "BOOLEAN",
    },
    "token_origins": {
        "token_id": "BIGINT",
        "document_ids": "BIGINT[]",
        "tags": "VARCHAR[]",
        "tag_counts": "BIGINT[]",
    },
    # What `batch --losses` computed: `token` counts from 0 in its row; no loss where it is no target.
    "token_losses": {
        "step": "BIGINT",
        "attempt": "INTEGER",
        "instance": "BIGINT",
        "position": "BIGINT",
        "checkpoint": "BIGINT",
        "token": "BIGINT",
        "token_id": "BIGINT",
        "loss": "DOUBLE",
    },
    # What `repeats` hashed. `documents` names the documents table whose ids these are.
    "document_hashes": {
        "document_id": "BIGINT",
        "num_tokens": "BIGINT",
        "sha256": "VARCHAR",
        "documents": "VARCHAR",
    },
    "instance_hashes": {"instance": "BIGINT", "num_tokens": "BIGINT", "sha256": "VARCHAR"},
    "minhashes": {"sha256": "VARCHAR", "method": "VARCHAR", "signature": "INTEGER[]"},
}

# Columns that came later: a file without one reads as if nothing were said there.
ADDED_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "metrics": ("source",),
    "documents": ("external_id", "line"),
    "evaluations": ("unit",),
}


def arrow_schema(kind: str) -> Any:
    """The columns of a kind as an Arrow schema."""
    import pyarrow

    scalars = {
        "BIGINT": pyarrow.int64(),
        "INTEGER": pyarrow.int32(),
        "VARCHAR": pyarrow.string(),
        "BOOLEAN": pyarrow.bool_(),
        "DOUBLE": pyarrow.float64(),
    }
    types = scalars | {f"{name}[]": pyarrow.list_(scalar) for name, scalar in scalars.items()}
    return pyarrow.schema([(column, types[name]) for column, name in KINDS[kind].items()])


def table_of_rows(kind: str, rows: list[dict[str, Any]], source: object) -> Any:
    """Rows as an Arrow table of a kind.

    Raises:
        CorruptFile: a value does not fit its column.
    """
    import pyarrow

    try:
        return pyarrow.Table.from_pylist(rows, schema=arrow_schema(kind))
    except (pyarrow.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise CorruptFile(f"{source}: a value does not fit the columns of {kind} ({error})") from error


def conform(table: Any, kind: str, source: object) -> Any:
    """The table with exactly the columns of its kind, in their types; optional ones that it lacks are NULL.

    Raises:
        CorruptFile: a column is missing or of another type; the message names it.
    """
    import pyarrow

    schema = arrow_schema(kind)
    for name in ADDED_COLUMNS.get(kind, ()):
        if name not in table.column_names:
            table = table.append_column(name, pyarrow.nulls(table.num_rows, schema.field(name).type))
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise CorruptFile(f"{source} lacks the column {missing[0]!r}; {kind} has {', '.join(schema.names)}")
    try:
        return table.select(schema.names).cast(schema)
    except (pyarrow.ArrowException, ValueError) as error:
        raise CorruptFile(f"{source}: a column of {kind} has another type ({error})") from error
