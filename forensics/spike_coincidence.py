"""Do two runs stand out at the same steps? They do where they read the same data in the same order.

The chance level is that of the same two series shifted against each other, around in a circle: it keeps how often each
stands out, and how its outliers cluster. All shifts from 33 steps to an eighth of the log are counted, in both
directions. Larger ones would also move stretches with many spikes against stretches with few, and where two runs have
theirs in the same part of training, which they may have without sharing a batch, they would seem to coincide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_index.errors import InvalidRange
from forensics.judged_series import JudgedSeries
from forensics.spike_events import GAP_STEPS
from probes.robust_statistics import THRESHOLD

FEWEST_STEPS = 256
FEWEST_SPIKES = 10
LEAST_SHIFTS = 128  # in either direction, so that a p-value can be small
UPPERMOST = 100  # one value in so many, where spikes are few
SIGNIFICANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coincidence:
    """
    Attributes:
        statistic: `spikes`: steps with a robust z above 6. `uppermost`: the highest hundredth of z, where one of the
            runs has fewer than ten spikes.
        num_steps: that both logged, and judged.
        num_run, num_other: of these, those that stand out in each run; `num_common`: in both.
        expected: mean of the counts over the shifts; `most`: the largest of them.
        p_value: share of shifts with as many in common as without a shift, which itself counts as one.
        best_shift: of the other run against this one, in logged steps, at which most coincide; `best_count`: how many.
        steps: rows of step, z and value in each run.
    """

    run: str
    other: str
    statistic: str
    num_steps: int
    num_run: int
    num_other: int
    num_common: int
    expected: float
    most: int
    num_shifts: int
    p_value: float
    best_shift: int
    best_count: int
    steps: tuple[dict[str, Any], ...]

    @property
    def coincide(self) -> bool:
        return self.p_value < SIGNIFICANCE and self.num_common > 2 * self.expected

    @property
    def answer(self) -> str:
        """One sentence."""
        what = "spikes" if self.statistic == "spikes" else "highest hundredths of the robust z"
        said = f"{self.num_common} of {self.num_run} and {self.num_other} {what} are at the same step"
        chance = f"by chance {self.expected:.2g} would be, at most {self.most} over {self.num_shifts:,} shifts"
        verdict = "coincide" if self.coincide else "do not coincide beyond chance"
        text = f"{self.run} and {self.other} {verdict}: {said}; {chance} (p = {self.p_value:.2g})"
        if self.best_shift and self.best_count > max(2 * self.num_common, self.most / 2, FEWEST_SPIKES):
            text += f"; shifted by {self.best_shift} steps, {self.best_count} are: is one a step count off?"
        return text


def coincidence(run: str, other: str, one: JudgedSeries, two: JudgedSeries) -> Coincidence:
    """
    Args:
        one, two: the same series of both runs.
    Raises:
        InvalidRange: they have too few steps in common.
    """
    steps, values, scores = _common(one, two)
    if len(steps) < FEWEST_STEPS:
        raise InvalidRange(
            f"{run} and {other} have {len(steps)} judged steps in common; whether they coincide takes {FEWEST_STEPS}"
        )
    statistic, marks = _standing_out(scores)
    counts = _counts_by_shift(*marks)
    shifts = np.arange(len(counts))
    size = np.minimum(shifts, len(counts) - shifts)
    far = (size > GAP_STEPS) & (size <= max(len(counts) // 8, LEAST_SHIFTS))
    both = marks[0] & marks[1]
    best = int(counts.argmax()) if counts.max() > counts[0] else 0
    return Coincidence(
        run=run,
        other=other,
        statistic=statistic,
        num_steps=len(steps),
        num_run=int(marks[0].sum()),
        num_other=int(marks[1].sum()),
        num_common=int(counts[0]),
        expected=float(counts[far].mean()),
        most=int(counts[far].max()),
        num_shifts=int(far.sum()),
        p_value=float((1 + (counts[far] >= counts[0]).sum()) / (1 + far.sum())),
        best_shift=best if best <= len(counts) // 2 else best - len(counts),
        best_count=int(counts[best]),
        steps=tuple(
            {
                "step": int(steps[place]),
                "z": float(scores[0][place]),
                "z_other": float(scores[1][place]),
                "value": float(values[0][place]),
                "value_other": float(values[1][place]),
            }
            for place in np.flatnonzero(both)
        ),
    )


def _common(one: JudgedSeries, two: JudgedSeries) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    steps, first, second = np.intersect1d(one.steps, two.steps, assume_unique=True, return_indices=True)
    scores = [one.z()[first], two.z()[second]]
    judged = np.isfinite(scores[0]) & np.isfinite(scores[1])
    values = [one.values[first][judged], two.values[second][judged]]
    return steps[judged], values, [score[judged] for score in scores]


def _standing_out(scores: list[np.ndarray]) -> tuple[str, list[np.ndarray]]:
    marks = [score > THRESHOLD for score in scores]
    if min(int(mark.sum()) for mark in marks) >= FEWEST_SPIKES:
        return "spikes", marks
    count = max(len(scores[0]) // UPPERMOST, FEWEST_SPIKES)
    return "uppermost", [score >= np.partition(score, -count)[-count] for score in scores]


def _counts_by_shift(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """How many marks coincide when the second series is shifted back by 0, 1, 2 … places in a circle (exact)."""
    transformed = np.conj(np.fft.rfft(one.astype(float))) * np.fft.rfft(two.astype(float))
    return np.rint(np.fft.irfft(transformed, len(one))).astype(np.int64)
