"""What every reader of a log gives, and the rules that all of them share: what is a number, what is a step."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, UnsafeFile

# Of those that a log has, the first is its step: a trainer's own count before the count of calls that W&B adds.
STEP_FIELDS = (
    "step",
    "iteration",
    "global_step",
    "global step",
    "trainer/global_step",
    "train/global_step",
    "train_step",
    "training_step",
    "num_updates",
    "iter",
    "_step",
)
MAX_NAMES = 200_000
MAX_NESTING = 20
LARGEST_STEP = 2**53  # what a float still counts exactly
_POINTS_AT_ONCE = 500_000
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf|infinity)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """Values of one metric, in the order of its log.

    Attributes:
        name: as the log calls it.
        steps: int64.
        values: float64, as many.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray

    def moved(self, offset: int) -> Points:
        """The same, each step so much later."""
        return replace(self, steps=self.steps + offset) if offset else self


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What of a log is wanted.

    Attributes:
        step_field: what the log calls its step; None: as STEP_FIELDS says.
        only: field -> text: only records where it reads so (a file may hold several runs).
    """

    step_field: str | None = None
    only: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Notes:
    """What a reader saw beside the points.

    Attributes:
        messages: sentences for people: where the log ends early, what could not be told.
        left_out: fields with values that are no numbers, counted.
        step_field: what was taken as the step.
        unclear: names that must not become canonical ones.
    """

    messages: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    step_field: str | None = None
    unclear: set[str] = field(default_factory=set)


def as_number(value: Any) -> float | None:
    """A number, or text that reads as one (NaN and infinities too); None for everything else."""
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.copysign(math.inf, value)
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            return float(text)
        return {"true": 1.0, "false": 0.0}.get(text.lower())
    return None


def as_number_or_nan(value: Any) -> float | None:
    """Like `as_number` where numbers are not written as text, but for NaN and infinities, which JSON lacks."""
    number = as_number(value)
    return None if isinstance(value, str) and number is not None and math.isfinite(number) else number


def as_step(value: Any, where: str, name: str) -> int:
    """
    Args:
        where: the file and the line, for the message.
    Raises:
        CorruptFile: it is no whole number, or none that a run could reach.
    """
    number = None if isinstance(value, bool) else as_number(value)
    if number is None or not number.is_integer() or not 0 <= number < LARGEST_STEP:
        shown = "nothing" if value is None or value == "" else repr(value)[:80]
        raise CorruptFile(
            f"{where}: {shown} is no step ({name}). Steps are whole numbers; another field is named with --step-field"
        )
    return int(number)


def step_field_of(names: Sequence[str], wanted: Wanted, where: str) -> str:
    """Which of a log's fields is its step.

    Raises:
        CorruptFile: none of them.
    """
    if wanted.step_field is not None:
        if wanted.step_field in names:
            return wanted.step_field
        raise CorruptFile(f"{where} has no field {wanted.step_field!r}; it has {_some(names)}")
    lowered = {name.strip().lower(): name for name in reversed(names)}
    for candidate in STEP_FIELDS:
        if candidate in lowered:
            return lowered[candidate]
    raise CorruptFile(f"{where} names no step; it has {_some(names)}. Say which is the step with --step-field")


def _some(names: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in names[:12]) + (", …" if len(names) > 12 else "")


def flattened(record: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The fields of a record, those of tables in it as `table/field`; a table that W&B marks as media stays whole.

    Raises:
        UnsafeFile: it is nested deeper than any log.
    """
    if depth > MAX_NESTING:
        raise UnsafeFile(f"tables nested more than {MAX_NESTING} deep, as no log has")
    for name, value in record.items():
        if isinstance(value, dict) and "_type" not in value:
            yield from flattened(value, f"{prefix}{name}/", depth + 1)
        else:
            yield prefix + name, value


def gathered(records: Iterable[tuple[int, Iterable[tuple[str, float]]]]) -> Iterator[Points]:
    """Records of (step, its names and values) as points of each metric, a bounded number at once.

    Raises:
        UnsafeFile: more names than any log has.
    """
    names: set[str] = set()
    series: dict[str, tuple[array[int], array[float]]] = {}
    count = 0
    for step, pairs in records:
        for name, value in pairs:
            found = series.get(name)
            if found is None:
                found = series[name] = array("q"), array("d")
                names.add(name)
                require_few_names(len(names))
            found[0].append(step)
            found[1].append(value)
            count += 1
        if count >= _POINTS_AT_ONCE:
            yield from _as_points(series)
            series, count = {}, 0
    yield from _as_points(series)


def require_few_names(count: int) -> None:
    """
    Raises:
        UnsafeFile
    """
    if count > MAX_NAMES:
        raise UnsafeFile(f"more than {MAX_NAMES:,} different names of metrics, as no log has")


def _as_points(series: Mapping[str, tuple[array[int], array[float]]]) -> Iterator[Points]:
    for name, (steps, values) in series.items():
        yield Points(name=name, steps=np.array(steps, dtype=np.int64), values=np.array(values, dtype=np.float64))
