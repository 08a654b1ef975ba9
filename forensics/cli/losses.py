"""`batch --losses`: how the losses of a step's tokens are printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from forensics.cli.output import Format, emit_arrow, emit_object, print_table, printable, say

if TYPE_CHECKING:
    from data_index.run import Run
    from data_index.workspace import Workspace
    from forensics.step_losses import TokenLosses

PER_ROW = ("position", "instance", "targets", "loss", "highest", "token", "token_text")


def losses_of_batch(
    workspace: Workspace,
    run: str,
    steps: str,
    options: Mapping[str, Any],
    output: Path | None,
    plan: bool,
    format: Format,
) -> None:
    """
    Args:
        options: of `token_losses`, `max_fetch` among them.
    """
    from forensics.step_losses import plan_token_losses, token_losses

    if not steps.isdecimal():
        raise typer.BadParameter(f"--losses takes one step, not {steps!r}")
    if plan:
        asked = {name: value for name, value in options.items() if name not in ("max_fetch", "verify")}
        cost = plan_token_losses(run, int(steps), workspace=workspace, **asked)
        emit_object(cost, format, lambda: print_table(list(cost), [cost]))
        return
    found = token_losses(run, int(steps), workspace=workspace, **options)
    if output is not None:
        from data_index.exports import write_table

        write_table(output, found.table)
        say(f"wrote {found.table.num_rows:,} rows to {output}")
    elif format is Format.table:
        print_table(PER_ROW, _per_row(workspace.run(run), found.table))
    else:
        emit_arrow(found.table, format)
    _say(found)


def _per_row(run: Run, table: Any) -> list[dict[str, Any]]:
    """A line for each row of the batch: its mean loss, and the token that lost most."""
    import numpy as np
    import pyarrow.compute

    from data_index.errors import ForensicsError
    from data_index.text import decode

    found = []
    for position in table.column("position").unique().to_pylist():
        row = table.filter(pyarrow.compute.equal(table.column("position"), position))
        targets = row.drop_null()
        losses = targets.column("loss").to_numpy()
        line: dict[str, Any] = {"position": position, "instance": row.column("instance")[0].as_py()}
        line["targets"] = len(losses)
        if len(losses):
            worst = int(np.argmax(np.nan_to_num(losses, nan=np.inf)))
            token = targets.column("token_id")[worst].as_py()
            line |= {"loss": float(losses.mean()), "highest": float(losses[worst])}
            line["token"] = targets.column("token")[worst].as_py()
            try:
                line["token_text"] = decode(run, np.array([token]))
            except ForensicsError:
                line["token_text"] = str(token)
        found.append(line)
    return found


def _say(found: TokenLosses) -> None:
    say(f"order of {found.run}: {found.order_trust}")
    told = f"under checkpoint {found.checkpoint}: {found.mean:.6g} nats a token"
    if found.loss is not None:
        told += f"; as the trainer logs it {found.loss:.6g}"
    if found.loss_logged is not None:
        told += f"; logged at step {found.step} {found.loss_logged:.6g}"
        if found.checkpoint != found.step - 1:
            told += f", under the weights after step {found.step - 1}"
    say(told)
    for note in found.notes:
        say(printable(note))
