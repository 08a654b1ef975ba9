"""Verbs that say what the data are: documents, tag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forensics.cli.options import FormatOption, MaxFetchOption, PlanOption, RunArgument, WorkspaceOption, open_workspace
from forensics.cli.output import Format, emit_arrow, emit_object, print_table, say

MAX_ROWS = 40  # of tags in a table


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


def tag(
    run: RunArgument,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="From folders of source paths and hosts of addresses.")
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="From Parquet or CSV: document_id or external_id, and tag."),
    ] = None,
    function: Annotated[
        str | None,
        typer.Option("--fn", metavar="MODULE:FUNCTION", help="From your function over each document's text."),
    ] = None,
    origin: Annotated[
        str | None, typer.Option("--name", metavar="ORIGIN", help="Name of these tags' origin; it is replaced.")
    ] = None,
    remove: Annotated[str | None, typer.Option(metavar="ORIGIN", help="Take away the tags of an origin.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Try the function on so many documents, and keep nothing.")
    ] = None,
    max_fetch: MaxFetchOption = None,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Tag documents, for --by tag, SQL and edits; without an option, show the tags that were learned.

    Example: forensics tag demo --fn my_tags:language
    """
    from forensics.document_tags import plan_tag
    from forensics.document_tags import tag as tag_documents

    there = open_workspace(workspace)
    if plan:
        cost = plan_tag(run, function=function, workspace=there)
        emit_object(cost, format, lambda: print_table(list(cost), [cost]))
        return
    found = tag_documents(
        run,
        provenance=provenance,
        table=table,
        function=function,
        origin=origin,
        remove=remove,
        limit=limit,
        max_fetch=max_fetch,
        workspace=there,
        progress=say,
    )
    if format is Format.table and limit is None and found.num_rows > MAX_ROWS:
        say(f"{found.num_rows:,} tags; the first {MAX_ROWS} are shown (all: --format csv)")
        found = found.slice(0, MAX_ROWS)
    emit_arrow(found, format)


COMMANDS = (documents, tag)
