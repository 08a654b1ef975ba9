"""The picture of a run at a glance: a panel for each metric, and below them what happened at which step."""

from __future__ import annotations

from collections.abc import Sequence

from data_index.run import Segment
from forensics.figure import BLACK, BLUE, GREY, Figure, Panel, Series
from forensics.ribbon import Ribbon, RibbonLine

VERMILION, GREEN, PURPLE, ORANGE = 1, 2, 3, 4
TITLES = {"loss": "loss", "grad_norm": "gradient norm"}
UNITS = {"loss": "nats a token", "grad_norm": ""}
MOST_LABELLED = 6  # spikes that are named in the picture: the highest
LOG_FROM = 4  # times the lowest value: gradient norms that reach higher are drawn on a log axis
MOST_BANDS = 40  # gaps that are shaded: the longest


def ribbon_figure(found: Ribbon) -> Figure | None:
    """None: there is nothing to draw."""
    panels = [_panel(found, line) for line in found.lines]
    events = _events(found)
    if not panels and events is None:
        return None
    return Figure(
        title=f"{found.run}, steps {found.first + 1}..{found.last}",
        x_label="step",
        panels=panels if events is None else [*panels, events],
        note=_note(found),
    )


def _panel(found: Ribbon, line: RibbonLine) -> Panel:
    there = [value for value in line.values if value is not None]
    series = [Series(name=TITLES[line.name], x=line.steps, y=line.values, colour=BLUE)]
    if line.not_finite:
        roof = max(there, default=1.0)
        name = "not a number"
        series.append(
            Series(name=name, x=line.not_finite, y=[roof] * len(line.not_finite), style="points", colour=VERMILION)
        )
    gaps = sorted(line.gaps, key=lambda gap: gap[0] - gap[1])[:MOST_BANDS]
    return Panel(
        title=TITLES[line.name],
        y_label=UNITS[line.name],
        series=series,
        log_y=line.name == "grad_norm" and bool(there) and 0 < LOG_FROM * min(there) < max(there),
        marks=_marks(found, line),
        bands=[(first - 0.5, last + 0.5, "not logged" if n == 0 else "") for n, (first, last) in enumerate(gaps)],
    )


def _marks(found: Ribbon, line: RibbonLine) -> list[tuple[float, str]]:
    """The highest spikes of this metric."""
    here = [row for row in found.spikes if line.name in row["series"] and found.first < row["peak"] <= found.last]
    highest = sorted(here, key=lambda row: -(row["peak_z"] or 0))[:MOST_LABELLED]
    return [(row["peak"], f"spike {row['peak']}") for row in sorted(highest, key=lambda row: int(row["peak"]))]


def _events(found: Ribbon) -> Panel | None:
    """One row for each kind of thing that lies at steps; only kinds that there are."""
    rows: list[tuple[str, list[Series]]] = []
    if found.marked:
        rows.append(("found", [_ticks("found", found.marked, BLACK)]))
    if found.checkpoints:
        rows.append(("checkpoints", [_ticks("checkpoint", found.checkpoints, BLUE)]))
    if found.lost:
        rows.append(("lost checkpoints", [_ticks("checkpoint that is not there", found.lost, GREY)]))
    peaks = [row["peak"] for row in found.spikes if found.first < row["peak"] <= found.last]
    if peaks:
        rows.append(("spikes", [_ticks("spike", peaks, VERMILION)]))
    if found.restarts:
        rows.append(("restarts", [_ticks("restart", found.restarts, ORANGE)]))
    if found.forks:
        spans = [(f"fork {name}", first, last) for name, first, last in found.forks]
        rows.append(("forks", [_stretch(found, span, PURPLE) for span in spans]))
    segments = [(_segment_name(s), s.first_step, s.last_step) for s in found.segments]
    if segments:
        colours = (GREEN, BLACK)
        rows.append(("segments", [_stretch(found, s, colours[n % 2]) for n, s in enumerate(segments)]))
    if not rows:
        return None
    names = [name for name, _ in reversed(rows)]
    series = [
        Series(name=s.name, x=s.x, y=[names.index(name)] * len(s.x), style=s.style, colour=s.colour)
        for name, all_of in rows
        for s in all_of
    ]
    return Panel(title="", y_label="", series=series, y_names=names, inches=0.5 + 0.25 * len(names))


def _segment_name(segment: Segment) -> str:
    return f"epoch {segment.epoch}, {segment.instances_per_batch} instances a step"


def _ticks(name: str, steps: Sequence[int], colour: int) -> Series:
    return Series(name=name, x=steps, y=[0.0] * len(steps), style="points", colour=colour)


def _stretch(found: Ribbon, span: tuple[str, int, int], colour: int) -> Series:
    """Cut to what is looked at; a stretch of one step is a point."""
    name, first, last = span
    x = [max(first, found.first), min(last, found.last)]
    return Series(name=name, x=x, y=[0.0, 0.0], colour=colour)


def _note(found: Ribbon) -> str:
    counts = [f"{line.num_values:,} values of {TITLES[line.name]}" for line in found.lines]
    lost = [f"no number: {line.num_not_finite:,} of {TITLES[line.name]}" for line in found.lines if line.not_finite]
    drawn = "each pixel goes through the lowest and the highest of its values" if counts else "nothing is logged here"
    return "; ".join([*counts, *lost, drawn]) + "."
