"""The verb that follows probes over checkpoints: trajectory."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_index.errors import DiskFull, NotWritable
from forensics.cli.options import FormatOption, WorkspaceOption, open_workspace
from forensics.cli.output import Format, emit_rows, printable, say

if TYPE_CHECKING:
    from forensics.figure import Figure
    from forensics.trajectories import Trajectories

MOST_CHARACTERS = 80  # of the default name of a picture


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
    picture: Annotated[Path | None, typer.Option("-o", "--picture", help="Draw it: FILE.png or FILE.html.")] = None,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Follow probes over the checkpoints of runs: what was measured here and what was published, as table and picture.

    Intervals are of 95 %. A checkpoint without a value that others have is named, and marked in the picture. With --x
    log-steps, step 0 is drawn at half the first step after it.

    Example: forensics trajectory demo loss norms
    """
    from forensics.trajectories import trajectory as follow
    from forensics.trajectory_picture import figure_of

    if measured_only and published_only:
        raise typer.BadParameter("--measured-only and --published-only leave nothing")
    there = open_workspace(workspace)
    found = follow(
        runs,
        probes,
        metrics=metric,
        measured=not published_only,
        published=not measured_only,
        workspace=there,
    )
    figure = figure_of(found, x.value)
    _print(found, format)
    for message in found.messages:
        say(printable(message))
    _draw(found, figure, picture, there.folder / "findings")


def _print(found: Trajectories, format: Format) -> None:
    """All rows; for people those of the metrics that are shown, without columns that say nothing."""
    from forensics.trajectories import COLUMNS

    if format is not Format.table:
        emit_rows(found.rows, format, COLUMNS)
        return
    rows = [row for curve in found.shown_curves for row in curve.rows]
    said = {name: {row[name] for row in rows} - {None, ""} for name in COLUMNS}
    emit_rows(rows, format, [name for name in COLUMNS if len(said[name]) > (name in ("run", "settings"))])


def _draw(found: Trajectories, figure: Figure, picture: Path | None, findings: Path) -> None:
    """Where it was asked for; else among the findings, as PNG and as HTML."""
    from forensics.figure import write_figure

    places = [picture] if picture is not None else [findings / f"{_name(found)}{end}" for end in (".png", ".html")]
    for place in places:
        try:
            write_figure(figure, place)
        except (DiskFull, NotWritable) as error:
            if picture is not None:
                raise
            say(f"no picture: {error}")
        else:
            say(f"picture: {place}")


def _name(found: Trajectories) -> str:
    """Of the runs and probes, as far as a file's name can hold them."""
    name = "-".join(["trajectory", *found.runs, *found.probes])
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:MOST_CHARACTERS]


COMMANDS = (trajectory,)
