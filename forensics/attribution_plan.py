"""What `blame` would cost, stage by stage, before any of it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_index.workspace import Workspace
from forensics.content_signals import plan_base
from forensics.document_removal import MOST_DOCUMENTS, NULLS
from forensics.fetching import bytes_of_steps, bytes_of_weights
from forensics.investigation import DRAWS, GROUP_NULLS, SPAN_NULLS, SPANS_TRIED, STEPS_COMPARED, Search
from forensics.reproduction import Setup, estimate
from forensics.spike_window import SpikeWindow
from forensics.suspects import MOST_STEPS

STEP = 3  # forwards that a step costs: one forward, and a backward of two
ROWS = 6  # and measuring its rows: four forwards and such a backward


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """One stage.

    Attributes:
        forwards: over a step's batch; a training step counts as three.
        seconds: estimated from a matmul of this device.
    """

    stage: str
    does: str
    forwards: int
    seconds: float


def stages_of(setup: Setup, window: SpikeWindow, search: Search) -> list[StageCost]:
    """The most that each stage does; `removal` as if the earliest suspect step were the onset."""
    run, first, last = setup.run, window.start.step, window.peak
    steps = last - first
    suspected = min(MOST_STEPS, steps)
    rows = run.segment_of_step(last).instances_per_batch * suspected
    back = min(last - window.onset + 1, steps)
    suspects = min(search.top, max(rows // 2, 1))
    singles = suspects + min(search.nulls, rows - suspects)
    groups = suspects - 1 + GROUP_NULLS
    documents = MOST_DOCUMENTS + NULLS
    further = max(SPANS_TRIED * (1 + SPAN_NULLS), DRAWS * suspected)
    tokens = run.tokens_after(last) - run.tokens_after(last - 1)
    per_forward = estimate(setup, 1, tokens).seconds / STEP
    compared = suspected + min(STEPS_COMPARED, steps)
    shares = compared * STEP + suspected * ROWS + steps * STEP
    counted = [
        ("scan", f"losses of {steps} steps' rows under checkpoint {first}", steps),
        ("replay", f"steps {first + 1}..{last} again, the peak's batch before and after each", steps * (STEP + 1)),
        ("shares", f"gradient shares and norms of the rows of {suspected} steps at most", shares),
        ("rows", f"{singles} times up to {back} steps again, without a row each", singles * back * STEP),
        ("groups", f"{groups} times, without a group", groups * back * STEP),
        ("spans or batches", f"{further} times at most", further * back * STEP),
        ("documents", f"{documents} times at most, what these steps read of one hidden", documents * back * STEP),
    ]
    return [StageCost(stage=s, does=does, forwards=n, seconds=n * per_forward) for s, does, n in counted]


def plan_blame(run: str, step: int, *, workspace: Workspace | None = None, device: str = "auto") -> Mapping[str, Any]:
    """What `blame` would cost of a run's spike, asked as it is without options; headers are read to tell.

    Raises:
        UnknownRun, StepOutOfRange, MissingCheckpoint, MissingState, CorruptFile, UnsupportedRecipe
    """
    from forensics.attribution import prepare_search

    workspace, search = workspace or Workspace(), Search()
    window, setup = prepare_search(
        workspace,
        workspace.run(run),
        step,
        search,
        device=device,
        precision="recipe",
        enforce_determinism=True,
        approximate=False,
        fresh_optimizer=False,
    )
    return plan_attribution(workspace, setup, window, search)


def plan_attribution(workspace: Workspace, setup: Setup, window: SpikeWindow, search: Search) -> Mapping[str, Any]:
    """The stages, and what they download, read and hold in memory."""
    run, first, last = setup.run, window.start.step, window.peak
    tokens = run.tokens_after(last) - run.tokens_after(first)
    cost = estimate(setup, last - first, tokens)
    stages = stages_of(setup, window, search)
    base = plan_base(workspace, run)
    return {
        "run": run.name,
        "peak": last,
        "onset": window.onset,
        "checkpoint": first,
        "stages": [{name: getattr(stage, name) for name in stage.__slots__} for stage in stages],
        "seconds": sum(stage.seconds for stage in stages),
        # Weights and moments twice more, the state to begin with and the one before the suspect steps; and the weights
        # once more while they are moved along the gradient.
        "memory_bytes": cost.memory_bytes + (2 * 12 + 4) * cost.parameters,
        "parameters": cost.parameters,
        "base_rows": base["rows"],
        "download": bytes_of_weights(window.start) + bytes_of_steps(workspace, run, first, last) + base["download"],
    }
