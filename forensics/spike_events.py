"""Flagged steps as events: when a spike began, was highest and was over, and whether it came at once or crept up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from forensics.judged_series import JudgedSeries

GAP_STEPS = 32
FOOT = 0.02  # of a peak's height: who is down to that has recovered
FAST_STEPS = 50
SLOW_LEAD_STEPS = 50
STEPS_BEFORE = 100
SIGNIFICANCE = 0.005

Kind = Literal["fast", "slow", "not_finite", "gradient_growth", "level_shift"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeEvent:
    """An event of a log, or another finding about a stretch of it.

    Attributes:
        onset: the first flagged step of either series. Of a gradient growth, where the stretch begins.
        peak: where the loss is largest; of an event in which the loss never stands out, the gradient norm.
        last: the last flagged step. Of a level shift, the onset.
        recovery: the first step whose trailing 8 values are back at the level before; None: never.
        kind: of a spike `fast`, `slow`, or None where it cannot be told. `not_finite`, `gradient_growth` and
            `level_shift` are other findings than spikes.
        lead_steps: from the first flag of the gradient norm to the peak of the loss; None where one of them has none.
        attempt: of the steps; earlier ones than the last were given up at a restart.
        series: those that were flagged.
        level, peak_value, peak_z: median before the peak, value at it and its robust z, in the series of the peak. Of a
            gradient growth, `level` and `peak_value` are the ends of the line through the stretch.
        area: sum of loss minus its level over the event until its recovery, in nats x steps.
        lasting_offset: of the loss, after minus before, local trend removed, in nats.
    """

    onset: int
    peak: int | None = None
    last: int | None = None
    recovery: int | None = None
    kind: Kind | None = None
    lead_steps: int | None = None
    attempt: int = 1
    series: tuple[str, ...] = ()
    level: float | None = None
    peak_value: float | None = None
    peak_z: float | None = None
    area: float | None = None
    lasting_offset: float | None = None
    detail: str = ""

    @property
    def is_spike(self) -> bool:
        return self.kind in ("fast", "slow", None)


def grouped(steps: np.ndarray, gap_steps: int = GAP_STEPS) -> Iterator[tuple[int, int]]:
    """Rising steps as (first, last) of events; steps at most `gap_steps` apart are one event."""
    if not len(steps):
        return
    cuts = np.flatnonzero(np.diff(steps) > gap_steps)
    yield from zip(steps[[0, *(cuts + 1)]].tolist(), steps[[*cuts, len(steps) - 1]].tolist(), strict=True)


def spike_events(
    loss: JudgedSeries | None, grad_norm: JudgedSeries | None, barriers: Sequence[int] = ()
) -> list[SpikeEvent]:
    """Spikes of a run, in order.

    Args:
        loss, grad_norm: at least one of them.
        barriers: steps at which the level of the loss rose for good by something else than a spike: after one, no
            earlier spike can be told to be over.
    """
    both = [series for series in (loss, grad_norm) if series is not None]
    steps = np.unique(np.concatenate([series.flagged_steps for series in both]))
    interval = max(series.interval for series in both)
    first_logged = min(int(series.steps[0]) for series in both if len(series.steps)) if len(steps) else 0
    ends = np.sort(np.array([*barriers, np.iinfo(np.int64).max]))
    found = []
    for first, last in grouped(steps, max(GAP_STEPS, interval)):
        barrier = int(ends[np.searchsorted(ends, last, "right")])
        event = _measured(first, last, loss, grad_norm, barrier)
        found.append(replace(event, kind=_kind(event, grad_norm, first - first_logged)))
    return found


def _measured(
    first: int, last: int, loss: JudgedSeries | None, grad_norm: JudgedSeries | None, barrier: int
) -> SpikeEvent:
    flags = {s.name: _flags_between(s, first, last) for s in (loss, grad_norm) if s is not None}
    named = tuple(name for name, places in flags.items() if len(places))
    of_peak = loss if loss is not None and loss.name in named else grad_norm
    assert of_peak is not None
    start, stop = np.searchsorted(of_peak.steps, (first, last + 1))
    values = of_peak.values[start:stop]
    peak = int(start) + int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
    # The level before the event holds for all of it: values that are not flagged on its flanks do not move it.
    level, scale = of_peak.level_at(int(flags[of_peak.name][0]))
    # One deviation, as long as that can be told from the foot of the peak: a quiet log has almost none.
    back = max(scale, FOOT * (float(of_peak.values[peak]) - level))
    recovery = of_peak.recovery(peak, level, back, int(np.searchsorted(of_peak.steps, barrier)))
    lead = None
    if loss is not None and grad_norm is not None and of_peak is loss and grad_norm.name in named:
        lead = int(of_peak.steps[peak]) - int(grad_norm.steps[flags[grad_norm.name][0]])
    area, offset = (None, None) if loss is None else _effect(loss, first, last, recovery)
    return SpikeEvent(
        onset=first,
        peak=int(of_peak.steps[peak]),
        last=last,
        recovery=recovery,
        lead_steps=lead,
        series=named,
        level=level,
        peak_value=float(of_peak.values[peak]),
        peak_z=(float(of_peak.values[peak]) - level) / scale,
        area=area,
        lasting_offset=offset,
    )


def _flags_between(series: JudgedSeries, first: int, last: int) -> np.ndarray:
    start, stop = np.searchsorted(series.steps, (first, last + 1))
    return start + np.flatnonzero(series.outliers.flagged[start:stop])


def _effect(loss: JudgedSeries, first: int, last: int, recovery: int | None) -> tuple[float | None, float | None]:
    """Area and lasting offset. The area goes on until the recovery; what no step logged is not in it."""
    end = last + 1 if recovery is None else max(last + 1, recovery)
    start, stop = np.searchsorted(loss.steps, (first, end))
    flags = np.flatnonzero(loss.outliers.flagged[start:stop])
    level, _ = loss.level_at(int(start + flags[0]) if len(flags) else min(int(start), len(loss.steps) - 1))
    values = loss.values[start:stop]
    area = float((values[np.isfinite(values)] - level).sum()) * loss.interval
    return (area if np.isfinite(area) else None), loss.lasting_offset(first, end)


def _kind(event: SpikeEvent, grad_norm: JudgedSeries | None, steps_before: int) -> Kind | None:
    """Fast: over within 50 steps, no gradient norm that crept up. Slow: it had, or it led by more than 50 steps."""
    if steps_before < STEPS_BEFORE:
        return None
    if event.lead_steps is not None and event.lead_steps > SLOW_LEAD_STEPS:
        return "slow"
    if grad_norm is not None and grad_norm.crept_up(int(np.searchsorted(grad_norm.steps, event.onset)), SIGNIFICANCE):
        return "slow"
    return "fast" if event.recovery is not None and event.recovery - event.onset <= FAST_STEPS else None
