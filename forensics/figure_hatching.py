"""Hatched stretches of a panel: where something is missing, as far as the panel is high."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

INK = "#8A929A"
Stretch = tuple[float, float, str]  # first, last, label


def draw_hatches(axis: Any, stretches: Sequence[Stretch]) -> None:
    """With matplotlib."""
    for first, last, label in stretches:
        axis.axvspan(first, last, facecolor="none", edgecolor=INK, hatch="////", linewidth=0, alpha=0.6, zorder=0)
        place = ((first + last) / 2, 0.5)
        axis.annotate(
            label,
            place,
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color="#555555",
            ha="center",
            va="center",
            rotation=90,
        )


def add_hatches(canvas: Any, stretches: Sequence[Stretch], row: int) -> None:
    """With plotly, which cannot hatch a shape: one filled line around all of them.

    It has a y axis of its own, from 0 to 1 over the panel's, so that it stays as high as the panel at every zoom.
    """
    from plotly.graph_objects import Scatter

    if not stretches:
        return
    x_axis, y_axis = canvas.get_subplot(row, 1).xaxis, canvas.get_subplot(row, 1).yaxis
    x_name, y_name = (axis.plotly_name.replace("axis", "") for axis in (x_axis, y_axis))
    above = f"{100 + row}"  # further than the panels' own axes go
    canvas.update_layout(
        {
            f"yaxis{above}": {
                "overlaying": y_name,
                "anchor": x_name,
                "range": [0, 1],
                "visible": False,
                "fixedrange": True,
            }
        }
    )
    corners = [(x, y) for first, last, _ in stretches for x, y in _outline(first, last)]
    trace = Scatter(x=[x for x, _ in corners], y=[y for _, y in corners], fill="toself", mode="lines")
    trace.update(line={"width": 0, "color": INK}, hoverinfo="skip", showlegend=False, name="")
    trace.update(fillcolor="rgba(0,0,0,0)", fillpattern={"shape": "/", "fgcolor": INK, "size": 7, "solidity": 0.15})
    trace.update(fillpattern_bgcolor="rgba(0,0,0,0)", xaxis=x_name, yaxis=f"y{above}")
    canvas.add_trace(trace)
    for first, last, label in stretches:
        if label:
            canvas.add_annotation(
                x=(first + last) / 2,
                y=0.5,
                xref=x_name,
                yref=f"{y_name} domain",
                text=html.escape(label),
                showarrow=False,
                textangle=-90,
                font={"size": 11, "color": INK},
            )


def _outline(first: float, last: float) -> list[tuple[float | None, float | None]]:
    """Around one of them; None ends it."""
    return [(first, 0), (first, 1), (last, 1), (last, 0), (first, 0), (None, None)]
