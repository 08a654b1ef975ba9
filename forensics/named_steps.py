"""Is a checkpoint the one of its step, by what its publisher calls it and by how far its optimizer has counted?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_index.errors import ForensicsError, MissingFile
from data_index.remote import hub
from data_index.run import Checkpoint
from forensics.audit_rows import Row, judged, row


def revision_row(checkpoint: Checkpoint, now: Mapping[str, Mapping[str, str] | ForensicsError]) -> Row | None:
    """Does the hub still have a checkpoint's revision, and does it name the same commit?

    Args:
        now: what `data_index.artifacts.revisions_now` was told.
    """
    address = hub.address_of(f"{checkpoint.location}/.") if checkpoint.revision else None
    if address is None:
        return None
    name, known = f"checkpoint {checkpoint.step}", now[address.repo_id]
    if isinstance(known, MissingFile):
        return judged(name, "revision", str(known), step=checkpoint.step)
    if isinstance(known, ForensicsError):
        detail = f"{known}; listed on {checkpoint.checked_at}"
        return row(name, "revision", "not known", detail, step=checkpoint.step)
    commit, wrong = known.get(str(checkpoint.revision)), None
    if commit is None:
        wrong = f"{address.repo_id} has no revision {checkpoint.revision} any more; it had on {checkpoint.checked_at}"
    elif commit != checkpoint.commit:
        wrong = (
            f"{checkpoint.revision} names another commit now ({commit[:12]} instead of {str(checkpoint.commit)[:12]}): "
            "it was published anew; add the run again to read that"
        )
    return judged(name, "revision", wrong, step=checkpoint.step, ok=f"{checkpoint.revision} is {str(commit)[:12]}")


def counted_steps(checkpoint: Checkpoint) -> int | None:
    """How many updates the optimizer counts, by one of its parameters; None where that is not kept.

    Raises:
        what reading the optimizer's state raises
    """
    if "optimizer" not in checkpoint.states or not isinstance(checkpoint.location, Path):
        return None
    from replay.weights import stored_moments

    counts = stored_moments(checkpoint).get("step", {})
    return next((int(part.read().max()) for part in counts.values()), None)


def _exchanged(step: int, counted: Mapping[int, int]) -> int | None:
    """The later or earlier checkpoint whose updates these are, and which has as many as belong here."""
    return next((o for o in counted if o != step and counted[step] - o in (0, 1) and counted[o] - step in (0, 1)), None)


def optimizer_step_rows(counted: Mapping[int, int]) -> Iterator[Row]:
    """Updates that optimizers count, against their steps. OLMo-core counts one more: saving step 0 takes one.

    Fewer are skipped steps, or another checkpoint's state: that one has all that others have more or fewer of.

    Args:
        counted: step -> updates.
    Source:
        torch.distributed.checkpoint.state_dict._init_optim_state, which OLMo-core 3.0.0 calls when it saves
    """
    behind = {step: step + 1 - count for step, count in sorted(counted.items())}
    most = 0
    for step, fewer in behind.items():
        name, count = f"checkpoint {step} optimizer", counted[step]
        # What is ahead of its step says nothing of the others.
        later = min((other for at, other in behind.items() if at > step and other >= 0), default=fewer)
        if fewer < 0:
            yield judged(name, "optimizer step", f"it counts {count} updates, more than there were", step=step)
        elif fewer > later:
            detail = f"it counts {count} updates, {fewer - later} fewer than later ones say were taken: another step's"
            yield judged(name, "optimizer step", detail, step=step)
        elif (other := _exchanged(step, counted)) is not None:
            detail = f"it counts {count} updates, and that of step {other} counts {counted[other]}: they are exchanged"
            yield judged(name, "optimizer step", detail, step=step)
        elif fewer > max(most, 1):
            detail = (
                f"it counts {count} updates: {fewer - 1} or {fewer} steps before were skipped, or it was begun anew"
            )
            yield row(name, "optimizer step", "not known", detail, step=step)
        else:
            yield judged(name, "optimizer step", None, step=step, ok=f"{count} updates")
        most = max(most, min(fewer, later))
