"""How pictures of forensics look as plotly draws them: on a light or a dark ground, in the page's letters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import streamlit as st

from forensics.figure import BAND
from forensics.figure_bars import BAND as INTERVAL

# On a dark ground black cannot be seen, and the darker ones of Okabe and Ito's colours hardly. Where the lighter blue
# is a line as well, the darker one must not become it.
ON_DARK = {
    **{"#000000": "#FFFFFF", "#0072B2": "#3D86F0", "#56B4E9": "#A5DFFF", "#555555": "#AAB2BA"},
    **{BAND: "#4A3A2C", INTERVAL: "#4A525B"},
}
INK, DARK_INK = "#1C2127", "#E6E9EC"
FEW_DECADES, MOST_LABELS = 3.2, 10
PIXELS_AN_INCH = 78


def is_dark() -> bool:
    return st.context.theme.type == "dark"


def colours_for(*, dark: bool) -> Mapping[str, str]:
    """What each colour becomes; those that are not named stay."""
    return ON_DARK if dark else {}


def dress(canvas: Any, *, dark: bool) -> None:
    """Ground, letters, grid and axes; the colours of lines and bars are changed by `recolour`."""
    canvas.update_layout(
        template="plotly_dark" if dark else "plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 16, "r": 8, "t": 28, "b": 8},
        font={"family": "'Source Sans', sans-serif", "size": 13, "color": DARK_INK if dark else INK},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8A929A", "activecolor": "#AAB2BA" if dark else INK},
        hoverlabel={"font": {"family": "monospace"}},
        uirevision="kept",
    )
    grid = {"gridcolor": "#2B323A" if dark else "#E8ECEF", "zeroline": False, "automargin": True}
    canvas.update_xaxes(**grid)
    canvas.update_yaxes(**grid)
    canvas.for_each_xaxis(lambda axis: axis.title.update(font={"size": 12}))
    canvas.for_each_yaxis(lambda axis: axis.title.update(font={"size": 12}))
    canvas.update_annotations(font={"size": 12})
    _label_logarithms(canvas)
    for shape in canvas.layout.shapes:
        if shape.fillcolor in colours_for(dark=dark):
            shape.update(fillcolor=colours_for(dark=dark)[shape.fillcolor])


def recolour(trace: Any, *, dark: bool) -> None:
    """A line, points, bars or a band in the colours of the ground."""
    colours = colours_for(dark=dark)
    if trace.type == "bar":
        marked = trace.marker.color
        several = [colours.get(c, c) for c in marked] if isinstance(marked, tuple) else colours.get(marked, marked)
        trace.update(marker={"color": several, "line": {"width": 0}})
    if trace.type != "scatter":
        return
    if trace.line.color in colours:
        trace.update(line={"color": colours[trace.line.color]})
    if trace.fillcolor in colours:
        trace.update(fillcolor=colours[trace.fillcolor])
    if dark and trace.hoverinfo == "skip" and trace.opacity is not None:
        trace.update(opacity=1.8 * trace.opacity)  # a band, of which more must be seen
    for colour, place in ((trace.marker.color, trace.marker), (trace.marker.line.color, trace.marker.line)):
        if isinstance(colour, str) and colour in colours:
            place.update(color=colours[colour])


def tell_once(canvas: Any) -> None:
    """What several panels have in common is explained once."""
    told: set[str] = set()
    for trace in canvas.data:
        if trace.showlegend is not False and trace.name in told:
            trace.update(showlegend=False)
        told.add(trace.name)


def _label_logarithms(canvas: Any) -> None:
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
