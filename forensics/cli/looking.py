"""Verbs that only look: runs, show, checkpoints, at, batch, sql, forks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from data_index.exports import require_known_suffix
from forensics.cli.losses import losses_of_batch
from forensics.cli.options import (
    ApproximateOption,
    DeterministicOption,
    DeviceOption,
    FormatOption,
    MaxFetchOption,
    OutputOption,
    PlanOption,
    PrecisionOption,
    RunArgument,
    WorkspaceOption,
    open_workspace,
)
from forensics.cli.output import Format, emit_arrow, emit_object, emit_rows, print_table, printable, say, show_value


def runs(workspace: WorkspaceOption = None, format: FormatOption = Format.table) -> None:
    """List the runs of the workspace.

    Example: forensics runs
    """
    from data_index.run_file import read_run

    there = open_workspace(workspace)
    rows = []
    for name in there.run_names():
        run = read_run(there.home(name))
        rows.append(
            {
                "run": name,
                "layout": run.layout,
                "steps": f"{run.first_step}..{run.last_step}",
                "instances": run.num_instances,
                "order": run.trust.level,
                "source": run.origin,
            }
        )
    if not rows and format is Format.table:
        say(f"no runs in {there.folder} yet: forensics demo makes one, forensics add SOURCE registers one")
        return
    emit_rows(rows, format, ["run", "layout", "steps", "instances", "order", "source"])


def show(run: RunArgument, workspace: WorkspaceOption = None, format: FormatOption = Format.table) -> None:
    """Show what the toolkit knows of a run.

    Example: forensics show demo
    """
    from forensics.configured import described_recipe

    there = open_workspace(workspace)
    record = there.run(run)
    checkpoints = there.checkpoints(record)
    facts: dict[str, Any] = {
        "run": record.name,
        "layout": record.layout,
        "source": record.origin,
        "parent": f"{record.parent[0]} at step {record.parent[1]}" if record.parent else None,
        "steps": f"{record.first_step}..{record.last_step}",
        "epochs": list(record.epochs),
        "sequence_length": record.sequence_length,
        "instances": record.num_instances,
        "token_files": [file.name for file in record.files],
        "order": record.order.rule,
        "order_trust": str(record.trust),
        "checkpoints": [c.step for c in checkpoints],
        "tokenizer": str(record.tokenizer) if record.tokenizer else None,
        "config_format": record.config_format,
        "recipe": described_recipe(record),
        "recipe_overrides": dict(record.recipe_overrides),
        "environment": dict(record.environment),
        "facts": dict(record.facts),
    }
    emit_object(facts, format, lambda: _print_facts(facts))


def _print_facts(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if key == "recipe":
            print(key)
            for name, setting in value.items():
                print(f"  {name:16} {_shown(setting)}")
        elif value not in (None, {}, []):
            print(f"{key:18} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def checkpoints(run: RunArgument, workspace: WorkspaceOption = None, format: FormatOption = Format.table) -> None:
    """List a run's checkpoints and the states each holds.

    Example: forensics checkpoints demo
    """
    there = open_workspace(workspace)
    rows = [
        {
            "step": c.step,
            "tokens": c.tokens,
            "location": str(c.location),
            "states": list(c.states),
            "available": c.is_available(),
            "issues": list(c.issues),
        }
        for c in there.checkpoints(there.run(run))
    ]
    emit_rows(rows, format, ["step", "tokens", "location", "states", "available", "issues"])


def at(
    run: RunArgument,
    step: Annotated[int, typer.Argument(help="A step, 1-based.")],
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Show everything under the key (run, step).

    Example: forensics at demo 137
    """
    from forensics.lookup import at as everything_at

    found = everything_at(run, step, workspace=open_workspace(workspace))
    emit_object(found, format, lambda: _print_at(found))


def _print_at(found: dict[str, Any]) -> None:
    for key, value in found.items():
        if key in ("metrics", "read_by_tag", "read_by_file"):
            continue
        print(f"{key:18} {show_value(value)}")
    print("\nlogged")
    width = max(16, *map(len, found["metrics"]), 0)
    for name, value in found["metrics"].items():
        print(f"  {printable(name):{width}} {value:.6g}")
    for key in ("read_by_tag", "read_by_file"):
        if found[key]:
            print()
            print_table(list(found[key][0]), found[key])


def batch(
    run: RunArgument,
    steps: Annotated[str, typer.Argument(metavar="STEP|A:B", help="A step, or from checkpoint A to checkpoint B.")],
    instance: Annotated[int | None, typer.Option(help="Only this instance.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Add the token ids (and, in a table, the text).")] = False,
    by: Annotated[str | None, typer.Option(help="Count by document, tag, file or source instead.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="With --by: count every so many steps apart.")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --every: draw the mixture over time (.png or .html).")
    ] = None,
    losses: Annotated[
        bool, typer.Option("--losses", help="Of a step: the loss of every token, under a checkpoint's weights.")
    ] = False,
    checkpoint: Annotated[
        int | None, typer.Option(help="With --losses: whose weights [default: the nearest one before the step].")
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "recipe",
    deterministic: DeterministicOption = True,
    approximate: ApproximateOption = False,
    output: OutputOption = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check token files against hashes.")] = True,
    max_fetch: MaxFetchOption = None,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Show what a step, or a stretch between two checkpoints, read.

    With --losses: how well a checkpoint predicts each token of it. They are kept, as the view token_losses.

    Example: forensics batch demo 100:160 --by tag
    """
    from data_index.run import parse_steps
    from forensics.lookup import batch as read_batch_table

    there = open_workspace(workspace)
    record = there.run(run)
    if output is not None:
        require_known_suffix(output)
    if losses:
        if tokens or by is not None or every is not None or picture is not None:
            raise typer.BadParameter("--losses goes with --instance and --checkpoint, not with other ways to look")
        computing = {"device": device, "precision": precision, "enforce_determinism": deterministic}
        rows = {"checkpoint": checkpoint, "instances": None if instance is None else [instance]}
        options = {**rows, **computing, "approximate": approximate, "verify": verify, "max_fetch": max_fetch}
        losses_of_batch(there, run, steps, options, output, plan, format)
        return
    if checkpoint is not None:
        raise typer.BadParameter("--checkpoint goes with --losses")
    if plan:
        _print_batch_plan(there, record, steps, tokens, format)
        return
    if picture is not None and every is None:
        raise typer.BadParameter("--picture draws what --by and --every count")
    asked: dict[str, Any] = {"instance": instance, "tokens": tokens, "by": by, "every": every, "verify": verify}
    table = read_batch_table(run, steps, **asked, max_fetch=max_fetch, workspace=there)
    first, last = parse_steps(steps, record)
    say(f"order of {run}: {record.trust.of_steps(first + 1, last)}")
    if picture is not None:
        _draw_mixture(there, record, table, by, every, picture)
    if output is not None:
        _write(output, table)
    elif tokens and format is Format.table:
        _print_text(record, table.to_pylist())
    else:
        emit_arrow(table, format)


def _write(output: Path, table: Any) -> None:
    from data_index.exports import write_table

    write_table(output, table)
    say(f"wrote {table.num_rows:,} rows to {output}")


def _draw_mixture(workspace: Any, run: Any, table: Any, by: Any, every: Any, path: Path) -> None:
    from forensics.figure import write_figure
    from forensics.mixture import mixture_figure

    write_figure(mixture_figure(workspace, run, table, by, every), path)
    say(f"picture: {path}")


def _print_batch_plan(workspace: Any, run: Any, steps: str, tokens: bool, format: Format) -> None:
    from data_index.run import parse_steps
    from forensics.fetching import bytes_of_steps

    first, last = parse_steps(steps, run)
    cost = {"run": run.name, "from": first, "to": last, "tokens": run.tokens_after(last) - run.tokens_after(first)}
    cost["download"] = bytes_of_steps(workspace, run, first, last) if tokens or run.hides_tokens else 0
    emit_object(cost, format, lambda: print_table(list(cost), [cost]))


def _print_text(run: Any, rows: list[dict[str, Any]]) -> None:
    import numpy as np

    from data_index.text import decode

    for row in rows:
        print(f"--- step {row['step']}, instance {row['instance']} ({row['file']} +{row['offset']})")
        text = decode(run, np.array(row["token_ids"]))
        print("".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text))


def sql(
    query: Annotated[str | None, typer.Argument(help="One SELECT over the views.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the views and macros, each with an example.")] = False,
    output: OutputOption = None,
    seconds: Annotated[float, typer.Option(help="Give up after this long.")] = 60.0,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Ask the index in SQL: one read-only statement over the views.

    Example: forensics sql "select step, count(*) from batches where run = 'demo' group by step order by step"
    """
    from data_index.store import query_rows, run_query, schema_text

    there = open_workspace(workspace)
    if schema:
        print("\n".join(schema_text(there)))
    elif query is None:
        raise typer.BadParameter("give a query, or --schema")
    elif output is not None:
        require_known_suffix(output)
        _write(output, run_query(there, query, seconds))
    else:
        columns, rows = query_rows(there, query, seconds)
        emit_rows([dict(zip(columns, row, strict=True)) for row in rows], format, columns)


def forks(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Only forks of this run.")] = None,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """List forks and how far each has come.

    Example: forensics forks demo
    """
    from forensics.fork_list import forks_of

    there = open_workspace(workspace)
    if run is not None:
        there.home(run)
    emit_rows(forks_of(there, run), format, ["id", "parent", "from_step", "num_steps", "done", "edits", "recipe"])


COMMANDS = (runs, show, checkpoints, at, batch, sql, forks)
