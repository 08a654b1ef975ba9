"""What `batch --losses` is asked: which rows of which step, under which weights, and which of them are not kept yet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_index.batch import StepPlan
from data_index.errors import UnknownInstance
from data_index.files import canonical_json
from data_index.run import Checkpoint
from data_index.workspace import Workspace
from forensics.configured import configured_run
from forensics.fetching import bytes_of_instances, bytes_of_weights
from forensics.kept_losses import KeptLosses, LossesOf, checkpoint_of_losses, read_losses, state_of
from forensics.reproduction import Setup, prepare
from forensics.starting import plan_as_taken


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossesQuestion:
    """
    Attributes:
        rows: 0-based in the batch, those that were asked for; missing: those of them that are not kept.
        start: position of the batch's first row.
    """

    setup: Setup
    place: Checkpoint
    plan: StepPlan
    of: LossesOf
    start: int
    rows: np.ndarray
    missing: np.ndarray
    state: str
    key: str
    kept: KeptLosses | None

    @property
    def fetched_bytes(self) -> int:
        """What has to come from servers."""
        if not len(self.missing):
            return 0
        wanted = self.plan.instances[self.missing].tolist()
        return bytes_of_weights(self.place) + bytes_of_instances(self.setup.workspace, self.setup.run, wanted)


def question_of_losses(
    workspace: Workspace,
    name: str,
    step: int,
    checkpoint: int | None,
    instances: Sequence[int] | None,
    *,
    device: str,
    precision: str,
    enforce: bool,
    approximate: bool,
) -> LossesQuestion:
    run = workspace.run(name)
    segment = run.segment_of_step(step)
    place = checkpoint_of_losses(workspace, run, step, checkpoint)
    run = configured_run(run, step - 1, step, approximate=approximate)
    setup = prepare(workspace, run, device, precision, enforce, approximate)
    plan = plan_as_taken(workspace, run, step - 1, step, setup.recipe)[step]
    of = LossesOf(step=step, attempt=segment.attempt, checkpoint=place.step)
    start, rows = segment.positions_of_step(step).start, _rows_asked_for(name, plan, instances)
    state, key = state_of(workspace, name, place), _key(setup, plan)
    kept = read_losses(workspace, name, of, state)
    kept = kept if kept is not None and kept.key == key else None
    there = [] if kept is None else kept.table.column("position").unique().to_numpy() - start
    return LossesQuestion(
        setup=setup,
        place=place,
        plan=plan,
        of=of,
        start=start,
        rows=rows,
        missing=np.setdiff1d(rows, there),
        state=state,
        key=key,
        kept=kept,
    )


def _rows_asked_for(run: str, plan: StepPlan, instances: Sequence[int] | None) -> np.ndarray:
    if instances is None:
        return np.arange(len(plan.instances))
    if unread := sorted(set(instances) - set(plan.instances.tolist())):
        raise UnknownInstance(
            f"step {plan.step} of {run} did not read instance {unread[0]} "
            f"(who did: forensics where {run} --instance {unread[0]})"
        )
    return np.flatnonzero(np.isin(plan.instances, np.asarray(instances)))


def _key(setup: Setup, plan: StepPlan) -> str:
    """What the losses depend on besides the weights and the run's record."""
    identity = {
        "instances": plan.instances.tolist(),
        "masks": [list(map(int, mask)) for mask in plan.masks],
        "recipe": setup.recipe.to_table(),
        "device": setup.device.type,
        "deterministic": setup.enforce,
        "torch": torch.__version__,
    }
    return hashlib.sha256(canonical_json(identity)).hexdigest()[:16]
