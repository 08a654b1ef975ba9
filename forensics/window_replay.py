"""Steps up to a spike, taken again as often as a question needs, from states kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from data_index.batch import Batch, IndexedPlan, StepPlan, read_batch
from data_index.batch_queries import reader_of
from data_index.run import Checkpoint
from data_index.tokens import TokenReader
from forensics.edits import row_weight
from forensics.given_rows import Inserted
from forensics.reproduction import Setup, start_state
from forensics.starting import plan_as_taken
from replay.batch_losses import batch_losses
from replay.intervention import RowWeight
from replay.recipe import Recipe
from replay.train_state import KeptState, TrainState, keep_state, return_to
from replay.train_step import Observer, StepResult, accumulate_gradients, train_step

CACHED_BYTES = 2**30  # of batches that are kept once read


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TakenStep:
    """A step taken again, and what the batch of the spike would have lost just before it.

    Attributes:
        peak_loss_before: the loss of the peak's batch under the weights before this step, as the trainer logs it.
        peak_loss_after: the same after its update; None for the last step, whose update is not part of the spike.
    """

    result: StepResult
    peak_loss_before: float
    peak_loss_after: float | None

    @property
    def step(self) -> int:
        return self.result.step

    @property
    def moved(self) -> float | None:
        """By how much this step's update changed the loss of the peak's batch."""
        return None if self.peak_loss_after is None else self.peak_loss_after - self.peak_loss_before


@dataclass(slots=True, kw_only=True, eq=False)
class WindowReplay:
    """The steps from a checkpoint to the peak of a spike.

    Attributes:
        start: the checkpoint that every replay begins at.
        last: the peak's step; its update is taken and then of no interest.
        origin, kept: copies of weights and moments at `start` and before the first suspect step; one where both are.
        batches: read once, as long as they take no more than `CACHED_BYTES`; further ones are read again.
    """

    setup: Setup
    start: Checkpoint
    last: int
    plan: IndexedPlan
    reader: TokenReader
    weight: RowWeight
    state: TrainState
    origin: KeptState
    kept: KeptState | None = None
    notes: list[str] = field(default_factory=list)
    batches: dict[int, Batch] = field(default_factory=dict)

    @classmethod
    def open(cls, setup: Setup, start: Checkpoint, last: int, *, verify: bool = True) -> WindowReplay:
        """Load the state to begin with.

        Raises:
            MissingState, MissingFile, CorruptFile, OutOfMemory
        """
        workspace, run = setup.workspace, setup.run
        reader = reader_of(workspace, run, verify=verify)
        notes: list[str] = []
        state = start_state(setup, start, notes)
        return cls(
            setup=setup,
            start=start,
            last=last,
            plan=plan_as_taken(workspace, run, start.step, last, setup.recipe),
            reader=reader,
            weight=row_weight(run, setup.recipe.denominator, reader, Inserted(first_instance=run.num_instances)),
            state=state,
            origin=keep_state(state),
            notes=notes,
        )

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    def batch(self, step: int) -> Batch:
        if step in self.batches:
            return self.batches[step]
        batch = read_batch(self.plan[step], self.reader)
        if sum(map(bytes_of, self.batches.values())) + bytes_of(batch) <= CACHED_BYTES:
            self.batches[step] = batch
        return batch

    def scan(self, steps: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Row losses of steps under the weights of the checkpoint, nothing trained: (step, fp64 of shape [rows])."""
        return_to(self.state, self.origin)
        for step in steps:
            yield step, self.row_losses(self.batch(step))

    def token_losses(self, batch: Batch) -> np.ndarray:
        """Loss of each token of each row but the first under the weights as they are, fp32 of shape [rows, length - 1].

        0 where a token is no target.
        """
        losses = batch_losses(self.state.model, batch, self.recipe, device=self.state.device)
        return np.asarray(losses.cpu().numpy())

    def row_losses(self, batch: Batch) -> np.ndarray:
        return mean_of_targets(self.token_losses(batch), batch)

    def at_checkpoint(self) -> None:
        """Come back to the weights that everything begins with."""
        return_to(self.state, self.origin)

    def loss_of(self, batch: Batch) -> float:
        """The loss that the trainer would log for a batch under the weights as they are."""
        with torch.no_grad():
            return accumulate_gradients(self.state, batch, self.recipe).logged.item()

    def take(self) -> Iterator[TakenStep]:
        """Take the steps from the checkpoint to the last one, with the loss of the last one's batch on the way."""
        return_to(self.state, self.origin)
        peak_batch = self.batch(self.last)
        before = self.loss_of(peak_batch)
        for step in range(self.start.step + 1, self.last + 1):
            result = train_step(self.state, self.batch(step), self.recipe)
            after = self.loss_of(peak_batch) if step < self.last else None
            yield TakenStep(result=result, peak_loss_before=before, peak_loss_after=after)
            before = before if after is None else after

    def keep_before(self, step: int) -> None:
        """Come to the state that a step begins with, and keep it for `outcome`."""
        return_to(self.state, self.origin)
        for number in range(self.start.step + 1, step):
            train_step(self.state, self.batch(number), self.recipe)
        self.kept = self.origin if step == self.start.step + 1 else keep_state(self.state)
        self.batches = {number: batch for number, batch in self.batches.items() if number >= step}

    def watch(self, steps: Sequence[int], observer: Observer) -> None:
        """Take the steps from the kept state on to the last of `steps`, an observer looking at those."""
        self._return()
        for number in range(self.state.step + 1, max(steps) + 1):
            watching = (observer,) if number in steps else ()
            train_step(self.state, self.batch(number), self.recipe, watching)

    def outcome(self, edited: Mapping[int, StepPlan]) -> tuple[float, float]:
        """Loss and gradient norm at the peak, with other plans for some steps; from the kept state."""
        self._return()
        assert not edited or min(edited) > self.state.step, "edits lie after the kept state"
        result: StepResult | None = None
        for number in range(self.state.step + 1, self.last + 1):
            batch = read_batch(edited[number], self.reader) if number in edited else self.batch(number)
            result = train_step(self.state, batch, self.recipe)
        assert result is not None
        return result.loss, result.grad_norm

    def _return(self) -> None:
        assert self.kept is not None, "keep_before comes first"
        return_to(self.state, self.kept)


def bytes_of(batch: Batch) -> int:
    arrays = (batch.token_ids, batch.counts_as_target, batch.counted_by_trainer)
    return sum(array.nbytes for array in arrays)


def mean_of_targets(token_losses: np.ndarray, batch: Batch) -> np.ndarray:
    """Mean loss of each row's targets, fp64 of shape [rows]; NaN for a row without one."""
    targets = batch.counts_as_target[:, 1:].sum(axis=1)
    sums = token_losses.sum(axis=1, dtype=np.float64)
    return np.divide(sums, targets, out=np.full(len(sums), np.nan), where=targets > 0)
