"""A step's plan (which rows, what is hidden from the loss) and the batch it becomes once read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_index.errors import StepOutOfRange
from data_index.tokens import TokenReader

# (row of the batch, first token, end token): half-open, tokens that do not count as targets
Mask = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepPlan:
    """What one step will read: instances in batch order, masks, and the loss denominator if it is not the label count.

    Attributes:
        instances: int64 of shape [rows].
    """

    step: int
    epoch: int
    instances: np.ndarray
    masks: tuple[Mask, ...] = ()
    loss_denominator: int | None = None


class Plan(Protocol):
    """A lazily read mapping from step to what it reads."""

    @property
    def steps(self) -> range: ...

    def __getitem__(self, step: int) -> StepPlan: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IndexedPlan:
    """A plan held in memory, as the index answers it."""

    by_step: Mapping[int, StepPlan]

    @property
    def steps(self) -> range:
        return range(min(self.by_step), max(self.by_step) + 1)

    def __getitem__(self, step: int) -> StepPlan:
        try:
            return self.by_step[step]
        except KeyError:
            raise StepOutOfRange(
                f"the plan covers steps {self.steps.start}..{self.steps.stop - 1}, not {step}"
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """All rows of one step.

    Attributes:
        token_ids: int64 of shape [rows, sequence_length].
        counts_as_target: bool, same shape; False hides a token from the loss but leaves it in the context.
        loss_denominator: what the summed loss is divided by; None: the number of targets left.
    """

    step: int
    epoch: int
    instances: np.ndarray
    token_ids: np.ndarray
    counts_as_target: np.ndarray
    loss_denominator: int | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.size)


def read_batch(plan: StepPlan, reader: TokenReader) -> Batch:
    """Read the rows of one step.

    Raises:
        UnknownInstance, MissingFile, CorruptFile
    """
    token_ids = reader.rows(plan.instances)
    counts = np.ones(token_ids.shape, dtype=bool)
    for row, start, stop in plan.masks:
        counts[row, start:stop] = False
    return Batch(
        step=plan.step,
        epoch=plan.epoch,
        instances=plan.instances,
        token_ids=token_ids,
        counts_as_target=counts,
        loss_denominator=plan.loss_denominator,
    )


def read_batches(plan: Plan, reader: TokenReader) -> Iterator[Batch]:
    for step in plan.steps:
        yield read_batch(plan[step], reader)
