"""Any picture of forensics in the colours of the theme in force, with points that lead on when they are clicked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from app.theme import PIXELS_AN_INCH, dress, is_dark, recolour, tell_once
from forensics.figure import AnyPanel, Bars, Curves, Figure, interactive, panel_inches

MANY = 1_000  # points are drawn smaller
CLICKABLE = 4  # size of the points of a line that can be clicked
NAME = 20  # pixels of one beside a panel of curves
OWN_AXIS = 40  # pixels of the label below a panel whose x is its own

Point = dict[str, Any]


def figure_canvas(figure: Figure, *, dark: bool, clickable: bool = False) -> Any:
    """A plotly figure as `forensics.figure` makes it, for a light or a dark ground.

    Raises:
        ValueError: plotly knows no such colour, say: pictures of findings may come from others.
    """
    canvas = interactive(figure)
    small = sum(len(trace.x) for trace in canvas.data if trace.type == "scatter" and trace.mode == "markers") > MANY
    for trace in canvas.data:
        recolour(trace, dark=dark)
        if trace.type == "scatter" and trace.hoverinfo != "skip":
            _make_clickable(trace, clickable, small)
    tell_once(canvas)
    dress(canvas, dark=dark)
    pixels = max([PIXELS_AN_INCH, *map(_pixels_for_names, figure.panels)])
    heights = [pixels * panel_inches(panel) + (0 if figure.shared_x else OWN_AXIS) for panel in figure.panels]
    canvas.update_layout(
        dragmode="zoom",
        clickmode="event+select" if clickable else "event",
        height=70 + round(sum(heights)),
        width=None,
    )
    _part_legends(canvas)
    if all(isinstance(panel, Bars) for panel in figure.panels):  # they need the width
        canvas.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"})
    return canvas


def _pixels_for_names(panel: AnyPanel) -> float:
    """An inch must be so high that the names beside a panel do not run into those of the next one."""
    if not isinstance(panel, Curves) or not panel.told_apart:
        return 0.0
    return (NAME * (len(panel.curves) + len(panel.gaps)) + NAME) / panel.inches


def _make_clickable(trace: Any, clickable: bool, small: bool) -> None:
    """Points that stand out when they are chosen keep the others as they are."""
    if trace.mode == "markers" and small:
        trace.update(marker={"size": 4})
    if clickable and trace.mode == "lines" and not (trace.fill or trace.stackgroup):
        trace.update(mode="lines+markers", marker={"size": CLICKABLE, "opacity": 0, "color": trace.line.color})
        trace.update(selected={"marker": {"opacity": 1, "size": 9}}, unselected={"marker": {"opacity": 0}})
    elif "markers" in (trace.mode or ""):
        trace.update(unselected={"marker": {"opacity": trace.marker.opacity or 1}}, selected={"marker": {"size": 11}})


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


def show_figure(figure: Figure, *, key: str, clickable: bool = False, note: bool = True) -> list[Point]:
    """Show it, its note below it.

    Returns:
        The points that were clicked, as Streamlit tells them: `x`, `y`, `customdata`, which is what the picture says of
        each.
    """
    try:
        canvas = figure_canvas(figure, dark=is_dark(), clickable=clickable)
    except ValueError as error:
        st.error("This picture cannot be drawn.", icon=":material/error:")
        st.code(str(error)[:400], language=None, wrap_lines=True)
        return []
    event: Any = st.plotly_chart(
        canvas,
        key=key,
        on_select="rerun" if clickable else "ignore",
        selection_mode="points",
        config={"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"]},
        theme=None,
        alt=f"{figure.title}. {figure.note}",
    )
    if note and figure.note:
        st.caption(_plain(figure.note))
    return list(event["selection"]["points"]) if clickable and event else []


def clicked_values(points: Sequence[Point]) -> list[Any]:
    """What the picture says of the point that was clicked; nothing: none was."""
    about = points[0].get("customdata") if points else None
    # A browser's JSON makes a list of it, or an object with the numbers of its elements.
    return list(about.values()) if isinstance(about, dict) else list(about or [])


def clicked_place(points: Sequence[Point]) -> tuple[str, int] | None:
    """Run and step of a point of a curve (IntervalCurve.at)."""
    values = clicked_values(points)
    return (str(values[1]), int(values[2])) if len(values) > 2 else None


def _plain(text: str) -> str:
    """Text that Streamlit reads as Markdown, as it stands: notes may hold names from data."""
    marks = r"\`*_{}[]()<>#+-.!|~$:^"
    return "".join(f"\\{char}" if char in marks else char for char in text)
