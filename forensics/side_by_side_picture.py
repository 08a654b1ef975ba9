"""Two models side by side, drawn: for each metric a bar from the one's value to the other's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_index.errors import MissingMetric
from forensics.figure import BLUE, COLOURS, Bar, Figure
from forensics.figure_bars import Bars
from forensics.side_by_side import SideBySide, differences

MOST_BARS = 24  # of a probe and unit: those that differ most
FALLS, RISES = COLOURS[BLUE], COLOURS[1]


def figure_of_sides(found: SideBySide) -> Figure:
    """A panel for each probe and unit.

    Raises:
        MissingMetric: no number is there on both sides.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in differences(found):
        groups.setdefault((row["probe"], row["unit"]), []).append(row)
    if not groups:
        raise MissingMetric(f"no number is there of both {found.one} and {found.other}: there is nothing to draw")
    return Figure(
        title=f"{found.one} and {found.other}",
        x_label="",
        panels=[_panel(probe, unit, rows) for (probe, unit), rows in groups.items()],
        note=f"Each bar goes from {found.one} to {found.other}: orange where the number rises, blue where it falls. "
        f"Grey: the 95 % interval of {found.one}.",
        shared_x=False,
    )


def _panel(probe: str, unit: str, rows: list[Mapping[str, Any]]) -> Bars:
    most = {id(row) for row in sorted(rows, key=lambda row: -abs(row["difference"]))[:MOST_BARS]}
    drawn = [row for row in rows if id(row) in most]
    left_out = f", the {len(drawn)} of {len(rows)} metrics that differ most" if len(drawn) < len(rows) else ""
    return Bars(
        title=f"{probe}{left_out}",
        x_label="" if unit == "1" else unit,
        bars=[_bar(row) for row in drawn],
        band_name="95 % interval",
    )


def _bar(row: Mapping[str, Any]) -> Bar:
    return Bar(
        name=row["metric"],
        start=row["value"],
        stop=row["other"],
        colour=RISES if row["difference"] > 0 else FALLS,
        text=f"{row['value']:.4g} → {row['other']:.4g}",
        band=None if row["low"] is None else (row["low"], row["high"]),
    )
