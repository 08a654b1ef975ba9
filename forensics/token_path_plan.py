"""What `tokens --track` would take: headers are read to tell, no tensor and no token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_index.run import Run
from data_index.workspace import Workspace
from forensics.counting_plan import count_of, plan_exposures
from forensics.path_reading import opened
from forensics.token_origins import origins_are_kept
from forensics.token_paths import NO_COUNTS

COLUMNS = ("what", "step", "tensors", "bytes_to_read", "bytes_to_fetch", "note")


def plan_token_paths(
    run: str,
    *,
    checkpoints: Sequence[int] | None = None,
    indicator: str | None = None,
    unused: Sequence[int] | None = None,
    tokenizer: Path | None = None,
    workspace: Workspace | None = None,
) -> list[dict[str, Any]]:
    """A row for each checkpoint that has to be read, one for the exposures, one for documents and tags, and the sum.

    Raises:
        UnknownRun, MissingCheckpoint, MissingFile, MissingState, CorruptFile, UnsafeFile, UnknownLayout
        UnsupportedRecipe, AccessDenied, Unreachable, Offline
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    tracking = opened(workspace, record, checkpoints, indicator=indicator, unused=unused, tokenizer=tokenizer)
    at_most = "" if tracking.choice is not None else "at most: which matrix is read is not known yet"
    rows: list[dict[str, Any]] = []
    for checkpoint, matrices in tracking.to_read():
        num_bytes = sum(matrix.num_bytes for matrix in matrices)
        rows.append(
            {
                "what": "checkpoint",
                "step": checkpoint.step,
                "tensors": [matrix.name for matrix in matrices],
                "bytes_to_read": num_bytes,
                "bytes_to_fetch": 0 if isinstance(checkpoint.location, Path) else num_bytes,
                "note": at_most if checkpoint is not tracking.tracked[-1] else "",
            }
        )
    kept = len(tracking.tracked) - len(rows)
    rows += _readings(workspace, record, tracking.source.embeddings.input.shape[0])
    total = {name: sum(row[name] or 0 for row in rows) for name in ("bytes_to_read", "bytes_to_fetch")}
    note = f"{kept} of {len(tracking.tracked)} checkpoints were gone through before"
    return [*rows, {"what": "all", "step": None, "tensors": []} | total | {"note": note}]


def _readings(workspace: Workspace, run: Run, num_ids: int) -> list[dict[str, Any]]:
    """What counting the exposures, and gathering documents and tags, would read."""
    try:
        cost = plan_exposures(run.name, workspace=workspace)
        count = count_of(workspace, run)
    except NO_COUNTS as error:
        return [_row("exposures", None, None, f"not known: {error}")]
    counted = f"{cost['tokens']:,} tokens; {cost['seconds_at_100M_tokens_a_second']:g} s at 100M a second"
    rows = [_row("exposures", cost["read"], cost["download"], counted if cost["tokens"] else "counted before")]
    if not workspace.learned_files(workspace.home(run.name), "documents"):
        return [*rows, _row("documents and tags", 0, 0, "no documents are known")]
    if origins_are_kept(workspace, count, num_ids):
        return [*rows, _row("documents and tags", 0, 0, "gathered before")]
    per_token = sum(file.num_bytes for file in run.files) / max(run.num_instances * run.tokens_per_instance, 1)
    return [*rows, _row("documents and tags", round(count.num_tokens * per_token), 0, "the same tokens once more")]


def _row(what: str, read: int | None, fetch: int | None, note: str) -> dict[str, Any]:
    return {
        "what": what,
        "step": None,
        "tensors": [],
        "bytes_to_read": read,
        "bytes_to_fetch": fetch,
        "note": note,
    }
