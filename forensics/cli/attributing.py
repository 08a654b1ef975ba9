"""The verb that looks for causes: blame."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from forensics.cli.output import Format, emit_object, keep, print_table, say

if TYPE_CHECKING:
    from forensics.attribution import Blame

SHOWN = {
    "loss": ("loss_if_removed", "null_low", "null_high"),
    "grad_norm": ("grad_norm_if_removed", "grad_norm_null_low", "grad_norm_null_high"),
}
ODDS_SHOWN = 5


def blame(
    run: RunArgument,
    step: Annotated[int, typer.Argument(metavar="STEP", help="A step of the spike.")],
    before: Annotated[int, typer.Option(min=0, help="Look at so many steps before the onset at least.")] = 8,
    top: Annotated[int, typer.Option(min=1, help="Take away so many suspects one by one.")] = 10,
    nulls: Annotated[int, typer.Option(min=1, help="And so many random rows.")] = 10,
    picture: Annotated[Path | None, typer.Option("-o", "--picture", help="Draw it: FILE.png or FILE.html.")] = None,
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
    """Find the batch, rows and span that made a spike, and prove it: take the steps again without them.

    Beside each removal stand as many random ones. Where no data explain it, the answer is `unexplained`.

    Example: forensics blame demo 154
    """
    from forensics.attribution import blame as find
    from forensics.attribution_picture import page_below
    from forensics.investigation import Search
    from forensics.kept_findings import finding_of_blame

    there, search = open_workspace(workspace), Search(before=before, top=top, nulls=nulls)
    given: dict[str, Any] = {
        "device": device,
        "precision": precision,
        "enforce_determinism": deterministic,
        "approximate": approximate,
        "fresh_optimizer": fresh_optimizer,
    }
    if plan:
        from forensics.attribution import prepare_search
        from forensics.attribution_plan import plan_attribution

        window, setup = prepare_search(there, there.run(run), step, search, **given)
        cost = plan_attribution(there, setup, window, search)
        emit_object(cost, format, lambda: _print_plan(cost))
        return
    found = find(run, step, workspace=there, search=search, verify=verify, progress=StageProgress(), **given)
    keep(there, finding_of_blame(found, command_line()), picture, page_below(found))
    emit_object(found.to_json(), format, lambda: _print_answer(found))
    say(f"order of {run}: {found.order_trust}")
    for note in found.notes:
        say(note)


def _print_plan(cost: Mapping[str, Any]) -> None:
    print_table(("stage", "does", "forwards", "seconds"), cost["stages"])
    say(", ".join(f"{name} {value}" for name, value in cost.items() if name != "stages"))


def _print_answer(found: Blame) -> None:
    from forensics.attribution_picture import texts_of

    window = found.found.window
    print(f"{found.verdict}{f' ({found.cause})' if found.cause else ''}: {found.reason}")
    print()
    rows = [
        {**row, "span": f"{row['span_start']}..{row['span_stop']}" if row["span_start"] is not None else None}
        for row in found.candidates
    ]
    columns = ["rank", "step", "instance", "loss", "share", "grad_norm_share", *SHOWN[window.measure], "restored"]
    if not rows:
        print("No row can be taken away alone: each is the only one of its step that has a target.")
    else:
        print_table([*columns, *(["span"] if any(row["span"] for row in rows) else []), "documents", "signals"], rows)
    for row, text in zip(found.candidates, texts_of(found), strict=False):
        print(f"\n{row['rank']}. instance {row['instance']} of step {row['step']}\n   {text.plain()}")
    if found.documents:
        print(f"\nDocuments, what steps {min(found.found.steps)}..{window.peak} read of each hidden from the loss:")
        hidden = f"{window.measure}_if_hidden"
        shown = ("document_id", "source", "num_tokens", hidden, "null_low", "null_high", "restored")
        print_table(shown, found.documents)
    if found.odds:
        print(f"\nWhat {'the cause holds' if found.cause else 'suspects hold'} beside the run's other rows:")
        names = ("signal", "suspects_with", "suspects", "base_with", "base", "ratio", "low", "high", "p_value")
        print_table(names, [{name: getattr(odds, name) for name in names} for odds in found.odds[:ODDS_SHOWN]])
    moved = [row for row in found.steps if row["suspect"] and row["moved"] is not None]
    for row in moved:
        say(f"the update of step {row['step']} changed the loss of step {window.peak}'s batch by {row['moved']:+.4g}")
    for command in found.commands:
        print(f"\nThe same removal as a fork: {command}")


class StageProgress:
    """One moving line a stage on a terminal; elsewhere a line when a stage is done, or every ten seconds."""

    def __init__(self) -> None:
        self.moving = sys.stderr.isatty()
        self.stage, self.told = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.told = stage, now
        if self.moving:
            print(f"\r\033[K{stage}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total or now - self.told > 10:
            self.told = now
            say(f"{stage}: {done} of {total}")


COMMANDS = (blame,)
