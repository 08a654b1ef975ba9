"""Take rows or spans away, replay up to the peak, and see what it then comes to; beside as many random ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_index.batch import StepPlan
from data_index.errors import CorruptFile, InvalidEdit
from data_index.files import canonical_json, read_json, remove_dead_siblings, write_json
from forensics.window_replay import WindowReplay
from replay.intervention import Row, merged, rows_of, with_rows

Place = tuple[int, int]  # (step, row of its batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What is taken away, and what the peak comes to then.

    Attributes:
        places: rows that were taken out, or whose span was hidden, or that others were put in place of.
        loss, grad_norm: at the peak.
    """

    places: tuple[Place, ...]
    loss: float
    grad_norm: float
    span: tuple[int, int] | None = None

    def value(self, measure: str) -> float:
        return self.loss if measure == "loss" else self.grad_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The lowest and the highest that random removals of the same size came to; infinite where one was no number."""

    low: float
    high: float
    num: int

    def __str__(self) -> str:
        low, high = told_number(self.low), told_number(self.high)
        return low if low == high else f"{low} to {high}"

    @classmethod
    def of(cls, removals: Iterable[Removal], measure: str) -> Band | None:
        found = [removal.value(measure) for removal in removals]
        values = [math.inf if math.isnan(value) else value for value in found]
        return cls(low=min(values), high=max(values), num=len(values)) if values else None

    def is_below(self, value: float) -> bool:
        """Is a value lower than all that random removals came to, by half of what they differ among themselves?"""
        if not math.isfinite(self.high):
            return value < self.low
        return value < self.low - (self.high - self.low) / 2


@dataclass(slots=True, kw_only=True)
class Removals:
    """Removals from the kept state of a window; what was computed once is kept in a file and not computed again.

    Attributes:
        path: where outcomes are kept, so that an interrupted search goes on.
        elsewhere: instances that may stand in the place of others.
    """

    window: WindowReplay
    path: Path
    elsewhere: np.ndarray
    known: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        remove_dead_siblings(self.path)
        if self.path.exists():
            self.known = read_outcomes(self.path)

    def is_possible(self, places: Sequence[Place]) -> bool:
        """Does every step keep a row with a target without these?"""
        for step, rows in by_step(places).items():
            targets = self.window.batch(step).counts_as_target[:, 1:].sum(axis=1)
            targets[rows] = 0
            if not targets.any():
                return False
        return True

    def without(self, places: Sequence[Place]) -> Removal:
        """Drop rows; the loss of their steps is divided by what remains."""
        edited = {step: self._plan_without(step, rows) for step, rows in by_step(places).items()}
        return self._removal(places, edited)

    def without_span(self, place: Place, start: int, stop: int) -> Removal:
        """Hide tokens start .. stop of a row from the loss; they stay in its context."""
        return replace(self.hidden({place: [(start, stop)]}), span=(start, stop))

    def hidden(self, spans: Mapping[Place, Sequence[tuple[int, int]]]) -> Removal:
        """Hide stretches of any rows from the loss; they stay in the rows' context.

        Raises:
            InvalidEdit: no target is left in a step.
        """
        edited = {}
        for step, numbers in by_step(list(spans)).items():
            rows = rows_of(self.window.plan[step])
            for number in numbers:
                masks = merged((*rows[number].masks, *spans[step, number]))
                rows[number] = replace(rows[number], masks=masks)
            edited[step] = with_rows(self.window.plan[step], rows, self.window.weight)
        return self._removal(list(spans), edited)

    def replaced(self, step: int, seed: int) -> Removal | None:
        """Put other rows of the run, drawn at random, in the place of a whole batch; None where they hold no target."""
        random = np.random.Generator(np.random.PCG64(seed=seed))
        plan = self.window.plan[step]
        chosen = random.choice(
            self.elsewhere, size=len(plan.instances), replace=len(self.elsewhere) < len(plan.instances)
        )
        edited = {step: with_rows(plan, [Row(int(instance)) for instance in chosen], self.window.weight)}
        try:
            return self._removal([(step, row) for row in range(len(plan.instances))], edited)
        except InvalidEdit:
            return None

    def _plan_without(self, step: int, rows: Sequence[int]) -> StepPlan:
        plan, gone = self.window.plan[step], set(rows)
        kept = [row for number, row in enumerate(rows_of(plan)) if number not in gone]
        return with_rows(plan, kept, self.window.weight)

    def _removal(self, places: Sequence[Place], edited: Mapping[int, StepPlan]) -> Removal:
        key = key_of(edited)
        if key not in self.known:
            self.known[key] = list(self.window.outcome(edited))
            write_json(self.path, self.known)
        loss, grad_norm = self.known[key]
        return Removal(places=tuple(places), loss=loss, grad_norm=grad_norm)


def told_number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "no number"


def read_outcomes(path: Path) -> dict[str, list[float]]:
    """What was computed before; what does not read as such is left out, and computed again."""
    try:
        found = read_json(path)
    except CorruptFile:
        return {}
    return {key: value for key, value in found.items() if _is_outcome(value)} if isinstance(found, dict) else {}


def _is_outcome(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is float for number in value)


def by_step(places: Sequence[Place]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for step, row in places:
        rows.setdefault(step, []).append(row)
    return rows


def key_of(edited: Mapping[int, StepPlan]) -> str:
    """What an edited plan is called in the file of outcomes: equal plans have equal names."""
    content: list[Any] = [
        [step, plan.instances.tolist(), [list(mask) for mask in plan.masks]] for step, plan in sorted(edited.items())
    ]
    return hashlib.sha256(canonical_json({"plans": content})).hexdigest()[:16]
