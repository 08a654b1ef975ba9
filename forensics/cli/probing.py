"""Verbs that measure checkpoints: probe, probes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forensics.cli.options import (
    DeviceOption,
    FormatOption,
    MaxFetchOption,
    OutputOption,
    PlanOption,
    RunArgument,
    WorkspaceOption,
    command_line,
    open_workspace,
)
from forensics.cli.output import CheckpointProgress, Format, emit_arrow, emit_rows, keep, print_table, printable, say

if TYPE_CHECKING:
    from data_index.workspace import Workspace
    from forensics.probe_options import ProbeOptions
    from forensics.probing import Probed

MOST_METRICS = 8
MOST_PROBLEMS = 8


def probe(
    run: RunArgument,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Probes (forensics probes), all, task:NAME, or module:function."),
    ],
    checkpoints: Annotated[
        str, typer.Option("--checkpoints", help="all, log:40, A:B, A:B:k, or steps such as 0,20,40.")
    ] = "all",
    against: Annotated[
        str | None,
        typer.Option(metavar="RUN[@STEP]|MODEL", help="Beside one checkpoint, another one, or any model, on its rows."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw what --against finds: FILE.png or FILE.html.")
    ] = None,
    num_tokens: Annotated[int, typer.Option(help="Tokens of the rows that are looked at.")] = 65_536,
    length: Annotated[int | None, typer.Option(help="Of rows, at most [default: as the run's].")] = None,
    seed: Annotated[int, typer.Option(help="Of samples of rows, and of sampling.")] = 0,
    num_generated: Annotated[int, typer.Option(help="Tokens after each prompt of generations.", min=1)] = 32,
    step_size: Annotated[float, typer.Option(help="Of the sampling of learning-coefficient.")] = 1e-5,
    localization: Annotated[float, typer.Option(help="Of the same: how strongly it is held at the weights.")] = 100.0,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples in the prompts of tasks [default: the task's].")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Instances of tasks [default: all].", min=1)] = None,
    device: DeviceOption = "auto",
    precision: Annotated[str, typer.Option("--precision", help="fp32, or bf16.")] = "fp32",
    threads: Annotated[int | None, typer.Option(help="Of the CPU; the last digits depend on it.", min=1)] = None,
    workers: Annotated[
        int | None, typer.Option(help="So many processes, through Ray (extra distributed).", min=1)
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of a running Ray cluster, whose machines are used.")
    ] = None,
    max_fetch: MaxFetchOption = None,
    forget_fetched: Annotated[
        bool, typer.Option("--forget-fetched", help="Delete fetched weights once they are read: disk holds two.")
    ] = False,
    plan: PlanOption = False,
    output: OutputOption = None,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Measure checkpoints: losses, memorization, induction, spectra, benchmarks, or a function of your own.

    Each checkpoint is read once for all probes, and only the tensors that they need. Everything is kept: the same
    command goes on where it was, and forensics trajectory draws it. Checkpoints that cannot be read are skipped and
    told; the command then exits with 1.

    Example: forensics probe demo loss norms --checkpoints log:5
    """
    from data_index.exports import require_known_suffix
    from forensics.probe_options import ProbeOptions
    from forensics.probing import COLUMNS
    from forensics.probing import probe as measure
    from forensics.probing_plan import COLUMNS as PLAN_COLUMNS
    from forensics.probing_plan import plan_probe

    _require_sense(
        sweeping={"-o": output, "--plan": plan or None, "--workers": workers, "--ray-address": ray_address},
        against=against,
        picture=picture,
    )
    if output is not None:
        require_known_suffix(output)
    options = ProbeOptions(
        num_tokens=num_tokens,
        length=length,
        seed=seed,
        max_fetch=max_fetch,
        forget_fetched=forget_fetched,
        device=device,
        precision=precision,
        threads=threads,
        num_generated=num_generated,
        step_size=step_size,
        localization=localization,
        num_fewshot=num_fewshot,
        limit=limit,
    )
    if against is not None:
        _side_by_side(run, names, checkpoints, against, options, open_workspace(workspace), picture, format)
        return
    asked: dict[str, Any] = {"checkpoints": checkpoints, "options": options, "workspace": open_workspace(workspace)}
    if plan:
        rows, messages = plan_probe(run, *names, **asked)
        emit_rows(rows, format, PLAN_COLUMNS)
        for message in messages:
            say(printable(message))
        return
    if workers is not None or ray_address is not None:
        from forensics.ray_measuring import measured_on_ray

        if threads is None and ray_address is None:
            say("each worker computes with all cores: --threads 1 gives each its own (equal threads give equal bits)")
        asked["measuring"] = partial(measured_on_ray, workers=workers, address=ray_address)
    with redirect_stdout(sys.stderr):  # what functions of the user's and tasks print is no row
        found = measure(run, *names, progress=CheckpointProgress(), **asked)
    columns = (*COLUMNS, "text") if any(row["text"] is not None for row in found.rows) else COLUMNS
    if output is not None:
        _write(found.rows, output)
    elif format is Format.table:
        _print(found.rows, columns)
    else:
        emit_rows(found.rows, format, columns)
    _tell(found)
    if found.problems:
        raise typer.Exit(1)


def probes(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="What there is of this run.")] = None,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """List the probes that have a name; of a run, those that were measured or published, at how many checkpoints.

    Example: forensics probes demo
    """
    if run is None:
        from forensics.probe_catalogue import described_probes

        emit_rows(described_probes(), format)
        return
    from data_index.probe_queries import probe_summaries

    there = open_workspace(workspace)
    emit_arrow(probe_summaries(there, there.run(run)), format)


def _require_sense(sweeping: Mapping[str, Any], against: str | None, picture: Path | None) -> None:
    """
    Args:
        sweeping: options of a sweep over checkpoints, None where they were not given.
    Raises:
        BadParameter: an option would be passed over.
    """
    given = [name for name, value in sweeping.items() if value is not None]
    if against is not None and given:
        raise typer.BadParameter(
            f"--against measures two models here, and prints its rows (--format csv > FILE); {given[0]} goes with a "
            "sweep"
        )
    if against is None and picture is not None:
        raise typer.BadParameter("--picture draws what --against finds; forensics trajectory draws a sweep")
    if picture is not None and picture.suffix not in (".png", ".html"):
        raise typer.BadParameter(f"--picture {picture}: its name ends neither in .png nor in .html")


def _side_by_side(
    run: str,
    names: Sequence[str],
    checkpoints: str,
    against: str,
    options: ProbeOptions,
    workspace: Workspace,
    picture: Path | None,
    format: Format,
) -> None:
    """Numbers as rows; texts below them, one under the other."""
    from forensics.kept_findings import finding_of_sides
    from forensics.side_by_side import COLUMNS, side_by_side

    if checkpoints != "all" and not checkpoints.isdecimal():
        raise typer.BadParameter("--against takes one checkpoint: --checkpoints STEP [default: the last]")
    step = int(checkpoints) if checkpoints.isdecimal() else None
    with redirect_stdout(sys.stderr):
        found = side_by_side(run, *names, against=against, checkpoint=step, options=options, workspace=workspace)
    texts = [row for row in found.rows if row["text"] is not None or row["other_text"] is not None]
    if format is not Format.table:
        emit_rows(found.rows, format, (*COLUMNS, "text", "other_text") if texts else COLUMNS)
    else:
        emit_rows([row for row in found.rows if row not in texts], format, COLUMNS)
        for row in texts:
            print(printable(f"{row['probe']}, {row['metric']}"))
            for label, text in ((found.one, row["text"]), (found.other, row["other_text"])):
                print(f"  {label}: {printable(str(text))}")
    for message in (*found.messages, *found.problems):
        say(printable(message))
    say(printable(f"value: {found.one}; other: {found.other}"))
    keep(workspace, finding_of_sides(run, against, found, command_line(), workspace), picture)
    if found.problems:
        raise typer.Exit(1)


def _write(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    import pyarrow

    from data_index.exports import write_table
    from data_index.kinds import arrow_schema

    schema = pyarrow.schema([field for field in arrow_schema("probes") if field.name != "settings"])
    write_table(output, pyarrow.Table.from_pylist([dict(row) for row in rows], schema=schema))
    say(f"wrote {len(rows):,} rows to {output}")


def _print(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """The first metrics of each probe."""
    shown: list[Mapping[str, Any]] = []
    for name, group in groupby(rows, key=lambda row: row["probe"]):
        of_probe = list(group)
        metrics = list(dict.fromkeys(row["metric"] for row in of_probe))
        shown += [row for row in of_probe if row["metric"] in metrics[:MOST_METRICS]]
        if len(metrics) > MOST_METRICS:
            say(f"{printable(name)}: {MOST_METRICS} of {len(metrics)} metrics are shown (--format csv has all)")
    print_table(columns, shown) if shown else say("no rows")


def _tell(found: Probed) -> None:
    for message in found.messages:
        say(printable(message))
    by_message = groupby(sorted(found.problems, key=lambda one: (one.message, one.step)), key=lambda one: one.message)
    told = [(message, list(problems)) for message, problems in by_message]
    for message, problems in told[:MOST_PROBLEMS]:
        steps = sorted({problem.step for problem in problems})
        where = f"checkpoint {steps[0]}" + (f" and {len(steps) - 1} more" if len(steps) > 1 else "")
        which = ", ".join(sorted({problem.probe for problem in problems}))
        say(printable(f"skipped at {where}: {which}: {message}"))
    if len(told) > MOST_PROBLEMS:
        say(f"{len(told) - MOST_PROBLEMS} more reasons are not shown (forensics.probe(...).problems has all)")
    say(
        printable(
            f"{found.run}: {found.num_measured} checkpoints measured in {found.seconds:.1f} s, {found.num_kept} as "
            f"kept; {found.num_bytes:,} bytes of weights read"
        )
    )


COMMANDS = (probe, probes)
