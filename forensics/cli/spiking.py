"""The verb that finds spikes: spikes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forensics.cli.options import FormatOption, WorkspaceOption, command_line, open_workspace, pairs_of
from forensics.cli.output import Format, draw, emit_object, emit_rows, keep, print_table, printable, say

if TYPE_CHECKING:
    from data_index.workspace import Workspace
    from forensics.spike_detection import Spikes

SHOWN = (
    *("onset", "peak", "recovery", "kind", "lead_steps", "series", "level", "peak_value", "peak_z", "area"),
    *("lasting_offset", "detail"),
)
MOST_SHOWN = 40


def spikes(
    run: Annotated[str, typer.Argument(metavar="RUN|FILE", help="A run, a fork, or a log file that import reads.")],
    other: Annotated[
        str | None, typer.Argument(metavar="[RUN|FILE]", help="Another: do both have their spikes at the same steps?")
    ] = None,
    loss: Annotated[str | None, typer.Option(metavar="NAME", help="Which metric is the loss [default: loss].")] = None,
    grad_norm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which is the gradient norm before clipping [default: grad_norm]."),
    ] = None,
    as_format: Annotated[str | None, typer.Option("--as", help="Format of a log file, if not recognised.")] = None,
    step_field: Annotated[str | None, typer.Option(help="What a log file calls its step.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=TEXT", help="Only records of a log file that say so.")
    ] = None,
    picture: Annotated[Path | None, typer.Option("-o", "--picture", help="Draw it: FILE.png or FILE.html.")] = None,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Find loss spikes in a log: onset, peak, lead of the gradient norm, recovery, fast or slow; NaN; new levels.

    A value is flagged more than 6 robust deviations above the median of the last 128 unflagged ones. The definitions of
    the OLMo 2 paper and of OLMo-core are counted beside it.

    Example: forensics spikes demo
    """
    from forensics.spike_detection import spikes as find

    there = open_workspace(workspace)
    found = find(
        run,
        other,
        loss=loss,
        grad_norm=grad_norm,
        format=as_format,
        step_field=step_field,
        only=pairs_of("--only", only),
        workspace=there,
    )
    if found.coincidence is not None:
        together = found.coincidence
        value = {name: getattr(together, name) for name in together.__slots__}
        emit_object(value | {"coincide": together.coincide}, format, lambda: _print_steps(together.steps))
    elif format is Format.table:
        _print_events(found)
    else:
        emit_rows(found.rows, format, list(found.rows[0]) if found.rows else None)
    for message in found.messages:
        say(printable(message))
    if found.coincidence is None:
        _say_definitions(found.definitions)
    _draw(found, picture, there)


def _draw(found: Spikes, picture: Path | None, workspace: Workspace) -> None:
    """Of a run of the workspace it is kept among its findings; of a log file drawn where it was asked for."""
    from forensics.kept_findings import finding_of_spikes
    from forensics.spike_picture import picture_of

    if found.is_run:
        keep(workspace, finding_of_spikes(found, command_line()), picture)
    else:
        draw(lambda: picture_of(found), picture, None)


def _print_events(found: Spikes) -> None:
    """The largest, in the order of their steps."""
    rows = found.robust_rows
    spikes = sorted((row for row in rows if row["peak_z"] is not None), key=lambda row: -row["peak_z"])
    left_out = {id(row) for row in spikes[MOST_SHOWN:]}
    shown = [row for row in rows if id(row) not in left_out]
    if not shown:
        return
    columns = [name for name in SHOWN if any(row[name] not in (None, "", []) for row in shown)]
    if len({row["attempt"] for row in shown}) > 1:
        columns.insert(1, "attempt")
    print_table(columns, shown)
    if left_out:
        say(f"{len(left_out)} smaller spikes are not shown (--format csv has all, as has forensics sql for a run)")


def _print_steps(steps: Sequence[Mapping[str, Any]]) -> None:
    largest = sorted(steps, key=lambda row: -min(row["z"], row["z_other"]))[:MOST_SHOWN]
    if not largest:
        say("no step stands out in both")
        return
    print_table(list(largest[0]), sorted(largest, key=lambda row: row["step"]))
    if len(steps) > len(largest):
        say(f"{len(steps) - len(largest)} smaller ones are not shown (--format csv has all)")


def _say_definitions(definitions: Sequence[Mapping[str, Any]]) -> None:
    """A line a definition: what it is, how many steps it flags."""
    for name, group in groupby(definitions, key=lambda row: row["definition"]):
        rows = list(group)
        what = ", ".join(f"{key} {_told(value)}" for key, value in rows[0]["parameters"].items())
        counts = [f"{row['series']} {row['flagged']:,} ({row['percent']:.3g} %)" for row in rows]
        say(f"{name} ({what}): {', '.join(counts)} flagged, {rows[-1]['events']:,} events")
        tails = [f"{row['series']} {row['tail_index']:.2g}" for row in rows if row.get("tail_index")]
        if tails:
            say(f"  tail index of the robust z: {', '.join(tails)} (normal noise has about 7, heavy tails 2 to 4)")
        if rows[-1]["by_not_finite"]:
            say(f"  {rows[-1]['by_not_finite']:,} of them because NaN or infinity stands in its window")


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


COMMANDS = (spikes,)
