"""Finding spikes in a log of a million steps: seconds, planted spikes found, false alarms.

Both series are detected, grouped and classified; the log is in memory. Time is the process's own, since other work may
share the cores; beside it stands what the same machine takes to sort every window of one series.
"""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from forensics.judged_series import judged
from forensics.log_findings import gradient_growth, not_finite_events, split_shifts
from forensics.logged_series import Points
from forensics.spike_definitions import published_definitions
from forensics.spike_events import SpikeEvent, spike_events
from probes.robust_statistics import window_statistics

STEPS, REPEATS = 1_000_000, 3
RATES = (0.0, 1e-4, 1e-3, 4e-3)  # planted spikes a step; OLMo 2's scores are 0.0003 and 0.004
HEIGHTS = (7, 8, 10, 15)  # deviations
FIRST = 1000


def a_log(rate: float, seed: int) -> tuple[Points, Points, np.ndarray]:
    """A falling loss with normal noise, a gradient norm with log-normal noise, and where spikes begin in both."""
    random = np.random.default_rng(seed)
    steps = np.arange(1, STEPS + 1)
    loss = 2 + 9 * (steps / 50 + 1) ** -0.35 + 0.03 * random.standard_normal(STEPS)
    norm = 0.25 * np.exp(0.12 * random.standard_normal(STEPS)) + 5 / (steps / 20 + 1)
    starts = np.sort(random.choice(np.arange(FIRST, STEPS - 100), round(STEPS * rate), replace=False))
    for start in starts:
        fading = np.exp(-np.arange(40) / random.integers(1, 12))
        loss[start : start + 40] += 0.5 * fading
        norm[start : start + 40] *= 1 + 4 * fading
    ones = np.ones(STEPS, dtype=np.int64)
    return (
        Points(steps=steps, values=loss, attempts=ones),
        Points(steps=steps, values=norm, attempts=ones),
        steps[starts],
    )


def find(loss: Points, norm: Points) -> list[SpikeEvent]:
    """Everything that `spikes` finds of its own definition."""
    both = judged("loss", loss, 1), judged("grad_norm", norm, 1)
    _, shifts = split_shifts(*both, [])
    growth = gradient_growth(both[1])
    return [*spike_events(*both), *not_finite_events(*both), *shifts, *([growth] if growth else [])]


def main() -> None:
    for rate in RATES:
        loss, norm, planted = a_log(rate, seed=1)
        seconds = []
        for _ in range(REPEATS):
            began = time.process_time()
            events = find(loss, norm)
            seconds.append(time.process_time() - began)
        spikes = [event for event in events if event.is_spike]
        kinds = Counter(event.kind or "neither" for event in events)
        found, false = _compared(planted, spikes)
        print(
            f"{STEPS:,} steps, {len(planted):,} spikes planted: {min(seconds):.2f} s ({max(seconds):.2f}); "
            f"{100 * found:.1f} % found, {false:.2f} false alarms in 10,000 steps; {dict(kinds)}"
        )
    _print_single_spikes()
    _print_yardsticks(loss, norm)


def _compared(planted: np.ndarray, spikes: list[SpikeEvent]) -> tuple[float, float]:
    """The share of planted spikes that lie in an event, and events without one, in 10,000 steps."""
    firsts = np.array([event.onset for event in spikes])
    lasts = np.array([event.last or event.onset for event in spikes])
    place = np.searchsorted(firsts, planted + 2, "right") - 1
    found = (place >= 0) & (lasts[place] >= planted) if len(firsts) else np.zeros(len(planted), dtype=bool)
    near = np.searchsorted(planted, firsts - 40)
    true = np.array([n < len(planted) and planted[n] <= last for n, last in zip(near, lasts, strict=True)], dtype=bool)
    return (float(found.mean()) if len(planted) else 1.0), 10_000 * float((~true).sum()) / STEPS


def _print_single_spikes() -> None:
    """Recall of single values by height, in the loss alone."""
    loss, _, _ = a_log(0.0, seed=2)
    planted = np.arange(FIRST, STEPS - 100, 97)
    for height in HEIGHTS:
        values = loss.values.copy()
        values[planted] += 0.03 * height
        found = judged("loss", Points(steps=loss.steps, values=values, attempts=loss.attempts), 1)
        flagged = found.outliers.flagged
        false = 10_000 * (flagged.sum() - flagged[planted].sum()) / STEPS
        print(
            f"single values {height} deviations above the trend: {100 * flagged[planted].mean():.1f} % flagged, "
            f"{false:.2f} others in 10,000 steps"
        )


def _print_yardsticks(loss: Points, norm: Points) -> None:
    began = time.process_time()
    published_definitions({"loss": loss.values, "grad_norm": norm.values})
    print(f"the three published definitions of both series: {time.process_time() - began:.2f} s")
    began = time.process_time()
    window_statistics(loss.values, np.arange(128, STEPS))
    print(f"median and MAD of every window of one series, sorted one by one: {time.process_time() - began:.2f} s")


if __name__ == "__main__":
    main()
