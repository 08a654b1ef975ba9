"""Which of a run's checkpoints are meant by `all`, `log:40`, `A:B:k`, or a list of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_index.errors import InvalidRange, MissingCheckpoint
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace

FORMS = "all, log:40, A:B, A:B:k, or steps such as 0,20,40"


def checkpoints_with_weights(workspace: Workspace, run: Run) -> list[Checkpoint]:
    """One a step, rising; where a step's weights are in several places, those that were there when last looked for."""
    found: dict[int, Checkpoint] = {}
    for checkpoint in workspace.checkpoints(run):
        if "weights" in checkpoint.states:
            best = found.get(checkpoint.step, checkpoint)
            found[checkpoint.step] = max(best, checkpoint, key=lambda c: (c.is_available() is not False, len(c.states)))
    return [found[step] for step in sorted(found)]


def chosen_checkpoints(workspace: Workspace, run: Run, selection: str | Sequence[int] = "all") -> list[Checkpoint]:
    """
    Args:
        selection: `all`; `log:N`, so many of them, the first and the last among them, their steps as evenly spaced on a
            logarithmic scale as there are; `A:B`, those from checkpoint A to checkpoint B; `A:B:k`, of these A, A+k,
            A+2k, … as far as they are there; or steps.
    Raises:
        MissingCheckpoint: none is meant, or one that is named is not there.
        InvalidRange: it cannot be read.
    """
    there = checkpoints_with_weights(workspace, run)
    if not there:
        raise MissingCheckpoint(f"{run.name} has no checkpoint with weights (forensics checkpoints {run.name})")
    by_step = {checkpoint.step: checkpoint for checkpoint in there}
    steps = list(by_step)
    if isinstance(selection, str):
        wanted = _named(selection, steps)
        if not wanted:
            raise MissingCheckpoint(
                f"{run.name} has no checkpoint in {selection}; it has {len(steps)}, at steps {steps[0]} to {steps[-1]} "
                f"(forensics checkpoints {run.name})"
            )
    else:
        wanted = sorted(set(selection))
    # One that is not there is an error that names the nearest.
    return [by_step.get(step) or workspace.checkpoint(run, step) for step in wanted]


def _named(selection: str, steps: Sequence[int]) -> list[int]:
    words = selection.replace(" ", "").split(":")
    try:
        if words == ["all"]:
            return list(steps)
        if words[0] == "log" and len(words) == 2:
            return log_spaced(steps, int(words[1]))
        numbers = [int(word) for part in words for word in part.split(",")]
    except ValueError:
        numbers = []
    if len(words) == 1 and numbers:
        return sorted(set(numbers))
    if (
        len(words) != len(numbers)
        or len(numbers) not in (2, 3)
        or numbers[1] < numbers[0]
        or (numbers[2:] or [1])[0] < 1
    ):
        raise InvalidRange(f"--checkpoints takes {FORMS}, not {selection!r}")
    first, last, every = *numbers[:2], (numbers[2] if len(numbers) == 3 else 1)
    return [step for step in steps if first <= step <= last and (step - first) % every == 0]


def log_spaced(steps: Sequence[int], count: int) -> list[int]:
    """So many of the rising steps, the first and the last among them, each the nearest to its place on a scale of
    log(step + 1) that leaves enough for those after it.

    Raises:
        ValueError: the count is not at least 1.
    """
    if count < 1:
        raise ValueError(f"cannot choose {count} checkpoints")
    if count >= len(steps):
        return list(steps)
    logs = [math.log1p(step) for step in steps]
    chosen = [0] if count > 1 else []
    for number in range(1, count - 1):
        target = logs[0] + (logs[-1] - logs[0]) * number / (count - 1)
        free = range(chosen[-1] + 1, len(steps) - (count - 1 - number))
        chosen.append(min(free, key=lambda place: abs(logs[place] - target)))
    return [steps[place] for place in (*chosen, len(steps) - 1)]
