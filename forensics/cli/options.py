"""Options that many verbs share."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import click
import typer
from click.core import ParameterSource

from data_index.workspace import Workspace
from forensics.cli.output import Format

# Where a verb works and how it prints; not part of what it is asked.
ASIDE = ("workspace", "format", "picture", "output", "plan")

WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", help="Workspace folder [env: FORENSICS_WORKSPACE; else ~/.local/share/forensics]."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print rows.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="recipe, or fp32.")]
DeterministicOption = Annotated[
    bool, typer.Option("--deterministic/--no-deterministic", help="Refuse operations without a deterministic kernel.")
]
ApproximateOption = Annotated[
    bool, typer.Option("--approximate", help="Pass over settings that define another step; lowers the grade.")
]
FreshOptimizerOption = Annotated[
    bool,
    typer.Option("--fresh-optimizer", help="Start at zero what the optimizer remembers, where that is not published."),
]
MaxFetchOption = Annotated[
    int | None, typer.Option("--max-fetch", help="Bytes that may be fetched from servers [default: 1 GiB].")
]
PlanOption = Annotated[bool, typer.Option("--plan", help="Print what it would cost, and stop.")]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", help="Write .parquet, .csv or .jsonl instead of printing.")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run or a fork.")]


def open_workspace(folder: Path | None) -> Workspace:
    return Workspace(folder)


def command_line() -> str:
    """The verb that is running with all that it was given, for a shell; less where it works and how it prints."""
    context = click.get_current_context()
    words = ["forensics", context.info_name or ""]
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        value = context.params.get(name)
        if not given or name in ASIDE or value is None:
            continue
        values = list(value) if isinstance(value, list | tuple) else [value]
        if isinstance(parameter, click.Argument):
            words += map(str, values)
        elif isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            option = max(parameter.opts, key=len)
            words += [word for one in values for word in (option, str(one))]
    return shlex.join(words)


def pairs_of(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """FIELD=TEXT, as often as it was given."""
    for pair in given or ():
        if "=" not in pair:
            raise typer.BadParameter(f"{option} takes FIELD=TEXT, not {pair!r}")
    return dict(pair.split("=", 1) for pair in given or ())
