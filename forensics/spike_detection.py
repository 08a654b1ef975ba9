"""`spikes`: where a run's loss or gradient norm stands out, from its log alone, and how it came and went.

The robust definition is ours and comes first: more than 6 robust standard deviations above the median of the last 128
values that were not themselves flagged. The three published definitions stand beside it with their parameters, because
they differ and a count means nothing without them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_index.errors import Busy, CorruptFile, DiskFull, MissingFile, MissingMetric, NotWritable
from data_index.files import exclusive_lock
from data_index.kinds import table_of_rows
from data_index.workspace import Workspace, learn
from forensics.judged_series import JudgedSeries, judged
from forensics.log_findings import Border, borders_of, gradient_growth, not_finite_events, split_shifts
from forensics.logged_series import Points
from forensics.restarts import Restart, restarts_of
from forensics.spike_coincidence import Coincidence, coincidence
from forensics.spike_counts import (
    Row,
    judged_by_others,
    own_summary,
    published_rows,
    published_summary,
    robust_row,
)
from forensics.spike_events import SpikeEvent, spike_events
from forensics.spike_source import SpikeSource, read_source
from probes.robust_statistics import FEWEST, THRESHOLD


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spikes:
    """What a log shows.

    Attributes:
        run: a run, a fork, or a log file; `label` is it without folders.
        rows: COLUMNS, ours first (definition `robust`), then the events of the published definitions.
        events: ours, as records, of the attempts that were kept; of earlier ones they are in `restarts`.
        definitions: one row a definition and series: flagged values, percent of those that were logged (the spike
            score), events, how many flags come of NaN or infinity in the window, parameters; of ours, the tail index
            of the robust z (Hill, highest hundredth).
        restarts: steps that were taken twice.
        borders: changes of the run that are known from its record, learning rate or batch size.
        given_up: points of earlier attempts, by series.
        messages: what one has to know to believe the answer.
        coincidence: with another run, where one was named; `other` is its series.
        is_run: of the workspace, not a log file.
    """

    run: str
    label: str
    rows: tuple[Row, ...]
    events: tuple[SpikeEvent, ...]
    definitions: tuple[Row, ...]
    restarts: tuple[Restart, ...]
    borders: tuple[Border, ...]
    given_up: Mapping[str, tuple[Points, ...]]
    messages: tuple[str, ...]
    loss: JudgedSeries | None
    grad_norm: JudgedSeries | None
    other: JudgedSeries | None = None
    coincidence: Coincidence | None = None
    is_run: bool = False

    @property
    def robust_rows(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row["definition"] == "robust")


def spikes(
    run: str,
    other: str | None = None,
    *,
    loss: str | None = None,
    grad_norm: str | None = None,
    format: str | None = None,
    step_field: str | None = None,
    only: Mapping[str, str] | None = None,
    workspace: Workspace | None = None,
) -> Spikes:
    """Find the spikes of a run in its log; with a second run, whether both have theirs at the same steps.

    What is found of a run of the workspace is kept with it, in the view `spikes`, in place of what was.

    Args:
        run, other: names of runs or forks, or log files of any kind that `import` reads.
        loss, grad_norm: which metrics to search; default: `loss` (cross-entropy) and `grad_norm` (before clipping).
        format, step_field, only: of log files, as in `import_metrics`.
    Raises:
        UnknownRun, MissingMetric, CorruptFile, UnknownLayout
        InvalidRange: two runs have too few steps in common.
    """
    workspace = workspace or Workspace()

    def read(name: str) -> SpikeSource:
        return read_source(
            name, workspace, loss=loss, grad_norm=grad_norm, format=format, step_field=step_field, only=only
        )

    source = read(run)
    found = _search(source)
    if source.run is not None and loss is None and grad_norm is None:
        kept = _keep(workspace, run, found.robust_rows)
        found = replace(found, messages=(*found.messages, *kept))
    return found if other is None else _with_other(found, read(other))


def _search(source: SpikeSource) -> Spikes:
    """The whole answer for one log."""
    pair = {series.name: judged(series.name, series.kept, series.interval) for series in source.both}
    loss, grad_norm = pair.get("loss"), pair.get("grad_norm")
    borders = borders_of(source.run, source.learning_rate, source.batch_size)
    of_spikes, shifts = split_shifts(loss, grad_norm, borders)
    flagged = {name: _also_flagged(series, of_spikes.get(name, [])) for name, series in pair.items()}
    barriers = [event.onset for event in shifts if (event.lasting_offset or 0) > 0]
    kept = spike_events(flagged.get("loss"), flagged.get("grad_norm"), barriers)
    kept += [*not_finite_events(loss, grad_norm), *shifts]
    if grad_norm is not None and (growth := gradient_growth(grad_norm)):
        kept.append(growth)
    kept = [_with_attempt(event, source) for event in sorted(kept, key=lambda event: (event.onset, event.kind or ""))]
    restarts = restarts_of(source.run, source.loss, source.grad_norm, list(pair.values()), _spikes(kept))
    earlier = [replace(event, detail=_given_up(restart)) for restart in restarts for event in restart.spikes]
    published = judged_by_others(loss, grad_norm)
    return Spikes(
        run=source.name,
        label=source.label,
        rows=(*(robust_row(event) for event in kept + earlier), *published_rows(published)),
        events=tuple(kept),
        definitions=(*own_summary(pair, _spikes(kept)), *published_summary(published)),
        restarts=tuple(restarts),
        borders=tuple(borders),
        given_up={series.name: series.given_up for series in source.both},
        messages=(*source.messages, *_messages(pair, kept), *(restart.text for restart in restarts)),
        loss=loss,
        grad_norm=grad_norm,
        is_run=source.run is not None,
    )


def _also_flagged(series: JudgedSeries, places: Sequence[int]) -> JudgedSeries:
    """The series with the first value of a new level flagged, where a spike left that level."""
    if not places:
        return series
    found = series.outliers
    flagged, medians, scales = found.flagged.copy(), found.medians.copy(), found.scales.copy()
    for change in found.changes:
        if change.index in places:
            flagged[change.index], medians[change.index] = True, change.before
            scales[change.index] = change.scale
    return replace(series, outliers=replace(found, flagged=flagged, medians=medians, scales=scales))


def _with_attempt(event: SpikeEvent, source: SpikeSource) -> SpikeEvent:
    kept = next(series.kept for series in source.both if series.name in event.series)
    return replace(event, attempt=int(kept.attempts[np.searchsorted(kept.steps, event.onset)]))


def _spikes(events: Sequence[SpikeEvent]) -> list[SpikeEvent]:
    return [event for event in events if event.is_spike]


def _given_up(restart: Restart) -> str:
    steps = f"steps {restart.first_step} to {restart.last_step}"
    return f"given up: {steps} were taken again, {'with' if restart.kept_spikes else 'without'} a spike there"


# --- what goes with it -----------------------------------------------------------------------------------------------


def _messages(pair: Mapping[str, JudgedSeries], events: Sequence[SpikeEvent]) -> Iterator[str]:
    judged_enough = False
    for name, series in pair.items():
        count = len(series.finite)
        judged_enough |= count > FEWEST
        if count <= FEWEST:
            yield (
                f"too little history: {count} values of {name}, and a value is judged from {FEWEST} before it on; this "
                "does not say that there is no spike"
            )
        if series.num_steep:
            yield (
                f"to step {series.steps[series.num_steep - 1]} the {name} moves faster than it scatters, which widens "
                "its windows: there values are judged against the trend as well"
            )
    if judged_enough and not _spikes(events):
        names = " and ".join(name for name, series in pair.items() if len(series.finite) > FEWEST)
        yield f"no spike: no value of {names} is more than {THRESHOLD:g} robust standard deviations above its window"


def _keep(workspace: Workspace, run: str, rows: Sequence[Row]) -> list[str]:
    """Put the rows in force as the run's spikes; writes nothing where they are there already.

    Returns:
        Why they could not be kept: the answer does not depend on it.
    """
    home = workspace.home(run)
    wanted = [{**row, "parameters": json.dumps(row["parameters"])} for row in rows]
    try:
        there = workspace.learned(home, "spikes")
    except (CorruptFile, MissingFile):
        there = None  # what was found before is damaged: it is found again
    if there == wanted:
        return []
    try:
        with exclusive_lock(home.with_name(f".{home.name}.lock"), f"keeping the spikes of {run}"):
            learn(home, "spikes", table_of_rows("spikes", wanted, run))
    except (Busy, DiskFull, NotWritable) as error:
        return [f"the spikes of {run} are not kept: {error}"]
    return []


def _with_other(found: Spikes, source: SpikeSource) -> Spikes:
    """The answer with what it has in common with another log."""
    name = "loss" if found.loss is not None and source.loss is not None else "grad_norm"
    one, theirs = getattr(found, name), getattr(source, name)
    if one is None or theirs is None:
        raise MissingMetric(f"{found.run} and {source.name} logged no loss and no gradient norm that both have")
    other = judged(name, theirs.kept, theirs.interval)
    together = coincidence(found.label, source.label, one, other)
    messages = tuple(dict.fromkeys((*found.messages, *source.messages, together.answer)))
    return replace(found, messages=messages, other=other, coincidence=together)
