"""The verb tokens with --repair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from forensics.cli.output import Format, WriteProgress, emit_rows, printable, say

MOST_SHOWN = 40


def repair_model(
    model: str,
    output: Path | None,
    asked: Mapping[str, Any],
    plan: bool,
    limit: int | None,
    report: Path | None,
    format: Format,
) -> None:
    """
    Args:
        asked: what `repair` takes besides, by name.
    """
    from forensics.token_repair import repair

    if report is not None:
        raise typer.BadParameter("--repair writes its report into DIR, as repair.json; it takes no --report")
    if output is None and not plan:
        raise typer.BadParameter("--repair writes a model: name its folder with -o DIR")
    done = repair(model, output, plan=plan, progress=WriteProgress(), **asked)
    for name, value in done.facts():
        say(printable(f"{name}: {value}"))
    say(printable(f"wrote {done.folder}") if done.folder is not None else "nothing was written: this is the plan")
    if format is Format.table and limit is None and len(done.rows) > MOST_SHOWN:
        limit = MOST_SHOWN
        say(f"the first {limit} of {len(done.rows):,} rows (--limit N prints more; repair.json holds all)")
    emit_rows(done.rows[:limit], format, done.columns)
