"""Probes under the ribbon of a run: a panel for each metric, over the same steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from data_index.workspace import Workspace
from forensics.figure_curves import Curves
from forensics.trajectories import Curve, Trajectories, trajectory
from forensics.trajectory_names import shown_metrics
from forensics.trajectory_picture import figure_of

Pair = tuple[str, str]  # a probe and one of its metrics
INCHES, MARGIN = 1.7, 0.01


def label_of(pair: Pair) -> str:
    """As a list of them calls it."""
    probe, metric = pair
    return probe if probe == metric else f"{probe}: {metric}"


def usual_pairs(pairs: Sequence[Pair], most: int = 3) -> list[Pair]:
    """The first metric of some probes, in the order in which `forensics probes` lists them; then of benchmarks."""
    from forensics.probe_catalogue import PROBES

    metrics: dict[str, list[str]] = {}
    for probe, metric in pairs:
        metrics.setdefault(probe, []).append(metric)
    order = [name for name in PROBES if name in metrics]
    order += [name for name in metrics if name not in PROBES]
    return [next(iter(shown_metrics({name: metrics[name]}, 1, []))) for name in order[:most]]


def probe_panels(
    run: str, pairs: Sequence[Pair], first: int, last: int, *, workspace: Workspace | None = None
) -> list[Curves]:
    """A panel for each of these metrics that has a value at checkpoints `first` to `last`, or on both sides of them.

    Raises:
        UnknownRun, MissingMetric, CorruptFile
    """
    if not pairs:
        return []
    found = trajectory(run, list(dict.fromkeys(probe for probe, _ in pairs)), workspace=workspace)
    return list(_panels(found, pairs, first, last))


def _panels(found: Trajectories, pairs: Sequence[Pair], first: int, last: int) -> Iterator[Curves]:
    for pair in pairs:
        cut = [_cut(curve, first, last) for curve in found.curves if (curve.probe, curve.metric) == pair]
        curves = tuple(curve for curve in cut if _is_seen(curve, first, last))
        if curves:
            panel = figure_of(replace(found, curves=curves, shown=frozenset([pair]))).panels[0]
            assert isinstance(panel, Curves)
            margin = MARGIN * (last - first)  # points at the ends are not cut
            yield replace(
                panel,
                title=f"probe {label_of(pair)}",
                x_range=(first - margin, last + margin),
                inches=INCHES,
                legend=False,
            )


def _is_seen(curve: Curve, first: int, last: int) -> bool:
    """Does a point lie at the steps that are looked at, or a line go through them?"""
    steps = [row["step"] for row in curve.finite_rows]
    return bool(steps) and min(steps) <= last and max(steps) >= first


def _cut(curve: Curve, first: int, last: int) -> Curve:
    """With one value on either side of the steps that are looked at, to which the line goes."""
    steps = sorted(row["step"] for row in curve.finite_rows)
    low = max((step for step in steps if step <= first), default=first)
    high = min((step for step in steps if step >= last), default=last)
    return replace(
        curve,
        rows=tuple(row for row in curve.rows if low <= row["step"] <= high),
        gaps=tuple(gap for gap in curve.gaps if first <= gap[0] <= last),
    )
