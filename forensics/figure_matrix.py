"""A panel of states in rows and columns, drawn with matplotlib or plotly from one description."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FAILURE = "×"  # the symbol of a state that is marked however narrow its column is


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a cell of a matrix may be: told apart by colour and by symbol."""

    name: str
    colour: str
    symbol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """States in rows and columns; column c lies at x = c. Cells: [row][column], the name of a state, or "" for none.

    `details` are texts of the same shape, shown where a picture can be pointed at.
    """

    title: str
    rows: Sequence[str]
    cells: Sequence[Sequence[str]]
    details: Sequence[Sequence[str]]
    states: Sequence[State]


def draw_matrix(axis: Any, matrix: Matrix, inches: float) -> None:
    """With matplotlib: a coloured cell each, and its symbol where it fits; failures always show theirs."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    states = {state.name: state for state in matrix.states}
    count = len(matrix.cells[0]) if matrix.cells else 0
    colours = [[to_rgb(states[cell].colour) if cell else (1.0, 1.0, 1.0) for cell in row] for row in matrix.cells]
    extent = (-0.5, count - 0.5, len(matrix.rows) - 0.5, -0.5)
    axis.imshow(colours, interpolation="nearest", aspect="auto", extent=extent)
    points = min(0.75 * 72 * inches / max(count, 1), 10.0)
    for state in matrix.states:
        places = [(x, y) for y, row in enumerate(matrix.cells) for x, cell in enumerate(row) if cell == state.name]
        if state.symbol == FAILURE and places:
            axis.scatter(
                *zip(*places, strict=True), marker="x", s=max(0.7 * points, 4.0) ** 2, color="black", linewidths=1.0
            )
        elif points >= 3:
            for x, y in places:
                axis.text(x, y, state.symbol, fontsize=points, ha="center", va="center")
    for edge in range(1, len(matrix.rows)):
        axis.axhline(edge - 0.5, color="white", linewidth=1.5)
    if count <= 240:
        for edge in range(1, count):
            axis.axvline(edge - 0.5, color="white", linewidth=0.5)
    axis.set_yticks(range(len(matrix.rows)), matrix.rows, fontsize=8)
    axis.tick_params(length=0)
    axis.set_title(matrix.title, loc="left", fontsize=10, pad=20)
    axis.spines[:].set_visible(False)
    handles = [Patch(color=state.colour) for state in matrix.states]
    axis.legend(
        handles,
        [f"{state.symbol} {state.name}" for state in matrix.states],
        ncol=len(handles),
        fontsize=8,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        handlelength=1.0,
    )


def add_matrix(canvas: Any, matrix: Matrix, row: int, x_names: Sequence[str]) -> None:
    """With plotly: the same cells, each with what it is about when pointed at."""
    from plotly.graph_objects import Heatmap, Scatter

    numbers = {state.name: number for number, state in enumerate(matrix.states)}
    symbols = {state.name: state.symbol for state in matrix.states} | {"": ""}
    last = max(len(matrix.states) - 1, 1)
    scale = [
        (edge, state.colour)
        for number, state in enumerate(matrix.states)
        for edge in (max((number - 0.5) / last, 0.0), min((number + 0.5) / last, 1.0))
    ]
    hover = [
        [
            html.escape(f"{x_names[x] if x_names else x}, {name}: {cell or 'nothing checked'}. {detail}")
            for x, (cell, detail) in enumerate(zip(cells, details, strict=True))
        ]
        for name, cells, details in zip(matrix.rows, matrix.cells, matrix.details, strict=True)
    ]
    cells = Heatmap(
        z=[[numbers.get(cell) for cell in cells] for cells in matrix.cells],
        x=list(range(len(matrix.cells[0]) if matrix.cells else 0)),
        y=list(range(len(matrix.rows))),
        text=[[symbols[cell] for cell in cells] for cells in matrix.cells],
        texttemplate="%{text}",
        hovertext=hover,
        hoverinfo="text",
        zmin=0,
        zmax=last,
        colorscale=scale,
        showscale=False,
        xgap=1,
        ygap=2,
    )
    canvas.add_trace(cells, row=row, col=1)
    for state in matrix.states:
        marker = {"color": state.colour, "symbol": "square", "size": 12}
        name = f"{state.symbol} {state.name}"
        canvas.add_trace(Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name), row=row, col=1)
    names = list(matrix.rows)
    canvas.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed", row=row, col=1)
