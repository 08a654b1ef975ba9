"""The verb that counts: exposures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from forensics.cli.options import FormatOption, MaxFetchOption, PlanOption, RunArgument, WorkspaceOption, open_workspace
from forensics.cli.output import Format, emit_arrow, emit_object, emit_rows, print_table, say


def exposures(
    run: RunArgument,
    steps: Annotated[
        str, typer.Option("--steps", metavar="A:B", help="Only from checkpoint A to checkpoint B, counted from A.")
    ] = "all",
    every: Annotated[int | None, typer.Option(help="Keep the counts every so many steps, beside checkpoints.")] = None,
    token: Annotated[int | None, typer.Option(help="Only this token id, at each record.")] = None,
    picture: Annotated[Path | None, typer.Option("-o", "--picture", help="Draw it: FILE.png or FILE.html.")] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check token files against hashes.")] = True,
    max_fetch: MaxFetchOption = None,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Count how often each token id was consumed up to each checkpoint, as input and as target.

    Example: forensics exposures demo --token 17
    """
    from forensics.counting_plan import plan_exposures
    from forensics.token_counts import exposures as count

    there = open_workspace(workspace)
    if plan:
        cost = plan_exposures(run, steps, every=every, workspace=there)
        emit_object(cost, format, lambda: print_table(list(cost), [cost]))
        return
    found = count(
        run,
        steps,
        every=every,
        verify=verify,
        max_fetch=max_fetch,
        workspace=there,
        progress=CountProgress(run),
    )
    if picture is not None:
        from forensics.exposure_picture import picture_of
        from forensics.figure import write_figure

        write_figure(picture_of(found, there.run(run).vocabulary_size), picture)
        say(f"picture: {picture}")
    if token is not None:
        emit_arrow(found.table(token=token), format)
    else:
        emit_rows(found.summary, format)


class CountProgress:
    """Tokens gone through, how fast, and how long it will take."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.began = self.told = time.monotonic()
        self.moving = sys.stderr.isatty()

    def __call__(self, done: int, here: int, total: int) -> None:
        now = time.monotonic()
        if now - self.told < (0.5 if self.moving else 10.0) and (done < total or now - self.began < 1):
            return
        self.told = now
        rate = here / max(now - self.began, 1e-9)
        left = (total - done) / max(rate, 1e-9)
        text = f"{self.run}: counted {done:,} of {total:,} tokens, {rate / 1e6:,.1f}M a second"
        text += f", {left:,.0f} s left" if done < total else ""
        if self.moving:
            print(f"\r\033[K{text}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        else:
            say(text)


COMMANDS = (exposures,)
