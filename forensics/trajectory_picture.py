"""The picture of trajectories: a panel for each metric of several runs, or for each probe and unit of one run.

What was measured here has points and a solid line, what was published open points and a dashed one; bands are the 95 %
intervals. A checkpoint without a value is marked below the curves, and breaks a line where such checkpoints are fewer
than those with a value; where they are not, only some of the checkpoints were meant to be measured.

On a logarithmic axis of steps, step 0 lies at half the smallest step after it, and is labelled 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from data_index.errors import MissingMetric
from forensics.figure import BLACK, COLOURS, GREY, Figure
from forensics.figure_curves import Curves, Gaps, IntervalCurve
from forensics.trajectories import Curve, Trajectories, spans_decades

XAxis = Literal["steps", "tokens", "log-steps"]
# Okabe and Ito's, the ones that are told apart best first; yellow on white is seen badly.
ORDER = (0, 1, 2, 3, 4, 5, BLACK, GREY)
MOST_IN_A_PANEL = len(ORDER)
MANY_PANELS = 6
_TOKENS = ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))


class _Places:
    """Where values lie along x."""

    def __init__(self, found: Trajectories, x: XAxis) -> None:
        """
        Raises:
            MissingMetric: the axis is that of tokens, and none are known.
        """
        self.x = x
        pairs = [(row["step"], row["tokens"]) for curve in found.shown_curves for row in curve.rows]
        pairs += [gap for curve in found.shown_curves for gap in curve.gaps]
        tokens = [number for _, number in pairs if number is not None]
        if x == "tokens" and not tokens:
            raise MissingMetric(
                f"how many tokens the checkpoints of {' and '.join(found.runs)} were trained on is not known here; "
                "--x steps and --x log-steps need none"
            )
        self.unit, self.named = next(
            ((size, name) for size, name in _TOKENS if x == "tokens" and max(tokens) >= 2 * size), (1.0, "")
        )
        self.smallest = min((step for step, _ in pairs if step > 0), default=1)
        self.all = sorted({place for pair in pairs if (place := self.of(*pair)) is not None})

    def of(self, step: int, tokens: int | None) -> float | None:
        """None where it is not known."""
        if self.x == "tokens":
            return None if tokens is None else tokens / self.unit
        return float(step) if self.x == "steps" or step > 0 else self.smallest / 2

    @property
    def label(self) -> str:
        return {"tokens": f"tokens ({self.named})" if self.named else "tokens"}.get(self.x, "step")

    @property
    def range(self) -> tuple[float, float]:
        first, last = self.all[0], self.all[-1]
        if self.x == "log-steps":
            margin = max((last / first) ** 0.02, 1.02)
            return first / margin, last * margin
        margin = 0.02 * (last - first) or abs(first) or 1.0
        return first - margin, last + margin

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """On a logarithmic axis: 0, powers of 10, and steps between them where there are few."""
        if self.x != "log-steps":
            return []
        first, last = self.smallest, self.all[-1]
        digits = (1, 2, 5) if last < 100 * first else (1,)
        powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
        steps = [digit * 10**power for power in powers for digit in digits if first <= digit * 10**power <= last]
        zero = [(self.all[0], "0")] if self.all[0] < first else []
        return zero + [(float(step), f"{step:,}") for step in steps]


def figure_of(found: Trajectories, x: XAxis = "steps") -> Figure:
    """
    Raises:
        MissingMetric: the axis is that of tokens, and none are known.
    """
    places = _Places(found, x)
    groups = list(_groups(found))
    inches = 2.4 if len(groups) <= MANY_PANELS else 1.9
    panels = [_panel(found, places, title, curves, inches) for title, curves in groups]
    runs = found.runs[0] if len(found.runs) == 1 else f"{len(found.runs)} runs"
    steps = [row["step"] for curve in found.shown_curves for row in curve.rows]
    return Figure(
        title=f"Trajectories of {runs}, steps {min(steps):,} to {max(steps):,}",
        x_label=places.label,
        panels=panels,
        note=_note(found, places),
    )


def _groups(found: Trajectories) -> Iterator[tuple[str, list[Curve]]]:
    """(title, curves) of each panel: a metric of all runs, or metrics of one run in one unit."""
    by_metric = len(found.runs) > 1
    groups: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in found.shown_curves:
        groups.setdefault((curve.probe, curve.metric if by_metric else "", curve.unit), []).append(curve)
    for (probe, metric, _), curves in groups.items():
        metrics = list(dict.fromkeys(curve.metric for curve in curves))
        for start in range(0, len(metrics), MOST_IN_A_PANEL):
            chosen = metrics[start : start + MOST_IN_A_PANEL]
            of_these = [curve for curve in curves if curve.metric in chosen]
            one = metric or (chosen[0] if len(metrics) == 1 else "")
            yield f"{probe}: {one}" if one and one != probe else probe, of_these


def _panel(found: Trajectories, places: _Places, title: str, curves: Sequence[Curve], inches: float) -> Curves:
    colours = _colours(found, curves)
    drawn = [line for curve in curves if (line := _line(found, places, curve, colours[_identity(found, curve)]))]
    values = [value for line in drawn for value in line.y if value is not None]
    return Curves(
        title=title,
        y_label=curves[0].unit if curves[0].unit not in ("", "1") else "value",
        curves=drawn,
        gaps=list(_gaps(found, places, curves, colours)),
        x_range=places.range,
        x_ticks=places.ticks,
        log_x=places.x == "log-steps",
        log_y=spans_decades(values),
        inches=inches,
    )


def _identity(found: Trajectories, curve: Curve) -> str:
    """What a colour stands for: a run where there are several, else a metric."""
    return curve.run if len(found.runs) > 1 else curve.metric


def _colours(found: Trajectories, curves: Sequence[Curve]) -> Mapping[str, str]:
    names = found.runs if len(found.runs) > 1 else dict.fromkeys(curve.metric for curve in curves)
    return {name: COLOURS[ORDER[number % len(ORDER)]] for number, name in enumerate(names)}


def _line(found: Trajectories, places: _Places, curve: Curve, colour: str) -> IntervalCurve | None:
    """None where no value has a place: then nothing could be drawn."""
    points: list[tuple[float, Any]] = [
        (x, row) for row in curve.finite_rows if (x := places.of(row["step"], row["tokens"])) is not None
    ]
    if not points:
        return None
    gaps = [(x, {"step": gap[0]}) for gap in curve.gaps if (x := places.of(*gap)) is not None]
    inside = [gap for gap in gaps if points[0][0] < gap[0] < points[-1][0]]
    if len(inside) < len(points):
        points += inside
    points.sort(key=lambda point: point[0])
    name = _identity(found, curve)
    both = len({other.published for other in found.shown_curves}) > 1
    return IntervalCurve(
        name=f"{name}, published" if both and curve.published else name,
        x=[x for x, _ in points],
        y=[row.get("value") for _, row in points],
        low=[_finite(row.get("low")) for _, row in points],
        high=[_finite(row.get("high")) for _, row in points],
        colour=colour,
        open=curve.published,
        at=[(curve.run, row["step"]) for _, row in points],
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _gaps(found: Trajectories, places: _Places, curves: Sequence[Curve], colours: Mapping[str, str]) -> Iterator[Gaps]:
    """One row of marks for each run: checkpoints at which one of its curves has no value."""
    several = len(found.runs) > 1
    for run in found.runs:
        missing = dict.fromkeys(gap for curve in curves if curve.run == run for gap in curve.gaps)
        x = [place for gap in missing if (place := places.of(*gap)) is not None]
        if x:
            name = f"no value, {run}" if several else "no value"
            yield Gaps(name=name, x=sorted(x), colour=colours[run] if several else "#555555")


def _note(found: Trajectories, places: _Places) -> str:
    curves = found.shown_curves
    parts = []
    if any(not curve.published for curve in curves):
        parts.append("Solid lines: measured here.")
    if any(curve.published for curve in curves):
        parts.append("Dashed lines, open points: published.")
    if any(row["low"] is not None for curve in curves for row in curve.rows):
        parts.append("Bands: 95 % intervals.")
    if any(curve.gaps for curve in curves):
        parts.append("×: a checkpoint without a value.")
    if len(found.runs) > len(ORDER):
        parts.append(f"Colours repeat after {len(ORDER)} runs.")
    if places.x == "log-steps" and places.all[0] < places.smallest:
        parts.append("Step 0 is drawn at half the first step after it.")
    lost = [row for curve in curves for row in curve.rows if places.of(row["step"], row["tokens"]) is None]
    if lost:
        parts.append(f"{len(lost):,} values of checkpoints whose tokens are not known are not drawn.")
    return " ".join(parts)
