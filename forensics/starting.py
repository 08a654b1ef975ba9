"""What a replay or fork starts from besides tensors: how steps were taken, what the skip rule remembered.

A checkpoint does not hold everything that the next step depends on. What it lacks is taken from the log, and where the
log lacks it too, that is said.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_index.batch import IndexedPlan, StepPlan
from data_index.batch_queries import plan_of
from data_index.errors import MissingState
from data_index.metric_queries import logged_metrics
from data_index.neox_checkpoint import read_counts, saves_adam_count
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace
from replay.recipe import Recipe
from replay.skip_step import SkipStepAdamW, SkipWindow
from replay.train_state import TrainState


def require_optimizer(workspace: Workspace, run: Run, start: Checkpoint, fresh: bool) -> None:
    """A step changes weights by what the optimizer remembers; is it there?

    Raises:
        MissingState: with the ways out that there are.
    """
    if "optimizer" in start.states or fresh:
        return
    holding = [c.step for c in workspace.checkpoints(run) if "optimizer" in c.states]
    ways = [
        "--fresh-optimizer starts its moments at zero"
        + (
            ", as the run itself did"
            if start.step == 0
            else " (true at checkpoint 0 alone; the grade is unbanded then)"
        )
    ]
    if holding:
        nearest = sorted(holding, key=lambda step: abs(step - start.step))[:3]
        ways.append(f"begin at a checkpoint that has it: {', '.join(map(str, sorted(nearest)))}")
    else:
        ways.append("add the run with checkpoints that have it, if its publisher has them (forensics catalog)")
    raise MissingState(
        f"checkpoint {start.step} of {run.name} has no optimizer state, only {', '.join(start.states) or 'nothing'}: "
        f"its next steps cannot be taken as they were. Ways out: {'; '.join(ways)}"
    )


def started_at_zero(start: Checkpoint, fresh: bool) -> str | None:
    """What is passed over by starting the optimizer anew; nothing at checkpoint 0."""
    if not fresh or "optimizer" in start.states or start.step == 0:
        return None
    return f"optimizer state: checkpoint {start.step} has none, so that its moments started at zero"


def plan_as_taken(workspace: Workspace, run: Run, first: int, last: int, recipe: Recipe) -> IndexedPlan:
    """The plan of steps first+1 .. last, steps withheld that the log says were (a loss scale that overflowed)."""
    plan = plan_of(workspace, run, first, last)
    if not recipe.withholds_logged_skips:
        return plan
    logged = logged_metrics(workspace, run, first, last, ("skipped",))

    def as_logged(step: StepPlan) -> StepPlan:
        return replace(step, outcome="withheld") if logged.get(step.step, {}).get("skipped") else step

    return IndexedPlan(by_step={number: as_logged(step) for number, step in plan.by_step.items()})


def complete_state(state: TrainState, workspace: Workspace, run: Run, start: Checkpoint, recipe: Recipe) -> list[str]:
    """Give a state loaded from a trainer's checkpoint what the checkpoint does not hold; returns what is not known."""
    state.restarted = start.step == 0 or _process_began(run, start.step)
    notes = []
    if recipe.skip is not None and isinstance(state.optimizer, SkipStepAdamW):
        notes += _fill_window(state, workspace, run, start.step, recipe)
    if recipe.withholds_logged_skips:
        notes += _count_skips(state, workspace, run, start)
    if start.layout == "neox" and not saves_adam_count(start.folder):
        notes.append(
            f"The trainer did not save how many updates Adam counts. {run.name} is taken to have come to step "
            f"{start.step} without a restart, after which it would have counted from 1 again."
        )
    return notes


def _count_skips(state: TrainState, workspace: Workspace, run: Run, start: Checkpoint) -> list[str]:
    """Set how many steps did not advance the learning rate: by the checkpoint where it counts them, else by the log."""
    logged = logged_metrics(workspace, run, 0, start.step, ("skipped",))
    in_log = sum(bool(values.get("skipped")) for values in logged.values())
    complete = all("skipped" in logged.get(step, {}) for step in range(1, start.step + 1))
    if start.layout == "neox":
        state.num_skipped = read_counts(start.folder).num_skipped
        if complete and state.num_skipped != in_log:
            return [f"Checkpoint {start.step} counts {state.num_skipped} skipped steps before it, the log {in_log}."]
        return []
    state.num_skipped = in_log
    if complete:
        return []
    return [
        f"The log does not say of all steps up to {start.step} whether the loss scale overflowed; the learning rate "
        f"counts {in_log} such steps."
    ]


def _process_began(run: Run, step: int) -> bool:
    """Did the trainer load this checkpoint itself, as far as is known?"""
    return any(segment.first_step == step + 1 and segment.attempt > 1 for segment in run.segments)


def _fill_window(state: TrainState, workspace: Workspace, run: Run, step: int, recipe: Recipe) -> list[str]:
    """The losses and gradient norms that the skip rule compares with are not in checkpoints; the log has them."""
    assert recipe.skip is not None and isinstance(state.optimizer, SkipStepAdamW)
    logged = logged_metrics(workspace, run, max(step - recipe.skip.interval - 1, 0), step, ("loss", "grad_norm"))
    values: list[tuple[Any, Any]] = []
    for past in range(step, max(step - recipe.skip.interval - 1, 0), -1):
        there = logged.get(past, {})
        if "loss" not in there or "grad_norm" not in there:
            break
        values.append((there["loss"], there["grad_norm"]))
    window = SkipWindow.from_log(
        [loss for loss, _ in reversed(values)],
        [norm for _, norm in reversed(values)],
        interval=recipe.skip.interval,
        sigma=recipe.skip.sigma,
        num_steps_before=step,
        device=state.device,
    )
    state.optimizer.window = window
    return (
        []
        if window.is_complete
        else [
            f"The skip rule compares with the {recipe.skip.interval} steps before; the log has {len(values)} of those "
            f"before step {step}: steps may be skipped here that were not, or the other way round."
        ]
    )
