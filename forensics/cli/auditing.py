"""The verb that checks: audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forensics.cli.options import (
    FormatOption,
    MaxFetchOption,
    PlanOption,
    RunArgument,
    WorkspaceOption,
    command_line,
    open_workspace,
)
from forensics.cli.output import Format, emit_object, emit_rows, keep, print_table, printable, say


def audit(
    run: RunArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every token file and every tensor, and hash all files.")
    ] = False,
    evals: Annotated[
        Path | None, typer.Option("--evals", help="Published evaluations: a folder of lm-eval's result files.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to draw it: FILE.png and FILE.html.")
    ] = None,
    max_fetch: MaxFetchOption = None,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Check a run: files, order, checkpoints, their weights, tokenizer, evaluations; exits with 1 if anything failed.

    Example: forensics audit demo --deep
    """
    there = open_workspace(workspace)
    if plan:
        from forensics.audit_plan import plan_audit

        cost = plan_audit(run, deep=deep, workspace=there)
        emit_object(cost, format, lambda: print_table(list(cost), [cost]))
        return
    from forensics.audit_rows import COLUMNS
    from forensics.kept_findings import finding_of_audit
    from forensics.soundness import audit as check

    result = check(
        run,
        deep=deep,
        evaluations=evals,
        max_fetch=max_fetch,
        workspace=there,
        progress=lambda text: say(f"{run}: {text}"),
    )
    keep(there, finding_of_audit(result, command_line()), base=output)
    emit_rows(result.rows, format, COLUMNS)
    for note in result.notes:
        say(note)
    if result.failed:
        say(f"{len(result.failed)} of {len(result.rows)} checks failed")
        for row in result.failed:
            say(f"  {printable(row['artifact'])}: {printable(row['detail'])}")
        raise typer.Exit(1)


COMMANDS = (audit,)
