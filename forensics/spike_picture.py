"""Pictures of spikes: loss and gradient norm with their events, the largest one enlarged; two runs' robust z."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from forensics.figure import BLACK, GREY, Figure, Panel, Series
from forensics.judged_series import TRAILING, JudgedSeries
from forensics.spike_detection import Spikes
from forensics.spike_events import SpikeEvent
from probes.robust_statistics import THRESHOLD

BLUE, RED, GREEN = 0, 1, 2
UNITS = {"loss": "nats per token", "grad_norm": "norm (log)"}
TITLES = {"loss": "Loss", "grad_norm": "Gradient norm before clipping"}
MOST_LABELS = 8
APART = 0.07  # of the width: labels closer than that would lie on each other
ENLARGED_FROM = 1500  # steps of a log; a shorter one shows its spikes as it is
MARGIN_STEPS = 100
NARROWEST = 0.001  # of the width, on either side of a band that would not be seen


def picture_of(found: Spikes) -> Figure:
    """The picture of one log; with a second run, that of both."""
    if found.coincidence is not None:
        return _picture_of_two(found)
    there = [series for series in (found.loss, found.grad_norm) if series is not None]
    panels = [_panel(found, series) for series in there]
    first = min(int(series.steps[0]) for series in there)
    last = max(int(series.steps[-1]) for series in there)
    largest = _largest(found)
    enlarged = largest is not None and last - first > ENLARGED_FROM
    if enlarged and largest is not None:
        around = _around(largest)
        panels += [_panel(found, series, around) for series in there]
    return Figure(
        title=f"Spikes of {found.label}, steps {first}..{last}",
        x_label="step",
        panels=panels,
        note=_note(found),
        shared_x=not enlarged,
    )


def _largest(found: Spikes) -> SpikeEvent | None:
    spikes = [event for event in found.events if event.is_spike]
    return max(spikes, key=lambda event: ("loss" in event.series, event.peak_z or 0), default=None)


def _around(event: SpikeEvent) -> tuple[int, int]:
    last = max(event.last or event.onset, event.recovery or 0)
    last = min(last, event.onset + 10 * MARGIN_STEPS)
    return event.onset - MARGIN_STEPS, last + MARGIN_STEPS


def _panel(found: Spikes, series: JudgedSeries, around: tuple[int, int] | None = None) -> Panel:
    """A series with its events.

    Args:
        around: only these steps, enlarged.
    """
    logarithmic = series.name == "grad_norm"
    first, last = around or (int(series.steps[0]), int(series.steps[-1]))
    start, stop = np.searchsorted(series.steps, (first, last + 1))
    shown = series.values[start:stop]
    wanted = np.isfinite(shown) & ((shown > 0) | (not logarithmic))
    lines = [_line(series, series.steps[start:stop], shown, wanted, BLACK)]
    for number, points in enumerate(found.given_up.get(series.name, ())):
        inside = (points.steps >= first) & (points.steps <= last)
        if inside.any():
            good = np.isfinite(points.values[inside]) & ((points.values[inside] > 0) | (not logarithmic))
            name = "given up at a restart" + ("" if number == 0 else f" ({number + 1})")
            given_up = _line(series, points.steps[inside], points.values[inside], good, 5, "dashed")
            lines.append(replace(given_up, name=name))
    events = [e for e in _spikes_in(found, series) if first <= (e.peak or -1) <= last]
    lines += _growth(found, series, first, last)
    marked = {"onset": BLUE, "peak": RED} | ({"recovery": GREEN} if around else {})
    peaks = [_largest_in(series, event) for event in events]
    for name, colour in marked.items():
        steps = peaks if name == "peak" else [getattr(event, name) for event in events]
        if name == "onset":  # under a peak it could not be seen
            steps = [step for step in steps if step not in peaks]
        if line := _at(series, name, [step for step in steps if step is not None and step <= last], colour):
            lines.append(line)
    title = TITLES.get(series.name, series.name)
    if around:
        title = f"{title} around the largest spike, steps {max(first, int(series.steps[0]))}..{last}"
    return Panel(
        title=title,
        y_label=UNITS.get(series.name, series.name),
        series=lines,
        log_y=logarithmic,
        marks=_marks(found, series, first, last),
        bands=_bands(found, series, first, last),
    )


def _line(
    series: JudgedSeries, steps: np.ndarray, values: np.ndarray, good: np.ndarray, colour: int, style: Any = "line"
) -> Series:
    """The values, with a gap where one is missing, or steps are."""
    y: list[float | None] = np.where(good, values, np.nan).tolist()
    x = steps.tolist()
    for place in np.flatnonzero(np.diff(steps) > TRAILING * series.interval)[::-1] + 1:
        x.insert(place, x[place - 1])
        y.insert(place, None)
    y = [None if value is None or value != value else value for value in y]
    return Series(name=series.name, x=x, y=y, colour=colour, style=style)


def _spikes_in(found: Spikes, series: JudgedSeries) -> list[SpikeEvent]:
    """Spikes in which the series itself stands out."""
    return [event for event in found.events if event.is_spike and series.name in event.series]


def _largest_in(series: JudgedSeries, event: SpikeEvent) -> int:
    """The step of this series' largest value in an event."""
    start, stop = np.searchsorted(series.steps, (event.onset, (event.last or event.onset) + 1))
    values = np.where(np.isfinite(series.values[start:stop]), series.values[start:stop], -np.inf)
    return int(series.steps[start + int(values.argmax())])


def _growth(found: Spikes, series: JudgedSeries, first: int, last: int) -> list[Series]:
    """A line through the stretch over which the series grows, where all of it is shown."""
    lines = []
    for event in found.events:
        if event.kind == "gradient_growth" and series.name in event.series and event.last is not None:
            if first <= event.onset and event.last <= last:
                ends = [event.level, event.peak_value]
                lines.append(Series(name="growth", x=[event.onset, event.last], y=ends, style="dashed", colour=4))
    return lines


def _at(series: JudgedSeries, name: str, steps: Sequence[int], colour: int) -> Series | None:
    """Points of the series at some steps; None where it has none."""
    if not steps or not len(series.steps):
        return None
    places = np.minimum(np.searchsorted(series.steps, np.array(steps)), len(series.steps) - 1)
    good = np.isfinite(series.values[places]) & (series.steps[places] == np.array(steps))
    if not good.any():
        return None
    places = places[good]
    return Series(
        name=name, x=series.steps[places].tolist(), y=series.values[places].tolist(), style="points", colour=colour
    )


def _marks(found: Spikes, series: JudgedSeries, first: int, last: int) -> list[tuple[float, str]]:
    """Peaks of the largest spikes and level shifts, as many as can be labelled beside each other."""
    spikes = sorted(_spikes_in(found, series), key=lambda event: -(event.peak_z or 0))
    shifts = [event for event in found.events if event.kind == "level_shift" and series.name in event.series]
    wanted = [(event.onset, f"new level {event.onset}") for event in shifts]
    wanted += [(event.peak, str(event.peak)) for event in spikes if event.peak is not None]
    marks: list[tuple[float, str]] = []
    for step, label in wanted:
        if first <= step <= last and all(abs(step - other) >= APART * (last - first) for other, _ in marks):
            marks.append((step, label))
        if len(marks) == MOST_LABELS:
            break
    return sorted(marks)


def _bands(found: Spikes, series: JudgedSeries, first: int, last: int) -> list[tuple[float, float, str]]:
    """Steps at which the series is not finite."""
    bad = [e for e in found.events if e.kind == "not_finite" and series.name in e.series and e.last is not None]
    wide = NARROWEST * (last - first)
    return [
        (max(event.onset - wide, first), min((event.last or 0) + wide, last), "not finite")
        for event in bad
        if (event.last or 0) >= first and event.onset <= last
    ]


def _note(found: Spikes) -> str:
    spikes = [event for event in found.events if event.is_spike]
    counts = {kind: sum(event.kind == kind for event in spikes) for kind in ("fast", "slow", None)}
    many = "1 spike" if len(spikes) == 1 else f"{len(spikes):,} spikes"
    text = f"{many}: {counts['fast']} fast, {counts['slow']} slow, {counts[None]} neither. "
    return text + f"Robust z above {THRESHOLD:g}, median and MAD of the last 128 unflagged values."


def _picture_of_two(found: Spikes) -> Figure:
    together = found.coincidence
    one = found.loss if found.loss is not None else found.grad_norm
    assert together is not None and one is not None and found.other is not None
    common = np.array([row["step"] for row in together.steps], dtype=np.int64)
    panels = []
    for name, series, key, colour in ((together.run, one, "z", BLUE), (together.other, found.other, "z_other", GREY)):
        z = series.z()
        lines = [
            replace(_line(series, series.steps, z, np.isfinite(z), colour), name="robust z"),
            Series(name="in both", x=common.tolist(), y=[r[key] for r in together.steps], style="points", colour=RED),
        ]
        panels.append(Panel(title=f"{name}: robust z of its {series.name}", y_label="robust deviations", series=lines))
    return Figure(
        title=f"{together.num_common} of {together.num_run} and {together.num_other} outliers at the same step",
        x_label="step",
        panels=panels,
        note=together.answer,
    )
