"""Verbs that compute or write: demo, add, replay, remove, prune."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from forensics.cli.options import (
    ApproximateOption,
    DeterministicOption,
    DeviceOption,
    FormatOption,
    FreshOptimizerOption,
    PlanOption,
    PrecisionOption,
    RunArgument,
    WorkspaceOption,
    open_workspace,
)
from forensics.cli.output import Format, StepProgress, emit_object, print_table, say


def demo(workspace: WorkspaceOption = None, plan: PlanOption = False) -> None:
    """Train a small run on this machine, index it, and ask it every question there is.

    Example: forensics demo
    """
    from forensics.walkthrough import demo as walk

    walk(workspace=open_workspace(workspace), plan=plan, say=say, show=print, progress=StepProgress)


def add(
    source: Annotated[
        str,
        typer.Argument(help="A run's folder, manifest.toml, a hub repository (ORG/NAME), or a name of the catalog."),
    ],
    name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    data: Annotated[str | None, typer.Option(help="Where its token files are: DIR, or hub:datasets/ORG/NAME.")] = None,
    metrics: Annotated[Path | None, typer.Option(help="A trainer's record as JSON lines.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="Force a layout: native, olmo_core, olmo, neox, bloom, amber, k2.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: what the trainer was told and no file says.")
    ] = None,
    revisions: Annotated[
        str | None, typer.Option(help="How a repository names its checkpoints: '^checkpoint-(?P<step>[0-9]+)$'.")
    ] = None,
    listing: Annotated[
        Path | None,
        typer.Option(help="An official list (CSV) of checkpoints elsewhere, with all their states."),
    ] = None,
    loss_check: Annotated[
        bool, typer.Option(help="Where nothing proves a batch: compute one logged loss, if that takes seconds.")
    ] = True,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Register and index a run; its layout is recognised. Of runs on servers, no token and no tensor is fetched.

    Example: forensics add pythia-160m
    """
    from forensics.adding import add as register
    from forensics.cli.edits import read_settings

    run = register(
        source,
        name=name,
        data=data,
        metrics=metrics,
        layout=layout,
        settings=read_settings(set_ or []),
        revisions=revisions,
        listing=listing,
        loss_check=loss_check,
        workspace=open_workspace(workspace),
        progress=say,
    )
    found = {
        "run": run.name,
        "layout": run.layout,
        "steps": f"{run.first_step}..{run.last_step}",
        "instances": run.num_instances,
        "order_trust": str(run.trust),
    }
    emit_object(found, format, lambda: print_table(list(found), [found]))


def replay(
    run: RunArgument,
    steps: Annotated[str, typer.Argument(metavar="A:B", help="From checkpoint A to checkpoint B.")],
    explain: Annotated[bool, typer.Option("--explain", help="Say what the grade rests on.")] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check token files against hashes.")] = True,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "recipe",
    deterministic: DeterministicOption = True,
    approximate: ApproximateOption = False,
    fresh_optimizer: FreshOptimizerOption = False,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Take steps again from a checkpoint, compare with the log and with checkpoint B, and grade it.

    Example: forensics replay demo 100:160
    """
    there = open_workspace(workspace)
    if plan:
        _print_plan(there, run, steps, device, precision, approximate, fresh_optimizer, format)
        return
    from forensics.reproduction import replay as replay_run

    report = replay_run(
        run,
        steps,
        workspace=there,
        device=device,
        precision=precision,
        verify=verify,
        enforce_determinism=deterministic,
        approximate=approximate,
        fresh_optimizer=fresh_optimizer,
        progress=StepProgress(f"replaying {run} {steps}"),
    )
    emit_object(asdict(report), format, lambda: _print_report(report, explain))


def _print_plan(
    workspace: Any,
    run: str,
    steps: str,
    device: str,
    precision: str,
    approximate: bool,
    fresh_optimizer: bool,
    format: Format,
) -> None:
    from data_index.run import parse_steps
    from forensics.configured import configured_run
    from forensics.fetching import bytes_of_steps, bytes_of_weights
    from forensics.reproduction import estimate, prepare
    from forensics.starting import require_optimizer

    record = workspace.run(run)
    first, last = parse_steps(steps, record)
    start = workspace.checkpoint(record, first)
    require_optimizer(workspace, record, start, fresh_optimizer)
    download = bytes_of_weights(start) + bytes_of_steps(workspace, record, first, last)
    record = configured_run(record, first, last, approximate=approximate)
    setup = prepare(workspace, record, device, precision, approximate=approximate)
    tokens = record.tokens_after(last) - record.tokens_after(first)
    cost = (
        {"run": run, "from": first, "to": last} | asdict(estimate(setup, last - first, tokens)) | {"download": download}
    )
    emit_object(cost, format, lambda: print_table(list(cost), [cost]))


def _print_report(report: Any, explain: bool) -> None:
    from forensics.explaining import explain_report, summarize_report

    for line in summarize_report(report):
        print(line)
    if explain:
        print()
        for line in explain_report(report):
            print(line)


def remove(
    name: Annotated[str, typer.Argument(metavar="RUN|FORK", help="What to remove.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only show it.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Take a run or fork out of the workspace; shows what would go first. A run's own folder is never touched.

    Example: forensics remove 3f9c0a1b2d4e --yes
    """
    from forensics.tidying import remove as remove_run

    for line in remove_run(name, confirmed=yes, workspace=open_workspace(workspace)):
        print(line)


def prune(
    name: Annotated[str, typer.Argument(metavar="FORK", help="A fork, or a run that the toolkit trained.")],
    keep_every: Annotated[int, typer.Option("--keep-every", help="Keep every K-th checkpoint, and first and last.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete them; without this, only show them.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Thin out saved states; shows which would go first.

    Example: forensics prune demo --keep-every 60
    """
    from forensics.tidying import prune as prune_run

    for line in prune_run(name, keep_every=keep_every, confirmed=yes, workspace=open_workspace(workspace)):
        print(line)


COMMANDS = (demo, add, replay, remove, prune)
