"""The ribbon of a run as plotly draws it, and what was clicked or marked in it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.theme import PIXELS_AN_INCH, colours_for, dress, is_dark, recolour, tell_once
from forensics.figure import Figure, interactive, panel_inches
from forensics.ribbon import Ribbon
from forensics.thinned import thinned

CLICKABLE = 4  # size of points that can be clicked; plotly selects no point of a bare line
HOVER = "step %{x}<br>%{y}<extra>%{fullData.name}</extra>"
MANY_POINTS = 400  # of a line
MOST_CLICKABLE = 800  # of a longer one; they are not seen


def ribbon_canvas(figure: Figure, *, dark: bool, x_range: tuple[float, float], marking: bool) -> Any:
    """A plotly figure whose every point can be clicked.

    `marking`: dragging marks a stretch of x, and a click chooses nothing; else it moves the picture.
    """
    canvas = interactive(figure)
    for trace in canvas.data:
        recolour(trace, dark=dark)
        if trace.hoverinfo != "skip":  # bands and hatches are no lines
            colour = colours_for(dark=dark).get(trace.line.color, trace.line.color)
            _make_clickable(canvas, trace, colour)
    tell_once(canvas)
    dress(canvas, dark=dark)
    canvas.update_layout(
        dragmode="select" if marking else "pan",
        selectdirection="h",
        clickmode="event" if marking else "event+select",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"},
        height=60 + round(PIXELS_AN_INCH * sum(map(panel_inches, figure.panels))),
    )
    margin = 0.01 * (x_range[1] - x_range[0])
    canvas.update_xaxes(range=[x_range[0] - margin, x_range[1] + margin])
    return canvas


def _make_clickable(canvas: Any, trace: Any, colour: str) -> None:
    """Points to click: those of the line; of a long one some that are not seen, its peaks among them.

    Thousands of points take a browser longer than the line through them (tests/benchmarks/RESULTS.md).
    """
    if trace.customdata is not None:  # a curve of a probe: it says its intervals itself
        trace.update(selected={"marker": {"size": 11}}, unselected={"marker": {"opacity": 1}})
        return
    trace.update(marker={"color": colour}, hovertemplate=HOVER)
    if trace.mode != "lines":
        return
    points, shown = trace, 0 if trace.opacity is not None else 1
    if trace.x is not None and len(trace.x) > MANY_POINTS:
        x, y = thinned(trace.x, trace.y, most=MOST_CLICKABLE)
        trace.update(line={"width": 1}, hoverinfo="skip", hovertemplate=None)
        canvas.add_trace(trace)
        points, shown = canvas.data[-1], 0
        points.update(x=list(x), y=list(y), showlegend=False, hoverinfo=None, hovertemplate=HOVER, mode="markers")
    else:
        points.update(mode="lines+markers", line={"width": 1.6})
    points.update(marker={"size": CLICKABLE, "opacity": shown})
    points.update(selected={"marker": {"opacity": 1, "size": 9}}, unselected={"marker": {"opacity": shown}})


def show_ribbon(figure: Figure, found: Ribbon, *, key: str, marking: bool = False) -> Any:
    """A run at a glance; what was clicked or marked in it."""
    event = st.plotly_chart(
        ribbon_canvas(figure, dark=is_dark(), marking=marking, x_range=(found.first, found.last)),
        key=key,
        on_select="rerun",
        selection_mode=("points", "box"),
        config={"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "autoScale2d"]},
        theme=None,
        alt=f"{figure.title}. {figure.note}",
    )
    st.caption(figure.note)
    return event


def clicked_step(event: Any, found: Ribbon) -> int | None:
    points = event["selection"]["points"] if event else []
    return max(int(round(points[0]["x"])), found.first + 1) if points else None
