"""How often each token had been read at each of some checkpoints: the counts of `exposures`, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_index.errors import InvalidRange
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.token_counts import TokenExposures, exposures

COUNTED = ("as_input", "as_target", "first_step", "last_step")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PathExposures:
    """Counts up to each checkpoint, int64 of shape [checkpoints, ids]; of steps 0: not seen yet."""

    as_input: np.ndarray
    as_target: np.ndarray
    first_step: np.ndarray
    last_step: np.ndarray


def path_exposures(
    workspace: Workspace,
    run: Run,
    steps: Sequence[int],
    num_ids: int,
    *,
    max_fetch: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PathExposures:
    """Of a fork, those of its parents up to where it begins are added.

    Args:
        steps: of checkpoints, rising.
    Raises:
        UnknownOrder, StepOutOfRange, InvalidRange, MissingFile, CorruptFile, Busy
        TooMuchToFetch, AccessDenied, Unreachable, Offline: the tokens are on a server.
    """

    def told(done: int, here: int, total: int) -> None:
        progress(done, total)

    found = exposures(run.name, max_fetch=max_fetch, workspace=workspace, progress=told)
    base = _before(workspace, run, num_ids, max_fetch, told)
    recorded = {row["step"] for row in found.summary}
    if unknown := [step for step in steps if step > found.first and step not in recorded]:
        raise InvalidRange(f"the steps of {run.name} end at {found.last}, before its checkpoint {unknown[0]}")
    table = _arrays(found, steps, num_ids)
    return _added(base, PathExposures(**table))


def _before(
    workspace: Workspace, run: Run, num_ids: int, max_fetch: int | None, told: Callable[[int, int, int], None]
) -> PathExposures:
    """What a fork's parents had read where it begins, as of one checkpoint; nothing of a run without."""
    if run.parent is None:
        return PathExposures(**{name: np.zeros((1, num_ids), dtype=np.int64) for name in COUNTED})
    name, step = run.parent
    parent = workspace.run(name)
    above = _before(workspace, parent, num_ids, max_fetch, told)
    if step < parent.first_step:
        return above
    steps = "all" if step == parent.last_step else f"{parent.first_step - 1}:{step}"
    found = exposures(name, steps, max_fetch=max_fetch, workspace=workspace, progress=told)
    return _added(above, PathExposures(**_arrays(found, [step], num_ids)))


def _arrays(found: TokenExposures, steps: Sequence[int], num_ids: int) -> dict[str, np.ndarray]:
    import pyarrow.parquet

    columns = {name: np.zeros((len(steps), num_ids), dtype=np.int64) for name in COUNTED}
    wanted = np.array(steps, dtype=np.int64)
    for path in found.files:
        table = pyarrow.parquet.read_table(path, columns=["step", "token_id", *COUNTED], partitioning=None)
        of_step, token = table.column("step").to_numpy(), table.column("token_id").to_numpy()
        number = np.minimum(np.searchsorted(wanted, of_step), len(wanted) - 1)
        here = (wanted[number] == of_step) & (token < num_ids)
        number, token = number[here], token[here]
        for name, counts in columns.items():
            counts[number, token] = table.column(name).fill_null(0).to_numpy()[here]
    return columns


def _added(base: PathExposures, own: PathExposures) -> PathExposures:
    """The sum, in the place of `own`: of long runs these are large."""
    own.as_input[...] += base.as_input
    own.as_target[...] += base.as_target
    np.copyto(own.first_step, base.first_step, where=base.first_step > 0)
    np.maximum(own.last_step, base.last_step, out=own.last_step)
    return own
