"""Rows of a step as text coloured by the loss of each token, as `blame` traced them or `batch --losses` kept them."""

from __future__ import annotations

import numpy as np

from data_index.workspace import Workspace
from forensics.kept_losses import kept_token_losses
from forensics.marked_text import MarkedText, pieces_of
from forensics.spike_answers import KeptBlame, blamed_steps, kept_blame


def traced_texts(run: str, step: int, *, workspace: Workspace | None = None) -> dict[int, MarkedText]:
    """Rows of a step whose tokens `blame` traced, by instance: losses under the weights just before the step."""
    workspace = workspace or Workspace()
    found: dict[int, MarkedText] = {}
    for peak in blamed_steps(run, workspace=workspace):
        blame = kept_blame(run, peak, workspace=workspace)
        if not isinstance(blame, KeptBlame) or blame.changed:
            continue
        for candidate, text in blame.texts:
            instance = candidate.get("instance")
            if candidate.get("step") == step and isinstance(instance, int):
                found[instance] = text
    return found


def loss_texts(
    run: str, step: int, checkpoint: int, *, workspace: Workspace | None = None
) -> dict[int, MarkedText] | None:
    """Rows of a step coloured by what is kept of `batch --losses`, by position; None: nothing is.

    Raises:
        UnknownRun, StepOutOfRange, MissingCheckpoint, MissingFile
    """
    workspace = workspace or Workspace()
    table = kept_token_losses(run, step, checkpoint, workspace=workspace)
    if table is None:
        return None
    record = workspace.run(run)
    no_target = table.column("loss").is_null().to_numpy()
    losses = np.nan_to_num(table.column("loss").fill_null(0.0).to_numpy(), nan=np.inf, posinf=np.inf)
    losses = np.where(no_target, np.nan, losses)
    positions, ids = table.column("position").to_numpy(), table.column("token_id").to_numpy()
    instances = table.column("instance").to_numpy()
    starts = np.flatnonzero(np.diff(positions, prepend=-1))
    return {
        int(positions[start]): MarkedText(
            title=f"step {step}, instance {instances[start]}, under checkpoint {checkpoint}",
            pieces=pieces_of(record, ids[start:stop]),
            losses=losses[start:stop],
        )
        for start, stop in zip(starts, [*starts[1:], len(positions)], strict=True)
    }
