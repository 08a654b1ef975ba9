"""The verb that takes in what others logged: import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forensics.cli.options import FormatOption, PlanOption, RunArgument, WorkspaceOption, open_workspace, pairs_of
from forensics.cli.output import Format, emit_rows, printable, say


def import_(
    run: RunArgument,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="One log, in the order of time; or result files of lm-eval.")
    ],
    as_format: Annotated[
        str | None,
        typer.Option(
            "--as", help="json-lines, csv, parquet, tensorboard, wandb, megatron or lm-eval, if not recognised."
        ),
    ] = None,
    step_field: Annotated[str | None, typer.Option(help="What the log calls its step.")] = None,
    step_offset: Annotated[
        int, typer.Option(help="Add this to the log's steps: 1 where it counts from 0. Here the first step is 1.")
    ] = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=TEXT", help="Only records that say so, of a file that holds several runs."),
    ] = None,
    new: Annotated[
        bool, typer.Option("--new", help="Make a run of nothing but this: its weights and data are not at hand.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="In place of everything imported before.")] = False,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Import metrics: JSON lines, CSV, Parquet, TensorBoard, W&B, Megatron's text, results of lm-eval.

    Every point is kept; steps that a restart took again are attempts. Names that are well known get one name (loss,
    grad_norm, learning_rate, …) beside their own.

    Example: forensics import demo train.log --plan
    """
    from forensics.imported_metrics import COLUMNS, import_metrics

    found = import_metrics(
        run,
        *files,
        format=as_format,
        step_field=step_field,
        step_offset=step_offset,
        only=pairs_of("--only", only),
        new=new,
        replace=replace,
        plan=plan,
        workspace=open_workspace(workspace),
        progress=say,
    )
    emit_rows(found.rows, format, COLUMNS[1:-1] if format is Format.table else COLUMNS)
    for message in found.messages:
        say(printable(message))
    done = "nothing was written (--plan)" if plan else "imported" if found.kinds else "nothing was written"
    say(f"{run}: {found.num_points:,} points of {len(found.rows):,} metrics; {done}")


import_.__name__ = "import"  # the verb is a word of Python's

COMMANDS = (import_,)
