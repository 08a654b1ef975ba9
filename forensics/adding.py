"""`add`, and the one witness that needs a model: does the loss that was logged come out of the data at hand?

Where nothing proves the batches, a checkpoint's weights and the next step's logged loss do for that one step: its batch
is put through the model once. Data that are not the run's give another loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_index import registration
from data_index.errors import ForensicsError, OrderMismatch
from data_index.files import folder_bytes
from data_index.orders import epoch_order
from data_index.run import Checkpoint, Run
from data_index.sources import list_checkpoints

# What takes seconds on any machine; above, `replay` is asked for.
MAX_WEIGHT_BYTES = 2 * 2**30
MAX_BATCH_TOKENS = 2**20
MAX_BYTES_TIMES_TOKENS = 2**42
# Relative. In fp32 other kernels change a loss by up to 1e-6, TF32 by some 1e-5. Measured on runs of 8 rows of 128:
# another batch changes it by 6e-4 to 1e-1 (with weights as they began by 1e-4 to 2e-3), one other token by 2e-4 in the
# median. In bf16, kernels alone make 1e-3.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}


def add(source: Path | str, *, loss_check: bool = True, **told: Any) -> Run:
    """Register and index a run; see `data_index.registration.add` for what it can be told.

    Args:
        loss_check: where nothing proves any batch, compare one logged loss, if that takes seconds.
    Raises:
        OrderMismatch: also where that loss contradicts the data.
    """
    return registration.add(source, **told, prove=prove_by_loss if loss_check else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedStep:
    """A step that follows a checkpoint with weights, and its logged loss."""

    step: int
    loss: float
    checkpoint: Checkpoint

    @property
    def range(self) -> str:
        return f"{self.step - 1}:{self.step}"


def prove_by_loss(run: Run, tables: Mapping[str, Any]) -> Run:
    """The run with what its logged loss says of it.

    Args:
        tables: what was learned of the run, by kind.
    Raises:
        OrderMismatch: the loss is another.
    """
    if run.trust.level in ("exact", "unknown") or run.trust.proved or not run.segments:
        return run
    logged = next(logged_steps(run, tables), None)
    if logged is None:
        return _lacking(run, "a logged loss of a step that follows a checkpoint with weights")
    if not is_cheap(run, logged):
        return _lacking(
            run, f"a look at the logged loss of step {logged.step} (forensics replay {run.name} {logged.range})"
        )
    try:
        difference, tolerance = loss_difference(run, logged)
    except OrderMismatch:
        raise
    except ForensicsError as error:
        return _lacking(run, f"the loss of step {logged.step}, which cannot be computed here: {error}")
    if not difference <= tolerance:
        raise OrderMismatch(
            f"step {logged.step} of {run.name} has another loss with these data than the trainer logged (relative "
            f"difference {difference:.1e}, at most {tolerance:.0e} by other kernels): token files, order or config are "
            f"not the run's. --no-loss-check adds it as it is; forensics replay {run.name} {logged.range} shows both"
        )
    said = f"the logged loss of step {logged.step}, with a relative difference of {difference:.0e}"
    return replace(run, trust=replace(run.trust, witness=f"{run.trust.witness}; {said}"))


def _lacking(run: Run, what: str) -> Run:
    return replace(run, trust=replace(run.trust, missing=f"{run.trust.missing}; {what}"))


def logged_steps(run: Run, tables: Mapping[str, Any]) -> Iterator[LoggedStep]:
    """The latest first: weights as they began tell batches apart the least."""
    rows = tables["metrics"].to_pylist() if "metrics" in tables else []
    losses = {
        row["step"]: row["value"] for row in sorted(rows, key=lambda row: row["attempt"]) if row["name"] == "loss"
    }
    for checkpoint in reversed(list_checkpoints(run)):
        step = checkpoint.step + 1
        known = step in losses and any(first <= step <= last for first, last, _ in run.kept_steps())
        if known and "weights" in checkpoint.states and run.segment_of_step(step).outcome != "skipped":
            yield LoggedStep(step=step, loss=losses[step], checkpoint=checkpoint)


def is_cheap(run: Run, logged: LoggedStep) -> bool:
    """Are weights and data on this machine, and few enough to compute one loss in seconds?"""
    if not isinstance(logged.checkpoint.location, Path) or not all(isinstance(f.path, Path) for f in run.files):
        return False
    num_bytes = folder_bytes(logged.checkpoint.location)
    tokens = run.segment_of_step(logged.step).instances_per_batch * run.sequence_length
    small = num_bytes <= MAX_WEIGHT_BYTES and tokens <= MAX_BATCH_TOKENS
    return small and num_bytes * tokens <= MAX_BYTES_TIMES_TOKENS


def loss_difference(run: Run, logged: LoggedStep) -> tuple[float, float]:
    """Relative difference of the step's loss, and how much of it other kernels may make.

    Raises:
        UnsupportedRecipe: the run's step is not understood.
        MissingFile, CorruptFile
        OrderMismatch: the model has no such token.
    """
    import torch

    from data_index.batch import StepPlan, read_batch
    from data_index.tokens import TokenReader
    from forensics.configured import configured_run
    from replay.determinism import deterministic
    from replay.models import require_architecture
    from replay.recipe import recipe_of_run
    from replay.train_state import state_of_weights
    from replay.train_step import accumulate_gradients

    recipe = recipe_of_run(configured_run(run, logged.step - 1, logged.step))
    require_architecture(recipe.model)
    segment = run.segment_of_step(logged.step)
    instances = epoch_order(run, segment.epoch)[segment.positions_of_step(logged.step)]
    plan = StepPlan(
        step=logged.step,
        epoch=segment.epoch,
        instances=instances.astype("int64"),
        loss_denominator=segment.loss_denominator,
    )
    batch = read_batch(plan, TokenReader(run, block_hashes=None))
    if (largest := int(batch.token_ids.max())) >= recipe.model["vocab_size"]:
        raise OrderMismatch(
            f"step {logged.step} of {run.name} would read token id {largest}; its model has "
            f"{recipe.model['vocab_size']} ids: the token files or the order are not the run's"
        )
    with deterministic(recipe.num_threads, enforce=False), torch.no_grad():
        state = state_of_weights(logged.checkpoint, recipe, device=torch.device("cpu"))
        loss = accumulate_gradients(state, batch, recipe).logged.item()
    return abs(loss - logged.loss) / max(abs(logged.loss), 1e-12), TOLERANCE[recipe.precision]
