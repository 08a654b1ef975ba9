"""Verbs that search: where, ngrams."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from forensics.cli.options import FormatOption, MaxFetchOption, PlanOption, RunArgument, WorkspaceOption, open_workspace
from forensics.cli.output import Format, SearchProgress, SortProgress, emit_arrow, emit_object, print_table, say


def where(
    run: RunArgument,
    text: Annotated[str | None, typer.Option(help="Text, found however it was tokenized.")] = None,
    document: Annotated[int | None, typer.Option(help="A document id.")] = None,
    instance: Annotated[int | None, typer.Option(help="An instance.")] = None,
    token: Annotated[int | None, typer.Option(help="A token id.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Stop searching for a text or a token once so many instances were found.")
    ] = None,
    max_fetch: MaxFetchOption = None,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Find every step that read an instance, a document, a text or a token.

    Example: forensics where demo --text "def main"
    """
    from forensics.lookup import where as readings

    there = open_workspace(workspace)
    if plan:
        _print_plan(there, run, searches=text is not None or token is not None, format=format)
        return
    table = readings(
        run,
        text=text,
        document=document,
        instance=instance,
        token=token,
        limit=limit,
        max_fetch=max_fetch,
        progress=SearchProgress(),
        note=say,
        workspace=there,
    )
    emit_arrow(table, format)


def _print_plan(workspace: Any, run: str, *, searches: bool, format: Format) -> None:
    from forensics.occurrences import plan_search

    cost = plan_search(workspace, run, searches=searches)
    emit_object(cost, format, lambda: print_table(list(cost), [cost]))


def ngrams(
    run: RunArgument,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Build an index of the token files once, so that where --text and --token answer at once.

    Example: forensics ngrams demo
    """
    from forensics.text_index import ngrams as build
    from forensics.text_index import plan_ngrams

    there = open_workspace(workspace)
    done = plan_ngrams(run, workspace=there) if plan else build(run, progress=SortProgress(), workspace=there)
    emit_object(done, format, lambda: print_table(list(done), [done]))


COMMANDS = (where, ngrams)
