"""Any picture of forensics in the colours of the theme in force, with points that lead on when they are clicked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from app.charts import ON_DARK, is_dark, label_logarithms, recolour, recolour_band
from forensics.figure import Figure, interactive
from forensics.figure_bars import BAND as INTERVAL

MORE_ON_DARK = {INTERVAL: "#4A525B"}
MANY = 1_000  # points are drawn smaller
PLAIN_INK, DARK_INK = "#1C2127", "#E6E9EC"


def figure_canvas(figure: Figure, *, dark: bool) -> Any:
    """A plotly figure as `forensics.figure` makes it, for a light or a dark ground."""
    canvas = interactive(figure)
    colours = ON_DARK | MORE_ON_DARK if dark else {}
    legends: set[str] = set()
    small = sum(len(trace.x) for trace in canvas.data if trace.type == "scatter" and trace.mode == "markers") > MANY
    for trace in canvas.data:
        if trace.type == "bar":
            _recolour_bars(trace, colours, legends)
        elif trace.type == "scatter":
            _recolour_trace(trace, colours, small)
    recolour(canvas, colours)
    canvas.update_layout(
        template="plotly_dark" if dark else "plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 16, "r": 8, "t": 28, "b": 8},
        font={"family": "'Source Sans', sans-serif", "size": 13, "color": DARK_INK if dark else PLAIN_INK},
        hovermode="closest",
        dragmode="zoom",
        clickmode="event+select",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8A929A", "activecolor": "#AAB2BA" if dark else PLAIN_INK},
        hoverlabel={"font": {"family": "monospace"}},
        uirevision="kept",
    )
    _part_legends(canvas)
    grid = {"gridcolor": "#2B323A" if dark else "#E8ECEF", "zeroline": False, "automargin": True}
    canvas.update_xaxes(**grid)
    canvas.update_yaxes(**grid)
    label_logarithms(canvas)
    canvas.for_each_xaxis(lambda axis: axis.title.update(font={"size": 12}))
    canvas.for_each_yaxis(lambda axis: axis.title.update(font={"size": 12}))
    canvas.update_annotations(font={"size": 12})
    return canvas


def _part_legends(canvas: Any) -> None:
    """Where several panels tell lines apart, each does so beside itself."""
    told = [trace for trace in canvas.data if trace.showlegend and trace.legend is None and trace.type == "scatter"]
    axes = list(dict.fromkeys(trace.yaxis or "y" for trace in told))
    if len(axes) < 2:
        return
    for axis in axes:
        number = axis.removeprefix("y")
        top = canvas.layout[f"yaxis{number}"].domain[1]
        place = {"x": 1.01, "xanchor": "left", "y": top, "yanchor": "top", "font": {"size": 11}}
        canvas.update_layout({f"legend{number}": place})
    for trace in told:
        trace.update(legend=(trace.yaxis or "y").replace("y", "legend"))


def _recolour_trace(trace: Any, colours: dict[str, str], small: bool) -> None:
    """Lines, points and bands; those that stand out when they are chosen keep the others as they are."""
    if trace.hoverinfo == "skip":
        recolour_band(trace, colours)
        return
    if trace.line.color in colours:
        trace.update(line={"color": colours[trace.line.color]})
    if trace.marker.color in colours:
        trace.update(marker={"color": colours[trace.marker.color]})
    if trace.marker.line.color in colours:
        trace.update(marker={"line": {"color": colours[trace.marker.line.color]}})
    if small and trace.mode == "markers":
        trace.update(marker={"size": 4})
    if "markers" in (trace.mode or ""):
        trace.update(unselected={"marker": {"opacity": trace.marker.opacity or 1}}, selected={"marker": {"size": 11}})


def _recolour_bars(trace: Any, colours: dict[str, str], legends: set[str]) -> None:
    """What several panels have in common is explained once."""
    several = isinstance(trace.marker.color, list | tuple)
    given = list(trace.marker.color) if several else [trace.marker.color]
    shown = [colours.get(colour, colour) for colour in given]
    trace.update(marker={"color": shown if several else shown[0]})
    if trace.showlegend is not False:
        trace.update(showlegend=trace.name not in legends)
        legends.add(trace.name)


def show_figure(figure: Figure, *, key: str, clickable: bool = True) -> list[dict[str, Any]]:
    """Show it, its note below it.

    Returns:
        The points that were clicked, as Streamlit tells them: `customdata` is what the picture says of each.
    """
    event: Any = st.plotly_chart(
        figure_canvas(figure, dark=is_dark()),
        key=key,
        on_select="rerun" if clickable else "ignore",
        selection_mode="points",
        config={"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"]},
        theme=None,
        alt=f"{figure.title}. {figure.note}",
    )
    st.caption(_plain(figure.note))
    return list(event["selection"]["points"]) if clickable and event else []


def clicked_place(points: Sequence[dict[str, Any]]) -> tuple[str, int] | None:
    """Run and step of a point of a curve (IntervalCurve.at)."""
    about = points[0].get("customdata") if points else None
    # A browser's JSON makes a list of it, or an object with the numbers of its elements.
    values = list(about.values()) if isinstance(about, dict) else list(about or [])
    return (str(values[1]), int(values[2])) if len(values) > 2 else None


def _plain(text: str) -> str:
    """Text that Streamlit reads as Markdown, as it stands: notes may hold names from data."""
    marks = r"\`*_{}[]()<>#+-.!|~$:^"
    return "".join(f"\\{char}" if char in marks else char for char in text)
