"""Which steps to look at for a spike: its peak, what was usual before it, and the checkpoint to begin from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_index.errors import MissingCheckpoint
from data_index.metric_queries import logged_metrics
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace
from forensics.judged_series import JudgedSeries, judged
from forensics.log_findings import not_finite_events
from forensics.logged_series import LoggedSeries, Points
from forensics.spike_events import SpikeEvent, spike_events
from forensics.starting import require_optimizer

Measure = str  # "loss" or "grad_norm"
MEASURES = ("loss", "grad_norm")
VALUES_BEFORE = 32  # recent enough for the trend of a loss that falls
FEWEST_VALUES = 16
SPIKE_Z = 6.0
STEPS_BEFORE_ONSET = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class UsualValue:
    """What a series would have had at a step, going on as before.

    Attributes:
        value: a robust line through the values before, at the step.
        scale: robust standard deviation about that line.
        num_values: how many values it rests on.
    """

    value: float
    scale: float
    num_values: int

    def z(self, value: float) -> float:
        """Robust standard deviations above the usual; infinite for a value that is no number."""
        return (value - self.value) / self.scale if math.isfinite(value) else math.inf


def usual_value(values: Mapping[int, float], onset: int, at: int) -> UsualValue | None:
    """The usual value at a step, from the last finite values before the onset; None with fewer than 16 of them.

    The line is Theil and Sen's over the logarithm of the step, in which a loss falls about evenly, early and late; a
    quarter of outliers does not move it. A median would lag behind, a line over steps run ahead. The scale is at least
    a millionth of the value, for logs that were rounded to one number.
    """
    steps = [step for step in sorted(values) if 0 < step < onset and math.isfinite(values[step])][-VALUES_BEFORE:]
    if len(steps) < FEWEST_VALUES:
        return None
    from scipy.stats import theilslopes

    x, y = np.log(np.array(steps, dtype=float)), np.array([values[step] for step in steps])
    slope, intercept, _, _ = theilslopes(y, x)
    rest = y - (slope * x + intercept)
    scale = max(1.4826 * float(np.median(np.abs(rest - np.median(rest)))), 1e-6 * abs(float(np.median(y))), 1e-12)
    return UsualValue(value=float(slope * np.log(at) + intercept), scale=scale, num_values=len(steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeWindow:
    """The steps that are looked at: those after `start`, up to `peak`.

    Attributes:
        asked: the step that was asked about.
        onset: the first step of the event.
        measure: what spikes: the loss, or, where that is as usual, the gradient norm.
        usual: by measure; none where the log is too short.
        logged: by measure, at the peak.
    """

    asked: int
    onset: int
    peak: int
    start: Checkpoint
    measure: Measure
    usual: Mapping[Measure, UsualValue]
    logged: Mapping[Measure, float]

    @property
    def z(self) -> float | None:
        """How far the peak stands out, by the log."""
        if self.measure not in self.usual or self.measure not in self.logged:
            return None
        return self.usual[self.measure].z(self.logged[self.measure])


def window_of(
    workspace: Workspace, run: Run, step: int, *, before: int = STEPS_BEFORE_ONSET, fresh_optimizer: bool = False
) -> SpikeWindow:
    """The window of the event that a step belongs to; of the step alone where the log shows no event there.

    Args:
        before: at least so many steps before the onset are looked at, if there is a checkpoint to begin from.
    Raises:
        MissingCheckpoint, MissingState: nothing to begin from.
    """
    series = logged_with_parents(workspace, run, run.last_step)
    onset, peak = onset_and_peak(series, step)
    usual = usual_values(series, onset, peak)
    logged = {name: series[name][peak] for name in MEASURES if peak in series[name]}
    spiking = [name for name in usual if name in logged and usual[name].z(logged[name]) >= SPIKE_Z]
    return SpikeWindow(
        asked=step,
        onset=onset,
        peak=peak,
        start=start_before(workspace, run, onset, peak, before, fresh_optimizer),
        measure=spiking[0] if spiking else "loss",
        usual=usual,
        logged=logged,
    )


def usual_values(series: Mapping[Measure, Mapping[int, float]], onset: int, at: int) -> dict[Measure, UsualValue]:
    return {name: found for name in MEASURES if (found := usual_value(series[name], onset, at)) is not None}


def onset_and_peak(series: Mapping[Measure, Mapping[int, float]], step: int) -> tuple[int, int]:
    """Where the event that a step belongs to began, and the step to explain.

    That is the step asked about where its own loss spikes, or, in an event in which the loss never does, its gradient
    norm; else the event's peak. Outside of any event it is the step itself.
    """
    event = event_at(series, step)
    if event is None:
        return step, step
    usual = usual_values(series, event.onset, step)
    spiking = {name for name in usual if step in series[name] and usual[name].z(series[name][step]) >= SPIKE_Z}
    if event.peak is None:  # values that are no numbers: the first of them is to be explained
        return event.onset, event.onset
    if "loss" in spiking or (spiking and "loss" not in event.series):
        return event.onset, step
    # After the peak of an event, what rises anew is to be explained by itself.
    usual = usual_values(series, step, step)
    if step > event.peak and any(
        usual[name].z(series[name][step]) >= SPIKE_Z for name in usual if step in series[name]
    ):
        return step, step
    return event.onset, event.peak


def logged_with_parents(workspace: Workspace, run: Run, last: int) -> dict[Measure, dict[int, float]]:
    """Loss and gradient norm by step, up to a step; before a fork's first step those of its parent."""
    series: dict[Measure, dict[int, float]] = {name: {} for name in MEASURES}
    first = run.parent[1] if run.parent is not None else 0
    if run.parent is not None:
        above = logged_with_parents(workspace, workspace.run(run.parent[0]), run.parent[1])
        series = {name: dict(above[name]) for name in MEASURES}
    for number, values in logged_metrics(workspace, run, first, last, MEASURES).items():
        for name, value in values.items():
            series[name][number] = value
    return series


def event_at(series: Mapping[Measure, Mapping[int, float]], step: int) -> SpikeEvent | None:
    """The event that a step belongs to, as `spikes` finds it; of several the one whose peak is nearest."""
    loss, grad_norm = (judged_values(name, series[name]) if series[name] else None for name in MEASURES)
    if loss is None and grad_norm is None:
        return None
    events = [*spike_events(loss, grad_norm), *not_finite_events(loss, grad_norm)]
    around = [e for e in events if e.onset <= step <= max(e.recovery or 0, e.last or 0, e.peak or 0)]
    return min(around, key=lambda e: abs((e.peak or e.onset) - step), default=None)


def judged_values(name: Measure, values: Mapping[int, float]) -> JudgedSeries:
    steps = np.array(sorted(values), dtype=np.int64)
    points = Points(steps=steps, values=np.array([values[s] for s in steps.tolist()]), attempts=np.ones_like(steps))
    return judged(name, points, LoggedSeries(name=name, kept=points).interval)


def start_before(
    workspace: Workspace, run: Run, onset: int, peak: int, before: int, fresh_optimizer: bool
) -> Checkpoint:
    """The last checkpoint with optimizer state that lies `before` steps before the onset; else the first there is.

    Raises:
        MissingCheckpoint: there is none before the peak.
        MissingState: none has optimizer state.
    """
    there = [c for c in workspace.checkpoints(run) if c.step < peak]
    if not there:
        raise MissingCheckpoint(
            f"{run.name} has no checkpoint before step {peak} (list all: forensics checkpoints {run.name})"
        )
    whole = [c for c in there if "optimizer" in c.states or fresh_optimizer]
    if not whole:
        require_optimizer(workspace, run, there[-1], fresh_optimizer)
    early = [c for c in whole if c.step < onset - before]
    return early[-1] if early else whole[0]
