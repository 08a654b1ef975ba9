"""Steps that a restart took again: the same steps twice, which is an experiment that nobody had to plan.

PaLM's authors restarted before a spike and passed over its batches, and fed the same batches to another state: it did
not spike. Where an earlier attempt spiked and the one that was kept did not, the difference between them is what
mattered: other data, or the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_index.run import Run, Segment
from forensics.judged_series import JudgedSeries, judged
from forensics.logged_series import LoggedSeries, Points
from forensics.spike_events import SpikeEvent, spike_events

HISTORY = 1000  # kept values before a stretch that was given up; what it spiked against


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """A stretch of steps of an attempt that was given up.

    Attributes:
        first_step, last_step: that were taken again.
        kept_attempt: of the last of them.
        spikes: in the earlier attempt. `kept_spikes`: in the same steps of the one that was kept.
        same_data: whether both read the same rows at the first spike's onset (else at the first step); None: the
            run's record does not say.
    """

    first_step: int
    last_step: int
    attempt: int
    kept_attempt: int
    spikes: tuple[SpikeEvent, ...]
    kept_spikes: tuple[SpikeEvent, ...]
    same_data: bool | None

    @property
    def text(self) -> str:
        """One sentence or two."""
        first, last = self.first_step, self.last_step
        steps = f"step {first} was" if first == last else f"steps {first} to {last} were"
        data = {True: "on the same data", False: "on other data", None: "whether on the same data is not known"}
        where = ", ".join(str(event.peak) for event in self.spikes[:4])
        again = ", ".join(str(event.peak) for event in self.kept_spikes[:4])
        if self.spikes and not self.kept_spikes:
            told = f"spiked at {where}, attempt {self.kept_attempt} did not in these steps, {data[self.same_data]}"
            told += ": so the data alone did not cause it" if self.same_data else ""
        elif self.spikes:
            told = f"spiked at {where}, attempt {self.kept_attempt} at {again}, {data[self.same_data]}"
        elif self.kept_spikes:
            told = f"did not spike, attempt {self.kept_attempt} did at {again}, {data[self.same_data]}"
        else:
            told = f"did not spike, nor did attempt {self.kept_attempt}, {data[self.same_data]}"
        return f"restart: {steps} taken again; attempt {self.attempt} {told}"


def restarts_of(
    run: Run | None,
    loss: LoggedSeries | None,
    grad_norm: LoggedSeries | None,
    kept: Sequence[JudgedSeries],
    kept_events: Sequence[SpikeEvent],
) -> list[Restart]:
    """
    Args:
        kept: both series as judged; `kept_events`: their spikes.
    """
    leading, other = (loss, grad_norm) if loss is not None else (grad_norm, None)
    assert leading is not None
    floors = {series.name: series.outliers.floor for series in kept}
    found = []
    for stretch in leading.given_up:
        first, last, attempt = int(stretch.steps[0]), int(stretch.steps[-1]), int(stretch.attempts[0])
        there = {leading.name: _with_history(leading, [stretch], floors)}
        if other is not None and (parts := _inside(other.given_up, first, last, attempt)):
            there[other.name] = _with_history(other, parts, floors)
        events = [
            replace(event, attempt=attempt)
            for event in spike_events(there.get("loss"), there.get("grad_norm"))
            if event.last is not None and event.last >= first
        ]
        again = [event for event in kept_events if event.onset <= last and (event.last or event.onset) >= first]
        at = int(np.clip(events[0].onset, first, last)) if events else first
        attempts = leading.kept.attempts[np.searchsorted(leading.kept.steps, (at, last))]
        found.append(
            Restart(
                first_step=first,
                last_step=last,
                attempt=attempt,
                kept_attempt=int(attempts[1]),
                spikes=tuple(events),
                kept_spikes=tuple(again),
                same_data=_same_data(run, at, attempt, int(attempts[0])),
            )
        )
    return found


def _inside(stretches: Sequence[Points], first: int, last: int, attempt: int) -> list[Points]:
    inside = [s for s in stretches if s.attempts[0] == attempt and s.steps[-1] >= first and s.steps[0] <= last]
    return [part.of((part.steps >= first) & (part.steps <= last)) for part in inside]


def _with_history(series: LoggedSeries, parts: Sequence[Points], floors: dict[str, float]) -> JudgedSeries:
    """What was given up, after the steps before it that were kept."""
    before = int(np.searchsorted(series.kept.steps, parts[0].steps[0]))
    pieces = [series.kept.of(slice(max(before - HISTORY, 0), before)), *parts]
    points = Points(
        steps=np.concatenate([piece.steps for piece in pieces]),
        values=np.concatenate([piece.values for piece in pieces]),
        attempts=np.concatenate([piece.attempts for piece in pieces]),
    )
    return judged(series.name, points, series.interval, floors.get(series.name))


def _same_data(run: Run | None, step: int, attempt: int, kept_attempt: int) -> bool | None:
    if run is None:
        return None
    rows = [_rows(run.segments, step, number) for number in (attempt, kept_attempt)]
    return None if None in rows else rows[0] == rows[1]


def _rows(segments: Sequence[Segment], step: int, attempt: int) -> tuple[int, slice] | None:
    """Epoch and positions that an attempt of a step read."""
    for segment in segments:
        if segment.attempt == attempt and segment.first_step <= step <= segment.last_step:
            return segment.epoch, segment.positions_of_step(step)
    return None
