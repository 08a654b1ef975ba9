"""The verb that follows probes over checkpoints: trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_index.errors import InvalidRange
from forensics.cli.options import FormatOption, WorkspaceOption, command_line, open_workspace
from forensics.cli.output import Format, emit_rows, keep, printable, say

if TYPE_CHECKING:
    from forensics.trajectories import Row, Trajectories


class XAxis(StrEnum):
    steps = "steps"
    tokens = "tokens"
    log_steps = "log-steps"


def trajectory(
    runs: Annotated[str, typer.Argument(metavar="RUN[,RUN...]", help="Runs or forks, one curve for each.")],
    probes: Annotated[
        list[str],
        typer.Argument(
            metavar="PROBE...", help="What forensics probe measured; task:NAME of a benchmark; * for any text."
        ),
    ],
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this metric of them; * for any text. Repeatable.")
    ] = None,
    x: Annotated[XAxis, typer.Option("--x", help="What the picture is drawn against.")] = XAxis.steps,
    measured_only: Annotated[bool, typer.Option("--measured-only", help="Without published evaluations.")] = False,
    published_only: Annotated[bool, typer.Option("--published-only", help="Published evaluations alone.")] = False,
    breaks: Annotated[
        bool, typer.Option("--breaks", help="Print instead where each curve changes its slope, over log10 of the step.")
    ] = False,
    crossings: Annotated[
        bool,
        typer.Option("--crossings", help="Print instead where the curves of each two runs cross for the last time."),
    ] = False,
    picture: Annotated[Path | None, typer.Option("-o", "--picture", help="Draw it: FILE.png or FILE.html.")] = None,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Follow probes over the checkpoints of runs: what was measured here and what was published, as table and picture.

    Intervals are of 95 %. A checkpoint without a value that others have is named, and marked in the picture. With --x
    log-steps, step 0 is drawn at half the first step after it.

    Example: forensics trajectory demo loss norms
    """
    from forensics.kept_findings import finding_of_trajectory
    from forensics.trajectories import trajectory as follow

    if measured_only and published_only:
        raise typer.BadParameter("--measured-only and --published-only leave nothing")
    if breaks and crossings:
        raise typer.BadParameter("--breaks and --crossings print different tables: ask for one")
    there = open_workspace(workspace)
    found = follow(
        runs,
        probes,
        metrics=metric,
        measured=not published_only,
        published=not measured_only,
        workspace=there,
    )
    finding = finding_of_trajectory(found, x.value, command_line())
    if breaks or crossings:
        rows, columns = _changes(found, breaks)
        emit_rows(rows, format, columns)
    else:
        _print(found, format)
    for message in found.messages:
        say(printable(message))
    keep(there, finding, picture)


def _print(found: Trajectories, format: Format) -> None:
    """All rows; for people those of the metrics that are shown, without columns that say nothing."""
    from forensics.trajectories import COLUMNS

    if format is not Format.table:
        emit_rows(found.rows, format, COLUMNS)
        return
    rows = [row for curve in found.shown_curves for row in curve.rows]
    said = {name: {row[name] for row in rows} - {None, ""} for name in COLUMNS}
    emit_rows(rows, format, [name for name in COLUMNS if len(said[name]) > (name in ("run", "settings"))])


def _changes(found: Trajectories, breaks: bool) -> tuple[list[Row], Sequence[str]]:
    """
    Raises:
        InvalidRange: crossings of one run.
    """
    from forensics.trajectory_changes import BREAK_COLUMNS, CROSSING_COLUMNS, break_rows, crossing_rows

    if breaks:
        return break_rows(found), BREAK_COLUMNS
    if len(found.runs) < 2:
        raise InvalidRange(f"only {found.runs[0]} was asked for; curves cross where there are two runs: RUN,RUN")
    return crossing_rows(found), CROSSING_COLUMNS


COMMANDS = (trajectory,)
