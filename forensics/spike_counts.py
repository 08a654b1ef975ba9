"""Rows of events and counts of flags, by definition: ours, and the published ones beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_index.kinds import KINDS
from forensics.judged_series import JudgedSeries, steps_of_any
from forensics.spike_definitions import PublishedDefinition, published_definitions
from forensics.spike_events import GAP_STEPS, SpikeEvent, grouped
from probes.robust_statistics import FEWEST, THRESHOLD, WINDOW, tail_index
from probes.steep_stretch import THRESHOLD_OF_TREND

Row = Mapping[str, Any]
COLUMNS = tuple(KINDS["spikes"])
ROBUST: Mapping[str, Any] = {
    "window": WINDOW,
    "fewest": FEWEST,
    "robust_deviations": THRESHOLD,
    "side": "above",
    "deviation": "1.4826 MAD",
    "flagged_enter": False,
    "gap_steps": GAP_STEPS,
    "steep_beginning": f"{THRESHOLD_OF_TREND:g} deviations of differences above 16 values",
}


def robust_row(event: SpikeEvent) -> Row:
    values = asdict(event) | {"series": list(event.series), "definition": "robust", "parameters": dict(ROBUST)}
    return {name: values[name] for name in COLUMNS}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedByOther:
    """A definition with the steps at which the series it judged were logged.

    `remembers_not_finite`: where the value, or one of the 128 before it, is NaN or infinite in either series.
    """

    definition: PublishedDefinition
    steps: np.ndarray
    loss: np.ndarray | None
    gap_steps: int
    remembers_not_finite: np.ndarray

    def events(self) -> list[tuple[int, int]]:
        return list(grouped(self.steps[self.definition.flagged], self.gap_steps))


def judged_by_others(loss: JudgedSeries | None, grad_norm: JudgedSeries | None) -> list[JudgedByOther]:
    there = [series for series in (loss, grad_norm) if series is not None]
    steps = there[0].steps
    for series in there[1:]:
        if not np.array_equal(steps, series.steps):
            steps = np.intersect1d(steps, series.steps, assume_unique=True)
    values = (
        {series.name: series.values[np.searchsorted(series.steps, steps)] for series in there} if len(steps) else {}
    )
    gap = max(GAP_STEPS, *(series.interval for series in there))
    bad = np.cumsum(~np.logical_and.reduce([np.isfinite(of) for of in values.values()]))
    remembered = bad > np.concatenate([np.zeros(min(WINDOW + 1, len(bad)), int), bad[: -(WINDOW + 1)]])
    return [
        JudgedByOther(
            definition=definition,
            steps=steps,
            loss=values.get("loss"),
            gap_steps=gap,
            remembers_not_finite=remembered,
        )
        for definition in (published_definitions(values) if len(steps) else [])
    ]


def published_rows(published: Sequence[JudgedByOther]) -> Iterator[Row]:
    empty = asdict(SpikeEvent(onset=0))
    for one in published:
        definition = one.definition
        parameters = {**definition.parameters, "flagged_enter": True, "gap_steps": GAP_STEPS}
        flagged = definition.flagged
        for first, last in one.events():
            start, stop = np.searchsorted(one.steps, (first, last + 1))
            peak: int | None = None
            if one.loss is not None and np.isfinite(one.loss[start:stop]).any():
                here = np.where(np.isfinite(one.loss[start:stop]), one.loss[start:stop], -np.inf)
                peak = int(one.steps[start + here.argmax()])
            named = [name for name, flags in definition.flags.items() if flags[start:stop].any() and name != "step"]
            values = empty | {"onset": first, "last": last, "peak": peak, "series": named, "attempt": None}
            values |= {"lead_steps": _lead(one, start, stop, peak), "detail": _count(flagged[start:stop].sum())}
            values |= {"definition": definition.name, "parameters": parameters}
            yield {name: values[name] for name in COLUMNS}


def _count(num_flagged: int) -> str:
    return "1 flagged step" if num_flagged == 1 else f"{num_flagged:,} flagged steps"


def _lead(one: JudgedByOther, start: int, stop: int, peak: int | None) -> int | None:
    flags = one.definition.flags.get("grad_norm")
    if peak is None or flags is None or not flags[start:stop].any():
        return None
    return peak - int(one.steps[start + flags[start:stop].argmax()])


def own_summary(pair: Mapping[str, JudgedSeries], spikes: Sequence[SpikeEvent]) -> Iterator[Row]:
    """How much the robust definition flags, by series and in either."""
    counts = {
        name: (series.outliers.flagged, len(series.steps), sum(name in event.series for event in spikes))
        for name, series in pair.items()
    }
    rows = [(name, int(flags.sum()), total, num_events) for name, (flags, total, num_events) in counts.items()]
    if len(pair) > 1:
        flagged = np.unique(np.concatenate([series.flagged_steps for series in pair.values()]))
        logged = steps_of_any(list(pair.values()))
        rows.append(("either", len(flagged), len(logged), len(spikes)))
    for name, num_flagged, total, num_events in rows:
        yield {
            "definition": "robust",
            "series": name,
            "flagged": num_flagged,
            "percent": 100 * num_flagged / max(total, 1),
            "events": num_events,
            "by_not_finite": 0,
            "tail_index": tail_index(pair[name].sampled_z()) if name in pair else None,
            "parameters": dict(ROBUST),
        }


def published_summary(published: Sequence[JudgedByOther]) -> Iterator[Row]:
    for one in published:
        for name, score in one.definition.scores.items():
            flags = one.definition.flagged if name == "total" else one.definition.flags[name]
            yield {
                "definition": one.definition.name,
                "series": "either" if name == "total" else name,
                "flagged": int(flags.sum()),
                "percent": score,
                "events": len(list(grouped(one.steps[flags], one.gap_steps))),
                "by_not_finite": int((flags & one.remembers_not_finite).sum()),
                "parameters": dict(one.definition.parameters),
            }
