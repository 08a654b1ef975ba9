"""Where trajectories break, and where those of two runs cross: what `trajectory --breaks` and `--crossings` print.

Both work on the logarithm of the step, in powers of 10; step 0 lies at half the smallest step of the curve. Breaks of
a curve that spans decades, as a perplexity does, are those of its logarithm: its noise grows with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from forensics.trajectories import Curve, Row, Trajectories

BREAK_COLUMNS = (
    *("run", "probe", "metric", "published", "last_step_before", "first_step_after", "slope_before", "slope_after"),
    *("change", "low", "high", "noise", "unit"),
)
CROSSING_COLUMNS = (
    *("probe", "metric", "run", "other", "last_step_before", "first_step_after", "crosses_at_step", "higher_before"),
    *("sure_before", "higher_now", "sure_now", "next_crossing_step", "num_steps"),
)


def break_rows(found: Trajectories) -> list[Row]:
    """Breaks of each curve that is shown. Slopes are of the value over a tenfold number of steps.

    A break lies after checkpoint `last_step_before` and not after `first_step_after`; `low` and `high` are the 95 %
    interval of the change of slope.
    """
    return [row for curve in found.shown_curves for row in _breaks_of(curve)]


def crossing_rows(found: Trajectories) -> list[Row]:
    """The last crossing of each two runs, for every metric that is shown; a run's measured curve before its published.

    `sure_…` says whether the band of the difference, which holds at all checkpoints together, excludes 0 on that side;
    it is None where there is no interval.
    """
    groups: dict[tuple[str, str], dict[str, Curve]] = {}
    for curve in found.shown_curves:
        groups.setdefault((curve.probe, curve.metric), {}).setdefault(curve.run, curve)
    pairs = [pair for curves in groups.values() for pair in combinations(curves.values(), 2)]
    return [row for one, other in pairs if (row := _crossing_of(one, other)) is not None]


def _breaks_of(curve: Curve) -> Iterator[Row]:
    from probes.breakpoints import breakpoints

    steps, rows = _one_a_step(curve)
    places = _places(steps)
    values = np.array([row["value"] for row in rows], dtype=np.float64)
    wide = curve.spans_decades
    breaks, noise = breakpoints(places, np.log10(values) if wide else values)
    for one in breaks:
        yield {
            "run": curve.run,
            "probe": curve.probe,
            "metric": curve.metric,
            "published": curve.published,
            "last_step_before": steps[one.last],
            "first_step_after": steps[one.last + 1],
            "slope_before": one.slope_before,
            "slope_after": one.slope_after,
            "change": one.slope_after - one.slope_before,
            "low": one.low,
            "high": one.high,
            "noise": noise,
            "unit": f"log10 of {curve.unit or 'the value'}" if wide else curve.unit,
        }


def _crossing_of(one: Curve, other: Curve) -> Row | None:
    """None where the two have no two steps in common."""
    from probes.crossings import crossing

    smallest = min((row["step"] for curve in (one, other) for row in curve.finite_rows if row["step"] > 0), default=1)
    found = crossing(_values(one, smallest), _values(other, smallest))
    if found is None:
        return None
    names = {1: one.run, -1: other.run, 0: None}

    def step(place: float | None) -> int | None:
        """A step that was measured comes back as it was; one between two is rounded."""
        if place is None:
            return None
        return 0 if np.isclose(place, np.log10(smallest / 2)) else round(10**place)

    return {
        "probe": one.probe,
        "metric": one.metric,
        "run": one.run,
        "other": other.run,
        "last_step_before": step(found.before),
        "first_step_after": step(found.after),
        "crosses_at_step": step(found.crosses_at),
        "higher_before": names[-found.sign] if found.after is not None else None,
        "sure_before": found.was_sure,
        "higher_now": names[found.sign],
        "sure_now": found.is_sure,
        "next_crossing_step": step(found.next_at),
        "num_steps": found.num_places,
    }


def _one_a_step(curve: Curve) -> tuple[list[int], list[Row]]:
    """Finite values, the first of each step."""
    rows: dict[int, Row] = {}
    for row in curve.finite_rows:
        rows.setdefault(row["step"], row)
    return list(rows), list(rows.values())


def _places(steps: Sequence[int], smallest: int | None = None) -> np.ndarray:
    first = min((step for step in steps if step > 0), default=1) if smallest is None else smallest
    return np.log10([step if step > 0 else first / 2 for step in steps]).astype(np.float64)


def _values(curve: Curve, smallest: int) -> Any:
    from probes.crossings import Values

    steps, rows = _one_a_step(curve)
    ends = [(row["low"], row["high"]) for row in rows]
    widths = [np.nan if None in pair else (pair[1] - pair[0]) / 2 for pair in ends]
    return Values(
        x=_places(steps, smallest),
        y=np.array([row["value"] for row in rows], dtype=np.float64),
        half_widths=np.array(widths, dtype=np.float64),
    )
