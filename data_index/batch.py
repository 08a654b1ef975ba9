"""A step's plan (which rows, what is hidden from the loss) and the batch it becomes once read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from data_index.errors import StepOutOfRange
from data_index.masking import hidden_by_repetition
from data_index.run import Masking, Outcome
from data_index.tokens import TokenReader

# (row of the batch, first token, end token): half-open, tokens that an edit hides from the loss
Mask = tuple[int, int, int]

# What the summed loss of a step is divided by, counted over its rows:
#   targets                  the labels that count
#   targets_and_filtered     besides, every token of a row that the instance filter took out (OLMo-core)
#   tokens                   every token, counted or not, the first of each row included (legacy OLMo)
Denominator = Literal["targets", "targets_and_filtered", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepPlan:
    """What one step will read: instances in batch order, and what an edit changed besides.

    Attributes:
        instances: int64 of shape [rows].
        masks: hidden by edits; what the trainer hides is found when the rows are read.
        loss_denominator: what the summed loss is divided by; None: what the recipe's rule gives.
    """

    step: int
    epoch: int
    instances: np.ndarray
    masks: tuple[Mask, ...] = ()
    loss_denominator: int | None = None
    outcome: Outcome = "applied"


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
        counted_by_trainer: the same before edits.
        filtered: bool of shape [rows]; True where the trainer's instance filter hides the whole row.
        loss_denominator: what the summed loss is divided by; None: what the recipe's rule gives.
    """

    step: int
    epoch: int
    instances: np.ndarray
    token_ids: np.ndarray
    counts_as_target: np.ndarray
    counted_by_trainer: np.ndarray
    filtered: np.ndarray
    loss_denominator: int | None = None
    outcome: Outcome = "applied"

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.size)


def read_batch(plan: StepPlan, reader: TokenReader) -> Batch:
    """Read the rows of one step, and find what the trainer and the plan's edits hide from the loss.

    Raises:
        UnknownInstance, MissingFile, CorruptFile
    """
    return batch_of(
        plan,
        reader.rows(plan.instances),
        reader.counts_as_target(plan.instances),
        reader.num_tokens_of(plan.instances),
        reader.run.masking,
    )


def rows_as_trained(instances: np.ndarray, reader: TokenReader) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of instances wherever they were read, and which of them the trainer leaves in the loss.

    int64 and bool of shape [rows, sequence_length].

    Raises:
        UnknownInstance, MissingFile, CorruptFile
    """
    batch = read_batch(StepPlan(step=0, epoch=0, instances=instances), reader)
    return batch.token_ids, batch.counted_by_trainer


def batch_of(
    plan: StepPlan, token_ids: np.ndarray, trained: np.ndarray, num_tokens: np.ndarray, masking: Masking
) -> Batch:
    """The batch of rows that have been read.

    Args:
        token_ids, trained: shape [rows, length]; ids, and which of them padding and label masks leave in the loss.
        num_tokens: shape [rows]; tokens of each row before its padding.
    """
    if masking.hidden_token_id is not None:
        trained = trained & (token_ids != masking.hidden_token_id)
    filtered = filtered_rows(token_ids, num_tokens, masking)
    if filtered.any():
        trained = trained & ~filtered[:, None]
    counts = trained.copy()
    for row, start, stop in plan.masks:
        counts[row, start:stop] = False
    return Batch(
        step=plan.step,
        epoch=plan.epoch,
        instances=plan.instances,
        token_ids=token_ids,
        counts_as_target=counts,
        counted_by_trainer=trained,
        filtered=filtered,
        loss_denominator=plan.loss_denominator,
        outcome=plan.outcome,
    )


def filtered_rows(token_ids: np.ndarray, num_tokens: np.ndarray | None, masking: Masking) -> np.ndarray:
    """Which rows the trainer's instance filter hides, bool of shape [rows].

    Args:
        token_ids: shape [rows, length], of any integer dtype, padding included.
        num_tokens: shape [rows]; tokens of each row before its padding; None: there is none.
    """
    if masking.repetition is None:
        return np.zeros(len(token_ids), dtype=bool)
    longest, shortest, most = masking.repetition
    lengths = None if masking.filter_sees_padding else num_tokens
    return hidden_by_repetition(token_ids, max_period=longest, min_period=shortest, max_count=most, lengths=lengths)


def denominator_of_rows(batch: Batch, rule: Denominator) -> np.ndarray:
    """What each row adds to the loss denominator, int64 of shape [rows]; the first token of a row is no target.

    A token that an edit hides is taken out under every rule, so that a masked document weighs nothing.
    """
    length = batch.token_ids.shape[1]
    hidden_by_edit = (batch.counted_by_trainer & ~batch.counts_as_target)[:, 1:].sum(axis=1)
    if rule == "tokens":
        return np.full(len(batch.token_ids), length) - hidden_by_edit
    targets = batch.counts_as_target[:, 1:].sum(axis=1)
    return targets + length * batch.filtered if rule == "targets_and_filtered" else targets


def read_batches(plan: Plan, reader: TokenReader) -> Iterator[Batch]:
    for step in plan.steps:
        yield read_batch(plan[step], reader)
