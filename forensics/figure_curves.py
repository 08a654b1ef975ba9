"""A panel of curves with their intervals: what was measured and what was published, and places without a value."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

BAND_OPACITY = 0.16  # of few curves
_FEW = 3  # bands of more lie over each other
_MARGIN = 0.06  # of the height, above and below
_ROW = 0.055  # of the height: from one row of marks to the next


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntervalCurve:
    """Values over x, x rising; None breaks the line. `low`, `high`: the ends of their intervals, None where unknown.

    `open`: open points and a dashed line. `at`: the run and step of each point, for who clicks it; none: no one does.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]
    colour: str
    open: bool = False
    at: Sequence[tuple[str, int]] = ()

    def stretches(self) -> Iterator[list[int]]:
        """Places that follow each other and all have an interval."""
        stretch: list[int] = []
        for place, values in enumerate(zip(self.y, self.low, self.high, strict=True)):
            if None not in values:
                stretch.append(place)
            elif stretch:
                yield stretch
                stretch = []
        if stretch:
            yield stretch


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """Places without a value, marked in a row of their own below the curves."""

    name: str
    x: Sequence[float]
    colour: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """
    Attributes:
        x_range: from where to where; the same in all panels of a figure that share x.
        x_ticks: (place, label); none: as the renderer chooses.
        legend: what the curves are is told beside the panel, where there are several; else elsewhere.
    """

    title: str
    y_label: str
    curves: Sequence[IntervalCurve]
    x_range: tuple[float, float]
    gaps: Sequence[Gaps] = ()
    x_ticks: Sequence[tuple[float, str]] = ()
    log_x: bool = False
    log_y: bool = False
    inches: float = 2.4
    legend: bool = True

    @property
    def y_range(self) -> tuple[float, float]:
        """Room for all values, for intervals as far as they can be drawn, and for the rows of marks below."""
        values = [v for c in self.curves for some in (c.y, c.low, c.high) for v in some if v is not None]
        drawn = [self._scaled(v) for v in values if v > 0 or not self.log_y]
        low, high = (min(drawn), max(drawn)) if drawn else (0.0, 1.0)
        if low == high:
            size = (abs(low) or 1.0) if not self.log_y else 1.0
            low, high = low - 0.1 * size, high + 0.1 * size
        size = high - low
        low -= size * (_MARGIN + _ROW * len(self.gaps))
        return self._unscaled(low), self._unscaled(high + size * _MARGIN)

    @property
    def band_opacity(self) -> float:
        return BAND_OPACITY if sum(any(True for _ in c.stretches()) for c in self.curves) <= _FEW else BAND_OPACITY / 2

    @property
    def told_apart(self) -> bool:
        return self.legend and len(self.curves) + len(self.gaps) > 1

    def row_of_gaps(self, number: int) -> float:
        """Where on the y axis a row of marks lies."""
        low, high = map(self._scaled, self.y_range)
        return self._unscaled(low + (high - low) * _ROW * (number + 0.6))

    def floor(self, value: float | None) -> float | None:
        """The end of an interval, if need be cut off at the panel's lower edge, which a logarithm cannot pass."""
        return max(value, self.y_range[0]) if value is not None and self.log_y else value

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log_y else value

    def _unscaled(self, value: float) -> float:
        return 10**value if self.log_y else value


def marker_size(panel: Curves) -> float:
    """Points of a curve must stay apart from each other."""
    most = max((len(curve.x) for curve in panel.curves), default=0)
    return 4.5 if most <= 40 else 3.2 if most <= 160 else 2.0


def draw_curves(axis: Any, panel: Curves) -> None:
    """With matplotlib."""
    for curve in panel.curves:
        for stretch in curve.stretches():
            x = [curve.x[place] for place in stretch]
            ends = [[panel.floor(end[place]) for place in stretch] for end in (curve.low, curve.high)]
            if len(stretch) == 1:
                axis.plot(
                    x * 2, [ends[0][0], ends[1][0]], color=curve.colour, linewidth=3, alpha=2 * panel.band_opacity
                )
            else:
                axis.fill_between(x, *ends, color=curve.colour, alpha=panel.band_opacity, linewidth=0)
        axis.plot(
            curve.x,
            [math.nan if value is None else value for value in curve.y],
            label=curve.name.replace("$", r"\$"),
            color=curve.colour,
            linestyle=(0, (4, 2)) if curve.open else "-",
            linewidth=1.2,
            marker="o",
            markersize=marker_size(panel),
            markerfacecolor="white" if curve.open else curve.colour,
            markeredgewidth=1.0,
        )
    for number, gaps in enumerate(panel.gaps):
        place = [panel.row_of_gaps(number)] * len(gaps.x)
        axis.plot(gaps.x, place, linestyle="none", marker="x", markersize=3.5, color=gaps.colour, label=gaps.name)
    axis.set_xscale("log" if panel.log_x else "linear")
    axis.set_yscale("log" if panel.log_y else "linear")
    axis.set_xlim(*panel.x_range)
    axis.set_ylim(*panel.y_range)
    if panel.x_ticks:
        axis.set_xticks([x for x, _ in panel.x_ticks], [label for _, label in panel.x_ticks])
        axis.minorticks_off()
    else:
        axis.xaxis.set_major_formatter("{x:,g}")
    axis.set_title(panel.title.replace("$", r"\$"), loc="left", fontsize=10, pad=6)
    axis.set_ylabel(panel.y_label.replace("$", r"\$"), fontsize=9)
    axis.tick_params(which="both", labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.told_apart:
        axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def add_curves(canvas: Any, panel: Curves, row: int) -> None:
    """With plotly: the same, with a legend beside the panel."""
    from plotly.graph_objects import Scatter

    legend = "legend" if row == 1 else f"legend{row}"
    for number, curve in enumerate(panel.curves):
        group = f"{row} {number}"
        for x, y in _outlines(panel, curve):
            band = Scatter(x=x, y=y, fill="toself", mode="lines", line={"width": 3 if len(x) == 2 else 0})
            band.update(line_color=curve.colour, fillcolor=curve.colour, opacity=panel.band_opacity, hoverinfo="skip")
            canvas.add_trace(band.update(legendgroup=group, showlegend=False), row=row, col=1)
        line = Scatter(x=list(curve.x), y=list(curve.y), mode="lines+markers", name=html.escape(curve.name))
        line.update(line={"color": curve.colour, "width": 1.6, "dash": "dash" if curve.open else "solid"})
        line.update(marker={"symbol": "circle-open" if curve.open else "circle", "size": 1.4 * marker_size(panel)})
        line.update(legend=legend, legendgroup=group, showlegend=panel.told_apart, customdata=_about_points(curve))
        line.update(hovertemplate="%{x}: %{y:.6g}%{customdata[0]}<extra>%{fullData.name}</extra>")
        canvas.add_trace(line, row=row, col=1)
    for number, gaps in enumerate(panel.gaps):
        marks = Scatter(x=list(gaps.x), y=[panel.row_of_gaps(number)] * len(gaps.x), mode="markers")
        marks.update(
            name=html.escape(gaps.name),
            marker={"symbol": "x-thin", "size": 5},
            legend=legend,
            showlegend=panel.told_apart,
        )
        marks.update(
            marker_line={"width": 1, "color": gaps.colour}, hovertemplate="%{x}<extra>%{fullData.name}</extra>"
        )
        canvas.add_trace(marks, row=row, col=1)
    _set_axes(canvas, panel, row)
    top = canvas.get_subplot(row, 1).yaxis.domain[1]
    place = {"x": 1.01, "xanchor": "left", "y": top, "yanchor": "top", "font": {"size": 11}, "tracegroupgap": 0}
    canvas.update_layout({legend: place})


def _outlines(panel: Curves, curve: IntervalCurve) -> Iterator[tuple[list[float], list[float | None]]]:
    """Each stretch of a band as a closed line: along its lower ends, and back along its upper ones."""
    for stretch in curve.stretches():
        x = [curve.x[place] for place in stretch]
        low = [panel.floor(curve.low[place]) for place in stretch]
        yield x + x[::-1], low + [curve.high[place] for place in stretch[::-1]]


def _about_points(curve: IntervalCurve) -> list[list[Any]]:
    """Of each point its interval as text, then its run and step where they are known."""
    ends = zip(curve.low, curve.high, strict=True)
    intervals = ["" if None in pair else f" ({pair[0]:.6g} to {pair[1]:.6g})" for pair in ends]
    places: Sequence[tuple[Any, ...]] = curve.at or [()] * len(intervals)
    return [[text, *place] for text, place in zip(intervals, places, strict=True)]


def _set_axes(canvas: Any, panel: Curves, row: int) -> None:
    """Plotly takes the range of a log axis as exponents, and ticks as they are."""
    x_range = [math.log10(end) if panel.log_x else end for end in panel.x_range]
    y_range = [math.log10(end) if panel.log_y else end for end in panel.y_range]
    x_axis: dict[str, Any] = {"type": "log" if panel.log_x else "linear", "range": x_range, "tickformat": ",~g"}
    if panel.x_ticks:
        x_axis |= {"tickvals": [x for x, _ in panel.x_ticks], "ticktext": [label for _, label in panel.x_ticks]}
    canvas.update_xaxes(**x_axis, row=row, col=1)
    y_type = "log" if panel.log_y else "linear"
    canvas.update_yaxes(title_text=html.escape(panel.y_label), type=y_type, range=y_range, row=row, col=1)
