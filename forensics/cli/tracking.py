"""The verb tokens with --track."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from forensics.cli.output import Format, TrackProgress, emit_rows, printable, say

if TYPE_CHECKING:
    from data_index.workspace import Workspace
    from forensics.token_paths import TokenPaths

SHOWN_OF_EACH = 12
SHOWN = (
    *("token_id", "text", "category", "finding", "exposures", "first_step", "last_step", "indicator"),
    *("distance_to_unused", "untrained", "left_step", "left_after_min", "left_after_max", "fell_back_step"),
)


def track_tokens(
    run: str,
    checkpoints: str | None,
    asked: Mapping[str, Any],
    plan: bool,
    limit: int | None,
    report: Path | None,
    output: Path | None,
    format: Format,
) -> None:
    """
    Args:
        asked: what `token_paths` takes besides, by name.
    """
    from data_index.exports import write_table
    from forensics.token_path_plan import plan_token_paths
    from forensics.token_path_report import path_facts, write_path_report
    from forensics.token_paths import token_paths

    steps = _steps_of(checkpoints, run, asked["workspace"])
    if plan:
        given = {name: value for name, value in asked.items() if name != "max_fetch"}
        emit_rows(plan_token_paths(run, checkpoints=steps, **given), format)
        return
    found = token_paths(run, checkpoints=steps, progress=TrackProgress(), **asked)
    for name, value in path_facts(found):
        say(printable(f"{name}: {value}"))
    if report is not None:
        say("wrote " + " and ".join(map(str, write_path_report(found, report))))
    if output is not None:
        table = found.table()
        write_table(output, table)
        say(f"wrote {table.num_rows:,} rows to {output}")
        return
    _print(found, limit, format)


def _print(found: TokenPaths, limit: int | None, format: Format) -> None:
    from forensics.token_answer import for_people
    from forensics.token_path_rows import SUMMARY

    if format is not Format.table:
        emit_rows(found.rows[:limit], format, SUMMARY)
        return
    rows = _of_each(found) if limit is None else found.rows[:limit]
    emit_rows([for_people(found.analysis, row) for row in rows], format, SHOWN)
    if limit is None and len(rows) < len(found.rows):
        say(
            f"up to {SHOWN_OF_EACH} tokens of each finding, {len(rows)} of {len(found.rows):,} (--limit N prints the "
            "first N, --format json all; -o FILE writes their paths)"
        )


def _of_each(found: TokenPaths) -> list[dict[str, Any]]:
    """The first tokens of each finding, and of those that left last."""
    from itertools import groupby, islice

    groups = groupby(found.rows, key=lambda row: row["finding"])
    return [row for _, rows in groups for row in islice(rows, SHOWN_OF_EACH)]


def _steps_of(checkpoints: str | None, run: str, workspace: Workspace) -> Sequence[int] | None:
    """`0,20,40`, or `every K`: those at multiples of K steps, and the last."""
    from forensics.path_reading import tracked_checkpoints

    if checkpoints is None:
        return None
    words = checkpoints.split()
    if len(words) == 2 and words[0] == "every" and words[1].isdigit() and int(words[1]):
        there = [checkpoint.step for checkpoint in tracked_checkpoints(workspace, workspace.run(run))]
        return [step for step in there if step % int(words[1]) == 0 or step == there[-1]]
    parts = [part.strip() for part in checkpoints.split(",")]
    if not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"--checkpoints takes steps such as 0,20,40, or 'every 100', not {checkpoints!r}")
    return [int(part) for part in parts]
