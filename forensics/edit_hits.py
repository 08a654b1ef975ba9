"""The rows that an edit reaches, in the plan as the edits before it left it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_index.batch import Plan
from replay.intervention import Row, merged

Spans = Mapping[int, Sequence[tuple[int, int]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EditHits:
    """
    Attributes:
        said: what the edit does to them, in a sentence.
        steps, rows, instances: int64 of shape [num_rows], in reading order; rows: 0-based places in the batch.
        spans: instance -> its tokens that are meant, half-open; None: whole rows are.
        sequence_length: tokens of a row.
    """

    said: str
    steps: np.ndarray
    rows: np.ndarray
    instances: np.ndarray
    spans: Spans | None
    sequence_length: int

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def num_instances(self) -> int:
        return len(np.unique(self.instances))

    @property
    def num_steps(self) -> int:
        return len(np.unique(self.steps))

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, or of all spans where spans are meant; one that is read twice counts twice."""
        if self.spans is None:
            return self.num_rows * self.sequence_length
        lengths = {i: sum(stop - start for start, stop in self.spans_of(i)) for i in np.unique(self.instances).tolist()}
        return sum(lengths[instance] for instance in self.instances.tolist())

    def spans_of(self, instance: int) -> tuple[tuple[int, int], ...]:
        """Its tokens that are meant, in order, none of them twice."""
        if self.spans is None:
            return ((0, self.sequence_length),)
        return merged(tuple(self.spans[instance]))


def rows_reached(
    plan: Plan, steps: Collection[int], instances: Collection[int] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step, 0-based place in the batch and instance of every row of some steps; `instances`: only of these."""
    wanted = None if instances is None else np.fromiter(instances, dtype=np.int64)
    found = []
    for step in steps:
        there = plan[step].instances
        rows = np.arange(len(there)) if wanted is None else np.flatnonzero(np.isin(there, wanted))
        found.append((np.full(len(rows), step), rows, there[rows]))
    return _joined(found)


def rows_added(plan: Plan, steps: Collection[int], rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of rows that come after those of each step."""
    instances = np.array([row.instance for row in rows], dtype=np.int64)
    number = np.arange(len(rows))
    return _joined([(np.full(len(rows), step), len(plan[step].instances) + number, instances) for step in steps])


def _joined(parts: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps, rows, instances = (np.concatenate(part).astype(np.int64) for part in zip(*parts, strict=True))
    return steps, rows, instances
