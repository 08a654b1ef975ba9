"""Verbs about what might have been: fork, compare."""

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
    command_line,
    open_workspace,
)
from forensics.cli.output import Format, StepProgress, emit_object, emit_rows, keep, print_table, printable, say

SHOWN_ROWS = 5  # of what each edit reaches


def fork(
    run: RunArgument,
    from_step: Annotated[int, typer.Option("--from", help="The checkpoint to start at.")],
    num_steps: Annotated[int, typer.Option("--num-steps", help="How many steps to take.")],
    edit: Annotated[
        list[str] | None,
        typer.Option("--edit", help="An edit, repeatable, or @edits.toml: OP SELECTOR [@STEPS] [key=value …]."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="recipe.field=value, repeatable.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Keep every K-th state; else the last one.")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "recipe",
    deterministic: DeterministicOption = True,
    approximate: ApproximateOption = False,
    fresh_optimizer: FreshOptimizerOption = False,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Replay from a checkpoint with altered data or recipe; the same command finds or continues it.

    Edits: drop, replace, insert, mask, swap, shuffle, repeat. Selectors: instance:I,…  document:D,…  span:I:START-STOP
    tag:T  where:"SQL condition". Steps: @137 or @100:160.

    Example: forensics fork demo --from 140 --num-steps 20 --edit "drop instance:12,40 @154"
    """
    from forensics.cli.edits import read_edits, read_overrides

    there = open_workspace(workspace)
    edits, overrides = read_edits(edit or []), read_overrides(set_ or [])
    asked: dict[str, Any] = {
        **{"from_step": from_step, "num_steps": num_steps, "edits": edits, "overrides": overrides},
        **{"save_every": save_every, "workspace": there, "device": device, "precision": precision},
        **{"approximate": approximate, "fresh_optimizer": fresh_optimizer},
    }
    if plan:
        from forensics.fork_preview import preview_fork

        found = preview_fork(run, **asked)
        emit_object(_plan_object(found), format, lambda: _print_preview(found))
        return
    from forensics.forking import fork as fork_run

    result = fork_run(run, **asked, enforce_determinism=deterministic, progress=StepProgress(f"forking {run}"), say=say)
    emit_object(asdict(result), format, lambda: _print_fork(result))


def _plan_object(preview: Any) -> dict[str, Any]:
    """The cost, as of `replay --plan`, and what the fork would be."""
    first = preview.from_step
    return {
        **{"run": preview.parent, "from": first, "to": first + preview.num_steps},
        **asdict(preview.cost),
        "download": preview.download,
        **{"id": preview.id, "done": preview.done, "free_bytes": preview.free_bytes},
        "recipe": [dict(zip(("field", "before", "after"), change, strict=True)) for change in preview.recipe],
        "edits": [asdict(edit) for edit in preview.edits],
    }


def _print_preview(preview: Any) -> None:
    cost = {name: value for name, value in _plan_object(preview).items() if not isinstance(value, list)}
    print_table(list(cost), [cost])
    for edit in preview.edits:
        print(f"\n{printable(edit.edit)}")
        print(f"  {edit.said}")
        counts = {"rows": edit.num_rows, "instances": edit.num_instances}
        counts |= {"tokens": edit.num_tokens, "steps": edit.num_steps}
        print("  " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
        print_table(list(edit.rows[0]), edit.rows[:SHOWN_ROWS])
    for field, before, after in preview.recipe:
        print(f"\n{field}: {before} becomes {after}")
    there = {None: "there is no fork like this yet", preview.num_steps: "this fork is there already"}
    say(f"{preview.id}: {there.get(preview.done, f'this fork has taken {preview.done} of its steps, and goes on')}")
    for note in preview.notes:
        say(note)


def _print_fork(result: Any) -> None:
    print(f"fork {result.id} of {result.parent} from step {result.from_step}: {len(result.steps)} steps")
    for line in result.edits or ("no edit: equals its parent",):
        print(f"  {line}")
    last = result.steps[-1]
    print(f"  step {last['step']}: loss {last['loss']:.3f}, gradient norm {last['grad_norm']:.3f}")
    print(f"next: forensics compare {result.id}")


def compare(
    forks: Annotated[list[str], typer.Argument(metavar="FORK…", help="Forks of one parent.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to draw it: FILE.png and FILE.html.")
    ] = None,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Compare forks with their parent: loss per step, held-out loss, distance of the weights per layer.

    Example: forensics compare 3f9c0a1b2d4e
    """
    from forensics.divergence import compare as compare_forks
    from forensics.kept_findings import finding_of_comparison

    there = open_workspace(workspace)
    result = compare_forks(*forks, workspace=there)
    keep(there, finding_of_comparison(result, command_line()), base=output)
    columns = ["fork", "metric", "step", "treatment", "null_low", "null_high", "p_value"]
    emit_rows(result.rows, format, columns)
    for note in result.notes:
        say(note)


COMMANDS = (fork, compare)
