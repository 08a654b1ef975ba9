"""The picture of a run at a glance: a panel for each metric, and below them what happened at which step."""

from __future__ import annotations

from collections.abc import Sequence

from data_index.run import Segment
from forensics.figure import BLACK, BLUE, GREY, AnyPanel, Figure, Panel, Series
from forensics.figure_curves import Curves
from forensics.ribbon import Ribbon, RibbonLine

VERMILION, GREEN, PURPLE, ORANGE = 1, 2, 3, 4
TITLES = {"loss": "loss", "grad_norm": "gradient norm"}
UNITS = {"loss": "nats a token", "grad_norm": ""}
MOST_LABELLED = 6  # spikes that are named in the picture: the highest
LOG_FROM = 4  # times the lowest value: gradient norms that reach higher are drawn on a log axis
MOST_HATCHED = 200  # gaps: the longest
LABELLED = 0.03  # of the width, from which a gap has room for its name


def ribbon_figure(found: Ribbon, probes: Sequence[Curves] = ()) -> Figure | None:
    """None: there is nothing to draw.

    Args:
        probes: panels of forensics.ribbon_probes, drawn between what was logged and what happened.
    """
    panels: list[AnyPanel] = [*(_panel(found, line) for line in found.lines), *probes]
    events = _events(found)
    if not panels and events is None:
        return None
    return Figure(
        title=f"{found.run}, steps {found.first + 1}..{found.last}",
        x_label="step",
        panels=panels if events is None else [*panels, events],
        note=_note(found, probes),
    )


def _panel(found: Ribbon, line: RibbonLine) -> Panel:
    given_up = [other for other in found.given_up if other.name == line.name]
    there = [value for one in (line, *given_up) for value in one.values if value is not None]
    series = [Series(name=TITLES[line.name], x=line.steps, y=line.values, colour=BLUE)]
    series += [
        Series(name=f"attempt {other.attempt}, given up", x=other.steps, y=other.values, colour=VERMILION, faint=True)
        for other in given_up
    ]
    if line.not_finite:
        roof = max(there, default=1.0)
        name = "not a number"
        series.append(
            Series(name=name, x=line.not_finite, y=[roof] * len(line.not_finite), style="points", colour=VERMILION)
        )
    gaps = sorted(line.gaps, key=lambda gap: gap[0] - gap[1])[:MOST_HATCHED]
    return Panel(
        title=TITLES[line.name],
        y_label=UNITS[line.name],
        series=series,
        log_y=line.name == "grad_norm" and bool(there) and 0 < LOG_FROM * min(there) < max(there),
        marks=_marks(found, line),
        hatched=[
            (first - 0.5, last + 0.5, "not logged" if last - first >= LABELLED * (found.last - found.first) else "")
            for first, last in gaps
        ],
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


def _note(found: Ribbon, probes: Sequence[Curves] = ()) -> str:
    counts = [f"{line.num_values:,} values of {TITLES[line.name]}" for line in found.lines]
    lost = [f"no number: {line.num_not_finite:,} of {TITLES[line.name]}" for line in found.lines if line.not_finite]
    drawn = "each pixel goes through the lowest and the highest of its values" if counts else "nothing is logged here"
    missing = ["hatched: not logged"] if any(line.gaps for line in found.lines) else []
    again = ["faint: attempts that were given up"] if found.given_up else []
    curves = [curve for panel in probes for curve in panel.curves]
    measured = ["bands of probes: 95 % intervals"] if any(True for c in curves for _ in c.stretches()) else []
    lacking = ["×: a checkpoint without a value"] if any(panel.gaps for panel in probes) else []
    published = ["dashed: published"] if any(curve.open for curve in curves) else []
    return "; ".join([*counts, *lost, drawn, *missing, *again, *measured, *lacking, *published]) + "."
