"""`trajectory`: probes over the checkpoints of runs, what was measured here and what was published in one table.

A curve is one metric of one probe of one run, measured or published. Where a checkpoint was measured twice under other
settings, those are two curves. A gap is a checkpoint of the run without a value of a metric that others
have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from data_index.evaluations import unit_of_metric
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.trajectory_names import (
    MOST_METRICS,
    NAMED_IN_MESSAGES,
    chosen_metrics,
    chosen_probes,
    natural_order,
    nothing_of,
    shown_metrics,
)

Row = Mapping[str, Any]
WIDE_RANGE = 30.0  # of positive values, from which their logarithms are looked at
COLUMNS = ("run", "step", "tokens", "probe", "metric", "value", "low", "high", "unit", "source", "text", "settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One metric over the checkpoints of a run.

    Attributes:
        published: by someone else, rather than measured here.
        rows: COLUMNS of each value, in step order.
        gaps: (step, tokens) of checkpoints without a value.
    """

    run: str
    probe: str
    metric: str
    unit: str
    published: bool
    rows: tuple[Row, ...]
    gaps: tuple[tuple[int, int | None], ...] = ()

    @property
    def finite_rows(self) -> list[Row]:
        return [row for row in self.rows if _is_finite(row)]

    @property
    def spans_decades(self) -> bool:
        """As a perplexity does, from that of an untrained model to that of a trained one."""
        return spans_decades([row["value"] for row in self.finite_rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectories:
    """
    Attributes:
        curves: of the runs, then the probes, as they were asked for; then by metric, what was measured first.
        shown: (probe, metric) of those that a picture has room for.
        messages: what is not there or not shown, and what to know about the values.
        left_out: those of them that tell how many metrics are not shown.
    """

    runs: tuple[str, ...]
    probes: tuple[str, ...]
    curves: tuple[Curve, ...]
    shown: frozenset[tuple[str, str]]
    messages: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """COLUMNS of every value: a curve after the other, each in step order."""
        return [row for curve in self.curves for row in curve.rows]

    @property
    def gaps(self) -> list[Row]:
        """run, step, tokens, probe, metric of every checkpoint without a value."""
        return [
            {"run": curve.run, "step": step, "tokens": tokens, "probe": curve.probe, "metric": curve.metric}
            for curve in self.curves
            for step, tokens in curve.gaps
        ]

    @property
    def shown_curves(self) -> list[Curve]:
        return [curve for curve in self.curves if (curve.probe, curve.metric) in self.shown]

    def table(self) -> Any:
        """All rows as an Arrow table."""
        import pyarrow

        from data_index.kinds import KINDS, arrow_schema

        types = arrow_schema("probes")
        known = [types.field(name) if name in KINDS["probes"] else pyarrow.field(name, "string") for name in COLUMNS]
        return pyarrow.Table.from_pylist([dict(row) for row in self.rows], schema=pyarrow.schema(known))


def trajectory(
    runs: Sequence[str] | str,
    probes: Sequence[str] | str,
    *,
    metrics: Sequence[str] | None = None,
    measured: bool = True,
    published: bool = True,
    workspace: Workspace | None = None,
) -> Trajectories:
    """Probes over the checkpoints of runs.

    Args:
        runs: names of runs and forks; as one text, with commas between them.
        probes: names, or patterns with * and ?; a benchmark task is task:NAME.
        metrics: only these of them; names, or patterns.
        measured, published: with what was measured here; with what publishers evaluated.
    Raises:
        UnknownRun, MissingFile, CorruptFile
        MissingMetric: a run has no value of any of the probes, or no run has one of a probe or a metric.
    """
    from data_index.probe_queries import probe_names, probe_rows

    workspace = workspace or Workspace()
    asked = tuple(dict.fromkeys(runs.split(",") if isinstance(runs, str) else runs))
    patterns = [probes] if isinstance(probes, str) else list(probes)
    records = [workspace.run(name) for name in asked]
    there = {run.name: probe_names(workspace, run) for run in records}
    names = chosen_probes(asked, patterns, there)
    messages: list[str] = []
    curves: list[Curve] = []
    for run in records:
        rows = [
            {"run": run.name, **_with_unit(row)}
            for row in probe_rows(workspace, run, names)
            if (published if row["source"] is not None else measured)
        ]
        if not rows:
            kind = " or ".join(["measured"] * measured + ["published"] * published)
            raise nothing_of([run.name], patterns[0], there[run.name], kind)
        curves += _curves_of(run, rows, names, _checkpoints(workspace, run), messages)
    if metrics is not None:
        chosen = chosen_metrics(metrics, [curve.metric for curve in curves], names)
        curves = [curve for curve in curves if curve.metric in chosen]
    by_probe = {name: list(dict.fromkeys(c.metric for c in curves if c.probe == name)) for name in names}
    left_out: list[str] = []
    shown = shown_metrics(by_probe, MOST_METRICS if metrics is None else None, left_out)
    return Trajectories(
        runs=asked,
        probes=tuple(names),
        curves=tuple(curves),
        shown=shown,
        messages=(*messages, *left_out, *_missing(asked, curves)),
        left_out=tuple(left_out),
    )


# --- curves ----------------------------------------------------------------------------------------------------------


def _with_unit(row: Row) -> dict[str, Any]:
    """Evaluations that were imported before units were kept get theirs."""
    task = row["probe"].removeprefix("task:")
    unit = row["unit"] if row["unit"] is not None or row["source"] is None else unit_of_metric(row["metric"], task)
    return {**row, "unit": unit or ""}


def _checkpoints(workspace: Workspace, run: Run) -> dict[int, int | None]:
    """Step -> tokens of each that the run has here, in step order."""
    return {checkpoint.step: checkpoint.tokens for checkpoint in workspace.checkpoints(run)}


def _curves_of(
    run: Run, rows: Sequence[Row], probes: Sequence[str], checkpoints: Mapping[int, int | None], messages: list[str]
) -> Iterator[Curve]:
    """
    Args:
        rows: in step order.
        checkpoints: step -> tokens of all that the run has here.
    """

    def place(row: Row) -> tuple[Any, ...]:
        return probes.index(row["probe"]), natural_order(row["metric"]), row["source"] is not None, row["unit"]

    stated: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        if row["source"] is not None and _is_finite(row):
            stated.setdefault((row["probe"], row["metric"]), set()).add(row["step"])
    for (*_, is_published, unit), group in groupby(sorted(rows, key=place), key=place):
        values = list(group)
        probe, metric = values[0]["probe"], values[0]["metric"]
        there = {row["step"] for row in values if _is_finite(row)}
        elsewhere = stated.get((probe, metric), set())
        is_measured = not is_published and there
        gaps = tuple(item for item in checkpoints.items() if is_measured and item[0] not in there | elsewhere)
        for part in _by_settings(run.name, values, messages):
            yield Curve(
                run=run.name,
                probe=probe,
                metric=metric,
                unit=unit,
                published=is_published,
                rows=tuple({name: row[name] for name in COLUMNS} for row in part),
                gaps=gaps,
            )


def _by_settings(run: str, rows: Sequence[Row], messages: list[str]) -> list[list[Row]]:
    """Values of a metric as one curve, or one for each setting where a checkpoint was measured under several."""
    steps = [row["step"] for row in rows]
    settings = list(dict.fromkeys(row["settings"] for row in rows))
    what = f"{run}: {rows[0]['probe']} {rows[0]['metric']}"
    twice = len(set(steps)) < len(steps)
    if rows[0]["source"] is not None:
        if twice:
            messages.append(f"{what} was published with several values of one checkpoint (see the column source)")
        return [list(rows)]
    if len(settings) > 1:
        kept = "each is a curve of its own" if twice else "one curve joins them"
        messages.append(f"{what} was measured with {len(settings)} settings; {kept} (see the column settings)")
    if not twice:
        return [list(rows)]
    return [[row for row in rows if row["settings"] == setting] for setting in settings]


def spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > WIDE_RANGE * min(values)


def _is_finite(row: Row) -> bool:
    return row["value"] is not None and math.isfinite(row["value"])


def _missing(runs: Sequence[str], curves: Sequence[Curve]) -> Iterator[str]:
    """What some of the runs lack, and checkpoints without a value."""
    having: dict[str, set[str]] = {}
    for curve in curves:
        having.setdefault(curve.probe, set()).add(curve.run)
    for run in runs:
        lacking = [probe for probe, those in having.items() if run not in those]
        if lacking:
            yield f"{run} has no value of {_some(lacking)}, which others have"
        steps = sorted({step for curve in curves if curve.run == run for step, _ in curve.gaps})
        if steps:
            many = "1 checkpoint lacks" if len(steps) == 1 else f"{len(steps):,} checkpoints lack"
            yield f"{run}: {many} a value that others have: {_some(steps)} (gaps in the picture)"


def _some(things: Sequence[object]) -> str:
    shown = ", ".join(map(str, things[:NAMED_IN_MESSAGES]))
    return f"{shown}, … ({len(things):,} in all)" if len(things) > NAMED_IN_MESSAGES else shown
