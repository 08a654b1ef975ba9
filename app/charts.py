"""Pictures of forensics as plotly draws them, in the colours of the theme in force."""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

from forensics.figure import BAND, Figure, interactive, panel_inches
from forensics.ribbon import Ribbon

MIME_TYPES = {
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
# On a dark ground black cannot be seen, and the darker ones of Okabe and Ito's colours hardly.
ON_DARK = {"#000000": "#FFFFFF", "#0072B2": "#3D86F0", "#555555": "#AAB2BA", BAND: "#4A3A2C"}
CLICKABLE = 4  # size of points that can be clicked; plotly selects no point of a bare line
FEW_DECADES, MOST_LABELS = 3.2, 10
PIXELS_AN_INCH = 78
MANY_POINTS = 400  # are there to be clicked, and not seen


def is_dark() -> bool:
    return st.context.theme.type == "dark"


def canvas_of(figure: Figure, *, dark: bool, height: int, x_range: tuple[float, float], marking: bool) -> Any:
    """A plotly figure whose every point can be clicked; `height` in pixels.

    `marking`: dragging marks a stretch of x, and a click chooses nothing; else it moves the picture.
    """
    canvas = interactive(figure)
    colours = ON_DARK if dark else {}
    told: set[str] = set()  # what several panels have in common is explained once
    for trace in canvas.data:
        if trace.hoverinfo == "skip":  # bands and hatches are no lines
            recolour_band(trace, colours)
            continue
        colour = colours.get(trace.line.color, trace.line.color)
        many = trace.x is not None and len(trace.x) > MANY_POINTS
        trace.update(line={"color": colour, "width": 1 if many else 1.6}, marker={"color": colour})
        if trace.marker.line.color in colours:
            trace.update(marker={"line": {"color": colours[trace.marker.line.color]}})
        if trace.customdata is not None:  # a curve of a probe: it says its intervals itself
            trace.update(selected={"marker": {"size": 11}}, unselected={"marker": {"opacity": 1}})
            continue
        if trace.mode == "lines":
            shown = 0 if many or trace.opacity is not None else 1
            trace.update(mode="lines+markers", marker={"size": CLICKABLE, "opacity": shown})
            trace.update(selected={"marker": {"opacity": 1, "size": 9}}, unselected={"marker": {"opacity": shown}})
        trace.update(showlegend=trace.showlegend and trace.name not in told)
        told.add(trace.name)
        trace.update(hovertemplate="step %{x}<br>%{y}<extra>%{fullData.name}</extra>")
    recolour(canvas, colours)
    canvas.update_layout(
        template="plotly_dark" if dark else "plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 16, "r": 8, "t": 28, "b": 8},
        font={"family": "'Source Sans', sans-serif", "size": 13, "color": "#E6E9EC" if dark else "#1C2127"},
        hovermode="closest",
        dragmode="select" if marking else "pan",
        selectdirection="h",
        clickmode="event" if marking else "event+select",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8A929A", "activecolor": "#AAB2BA" if dark else "#1C2127"},
        hoverlabel={"font": {"family": "monospace"}},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"},
        uirevision="kept",
        height=height,
    )
    grid = {"gridcolor": "#2B323A" if dark else "#E8ECEF", "zeroline": False, "automargin": True}
    margin = 0.01 * (x_range[1] - x_range[0])
    canvas.update_xaxes(**grid, range=[x_range[0] - margin, x_range[1] + margin])
    canvas.update_yaxes(**grid)
    label_logarithms(canvas)
    canvas.for_each_xaxis(lambda axis: axis.title.update(font={"size": 12}))
    canvas.for_each_yaxis(lambda axis: axis.title.update(font={"size": 12}))
    canvas.update_annotations(font={"size": 12})
    return canvas


def show_ribbon(figure: Figure, found: Ribbon, *, key: str, marking: bool = False) -> Any:
    """A run at a glance; what was clicked or marked in it."""
    event = st.plotly_chart(
        canvas_of(
            figure,
            dark=is_dark(),
            marking=marking,
            x_range=(found.first, found.last),
            height=60 + round(PIXELS_AN_INCH * sum(map(panel_inches, figure.panels))),
        ),
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


def label_logarithms(canvas: Any) -> None:
    """Where a logarithmic axis spans few decades, a label at each of them would be too few; where many, too many."""
    for letter, axes in (("x", canvas.select_xaxes()), ("y", canvas.select_yaxes())):
        for axis in axes:
            if axis.type != "log" or axis.tickvals is not None:
                continue
            low, high = axis.range or _decades(canvas, letter, axis.plotly_name)
            if high - low < FEW_DECADES:
                axis.update(dtick="D2", tickformat="~g")
            else:
                axis.update(dtick=max(round((high - low) / MOST_LABELS), 1), tickformat=None if high >= 4 else "~g")


def _decades(canvas: Any, letter: str, name: str) -> tuple[float, float]:
    """The logarithms of the smallest and the largest value on an axis."""
    axis = letter + name.removeprefix(f"{letter}axis")
    drawn = [trace[letter] for trace in canvas.data if (trace[f"{letter}axis"] or letter) == axis]
    values = [value for some in drawn if some is not None for value in some if value is not None and value > 0]
    return (math.log10(min(values)), math.log10(max(values))) if values else (0.0, 0.0)


def recolour_band(trace: Any, colours: dict[str, str]) -> None:
    """On a dark ground a band needs more of its colour to be seen."""
    if trace.line.color in colours:
        trace.update(line={"color": colours[trace.line.color]})
    if trace.fillcolor in colours:
        trace.update(fillcolor=colours[trace.fillcolor])
    if colours and trace.opacity is not None:
        trace.update(opacity=1.8 * trace.opacity)


def recolour(canvas: Any, colours: dict[str, str]) -> None:
    for shape in canvas.layout.shapes:
        if shape.fillcolor in colours:
            shape.update(fillcolor=colours[shape.fillcolor])
