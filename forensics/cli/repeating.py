"""The verb that finds what was read twice: repeats."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from forensics.cli.options import FormatOption, MaxFetchOption, PlanOption, RunArgument, WorkspaceOption, open_workspace
from forensics.cli.output import Format, emit_arrow, emit_object, print_table, say


def repeats(
    run: RunArgument,
    steps: Annotated[
        str | None, typer.Argument(metavar="[STEP|A:B]", help="Only what these steps read; default: the whole run.")
    ] = None,
    of: Annotated[str, typer.Option("--of", help="Compare documents, or instances (rows).")] = "documents",
    near: Annotated[
        float | None,
        typer.Option("--near", help="Also texts with this share of their 5-token runs in common."),
    ] = None,
    min_tokens: Annotated[int, typer.Option("--min-tokens", help="Pass over texts with fewer tokens.")] = 1,
    limit: Annotated[int, typer.Option("--limit", help="Print this many groups; 0: all.", min=0)] = 20,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw first reading against repeat: FILE.png or FILE.html.")
    ] = None,
    max_fetch: MaxFetchOption = None,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Find texts that were read more than once, the same or nearly, and the steps that read them.

    Example: forensics repeats demo 0:190 --near 0.8
    """
    from forensics.repetition import plan_repeats
    from forensics.repetition import repeats as find_repeats

    there = open_workspace(workspace)
    if plan:
        cost = plan_repeats(run, steps, of=of, workspace=there)
        emit_object(cost, format, lambda: print_table(list(cost), [cost]))
        return
    found = find_repeats(
        run,
        steps,
        of=of,
        near=near,
        min_tokens=min_tokens,
        limit=None if picture else limit or None,
        max_fetch=max_fetch,
        workspace=there,
        progress=TextProgress(),
    )
    if picture is not None:
        from forensics.figure import write_figure
        from forensics.repetition_picture import figure_of_repeats

        write_figure(figure_of_repeats(found), picture)
        say(f"picture: {picture}")
    emit_arrow(found.first_groups(limit or None), format)
    say(f"{run}: {found}")
    if 0 < limit < found.num_groups:
        say(f"the first {limit} of {found.num_groups:,} groups are printed; all: --limit 0")


class TextProgress:
    """Shows how many texts are read: one moving line on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.told = time.monotonic()

    def __call__(self, doing: str, done: int, total: int, seconds: float) -> None:
        now, moving = time.monotonic(), sys.stderr.isatty()
        if done < total and now - self.told < (0.5 if moving else 10.0):
            return
        self.told = now
        text = f"{doing}: {done:,} of {total:,}, {done / max(seconds, 1e-3):,.0f} a second"
        if moving:
            print(f"\r\033[K{text}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        else:
            say(text)


COMMANDS = (repeats,)
