"""`batch --losses`: the loss of every token that a step read, under the weights of a checkpoint.

As the step takes it: the same forward pass, masks and document borders. Under the checkpoint directly before the step
the rows together give the loss that was logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data_index.batch import Batch, StepPlan, read_batch
from data_index.batch_queries import reader_of
from data_index.kinds import arrow_schema
from data_index.metric_queries import logged_metrics
from data_index.tokens import TokenReader
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace
from forensics.fetching import require_allowed
from forensics.kept_losses import KIND, KeptLosses, keep_losses
from forensics.losses_question import LossesQuestion, question_of_losses
from forensics.reproduction import Setup, estimate
from replay.batch_losses import batch_losses, row_weights
from replay.determinism import deterministic
from replay.train_state import state_of_weights
from replay.weights import bytes_of_parts, stored_weights

FORWARD = 1 / 3  # of what a step computes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLosses:
    """
    Attributes:
        table: Arrow: step, attempt, instance, position, checkpoint, token (0-based in its row), token_id, loss (nats;
            null where the token is no target, as the first of each row). By position and token.
        loss: of the step, as its trainer would log it under these weights; None: not all of its rows are here.
        loss_logged: by the trainer, who had the weights of checkpoint step - 1.
        notes: what one has to know to believe it.
    """

    run: str
    step: int
    checkpoint: int
    table: Any
    loss: float | None
    loss_logged: float | None
    order_trust: str
    notes: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Over the targets; NaN where there is none."""
        losses = self.table.column("loss").drop_null().to_numpy()
        return float(losses.mean(dtype=np.float64)) if len(losses) else float("nan")


def token_losses(
    run: str,
    step: int,
    checkpoint: int | None = None,
    instances: Sequence[int] | None = None,
    *,
    device: str = "auto",
    precision: str = "recipe",
    enforce_determinism: bool = True,
    approximate: bool = False,
    verify: bool = True,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
) -> TokenLosses:
    """Losses of the tokens that a step read. What was computed is kept with the run, in the view `token_losses`.

    Args:
        checkpoint: whose weights; default: of the nearest one before the step.
        instances: only these rows; default: all of the step.
        max_fetch: bytes that may be fetched from servers; default: 1 GiB.
    Raises:
        UnknownRun, StepOutOfRange, UnknownInstance, MissingCheckpoint, MissingState, CorruptFile, UnsupportedRecipe
        OutOfMemory, TooMuchToFetch, AccessDenied, Unreachable, Offline
    """
    workspace = workspace or Workspace()
    given: dict[str, Any] = {"device": device, "precision": precision, "enforce": enforce_determinism}
    asked = question_of_losses(workspace, run, step, checkpoint, instances, approximate=approximate, **given)
    what = f"the weights of checkpoint {asked.place.step} of {run} and {len(asked.missing)} rows of step {step}"
    require_allowed(asked.fetched_bytes, max_fetch, what)
    reader = reader_of(workspace, asked.setup.run, verify=verify)
    found, notes = asked.kept, []
    if len(asked.missing):
        found = _completed(asked, reader)
        notes = keep_losses(workspace, run, asked.of, asked.state, found)
        if seen := remember_first_seen(workspace, asked.setup.run, reader):
            notes.append(f"{seen}.")
    assert found is not None, "no row is missing only where some are kept"
    logged = logged_metrics(workspace, asked.setup.run, step - 1, step, ("loss",)).get(step, {}).get("loss")
    return TokenLosses(
        run=run,
        step=step,
        checkpoint=asked.place.step,
        table=_rows_of(found.table, asked.start + asked.rows),
        loss=found.loss if len(asked.rows) == len(asked.plan.instances) else None,
        loss_logged=logged,
        order_trust=str(asked.setup.run.trust.of_steps(step, step)),
        notes=(*asked.setup.recipe.approximated, *notes),
    )


def plan_token_losses(
    run: str,
    step: int,
    checkpoint: int | None = None,
    instances: Sequence[int] | None = None,
    *,
    device: str = "auto",
    precision: str = "recipe",
    enforce_determinism: bool = True,
    approximate: bool = False,
    workspace: Workspace | None = None,
) -> dict[str, Any]:
    """What `token_losses` would read, fetch, hold and take; headers of the weights are read to tell.

    Raises:
        as `token_losses`
    """
    workspace = workspace or Workspace()
    given: dict[str, Any] = {"device": device, "precision": precision, "enforce": enforce_determinism}
    asked = question_of_losses(workspace, run, step, checkpoint, instances, approximate=approximate, **given)
    setup = asked.setup
    cost = estimate(setup, 1, max(len(asked.missing), 1) * setup.run.sequence_length)
    weights = bytes_of_parts(stored_weights(asked.place)) if len(asked.missing) else 0
    return {
        "run": run,
        "step": step,
        "checkpoint": asked.place.step,
        "rows": len(asked.rows),
        "kept": len(asked.rows) - len(asked.missing),
        "weights": weights,
        "download": asked.fetched_bytes,
        "memory_bytes": cost.memory_bytes if len(asked.missing) else 0,
        "seconds": cost.seconds * FORWARD if len(asked.missing) else 0.0,
    }


def _completed(asked: LossesQuestion, reader: TokenReader) -> KeptLosses:
    """What is kept, and the rows that are missing."""
    import pyarrow

    setup = asked.setup
    batch = read_batch(_some_rows(asked.plan, asked.missing), reader)
    with deterministic(setup.recipe.num_threads, enforce=setup.enforce):
        state = state_of_weights(asked.place, setup.recipe, device=setup.device)
        losses = batch_losses(state.model, batch, setup.recipe, device=setup.device).cpu().numpy()
    found = _table(asked, batch, losses)
    if asked.kept is not None:
        found = pyarrow.concat_tables([asked.kept.table, found]).sort_by(
            [("position", "ascending"), ("token", "ascending")]
        )
    whole = found.num_rows == len(asked.plan.instances) * batch.token_ids.shape[1]
    if whole and len(asked.missing) < len(asked.plan.instances):
        batch = read_batch(asked.plan, reader)
    return KeptLosses(table=found, key=asked.key, loss=_step_loss(setup, batch, found) if whole else None)


def _some_rows(plan: StepPlan, rows: np.ndarray) -> StepPlan:
    place = {int(row): number for number, row in enumerate(rows)}
    masks = tuple((place[row], start, stop) for row, start, stop in plan.masks if row in place)
    return replace(plan, instances=plan.instances[rows], masks=masks)


def _table(asked: LossesQuestion, batch: Batch, losses: np.ndarray) -> Any:
    import pyarrow

    num_rows, length = batch.token_ids.shape
    by_token = np.zeros((num_rows, length))
    by_token[:, 1:] = losses
    targets = batch.counts_as_target.copy()
    targets[:, 0] = False
    of, size = asked.of, num_rows * length
    columns = {
        "step": np.full(size, of.step),
        "attempt": np.full(size, of.attempt),
        "instance": np.repeat(batch.instances, length),
        "position": np.repeat(asked.start + asked.missing, length),
        "checkpoint": np.full(size, of.checkpoint),
        "token": np.tile(np.arange(length), num_rows),
        "token_id": batch.token_ids.ravel(),
        "loss": pyarrow.array(by_token.ravel(), mask=~targets.ravel()),
    }
    schema = arrow_schema(KIND)
    return pyarrow.Table.from_arrays(
        [pyarrow.array(columns[n]).cast(schema.field(n).type) for n in schema.names], schema=schema
    )


def _step_loss(setup: Setup, batch: Batch, table: Any) -> float:
    """As the trainer would log it: summed with the weight that each row has in the step's loss."""
    by_row = table.column("loss").fill_null(0.0).to_numpy().reshape(batch.token_ids.shape)
    weights = row_weights(batch, setup.recipe, device=torch.device("cpu")).numpy()
    return float((by_row.sum(axis=1, dtype=np.float64) * weights).sum())


def _rows_of(table: Any, positions: np.ndarray) -> Any:
    import pyarrow
    import pyarrow.compute

    return table.filter(pyarrow.compute.is_in(table.column("position"), pyarrow.array(positions)))
