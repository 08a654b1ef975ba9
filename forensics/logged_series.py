"""Series of a log as they count: of each step the attempt that was kept, and apart from them what was given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_index.metric_queries import points_of_metric
from data_index.run import Run
from data_index.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """Points of one metric in step order: `steps` and `attempts` int64, `values` float64; each step once."""

    steps: np.ndarray
    values: np.ndarray
    attempts: np.ndarray

    def of(self, mask: np.ndarray | slice) -> Points:
        return Points(steps=self.steps[mask], values=self.values[mask], attempts=self.attempts[mask])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoggedSeries:
    """One metric of a run.

    Attributes:
        kept: the last attempt of each step.
        given_up: stretches of steps of an earlier attempt, which a restart took again, in the order of their attempts.
    """

    name: str
    kept: Points
    given_up: tuple[Points, ...] = ()

    def named(self, name: str) -> LoggedSeries:
        return replace(self, name=name)

    @property
    def interval(self) -> int:
        """Steps from one logged value to the next, as a rule."""
        return int(np.median(np.diff(self.kept.steps))) if len(self.kept.steps) > 1 else 1


def series_of_points(name: str, steps: Any, attempts: Any, values: Any) -> LoggedSeries:
    """
    Args:
        steps, attempts, values: all points, in step order, of each step the one that counts last.
    """
    steps = np.asarray(steps, dtype=np.int64)
    attempts = np.asarray(attempts, dtype=np.int64)
    values = np.asarray(values, dtype=np.float64)
    last = np.append(steps[1:] != steps[:-1], True) if len(steps) else np.zeros(0, dtype=bool)
    every = Points(steps=steps, values=values, attempts=attempts)
    return LoggedSeries(name=name, kept=every.of(last), given_up=tuple(_given_up(every, last)))


def _given_up(every: Points, last: np.ndarray) -> list[Points]:
    """What was logged before the attempt that was kept; stretches end where a kept attempt goes on."""
    if last.all():
        return []
    kept_attempts = every.attempts[last][np.cumsum(last) - last]  # of the same step
    found = []
    earlier = ~last & (every.attempts < kept_attempts)
    for attempt in np.unique(every.attempts[earlier]):
        (places,) = np.nonzero(earlier & (every.attempts == attempt))
        again = np.append(True, every.steps[places[1:]] != every.steps[places[:-1]])  # of two sources, the first
        places = places[again]
        # Steps of one attempt that follow each other in the log belong together, however many steps a log passes over.
        number = (np.cumsum(last) - last)[places]
        for part in np.split(places, np.flatnonzero(np.diff(number) != 1) + 1):
            found.append(every.of(part))
    return found


def series_of_run(workspace: Workspace, run: Run, name: str) -> LoggedSeries | None:
    """A metric of a run; None: it logged none of that name."""
    points = points_of_metric(workspace, run, name)
    if not len(points["step"]):
        return None
    # A value that is null comes as masked; it is not a number.
    values = np.ma.filled(points["value"], np.nan)
    return series_of_points(name, points["step"], np.ma.filled(points["attempt"], 1), values)


def series_of_table(table: Any, name: str) -> LoggedSeries | None:
    """The same of an Arrow table of the kind `metrics`, in the order of a log."""
    import pyarrow.compute as compute

    for column in ("name", "original_name"):
        part = table.filter(compute.equal(table.column(column), name))
        if part.num_rows:
            steps, attempts = part.column("step").to_numpy(), part.column("attempt").to_numpy()
            order = np.lexsort((attempts, steps))
            values = part.column("value").to_numpy()
            return series_of_points(name, steps[order], attempts[order], values[order])
    return None


def missing_metric(source: str, name: str, there: Sequence[str]) -> str:
    """The message that a metric was not logged."""
    shown = ", ".join(there[:12]) + (", …" if len(there) > 12 else "")
    said = f"it logged {shown}" if there else "nothing is logged of it: forensics import RUN FILE puts a log beside it"
    return f"{source} has no metric {name!r}; {said} (choose with --loss NAME and --grad-norm NAME)"
