"""`tokens --track`: the path of every token through the checkpoints of a run, beside how often it had been read.

The main indicator and the rows that are known to be unused are those of the last checkpoint, and are held fixed, so
that what changes along a path is the token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data_index.errors import (
    AccessDenied,
    InvalidRange,
    MissingFile,
    StepOutOfRange,
    TooMuchToFetch,
    UnknownOrder,
    Unreachable,
)
from data_index.files import exclusive_lock
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.counting_plan import count_of
from forensics.fetching import MAX_FETCH_BYTES, require_allowed
from forensics.path_exposures import PathExposures, path_exposures
from forensics.path_reading import opened, read_points
from forensics.token_origins import TokenOrigins, token_origins
from forensics.token_path_answer import TokenPaths, answered

# Why there may be no counts: what the steps read is not known, or cannot be had.
NO_COUNTS = (UnknownOrder, StepOutOfRange, InvalidRange, MissingFile, TooMuchToFetch, AccessDenied, Unreachable)
# Called with what is being gone through (`checkpoints`, `tokens counted`, `tokens traced`), how many, and of how many.
Progress = Callable[[str, int, int], None]


def token_paths(
    run: str,
    *,
    checkpoints: Sequence[int] | None = None,
    indicator: str | None = None,
    unused: Sequence[int] | None = None,
    tokenizer: Path | None = None,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
    progress: Progress = lambda what, done, total: None,
) -> TokenPaths:
    """Follow every token through the checkpoints of a run.

    What is found is kept with the run, in the views `token_paths` and `token_origins`. Interrupted, the same question
    goes on where it was; of a checkpoint that was gone through, nothing is read again.

    Args:
        run: a run or fork. A fork's counts are its parents' up to where it begins, and its own.
        checkpoints: their steps; default: all that are there with weights.
        indicator: by name; default: the main one of the last of these checkpoints.
        unused: ids of rows that are known to be unused; default: those found at the last of these checkpoints.
        tokenizer: a tokenizer.json, where the run has none.
        max_fetch: bytes that may be fetched from servers; default: 1 GiB. Where it allows the matrices but not the
            tokens, the paths come without counts.
    Raises:
        UnknownRun, MissingCheckpoint, MissingFile, MissingState, CorruptFile, UnsafeFile, UnknownLayout
        UnsupportedRecipe, InvalidRange, TooMuchToFetch, AccessDenied, Unreachable, Offline
        Busy: another process goes through them.
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    with exclusive_lock(workspace.home(run) / "token_paths.lock", f"tracking the tokens of {run}"):
        tracking = opened(workspace, record, checkpoints, indicator=indicator, unused=unused, tokenizer=tokenizer)
        wanted = tracking.bytes_to_fetch()
        require_allowed(wanted, max_fetch, f"the embedding matrices of {len(tracking.tracked)} checkpoints of {run}")
        choice, points, num_bytes = read_points(tracking, lambda done, of: progress("checkpoints", done, of))
        steps = [point.step for point in points]
        left = max((MAX_FETCH_BYTES if max_fetch is None else max_fetch) - wanted, 0)
        counts, origins, told = _read_before(workspace, record, steps, choice.num_rows, left, progress)
    return answered(
        run=run,
        choice=choice,
        analysis=tracking.analysis,
        points=points,
        exposures=counts,
        origins=origins,
        num_bytes=num_bytes,
        messages=(*choice.messages, *told),
    )


def _read_before(
    workspace: Workspace, run: Run, steps: Sequence[int], num_ids: int, max_fetch: int, progress: Progress
) -> tuple[PathExposures | None, TokenOrigins | None, list[str]]:
    """How often, and in what, tokens had been read; and what is not known of that."""
    try:
        counts = path_exposures(
            workspace,
            run,
            steps,
            num_ids,
            max_fetch=max_fetch,
            progress=lambda done, of: progress("tokens counted", done, of),
        )
        origins = token_origins(
            workspace,
            count_of(workspace, run),
            num_ids,
            progress=lambda done, of: progress("tokens traced", done, of),
        )
    except NO_COUNTS as error:
        return None, None, [f"how often tokens were read is not known: {error}"]
    told = []
    if origins is None:
        told.append(
            f"which documents tokens were read in is not known: no documents of {run.name} are (forensics documents "
            f"{run.name} learns them)"
        )
    elif run.parent is not None:
        parent, step = run.parent
        told.append(f"documents and tags are those of steps {run.first_step}..{run.last_step}, not of {parent} before")
    if run.parent is not None:
        told.append(f"counts up to checkpoint {run.parent[1]} are those of {run.parent[0]}")
    elif run.first_step > 1:
        told.append(f"counts begin with step {run.first_step}: what was read before it is not known")
    return counts, origins, told
