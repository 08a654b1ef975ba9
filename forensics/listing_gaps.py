"""Which steps should have a checkpoint, by the run's own grid or its config, and have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from data_index.run import Run
from data_index.sources.folder import lookup
from forensics.audit_rows import Row, row

# Where trainers' configs say how often they save, by the config's format.
_INTERVALS = {
    "neox": ("checkpoint_factor", "save_interval"),
    "olmo": ("save_interval_unsharded", "save_interval"),
    "olmo_core": ("trainer.callbacks.checkpointer.save_interval",),
}


def gaps_of(steps: Sequence[int]) -> tuple[int | None, list[tuple[int, int]]]:
    """The grid of listed steps, and the stretches (first, last) of it that are missing between them.

    The grid is the distance that at least half of all neighbours have, two of them at least; what lies beside it, as
    the powers of two at the start of some runs, is no gap.
    """
    distances = Counter(other - one for one, other in pairwise(steps))
    interval, times = distances.most_common(1)[0] if distances else (0, 0)
    if times < 2 or 2 * times < len(steps) - 1:
        return None, []
    anchor = next(one for one, other in pairwise(steps) if other - one == interval)
    on_grid = [step for step in steps if (step - anchor) % interval == 0]
    gaps = [(one + interval, other - interval) for one, other in pairwise(on_grid) if other - one > interval]
    return interval, gaps


def gap_rows(run: Run, steps: Sequence[int]) -> Iterator[Row]:
    """A row for each gap, and one for the end of the run. A gap is no failure: what is not there cannot be judged."""
    if not steps:
        yield row("checkpoints", "listed", "not known", f"{run.name} lists none")
        return
    interval, gaps = gaps_of(steps)
    for first, last in gaps:
        assert interval is not None
        count = (last - first) // interval + 1
        detail = f"gap: {first}..{last} ({count} {'step' if count == 1 else 'steps'} of the {interval}-grid)"
        yield row("checkpoints", "gaps", "not known", detail, step=first)
    if interval is None:
        yield _config_row(run, steps)
    elif not gaps:
        yield row("checkpoints", "gaps", "ok", f"every {interval} steps from {steps[0]} to {steps[-1]}")
    if run.last_step > steps[-1]:
        detail = f"the run took {run.last_step} steps; the last checkpoint listed is {steps[-1]}"
        yield row("checkpoints", "final", "not known", detail)
    else:
        yield row("checkpoints", "final", "ok", f"the last step, {steps[-1]}, is there")


def _config_row(run: Run, steps: Sequence[int]) -> Row:
    interval = _stated_interval(run)
    if interval is None:
        detail = f"{len(steps)} checkpoints in no even grid, and the config states no save interval"
        return row("checkpoints", "gaps", "not known", detail)
    wanted = range(0, run.last_step + 1, interval)
    listed = len(set(wanted) & set(steps))
    detail = f"{listed} of {len(wanted)} steps of the config's save interval, {interval}, are listed"
    return row("checkpoints", "gaps", "ok" if listed == len(wanted) else "not known", detail)


def _stated_interval(run: Run) -> int | None:
    for name in _INTERVALS.get(run.config_format, ()):
        value: Any = lookup(run.config, name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= max(run.last_step, 1):
            return value
    return None
