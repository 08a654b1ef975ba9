"""Verbs that say what the data are: documents, tag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forensics.cli.options import FormatOption, MaxFetchOption, PlanOption, RunArgument, WorkspaceOption, open_workspace
from forensics.cli.output import Format, emit_arrow, emit_object, print_table, say


def documents(
    run: RunArgument,
    provenance: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Learn them from this folder's .csv.gz files.")
    ] = None,
    by_end_token: Annotated[
        bool, typer.Option("--by-end-token", help="Learn them from the tokens: each ends with the end token.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check token files against hashes.")] = True,
    max_fetch: MaxFetchOption = None,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Show the documents of a run's token files; learn where they begin and end, and what they are.

    Without an option they are learned where none are known: from .csv.gz files beside the token files, else by the end
    token. Stopped, the same command goes on.

    Example: forensics documents demo
    """
    from forensics.document_learning import documents as learn
    from forensics.document_learning import plan_documents

    there = open_workspace(workspace)
    if plan:
        cost = plan_documents(run, provenance=provenance, by_end_token=by_end_token, workspace=there)
        emit_object(cost, format, lambda: print_table(list(cost), [cost]))
        return
    found = learn(
        run,
        provenance=provenance,
        by_end_token=by_end_token,
        verify=verify,
        max_fetch=max_fetch,
        workspace=there,
        progress=say,
    )
    emit_arrow(found, format)


COMMANDS = (documents,)
