"""A chart of a query's answer: columns of numbers along another column, without losing a peak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from data_index.errors import InvalidRange
from forensics.cli.output import printable
from forensics.figure import Figure, Panel, Series
from forensics.thinned import thinned

ROWS = "row"  # along the rows of the answer
MOST_POINTS = 10_000
MOST_NAMES = 200


def number_columns(table: Any) -> list[str]:
    """Those of an Arrow table that can be drawn; of two with one name neither."""
    import pyarrow.types as types

    def counts(kind: Any) -> bool:
        return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)

    names = table.column_names
    return [name for name in names if names.count(name) == 1 and counts(table.column(name).type)]


def x_columns(table: Any) -> list[str]:
    """What numbers can be drawn along: numbers, and names where they are few."""
    names = table.column_names
    few = table.num_rows <= MOST_NAMES
    return [ROWS, *(name for name in names if names.count(name) == 1 and (few or name in number_columns(table)))]


def chart_of(table: Any, x: str, ys: Sequence[str], style: Literal["line", "points"] = "line") -> Figure:
    """
    Args:
        x: one of `x_columns`; rows are put in its order where it is of numbers, those without one are left out.
        ys: of `number_columns`, each a series.
    Raises:
        InvalidRange: there is no such column.
    """
    if wrong := [name for name in (x, *ys) if name not in (x_columns(table) if name == x else number_columns(table))]:
        raise InvalidRange(f"{wrong[0][:60]!r} is no column that can be drawn; these are: {number_columns(table)}")
    rows, names = _rows_along(table, x)
    places = [place for place, _ in rows]
    series = []
    for number, name in enumerate(ys):
        column = table.column(name).to_pylist()
        values = [_finite(column[row]) for _, row in rows]
        kept = thinned(places, values, MOST_POINTS) if style == "points" else (places, values)
        series.append(Series(name=printable(name), x=kept[0], y=kept[1], style=style, colour=number))
    panel = Panel(title="", y_label=printable(ys[0]) if len(ys) == 1 else "", series=series, inches=3.4)
    return Figure(title="query", x_label=printable(x), panels=[panel], x_names=names)


def _rows_along(table: Any, x: str) -> tuple[list[tuple[float, int]], list[str]]:
    """(place, row) in the order of x; the names of the places where they have some."""
    if x == ROWS:
        return [(number, number) for number in range(table.num_rows)], []
    values = table.column(x).to_pylist()
    if x not in number_columns(table):
        return [(number, number) for number in range(len(values))], [printable(str(value)) for value in values]
    found = [(float(value), row) for row, value in enumerate(values) if _finite(value) is not None]
    return sorted(found), []


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
