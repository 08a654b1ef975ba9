"""Questions about what was logged, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_index.kinds import KINDS
from data_index.run import Run
from data_index.store import empty_connection, opened_for
from data_index.view_catalog import text_literal
from data_index.workspace import Workspace

# What a trainer recorded itself comes last, and so counts where an imported log says something else; of one log, the
# last attempt does.
_PRIORITY = "(source IS NULL), attempt, source"


def metrics_of_step(workspace: Workspace, run: Run, step: int) -> dict[str, float]:
    found = opened_for(workspace, run, "metrics").execute(
        f"SELECT name, value FROM metrics WHERE step = ? ORDER BY {_PRIORITY}", [step]
    )
    return {name: value for name, value in found.fetchall()}


def logged_metrics(
    workspace: Workspace, run: Run, first: int, last: int, names: Sequence[str] | None = None
) -> dict[int, dict[str, float]]:
    """Metrics of steps first+1 .. last: step -> name -> value, of the attempt that was kept (the last).

    Args:
        names: only these; default: all that were logged.
    """
    found = opened_for(workspace, run, "metrics").execute(
        "SELECT step, name, value FROM metrics WHERE step > $first AND step <= $last "
        f"AND ($names IS NULL OR list_contains($names::VARCHAR[], name)) ORDER BY step, {_PRIORITY}",
        {"first": first, "last": last, "names": None if names is None else list(names)},
    )
    metrics: dict[int, dict[str, float]] = {}
    for step, name, value in found.fetchall():
        metrics.setdefault(step, {})[name] = value
    return metrics


def points_of_metric(workspace: Workspace, run: Run, name: str) -> dict[str, Any]:
    """All points of one metric, every attempt: arrays `step, attempt, value`, in step order, the one that counts last.

    Args:
        name: the canonical one; else the one that the log gave it.
    """
    found = opened_for(workspace, run, "metrics").execute(
        "SELECT step, attempt, value FROM metrics WHERE name = $name OR (original_name = $name AND NOT EXISTS "
        f"(SELECT 1 FROM metrics WHERE name = $name)) ORDER BY step, {_PRIORITY}",
        {"name": name},
    )
    arrays: dict[str, Any] = found.fetchnumpy()
    return arrays


def names_of_metrics(workspace: Workspace, run: Run) -> list[str]:
    found = opened_for(workspace, run, "metrics").execute("SELECT DISTINCT name FROM metrics ORDER BY name")
    return [name for (name,) in found.fetchall()]


def logged_skips(workspace: Workspace, run: Run) -> frozenset[int]:
    """Steps whose last attempt the trainer logged as skipped: it computed the update and did not apply it."""
    found = opened_for(workspace, run, "metrics").execute(
        "SELECT step FROM metrics WHERE name = 'skipped' "
        "QUALIFY row_number() OVER (PARTITION BY step ORDER BY attempt DESC) = 1 AND value > 0"
    )
    return frozenset(step for (step,) in found.fetchall())


# Two rows are of one point where these agree; a point is the same where all columns but the source and the unit do.
_KEYS = {"metrics": ("step", "attempt", "name"), "evaluations": ("step", "task", "metric", "num_fewshot")}
# The unit follows from the metric; files from before it was kept lack it.
_NOT_COMPARED = ("source", "unit")


def rows_only_in(kind: str, one: Any, other: Any) -> int:
    """Rows of a table that another one does not have, wherever they come from, and whether or not they state a unit.

    Args:
        one, other: Parquet files, or Arrow tables.
    """
    columns = ", ".join(f'"{column}"' for column in KINDS[kind] if column not in _NOT_COMPARED)
    connection = _compared(one, other)
    found = connection.execute(
        f"SELECT count(*) FROM (SELECT {columns} FROM one EXCEPT SELECT {columns} FROM other)"
    ).fetchone()
    return int(found[0]) if found else 0


def rows_that_differ(kind: str, one: Any, other: Any) -> tuple[int, tuple[Any, ...]]:
    """How many rows are of a point of which another table says something else, and the first of them.

    Returns:
        The count, and (its keys, the value of the one, of the other).
    """
    keys = ", ".join(f'"{column}"' for column in _KEYS[kind])
    connection = _compared(one, other)
    found = connection.execute(
        f"SELECT count(*) OVER (), {keys}, one.value, other.value FROM one JOIN other USING ({keys}) "
        "WHERE one.value IS DISTINCT FROM other.value ORDER BY ALL LIMIT 1"
    ).fetchone()
    return (int(found[0]), tuple(found[1:])) if found else (0, ())


def _compared(one: Any, other: Any) -> Any:
    connection = empty_connection()
    for name, table in (("one", one), ("other", other)):
        if isinstance(table, Path):
            connection.execute(f"CREATE VIEW {name} AS FROM read_parquet([{text_literal(str(table))}])")
        else:
            connection.register(name, table)
    return connection
