"""Charts of queries: every value where it belongs, the largest one among them."""

from __future__ import annotations

import numpy as np
import pyarrow
import pytest

from data_index.errors import InvalidRange
from forensics.quick_chart import MOST_NAMES, MOST_POINTS, ROWS, chart_of, number_columns, x_columns

TABLE = pyarrow.table(
    {
        "step": [3, 1, None, 2],
        "loss": [3.5, float("nan"), 9.0, 2.5],
        "name": ["a", "b", "c", "d\x1b"],
        "n": [1, 2, 3, 4],
    }
)


def test_rows_are_put_in_the_order_of_x() -> None:
    (series,) = chart_of(TABLE, "step", ["loss"]).panels[0].series

    assert (list(series.x), list(series.y)) == ([1.0, 2.0, 3.0], [None, 2.5, 3.5])


def test_names_stand_along_x_where_they_are_few() -> None:
    figure = chart_of(TABLE, "name", ["loss", "n"])

    assert list(figure.x_names) == ["a", "b", "c", "d\\x1b"] and [s.name for s in figure.panels[0].series] == [
        "loss",
        "n",
    ]
    assert number_columns(TABLE) == ["step", "loss", "n"] and x_columns(TABLE) == [ROWS, "step", "loss", "name", "n"]
    many = pyarrow.table({"name": ["x"] * (MOST_NAMES + 1), "n": range(MOST_NAMES + 1)})
    assert x_columns(many) == [ROWS, "n"]


def test_the_largest_of_many_points_is_drawn() -> None:
    values = np.zeros(50_000)
    values[31_415] = 7.0
    table = pyarrow.table({"v": values})
    (points,) = chart_of(table, ROWS, ["v"], "points").panels[0].series

    assert len(points.x) <= MOST_POINTS and dict(zip(points.x, points.y, strict=True))[31_415] == 7.0


def test_two_columns_of_one_name_are_not_guessed_apart() -> None:
    twice = pyarrow.Table.from_arrays(
        [pyarrow.array([1]), pyarrow.array([2]), pyarrow.array([3])], names=["a", "a", "b"]
    )

    assert number_columns(twice) == ["b"]
    for x, ys in (("a", ["b"]), ("b", ["a"]), (ROWS, ["nothing"])):
        with pytest.raises(InvalidRange, match="no column that can be drawn"):
            chart_of(twice, x, ys)
