"""How far a fork is from its parent: loss per step, held-out loss, and the distance of the weights per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_index.errors import InvalidEdit
from data_index.metric_queries import logged_metrics
from data_index.run import Run
from data_index.sources.native import metrics_by_step
from data_index.workspace import Workspace
from forensics.figure import BLACK, Figure, Panel, Series

NO_NULLS = "no nulls, no claim: without null forks nothing says how much of this any change would have caused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rows of `fork, metric, step, treatment, null_low, null_high, p_value`; treatment is fork minus parent.

    Metrics: loss (nats per token, each on its own batch), heldout_loss (nats per token), distance/<layer> (1 = as far
    from the parent as the parent has moved since the fork point). The null columns are None: no null forks were run.
    """

    forks: tuple[str, ...]
    parent: str
    rows: tuple[dict[str, Any], ...]
    figure: Figure
    notes: tuple[str, ...]


def compare(*forks: str, workspace: Workspace | None = None) -> Comparison:
    """Compare forks of one parent with it, step by step.

    Raises:
        UnknownRun
        InvalidEdit: one of them is no fork, or they have different parents.
    """
    workspace = workspace or Workspace()
    runs = [workspace.run(name) for name in forks]
    for run in runs:
        if run.parent is None:
            raise InvalidEdit(f"{run.name} is a run, not a fork: compare takes forks (list them: forensics forks)")
    parents = {run.parent[0] for run in runs if run.parent}
    if len(parents) != 1:
        raise InvalidEdit(
            f"these forks have different parents ({', '.join(sorted(parents))}); compare one parent's forks"
        )
    (parent,) = parents
    rows = [row for run in runs for row in _rows(workspace, run, workspace.run(parent))]
    notes = [NO_NULLS]
    if not any(row["metric"].startswith("distance/") for row in rows):
        notes.append(
            f"{parent} has no checkpoint inside these forks' steps, so weights and held-out loss are not compared"
        )
    return Comparison(
        forks=tuple(forks),
        parent=parent,
        rows=tuple(rows),
        figure=_figure(workspace, workspace.run(parent), runs, rows),
        notes=tuple(notes),
    )


def _rows(workspace: Workspace, run: Run, parent: Run) -> list[dict[str, Any]]:
    assert run.parent is not None
    own = metrics_by_step(run.source)
    theirs = logged_metrics(workspace, parent, run.parent[1], run.last_step, ("loss", "grad_norm"))
    rows = []

    def row(metric: str, step: int, value: float) -> None:
        rows.append(
            {
                "fork": run.name,
                "metric": metric,
                "step": step,
                "treatment": value,
                "null_low": None,
                "null_high": None,
                "p_value": None,
            }
        )

    for step, metrics in sorted(own.items()):
        for metric in ("loss", "grad_norm"):
            if metric in theirs.get(step, {}):
                row(metric, step, metrics[metric] - theirs[step][metric])
        if "parent_heldout_loss" in metrics:
            row("heldout_loss", step, metrics["heldout_loss"] - metrics["parent_heldout_loss"])
        for metric, value in metrics.items():
            if metric.startswith("distance/"):
                row(metric, step, value)
    return rows


def _figure(workspace: Workspace, parent: Run, runs: Sequence[Run], rows: Sequence[dict[str, Any]]) -> Figure:
    starts = {run.parent[1] for run in runs if run.parent}
    marks = tuple((step, f"fork at {step}") for step in sorted(starts))
    panels = [
        _losses(workspace, parent, runs, marks),
        _panel(runs, rows, "loss", "Loss, fork minus parent, each step on its own batch", "nats per token"),
        _panel(runs, rows, "heldout_loss", "Held-out loss, fork minus parent", "nats per token"),
    ]
    layers = list(dict.fromkeys(row["metric"] for row in rows if row["metric"].startswith("distance/")))
    for run in runs:
        series = [_layer_series(rows, run.name, layer, number) for number, layer in enumerate(layers)]
        title = f"Distance of the weights from {parent.name}" + (f", fork {run.name}" if len(runs) > 1 else "")
        panels.append(Panel(title=title, y_label="1 = as far as it moved", series=series))
    kept = [panel for panel in panels if any(len(series.x) for series in panel.series)]
    names = ", ".join(run.name for run in runs)
    return Figure(title=f"Fork {names} against {parent.name}", x_label="step", panels=kept, note=NO_NULLS)


def _losses(workspace: Workspace, parent: Run, runs: Sequence[Run], marks: Sequence[tuple[float, str]]) -> Panel:
    first = min(run.first_step for run in runs) - 1
    logged = logged_metrics(workspace, parent, first, max(run.last_step for run in runs), ("loss",))
    theirs = {step: metrics["loss"] for step, metrics in sorted(logged.items()) if "loss" in metrics}
    series = [Series(name=f"{parent.name}, logged", x=list(theirs), y=list(theirs.values()), colour=BLACK)]
    for number, run in enumerate(runs):
        own = {step: metrics["loss"] for step, metrics in sorted(metrics_by_step(run.source).items())}
        name = f"fork {run.name}"
        series.append(Series(name=name, x=list(own), y=list(own.values()), style="dashed", colour=number))
    return Panel(title="Loss", y_label="nats per token", series=series, marks=marks)


def _layer_series(rows: Sequence[dict[str, Any]], fork: str, layer: str, number: int) -> Series:
    name = layer.removeprefix("distance/")
    whole = name == "all"
    points = _points(rows, fork, layer)
    return Series(name=name, style="dashed" if whole else "line", colour=BLACK if whole else number, **points)


def _panel(runs: Sequence[Run], rows: Sequence[Any], metric: str, title: str, unit: str) -> Panel:
    series = [Series(name=run.name, colour=n, **_points(rows, run.name, metric)) for n, run in enumerate(runs)]
    return Panel(title=title, y_label=unit, series=series, zero_line=True)


def _points(rows: Sequence[dict[str, Any]], fork: str, metric: str) -> dict[str, Any]:
    found = [(row["step"], row["treatment"]) for row in rows if row["fork"] == fork and row["metric"] == metric]
    return {"x": [step for step, _ in found], "y": [value for _, value in found]}
