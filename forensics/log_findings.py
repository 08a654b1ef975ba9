"""Findings about a log that are no spikes: values that are not finite, new levels, a gradient norm that grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_index.run import Run
from forensics.judged_series import JudgedSeries, steps_of_any
from forensics.logged_series import LoggedSeries
from forensics.spike_events import GAP_STEPS, SIGNIFICANCE, SpikeEvent
from probes.robust_statistics import growth_p_value, stretch_medians, theil_sen
from probes.upward_outliers import SHIFT, LevelChange

JUMP = 0.2  # of the learning rate or the batch size, relative
NEAR_STEPS = 8
GROWTH = 0.1  # in the logarithm of the gradient norm, over a stretch
NUM_STRETCHES = 8
FEWEST_TO_GROW = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """A step at which something about the run is known to change."""

    step: int
    what: str


def borders_of(run: Run | None, learning_rate: LoggedSeries | None, batch_size: LoggedSeries | None) -> list[Border]:
    """What the run's record, its learning rate and its batch size tell of changes, in step order."""
    found = list(_segment_borders(run)) if run is not None else []
    for name, series in (("learning rate", learning_rate), ("batch size", batch_size)):
        if series is not None:
            found += _jumps(name, series)
    return sorted(found, key=lambda border: border.step)


def _segment_borders(run: Run) -> Iterator[Border]:
    segments = sorted(run.segments, key=lambda segment: (segment.first_step, segment.attempt))
    for before, after in zip(segments, segments[1:], strict=False):
        if after.instances_per_batch != before.instances_per_batch:
            what = f"batch size {before.instances_per_batch} to {after.instances_per_batch} instances"
        elif after.epoch != before.epoch:
            what = f"epoch {after.epoch} begins"
        elif after.attempt != before.attempt:
            what = f"attempt {after.attempt} begins"
        else:
            what = "a segment of the data order begins"
        yield Border(step=after.first_step, what=what)


def _jumps(name: str, series: LoggedSeries) -> Iterator[Border]:
    """Where the values are other than before by a fifth or more, and stay so, from one logged value to the next."""
    steps, values = series.kept.steps, series.kept.values
    with np.errstate(all="ignore"):
        change = np.abs(values[1:] / values[:-1] - 1)
        usual = np.abs(values[2:] / values[1:-1] - 1)
    if len(change) < 3:
        return
    jumped = change[:-1] > np.maximum(JUMP, 4 * usual)
    for place in np.flatnonzero(jumped) + 1:
        if steps[place] > steps[0] + NEAR_STEPS:  # the first steps of a warm-up double it
            yield Border(step=int(steps[place]), what=f"{name} {values[place - 1]:.3g} to {values[place]:.3g}")


def not_finite_events(*both: JudgedSeries | None) -> list[SpikeEvent]:
    """Steps at which a series is NaN or infinite; those that follow each other in the log are one event."""
    there = [series for series in both if series is not None]
    bad = {series.name: series.steps[~np.isfinite(series.values)] for series in there}
    logged = steps_of_any(there)
    steps = np.unique(np.concatenate(list(bad.values())))
    places = np.searchsorted(logged, steps)
    events = []
    for part in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1) if len(places) else []:
        first, last = int(logged[part[0]]), int(logged[part[-1]])
        later = part[-1] + 1
        named = tuple(name for name, of in bad.items() if ((of >= first) & (of <= last)).any())
        count = f"{len(part):,} logged steps" if len(part) > 1 else "1 step"
        events.append(
            SpikeEvent(
                onset=first,
                peak=None,
                last=last,
                recovery=int(logged[later]) if later < len(logged) else None,
                kind="not_finite",
                series=named,
                detail=f"{count} NaN or infinite" + ("" if later < len(logged) else ", to the end of the log"),
            )
        )
    return events


def split_shifts(
    loss: JudgedSeries | None, grad_norm: JudgedSeries | None, borders: Sequence[Border]
) -> tuple[dict[str, list[int]], list[SpikeEvent]]:
    """Level shifts as findings, and those that belong to a spike.

    A level that rises without a known cause, where the other series has a spike within 32 steps, is what that spike
    left: a loss that jumps and stays, with a burst of the gradient norm, has diverged.

    Returns:
        places, by series, of shifts that belong to spikes; level shifts, those of both series at one step as one.
    """
    of_spikes: dict[str, list[int]] = {}
    shifts: list[SpikeEvent] = []
    for series, other in ((loss, grad_norm), (grad_norm, loss)):
        if series is None:
            continue
        for change in _shifts(series):
            step = int(series.steps[change.index])
            cause = _cause(step, borders, max(NEAR_STEPS, 2 * series.interval))
            near = other is not None and (np.abs(other.flagged_steps - step) <= GAP_STEPS).any()
            if change.after > change.before and cause is None and near:
                of_spikes.setdefault(series.name, []).append(change.index)
            else:
                shifts.append(_shift_event(series, change, step, cause))
    return of_spikes, _merged(shifts)


def _shifts(series: JudgedSeries) -> Iterator[LevelChange]:
    """Shifts of a series, but for falls back to the level before a spike."""
    left: list[LevelChange] = []
    for change in series.outliers.changes:
        if change.cause == "spike":
            left.append(change)
        elif any(change.before > spike.before and change.after <= spike.before + SHIFT * spike.scale for spike in left):
            left.clear()
        else:
            yield change


def _cause(step: int, borders: Sequence[Border], near: int) -> str | None:
    close = [border for border in borders if abs(border.step - step) <= near]
    nearest = min(close, key=lambda border: abs(border.step - step), default=None)
    return None if nearest is None else f"{nearest.what} at step {nearest.step}"


def _shift_event(series: JudgedSeries, change: LevelChange, step: int, cause: str | None) -> SpikeEvent:
    return SpikeEvent(
        onset=step,
        last=step,
        kind="level_shift",
        series=(series.name,),
        level=change.before,
        lasting_offset=change.after - change.before if series.name == "loss" else None,
        detail=f"{series.name} {change.before:.4g} to {change.after:.4g}: {cause or 'cause not known'}",
    )


def _merged(shifts: Sequence[SpikeEvent]) -> list[SpikeEvent]:
    merged: list[SpikeEvent] = []
    for shift in sorted(shifts, key=lambda shift: (shift.onset, shift.series != ("loss",))):
        before = merged[-1] if merged else None
        if before and shift.onset - before.onset <= NEAR_STEPS and not set(shift.series) & set(before.series):
            what = shift.detail.split(":")[0]
            merged[-1] = replace(before, series=before.series + shift.series, detail=f"{what}; {before.detail}")
        else:
            merged.append(shift)
    return merged


def gradient_growth(grad_norm: JudgedSeries) -> SpikeEvent | None:
    """The stretch of at least a quarter of the log over which the gradient norm grows most, if it does grow.

    Stretches begin and end at eighths of the log. Growth is the slope of the logarithm (Theil-Sen, unflagged values)
    times the stretch's length; it has to be 10 % or more, and significant at 0.005 (block bootstrap).
    """
    places = grad_norm.unflagged[grad_norm.values[grad_norm.unflagged] > 0]
    if len(places) < FEWEST_TO_GROW:
        return None
    # Medians of 320 stretches: as many to each eighth, and few enough for all pairs.
    steps = stretch_medians(grad_norm.steps[places].astype(float), NUM_STRETCHES * 40)
    logs = stretch_medians(np.log(grad_norm.values[places]), NUM_STRETCHES * 40)
    best: tuple[float, float, int, int] | None = None
    for first in range(NUM_STRETCHES):
        for stop in range(first + NUM_STRETCHES // 4, NUM_STRETCHES + 1):
            part = slice(first * 40, stop * 40)
            slope = theil_sen(steps[part], logs[part])
            growth = slope * (steps[part][-1] - steps[part][0])
            if growth >= max(GROWTH, best[0] if best else 0) and growth_p_value(steps[part], logs[part]) < SIGNIFICANCE:
                best = growth, slope, part.start, part.stop
    if best is None:
        return None
    growth, slope, start, stop = best
    middle = float(np.median(logs[start:stop]))
    spare = len(places) % (NUM_STRETCHES * 40)
    size = len(places) // (NUM_STRETCHES * 40)
    first, last = places[spare + start * size], places[spare + stop * size - 1]
    return SpikeEvent(
        onset=int(grad_norm.steps[first]),
        last=int(grad_norm.steps[last]),
        kind="gradient_growth",
        series=(grad_norm.name,),
        level=float(np.exp(middle - growth / 2)),
        peak_value=float(np.exp(middle + growth / 2)),
        detail=f"times {np.exp(growth):.2f}; log {10_000 * slope:+.2g} per 10,000 steps",
    )
