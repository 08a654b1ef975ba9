"""Questions about what was logged, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_index.kinds import KINDS
from data_index.run import Run
from data_index.store import empty_connection, opened_for
from data_index.view_catalog import text_literal
from data_index.workspace import Workspace

# What a trainer recorded itself comes last, and so counts where an imported log says something else; of one log, the
# last attempt does.
_PRIORITY = "(source IS NULL), attempt, source"
_COUNTS_FIRST = "(source IS NULL) DESC, attempt DESC, source DESC"  # the same from the other end


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


def stretches_of_metric(
    workspace: Workspace, run: Run, name: str, first: int, last: int, num_stretches: int
) -> dict[str, Any]:
    """What one metric does in equal stretches of steps first+1 .. last; of each step the value that counts.

    Returns:
        Arrays with one element for each stretch that has a logged step, in step order: `first_step, last_step` of the
        logged ones; `first_value, last_value, lowest, highest` of its finite values, with their steps
        (`first_finite_step, last_finite_step, lowest_step, highest_step`), masked where it has none; `num_values`; and
        `num_not_finite`, with the first such step (`not_finite_step`).
    """
    connection = opened_for(workspace, run, "metrics")
    column, num_logs = _column_and_logs(connection, name)
    # To choose among several values of each step takes longer than all the rest.
    chosen = f"QUALIFY row_number() OVER (PARTITION BY step ORDER BY {_COUNTS_FIRST}) = 1" if num_logs > 1 else ""
    kept = f"SELECT step, value FROM metrics WHERE {column} = $name AND step > $first AND step <= $last {chosen}"
    asked = {"name": name, "first": first, "last": last, "count": num_stretches}
    arrays: dict[str, Any] = connection.execute(_in_stretches(kept), asked).fetchnumpy()
    return arrays


def is_of_several_attempts(workspace: Workspace, run: Run) -> bool:
    """Does its log hold another attempt than one? Nearly none does, and this is soon seen."""
    found = opened_for(workspace, run, "metrics").execute("SELECT min(attempt) < max(attempt) FROM metrics")
    ((several,),) = found.fetchall()
    return bool(several)


def given_up_stretches(
    workspace: Workspace, run: Run, name: str, first: int, last: int, num_stretches: int
) -> dict[int, dict[str, Any]]:
    """Attempt -> the same of its values that do not count, because a later attempt took their steps again."""
    connection = opened_for(workspace, run, "metrics")
    column, _ = _column_and_logs(connection, name)
    earlier = (
        f"SELECT step, attempt, value FROM metrics WHERE {column} = $name AND step > $first AND step <= $last "
        f"QUALIFY attempt < first_value(attempt) OVER (PARTITION BY step ORDER BY {_COUNTS_FIRST}) "
        f"AND row_number() OVER (PARTITION BY step, attempt ORDER BY {_COUNTS_FIRST}) = 1"
    )
    asked = {"name": name, "first": first, "last": last, "count": num_stretches}
    found = connection.execute(_in_stretches(earlier, "attempt"), asked).fetchnumpy()
    attempts = np.asarray(found.pop("attempt"))
    return {
        int(attempt): {column: values[attempts == attempt] for column, values in found.items()}
        for attempt in np.unique(attempts)
    }


def _in_stretches(values: str, *by: str) -> str:
    """The query of `stretches_of_metric` over rows of step and value, for each value of some more columns."""
    groups = ", ".join((*by, "stretch"))
    more = "".join(f"{column}, " for column in by)
    return f"""
        WITH kept AS ({values}),
        judged AS (
            SELECT {more}step, value, coalesce(isfinite(value), false) AS there,
                   (step - $first - 1) * $count // ($last - $first) AS stretch FROM kept)
        SELECT {more}min(step) AS first_step, max(step) AS last_step,
               arg_min(value, step) FILTER (there) AS first_value, arg_max(value, step) FILTER (there) AS last_value,
               min(value) FILTER (there) AS lowest, arg_min(step, value) FILTER (there) AS lowest_step,
               max(value) FILTER (there) AS highest, arg_max(step, value) FILTER (there) AS highest_step,
               min(step) FILTER (there) AS first_finite_step, max(step) FILTER (there) AS last_finite_step,
               count(*) AS num_values, count(*) FILTER (NOT there) AS num_not_finite,
               min(step) FILTER (NOT there) AS not_finite_step
        FROM judged GROUP BY {groups} ORDER BY {groups}"""


def _column_and_logs(connection: Any, name: str) -> tuple[str, int]:
    """The column in which a metric has this name, and how many logs hold it."""
    num_logs = _count_logs(connection, "name", name)
    return ("name", num_logs) if num_logs else ("original_name", _count_logs(connection, "original_name", name))


def _count_logs(connection: Any, column: str, name: str) -> int:
    """How many attempts of how many sources hold a metric; in each of them a step has one value."""
    query = f"SELECT count(DISTINCT (attempt, coalesce(source, ''))) FROM metrics WHERE {column} = ?"
    ((count,),) = connection.execute(query, [name]).fetchall()
    return int(count)


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
