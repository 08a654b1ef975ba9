"""What `spikes` reads: the metrics of a run of the workspace, or of a log that belongs to none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_index.errors import MissingMetric, UnknownRun
from data_index.metric_queries import names_of_metrics
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.imported_metrics import table_of_logs
from forensics.logged_series import LoggedSeries, missing_metric, series_of_run, series_of_table

LOSS, GRAD_NORM = "loss", "grad_norm"
CLIPPED, FEWEST_VALUES = 0.05, 100  # a share of the values, of at least so many


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpikeSource:
    """
    Attributes:
        run: None: a log file.
        loss, grad_norm: at least one is there; they are called so whatever the log calls them.
    """

    name: str
    run: Run | None
    loss: LoggedSeries | None
    grad_norm: LoggedSeries | None
    learning_rate: LoggedSeries | None
    batch_size: LoggedSeries | None
    messages: tuple[str, ...]

    @property
    def label(self) -> str:
        """Short enough for a title or a sentence."""
        return self.name if self.run is not None else Path(self.name).name

    @property
    def both(self) -> tuple[LoggedSeries, ...]:
        return tuple(series for series in (self.loss, self.grad_norm) if series is not None)


def read_source(
    name: str,
    workspace: Workspace,
    *,
    loss: str | None = None,
    grad_norm: str | None = None,
    format: str | None = None,
    step_field: str | None = None,
    only: Mapping[str, str] | None = None,
) -> SpikeSource:
    """
    Args:
        name: a run or fork of the workspace; a file or folder where none is called so.
        loss, grad_norm: which metrics to take for them.
    Raises:
        UnknownRun, MissingMetric, CorruptFile, UnknownLayout
    """
    messages: list[str] = []
    run: Run | None = None
    if _is_run(workspace, name) or not Path(name).exists():
        run = _run(workspace, name)
        record = run

        def read(metric: str) -> LoggedSeries | None:
            return series_of_run(workspace, record, metric)

        there = names_of_metrics(workspace, run)
    else:
        table = table_of_logs(name, format=format, step_field=step_field, only=only, messages=messages)

        def read(metric: str) -> LoggedSeries | None:
            return series_of_table(table, metric)

        there = sorted(set(table.column("name").to_pylist()))
    found = {LOSS: _chosen(read, loss, LOSS, name, there), GRAD_NORM: _chosen(read, grad_norm, GRAD_NORM, name, there)}
    if not any(found.values()):
        raise MissingMetric(missing_metric(name, LOSS, there))
    said = _about(name if run is not None else Path(name).name, found[LOSS], found[GRAD_NORM])
    return SpikeSource(
        name=name,
        run=run,
        loss=found[LOSS],
        grad_norm=found[GRAD_NORM],
        learning_rate=read("learning_rate"),
        batch_size=read("batch_size"),
        messages=(*_worth_saying(name, messages), *said),
    )


def _worth_saying(name: str, messages: list[str]) -> list[str]:
    """What the reader of a log noticed, but for the step's name where it is the usual one."""
    return [message for message in messages if message != f"{name}: its step is step"]


def _is_run(workspace: Workspace, name: str) -> bool:
    return name in workspace.run_names() or name in workspace.fork_ids()


def _run(workspace: Workspace, name: str) -> Run:
    try:
        return workspace.run(name)
    except UnknownRun as error:
        raise UnknownRun(f"{error}. No log file is called {name!r} either") from error


def _chosen(
    read: Callable[[str], LoggedSeries | None], chosen: str | None, usual: str, name: str, there: list[str]
) -> LoggedSeries | None:
    series = read(chosen or usual)
    if series is None and chosen is not None:
        raise MissingMetric(missing_metric(name, chosen, there))
    return None if series is None else series.named(usual)


def _about(name: str, loss: LoggedSeries | None, grad_norm: LoggedSeries | None) -> list[str]:
    """What a reader has to know of the log before he believes an answer."""
    said = []
    if loss is None:
        said.append(f"{name} logged no loss: only the gradient norm is searched")
    if grad_norm is None:
        said.append(
            f"{name} logged no gradient norm: its lead is not known, and whether a spike is fast is told by its "
            "recovery alone"
        )
    else:
        values = grad_norm.kept.values[np.isfinite(grad_norm.kept.values)]
        if len(values) >= FEWEST_VALUES and (values == values.max()).mean() > CLIPPED and values.min() < values.max():
            said.append(
                f"{(values == values.max()).mean():.0%} of the gradient norms are {values.max():g}, the largest: this "
                "looks like the norm after clipping, which hides spikes; the one before is wanted (--grad-norm NAME)"
            )
    for series in (loss, grad_norm):
        if series is not None and series.interval > 1:
            said.append(
                f"{series.name} is logged every {series.interval} steps: a window of 128 logged values spans "
                f"{128 * series.interval:,} steps, and what happened between two of them is not seen"
            )
    return said
