"""The verb that looks after what the explorer started: jobs."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from forensics.cli.options import FormatOption, WorkspaceOption, open_workspace
from forensics.cli.output import Format, emit_object, emit_rows, say, show_value

COLUMNS = ["id", "state", "started", "seconds", "progress", "command"]


def jobs(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Only this one.")] = None,
    log: Annotated[bool, typer.Option("--log", help="Print what it printed.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="End it, as Ctrl-C would.")] = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """List what the explorer started: how far each is, what it printed; or cancel one.

    Example: forensics jobs
    """
    from forensics.background_jobs import cancel_job
    from forensics.background_jobs import job as find_job
    from forensics.background_jobs import jobs as all_jobs

    there = open_workspace(workspace)
    if job is None:
        if log or cancel:
            raise typer.BadParameter("--log and --cancel are of one job: name it")
        emit_rows([_row(found, there) for found in all_jobs(workspace=there)], format, COLUMNS)
        return
    found = cancel_job(job, workspace=there) if cancel else find_job(job, workspace=there)
    if log:
        print(found.log)
        return
    row = _row(found, there) | {key: value for key, value in asdict(found).items() if key in ("exit_code", "fork")}
    emit_object(row, format, lambda: _print(row))
    if found.state in ("cancelled", "lost") and found.arguments[0] == "fork":
        say(f"it goes on by the same command: {found.command}")


def _row(found: Any, workspace: Any) -> dict[str, Any]:
    from forensics.background_jobs import progress_of_job

    return {
        "id": found.id,
        "state": found.state,
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.started)),
        "seconds": None if found.seconds is None else round(found.seconds, 1),
        "progress": progress_of_job(found, workspace=workspace).text,
        "command": found.command,
    }


def _print(row: dict[str, Any]) -> None:
    for name, value in row.items():
        if value is not None:
            print(f"{name:10}{value if name == 'command' else show_value(value)}")


COMMANDS = (jobs,)
