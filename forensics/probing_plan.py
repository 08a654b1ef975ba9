"""What `probe` would take: headers are read to tell, and the rows that probes look at, but no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_index.errors import ForensicsError
from data_index.workspace import Workspace
from forensics.kept_measurements import KeptMeasurements
from forensics.measured_checkpoint import Computing, needed
from forensics.probe_options import PRECISIONS, ProbeOptions
from forensics.probing import bytes_to_fetch, opened

COLUMNS = ("step", "probes", "bytes_to_read", "bytes_to_fetch", "tokens", "note")


def plan_probe(
    run: str,
    *names: str,
    checkpoints: str | Sequence[int] = "all",
    options: ProbeOptions | None = None,
    workspace: Workspace | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each checkpoint that has something to be measured, and the sum; and what is to be said of it.

    `tokens` go through the model, a pass with gradients counting three times.

    Raises:
        As `probe`; what is wrong with a checkpoint stands in its note.
    """
    workspace, options = workspace or Workspace(), options or ProbeOptions()
    sweep = opened(workspace, run, names, checkpoints, options)
    left, problems = sweep.left(KeptMeasurements(workspace.home(run)))
    tokens = {one.name: one.tokens for one in sweep.probes}
    rows: list[dict[str, Any]] = []
    for checkpoint, asked in left:
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"step": checkpoint.step, "probes": len(asked), "note": ""}
        row["tokens"] = sum(tokens[name] or 0 for name in asked)
        try:
            row["bytes_to_read"] = needed(checkpoint, asked.values()).num_bytes
            row["bytes_to_fetch"] = bytes_to_fetch(checkpoint, list(asked.values()))
        except ForensicsError as error:
            row["note"] = f"will be skipped: {error}"
        rows.append(row)
    total = {name: sum(row[name] or 0 for row in rows) for name in COLUMNS[1:-1]}
    unknown = [name for name in tokens if tokens[name] is None and any(name in asked for _, asked in left)]
    largest = max((row["bytes_to_read"] or 0 for row in rows), default=0)
    messages = [
        f"{len(sweep.checkpoints) - len(left)} of {len(sweep.checkpoints)} checkpoints are measured already",
        f"in memory at once: a model and the tensors of two checkpoints, {2 * largest:,} bytes, or of one where "
        "they do not fit",
        _speed(sweep.computing),
        *([f"tokens of {', '.join(unknown)} are not counted"] if unknown else []),
        *sweep.messages,
        *(f"{one.probe} will be left out at checkpoint {one.step}: {one.message}" for one in problems),
    ]
    return [*rows, {"step": None} | total | {"note": "all"}], messages


def _speed(computing: Computing) -> str:
    import torch

    from forensics.measured_checkpoint import computing_as
    from replay.device_speed import matmul_flops

    with computing_as(computing):
        dtype = getattr(torch, PRECISIONS[computing.precision])
        flops = matmul_flops(1024, device=torch.device(computing.device), dtype=dtype)
    return (
        f"a token takes about 2 operations for each parameter, and {computing.device} does {flops / 1e9:,.0f} thousand "
        "million a second at most"
    )
