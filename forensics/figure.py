"""One description of a picture, drawn as PNG (matplotlib) or as HTML (plotly), so that all outputs show the same.

A line that is short enough keeps every point; a longer one everything that shows (forensics.thinned): each stretch its
highest and lowest value, and every gap. Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_index.files import atomic_file
from forensics.figure_bars import Bar as Bar
from forensics.figure_bars import Bars, add_bars, draw_bars
from forensics.figure_curves import Curves, add_curves, draw_curves
from forensics.figure_hatching import add_hatches, draw_hatches
from forensics.figure_matrix import Matrix, add_matrix, draw_matrix
from forensics.figure_matrix import State as State
from forensics.thinned import thinned

NOTE_CHARACTERS = 130  # of a line under a picture; more would be cut off
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442", "#000000")
BLACK, BLUE, GREY = 8, 0, 6
BAND = "#F3DCCF"
FAINT = 0.45
MANY_POINTS = 100  # are drawn smaller, and lines through twenty times as many thinner
MARGIN_INCHES = 2.8  # beside the columns of a matrix: its rows' names


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Values over steps; None where there is none (drawn as a gap).

    A value of `stairs` and `area` holds until the next x. Areas of a panel are stacked, the first one lowest. `thin`:
    many lines in one, which may cross; x need not rise, and every point is kept. `faint`: beside what counts.
    `about`: of each point what it is of, (id, name), for who points at it or clicks it.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: Literal["line", "dashed", "points", "stairs", "area"] = "line"
    colour: int = 0
    thin: bool = False
    faint: bool = False
    about: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes. `marks` are labelled vertical lines; `x_label`, `log_x`: where the figure's x is not shared.

    `bands`: stretches of x that are shaded, (first, last, label); `hatched`: likewise, where something is missing.
    `top`: the y axis goes from 0 to it. `inches`: high.
    `y_names`: names of y = 0, 1, 2 …, where y names and does not measure.
    """

    title: str
    y_label: str
    series: Sequence[Series]
    log_y: bool = False
    zero_line: bool = False
    marks: Sequence[tuple[float, str]] = ()
    bands: Sequence[tuple[float, float, str]] = ()
    hatched: Sequence[tuple[float, float, str]] = ()
    x_label: str = ""
    log_x: bool = False
    top: float | None = None
    inches: float = 2.3
    y_names: Sequence[str] = ()


AnyPanel = Panel | Matrix | Bars | Curves


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Panels above each other over one x axis.

    Attributes:
        shared_x: False: each panel measures something else along x; `x_label` is the last one's.
        x_names: names of x = 0, 1, 2 …, where x counts and does not measure. `x_always`: those that must be readable.
    """

    title: str
    x_label: str
    panels: Sequence[AnyPanel]
    note: str = ""
    x_names: Sequence[str] = ()
    x_always: Sequence[int] = ()
    shared_x: bool = True


def write_png(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        _drawing(figure).savefig(temporary, format="png", dpi=150)


def picture(figure: Figure, form: Literal["png", "svg"]) -> bytes:
    """The picture as the content of a file; SVG with letters as letters."""
    import io

    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        _drawing(figure).savefig(out, format=form, dpi=150)
    return out.getvalue()


def _drawing(figure: Figure) -> Any:
    """With matplotlib, and without pyplot: that keeps every picture, and is not for several threads at once."""
    from matplotlib.figure import Figure as Canvas

    heights = [panel_inches(panel) for panel in figure.panels]
    width = _width(figure)
    canvas = Canvas(figsize=(width, 1.2 + sum(heights)), layout="constrained")
    axes: Any = canvas.subplots(len(figure.panels), 1, sharex=figure.shared_x, squeeze=False, height_ratios=heights)
    canvas.suptitle(figure.title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    for axis, panel in zip(axes[:, 0], figure.panels, strict=True):
        if isinstance(panel, Matrix):
            draw_matrix(axis, panel, inches=width - MARGIN_INCHES)
        elif isinstance(panel, Bars):
            draw_bars(axis, panel)
        elif isinstance(panel, Curves):
            draw_curves(axis, panel)
        else:
            _draw_panel(axis, panel)
    if figure.x_label:
        axes[-1, 0].set_xlabel(figure.x_label)
    if figure.x_names:
        shown = shown_names(figure, most=int(3 * (width - MARGIN_INCHES)))
        axes[-1, 0].set_xticks(shown, [figure.x_names[x] for x in shown], rotation=60, ha="right", fontsize=7)
    elif _counts_along_x(figure.panels[-1]):
        axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    if figure.note:
        note = textwrap.fill(figure.note, NOTE_CHARACTERS)
        canvas.supxlabel(note, x=0.01, ha="left", fontsize=8, color="#555555")
    return canvas


def _counts_along_x(panel: AnyPanel) -> bool:
    """Does x count steps, rows or tokens, so that no tick belongs between two of them?"""
    if not isinstance(panel, Panel):
        return isinstance(panel, Matrix)
    return not panel.log_x and all(
        np.equal(np.mod(np.asarray(series.x, dtype=float), 1), 0).all() for series in panel.series
    )


def panel_inches(panel: AnyPanel) -> float:
    """How high it is drawn."""
    if isinstance(panel, Bars):
        return 0.9 + 0.26 * len(panel.bars)
    return 0.6 + 0.24 * len(panel.rows) if isinstance(panel, Matrix) else panel.inches


def _width(figure: Figure) -> float:
    """Inches: as wide as it takes for every column of a matrix to have some dots of its own."""
    columns = len(figure.x_names)
    return max(9.0, MARGIN_INCHES + min(0.09 * columns, 20.0), MARGIN_INCHES + 0.025 * columns)


def shown_names(figure: Figure, most: int) -> list[int]:
    """Places of an x axis of names that get one: those that should have one, then others, none too close to another."""
    count = len(figure.x_names)
    every = max(-(-count // max(most, 1)), 1)
    shown: list[int] = []
    for x in (0, count - 1, *figure.x_always, *range(0, count, every)):
        if all(abs(x - other) >= 0.6 * every for other in shown) and x not in shown:
            shown.append(x)
    return sorted(shown)


def _draw_panel(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import ScalarFormatter

    floor: list[float] = []
    for series in panel.series:
        steps, y = _drawn(series)
        values = [float("nan") if value is None else value for value in y]
        colour = COLOURS[series.colour % len(COLOURS)]
        if series.style == "area":
            floor = floor or [0.0] * len(values)
            roof = [low + value for low, value in zip(floor, values, strict=True)]
            axis.fill_between(steps, floor, roof, step="post", label=_as_text(series.name), color=colour, linewidth=0)
            floor = roof
            continue
        marker = "o" if series.style == "points" or len(values) < 3 else None
        line = {"line": "-", "stairs": "-", "dashed": "--", "points": "none"}[series.style]
        size, width = (4 if len(values) < MANY_POINTS else 2.5), (1.3 if len(values) < 20 * MANY_POINTS else 0.7)
        looks = {"linestyle": line, "marker": marker, "markersize": size, "color": colour, "linewidth": width}
        if series.thin:
            looks |= {"linewidth": 0.8, "alpha": 0.8}
        if series.faint:
            looks |= {"linewidth": 0.9, "alpha": FAINT, "zorder": 1.5}
        if series.style == "stairs":
            looks |= {"drawstyle": "steps-post", "marker": None}
        axis.plot(steps, values, label=_as_text(series.name), **looks)
    if panel.zero_line:
        axis.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    for (x, label), side in zip(panel.marks, _sides(panel), strict=True):
        axis.axvline(x, color="#888888", linewidth=0.8, linestyle=":")
        axis.annotate(label, (x, 1), xycoords=("data", "axes fraction"), fontsize=8, va="bottom", ha=side)
    for first, last, label in panel.bands:
        axis.axvspan(first, last, color=BAND, linewidth=0, zorder=0)
        axis.annotate(label, (first, 0.98), xycoords=("data", "axes fraction"), fontsize=8, color="#555555", va="top")
    draw_hatches(axis, panel.hatched)
    if panel.log_y:
        axis.set_yscale("log")
    if panel.log_x:
        axis.set_xscale("log")
    elif isinstance(axis.xaxis.get_major_formatter(), ScalarFormatter):  # else a panel that shares x has set its own
        axis.ticklabel_format(axis="x", style="plain", useOffset=False)
    if panel.x_label:
        axis.set_xlabel(_as_text(panel.x_label), fontsize=9)
    axis.set_title(panel.title, loc="left", fontsize=10, pad=14 if panel.marks else 6)
    axis.set_ylabel(_as_text(panel.y_label), fontsize=9)
    axis.tick_params(which="both", labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.y_names:
        axis.set_yticks(range(len(panel.y_names)), [_as_text(name) for name in panel.y_names])
        axis.set_ylim(-0.6, len(panel.y_names) - 0.4)
    elif len(panel.series) > 1 or floor:
        columns = 1 if len(panel.series) <= 6 or floor else 2
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "ncol": columns}
        axis.legend(fontsize=8, frameon=False, reverse=bool(floor), **place)
    if panel.top is not None:
        axis.margins(x=0)
        axis.set_ylim(0, panel.top)


def _sides(panel: Panel) -> list[str]:
    """On which side of each mark its label is drawn, so that two neighbours do not lie over each other."""
    extent = [x for series in panel.series for x in series.x] + [x for x, _ in panel.marks]
    close = 0.15 * (max(extent, default=0) - min(extent, default=0))
    labelled = [x for x, label in panel.marks if label]
    before = [any(0 < x - other < close for other in labelled) for x, _ in panel.marks]
    after = [any(0 < other - x < close for other in labelled) for x, _ in panel.marks]
    return ["center" if b == a else "left" if b else "right" for b, a in zip(before, after, strict=True)]


def _drawn(series: Series) -> tuple[Sequence[float], Sequence[float | None]]:
    """The points of a series that are drawn. Areas are stacked point by point, and points stand alone: all of them."""
    one_line = series.style in ("line", "dashed") and not series.thin
    return thinned(series.x, series.y) if one_line else (series.x, series.y)


def _as_text(name: str) -> str:
    """A name that matplotlib draws as it stands: it sees mathematics between $, and hides what begins with _."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def write_html(figure: Figure, path: Path, below: str = "") -> None:
    """A page that needs no network: plotly's script is inside.

    Args:
        below: HTML that follows the picture, whatever comes from data in it escaped.
    """
    canvas = interactive(figure)
    note = f"<br><sup>{html.escape(figure.note)}</sup>" if figure.note else ""
    canvas.update_layout(title_text=f"<b>{html.escape(figure.title)}</b>{note}")
    with atomic_file(path) as temporary:
        page = canvas.to_html(include_plotlyjs=True, full_html=True)
        temporary.write_text(page.replace("</body>", f"{below}</body>") if below else page)


def interactive(figure: Figure) -> Any:
    """The picture with plotly, without title and note; whatever comes from data in it is escaped."""
    from plotly.graph_objects import Figure as Canvas
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    titles = [html.escape(panel.title) for panel in figure.panels]
    space = 0.25 / len(titles)
    heights = [panel_inches(panel) for panel in figure.panels]
    canvas: Canvas = make_subplots(
        rows=len(titles),
        cols=1,
        shared_xaxes=figure.shared_x,
        subplot_titles=titles,
        vertical_spacing=space,
        row_heights=heights,
    )
    for row, panel in enumerate(figure.panels, 1):
        if isinstance(panel, Matrix):
            add_matrix(canvas, panel, row, figure.x_names)
            continue
        if isinstance(panel, Bars):
            add_bars(canvas, panel, row)
            continue
        if isinstance(panel, Curves):
            add_curves(canvas, panel, row)
            continue
        for series in panel.series:
            mode = "markers" if series.style == "points" else "lines" if len(series.y) > 2 else "lines+markers"
            colour = COLOURS[series.colour % len(COLOURS)]
            line: dict[str, Any] = {"color": colour, "dash": "dash" if series.style == "dashed" else "solid"}
            line |= {"width": 0.7} if series.thin else {"width": 1} if series.faint else {}
            if series.style in ("stairs", "area"):
                mode, line = "lines", line | {"shape": "hv"} | ({"width": 0} if series.style == "area" else {})
            steps, values = _drawn(series)
            trace = Scatter(x=list(steps), y=list(values), mode=mode, name=html.escape(series.name), line=line)
            if series.faint:
                trace.update(opacity=FAINT)
            if series.about:
                trace.update(customdata=[[number, html.escape(name)] for number, name in series.about])
                trace.update(hovertemplate="%{customdata[0]} %{customdata[1]}<br>%{x}, %{y:.6g}<extra></extra>")
            if series.style == "area":
                trace.update(stackgroup=f"panel {row}", fillcolor=colour)
            trace.showlegend = (len(panel.series) > 1 or series.style == "area") and not panel.y_names
            canvas.add_trace(trace, row=row, col=1)
        canvas.update_yaxes(
            title_text=html.escape(panel.y_label), type="log" if panel.log_y else "linear", row=row, col=1
        )
        canvas.update_xaxes(title_text=html.escape(panel.x_label), type="log" if panel.log_x else None, row=row, col=1)
        if panel.top is not None:
            canvas.update_yaxes(range=[0, panel.top], row=row, col=1)
        if panel.y_names:
            names = [html.escape(name) for name in panel.y_names]
            places = {"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.6, len(names) - 0.4]}
            canvas.update_yaxes(**places, zeroline=False, row=row, col=1)
        if panel.zero_line:
            canvas.add_hline(y=0, line_width=1, line_color="#888888", row=row, col=1)
        add_hatches(canvas, panel.hatched, row)
        for first, last, label in panel.bands:
            canvas.add_vrect(
                x0=first,
                x1=last,
                fillcolor=BAND,
                line_width=0,
                layer="below",
                annotation_text=html.escape(label),
                annotation_position="top left",
                row=row,
                col=1,
            )
        for x, label in panel.marks:
            canvas.add_vline(x=x, line_width=1, line_dash="dot", annotation_text=html.escape(label), row=row, col=1)
            if panel.log_x and label:  # plotly takes lines of a log axis as they are, and texts by their logarithm
                canvas.layout.annotations[-1].x = float(np.log10(x))
    if figure.x_label:
        canvas.update_xaxes(title_text=figure.x_label, row=len(titles), col=1)
    if figure.x_names:
        shown = shown_names(figure, most=60)
        canvas.update_xaxes(tickvals=shown, ticktext=[figure.x_names[x] for x in shown], tickangle=-60)
    canvas.update_annotations(x=0, xanchor="left", selector={"yref": "paper", "xref": "paper"})
    height = 150 + round(104 * sum(heights))
    # As wide as the window, unless columns of a matrix would vanish in it.
    width = 300 + 8 * len(figure.x_names) if len(figure.x_names) > 120 else None
    canvas.update_layout(height=height, width=width, template="plotly_white")
    return canvas


def write_figure(figure: Figure, path: Path, below: str = "") -> None:
    """PNG or HTML, by the file's ending; `below` only in HTML."""
    if path.suffix == ".html":
        write_html(figure, path, below)
    else:
        write_png(figure, path)
