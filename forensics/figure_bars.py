"""A panel of horizontal bars from one value to another: a waterfall, and what stands beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BAND = "#D9D9D9"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar between two values of the x axis; `text` stands to the right of it.

    `band`: (low, high), shaded behind it: what chance gives.
    """

    name: str
    start: float
    stop: float
    colour: str
    text: str = ""
    band: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Bars, the first on top. `lines`: labelled vertical lines through all of them; `band_name` explains the bands."""

    title: str
    x_label: str
    bars: Sequence[Bar]
    lines: Sequence[tuple[float, str]] = ()
    band_name: str = ""

    @property
    def extent(self) -> tuple[float, float]:
        """Lowest and highest value drawn, with room for the texts."""
        values = [v for bar in self.bars for v in (bar.start, bar.stop, *(bar.band or ()))] + [x for x, _ in self.lines]
        low, high = min(values), max(values)
        size = high - low or abs(high) or 1.0
        return low - 0.04 * size, high + 0.42 * size


def draw_bars(axis: Any, panel: Bars) -> None:
    """With matplotlib."""
    for y, bar in enumerate(panel.bars):
        if bar.band is not None:
            low, high = bar.band
            axis.barh(y, high - low, left=low, height=0.9, color=BAND, edgecolor=BAND, linewidth=1.5, zorder=1)
        axis.barh(y, bar.stop - bar.start, left=bar.start, height=0.55, color=bar.colour, zorder=2)
        axis.plot([bar.stop, bar.stop], [y - 0.38, y + 0.38], color=bar.colour, linewidth=2, zorder=3)
        place = (max(bar.start, bar.stop), y)
        axis.annotate(bar.text, place, xytext=(5, 0), textcoords="offset points", va="center", fontsize=8, zorder=4)
    for x, label in panel.lines:
        axis.axvline(x, color="#555555", linewidth=0.8, linestyle=":", zorder=0)
        axis.annotate(label, (x, 1), xycoords=("data", "axes fraction"), fontsize=8, va="bottom", ha="center")
    axis.set_xlim(*panel.extent)
    axis.set_ylim(len(panel.bars) - 0.5, -0.5)
    axis.set_yticks(range(len(panel.bars)), [bar.name.replace("$", r"\$") for bar in panel.bars], fontsize=8)
    axis.set_xlabel(panel.x_label, fontsize=9)
    axis.set_title(panel.title, loc="left", fontsize=10, pad=16 if panel.lines else 6)
    axis.tick_params(which="both", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right", "left"]].set_visible(False)
    if panel.band_name and any(bar.band for bar in panel.bars):
        from matplotlib.patches import Patch

        handles = [Patch(color=BAND, label=panel.band_name)]
        axis.legend(handles=handles, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def add_bars(canvas: Any, panel: Bars, row: int) -> None:
    """With plotly."""
    from plotly.graph_objects import Bar as Trace
    from plotly.graph_objects import Scatter

    numbers = list(range(len(panel.bars)))
    banded = [(y, bar.band) for y, bar in zip(numbers, panel.bars, strict=True) if bar.band is not None]
    if banded:
        trace = Trace(
            y=[y for y, _ in banded],
            x=[high - low for _, (low, high) in banded],
            base=[low for _, (low, _) in banded],
            width=0.9,
            orientation="h",
            marker_color=BAND,
            name=html.escape(panel.band_name),
            hoverinfo="skip",
        )
        canvas.add_trace(trace, row=row, col=1)
    trace = Trace(
        y=numbers,
        x=[bar.stop - bar.start for bar in panel.bars],
        base=[bar.start for bar in panel.bars],
        width=0.55,
        orientation="h",
        marker_color=[bar.colour for bar in panel.bars],
        hovertext=[html.escape(f"{bar.name}: {bar.text}") for bar in panel.bars],
        hoverinfo="text",
        showlegend=False,
    )
    canvas.add_trace(trace, row=row, col=1)
    texts = Scatter(
        y=numbers,
        x=[max(bar.start, bar.stop) for bar in panel.bars],
        text=[f" {html.escape(bar.text)}" for bar in panel.bars],
        mode="text",
        textposition="middle right",
        hoverinfo="skip",
        showlegend=False,
    )
    canvas.add_trace(texts, row=row, col=1)
    names = [html.escape(bar.name) for bar in panel.bars]
    above = 1.1 if panel.lines else 0.6  # room for the labels of lines
    extent = [len(panel.bars) - 0.4, -above]
    canvas.update_yaxes(tickvals=numbers, ticktext=names, range=extent, row=row, col=1)
    canvas.update_xaxes(title_text=panel.x_label, range=list(panel.extent), row=row, col=1)
    canvas.update_layout(barmode="overlay")
    for x, label in panel.lines:
        canvas.add_vline(x=x, line_width=1, line_dash="dot", annotation_text=html.escape(label), row=row, col=1)
