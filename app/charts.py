"""Pictures of forensics as plotly draws them, in the colours of the theme in force."""

from __future__ import annotations

from typing import Any

import streamlit as st

from forensics.figure import BAND, Bars, Curves, Figure, Matrix, interactive
from forensics.figure_bars import BAND as BAR_BAND
from forensics.ribbon import Ribbon

MIME_TYPES = {
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
# On a dark ground black cannot be seen, and the darker ones of Okabe and Ito's colours hardly.
ON_DARK = {
    **{"#000000": "#FFFFFF", "#0072B2": "#3D86F0", "#555555": "#AAB2BA"},
    **{BAND: "#4A3A2C", BAR_BAND: "#3A4149"},
}
CLICKABLE = 4  # size of points that can be clicked; plotly selects no point of a bare line
MANY_POINTS = 400  # are there to be clicked, and not seen


def is_dark() -> bool:
    return st.context.theme.type == "dark"


def canvas_of(figure: Figure, *, dark: bool, height: int, x_range: tuple[float, float], marking: bool) -> Any:
    """A plotly figure whose every point can be clicked; `height` in pixels.

    `marking`: dragging marks a stretch of x, and a click chooses nothing; else it moves the picture.
    """
    canvas = interactive(figure)
    colours = ON_DARK if dark else {}
    for trace in canvas.data:
        colour = colours.get(trace.line.color, trace.line.color)
        many = trace.x is not None and len(trace.x) > MANY_POINTS
        trace.update(line={"color": colour, "width": 1 if many else 1.6}, marker={"color": colour})
        if trace.mode == "lines":
            shown = 0 if many else 1
            trace.update(mode="lines+markers", marker={"size": CLICKABLE, "opacity": shown})
            trace.update(selected={"marker": {"opacity": 1, "size": 9}}, unselected={"marker": {"opacity": shown}})
        trace.update(hovertemplate="step %{x}<br>%{y}<extra>%{fullData.name}</extra>")
    _recolour(canvas, colours)
    _themed(canvas, dark=dark)
    canvas.update_layout(
        hovermode="closest",
        dragmode="select" if marking else "pan",
        selectdirection="h",
        clickmode="event" if marking else "event+select",
        uirevision="kept",
        height=height,
    )
    margin = 0.01 * (x_range[1] - x_range[0])
    canvas.update_xaxes(range=[x_range[0] - margin, x_range[1] + margin])
    return canvas


def show_ribbon(figure: Figure, found: Ribbon, *, key: str, marking: bool = False) -> Any:
    """A run at a glance; what was clicked or marked in it."""
    num_events = len(figure.panels) - len(found.lines)
    event = st.plotly_chart(
        canvas_of(
            figure,
            dark=is_dark(),
            marking=marking,
            x_range=(found.first, found.last),
            height=60 + 190 * len(found.lines) + 70 * num_events,
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


def show_figure(figure: Figure, *, key: str, clickable: bool = False, note: bool = True) -> Any:
    """Any picture of forensics; what was clicked in it, where `clickable`."""
    try:
        canvas = themed_figure(figure, dark=is_dark(), clickable=clickable)
    except ValueError as error:  # plotly's, of a picture that someone else wrote
        st.error("This picture cannot be drawn.", icon=":material/error:")
        st.code(str(error)[:400], language=None, wrap_lines=True)
        return None
    options: dict[str, Any] = {"on_select": "rerun", "selection_mode": "points"} if clickable else {}
    event = st.plotly_chart(
        canvas,
        key=key,
        config={"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"]},
        theme=None,
        alt=f"{figure.title}. {figure.note}",
        **options,
    )
    if note and figure.note:
        st.text(figure.note)  # it may hold text from data
    return event if clickable else None


def themed_figure(figure: Figure, *, dark: bool, clickable: bool = False) -> Any:
    """The plotly figure of any picture, in the colours of a theme."""
    canvas = interactive(figure)
    colours = ON_DARK if dark else {}
    told = set()
    for trace in canvas.data:
        _recolour_trace(trace, colours)
        if trace.showlegend is not False and trace.name in told:
            trace.update(showlegend=False)
        told.add(trace.name)
        if clickable and trace.type == "scatter" and trace.mode == "lines" and not (trace.fill or trace.stackgroup):
            trace.update(mode="lines+markers", marker={"size": CLICKABLE, "opacity": 0})
            trace.update(selected={"marker": {"opacity": 1, "size": 9}}, unselected={"marker": {"opacity": 0}})
    _recolour(canvas, colours)
    _themed(canvas, dark=dark, legend=not any(isinstance(panel, Curves) for panel in figure.panels))
    # Where each panel has an x axis of its own, its label needs room.
    heights = [_pixels(panel) + (0 if figure.shared_x else 40) for panel in figure.panels]
    canvas.update_layout(
        hovermode="closest",
        dragmode="pan",
        clickmode="event+select" if clickable else "event",
        uirevision="kept",
        height=70 + sum(heights),
        width=None,
    )
    return canvas


def _pixels(panel: Any) -> int:
    """High."""
    if isinstance(panel, Bars):
        return 70 + 26 * len(panel.bars)
    return 60 + 24 * len(panel.rows) if isinstance(panel, Matrix) else round(85 * getattr(panel, "inches", 2.3))


def _recolour_trace(trace: Any, colours: dict[str, str]) -> None:
    if trace.type == "bar":
        marked = trace.marker.color
        every = [colours.get(c, c) for c in marked] if isinstance(marked, tuple) else colours.get(marked, marked)
        trace.update(marker={"color": every, "line": {"width": 0}})
    elif trace.type == "scatter":
        colour = trace.marker.color or trace.line.color  # points of a panel have theirs from the line
        if isinstance(colour, str):
            trace.update(marker={"color": colours.get(colour, colour)})
        if trace.line.color:
            trace.update(line={"color": colours.get(trace.line.color, trace.line.color)})
        if trace.fillcolor in colours:
            trace.update(fillcolor=colours[trace.fillcolor])


def _themed(canvas: Any, *, dark: bool, legend: bool = True) -> None:
    """
    Args:
        legend: one for all panels, above them.
    """
    canvas.update_layout(
        template="plotly_dark" if dark else "plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 16, "r": 8, "t": 28, "b": 8},
        font={"family": "'Source Sans', sans-serif", "size": 13, "color": "#E6E9EC" if dark else "#1C2127"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8A929A", "activecolor": "#AAB2BA" if dark else "#1C2127"},
        hoverlabel={"font": {"family": "monospace"}},
    )
    if legend:
        canvas.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"})
    grid = {"gridcolor": "#2B323A" if dark else "#E8ECEF", "zeroline": False, "automargin": True}
    canvas.update_xaxes(**grid)
    canvas.update_yaxes(**grid)
    canvas.update_yaxes(dtick="D2", tickformat="~g", selector={"type": "log"})
    canvas.for_each_xaxis(lambda axis: axis.title.update(font={"size": 12}))
    canvas.for_each_yaxis(lambda axis: axis.title.update(font={"size": 12}))
    canvas.update_annotations(font={"size": 12})


def _recolour(canvas: Any, colours: dict[str, str]) -> None:
    for shape in canvas.layout.shapes:
        if shape.fillcolor in colours:
            shape.update(fillcolor=colours[shape.fillcolor])
