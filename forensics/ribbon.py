"""A run at a glance: what it logged over any stretch of its steps, as finely as a screen shows; what happened there.

Of each stretch of steps that a pixel covers the line passes through the first, last, lowest and highest value, so that
no peak is lost however far one looks from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_index.errors import ForensicsError, InvalidRange, StepOutOfRange
from data_index.metric_queries import given_up_stretches, is_of_several_attempts, stretches_of_metric
from data_index.run import Run, Segment
from data_index.workspace import Workspace

NUM_STRETCHES = 1000  # a screen at laptop width shows about as many pixels of a picture
METRICS = ("loss", "grad_norm")
LONGER_THAN_USUAL = 2.5  # times the usual distance between two logged steps: what lies between was not logged


@dataclass(frozen=True, slots=True, kw_only=True)
class RibbonLine:
    """One metric over the steps.

    Attributes:
        steps, values: the line, in step order; None breaks it.
        not_finite: the first step of each stretch in which a value is no number (NaN, infinity or null).
        gaps: (first, last) steps that were not logged, both included.
        num_values: logged values that the line stands for.
        attempt: of values that do not count; None: of each step the value that does.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float | None, ...]
    not_finite: tuple[int, ...] = ()
    num_not_finite: int = 0
    gaps: tuple[tuple[int, int], ...] = ()
    num_values: int = 0
    attempt: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ribbon:
    """Steps first+1 .. last of a run.

    Attributes:
        lines: of the metrics that were logged there; none: nothing was.
        checkpoints: steps of those that are there, or were never looked for; `lost`: of those that are not.
        segments: stretches with one order, batch size and epoch, of each step the attempt that counts.
        spikes: rows of the view of that name, as `forensics spikes` kept them, in the order of their peaks.
        searched: whether that was ever asked of this run.
        forks: (id, from step, last step).
        restarts: steps at which a later attempt begins.
        given_up: lines of attempts that a restart took again.
        marked: steps that a search found, at most one for each pixel.
    """

    run: str
    first: int
    last: int
    lines: tuple[RibbonLine, ...]
    checkpoints: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()
    spikes: tuple[Mapping[str, Any], ...] = ()
    searched: bool = False
    forks: tuple[tuple[str, int, int], ...] = ()
    restarts: tuple[int, ...] = ()
    given_up: tuple[RibbonLine, ...] = ()
    marked: tuple[int, ...] = ()

    def query(self) -> str:
        """SQL that gives every value that the lines stand for."""
        names = ", ".join(f"'{line.name}'" for line in self.lines) or "'loss'"
        return (
            f"select step, attempt, name, value from metrics where run = '{self.run}' and name in ({names}) "
            f"and step > {self.first} and step <= {self.last} order by step, attempt, name"
        )


def ribbon(
    run: str,
    first: int | None = None,
    last: int | None = None,
    *,
    num_stretches: int = NUM_STRETCHES,
    workspace: Workspace | None = None,
) -> Ribbon:
    """What a run logged from checkpoint `first` to checkpoint `last` (default: all of it), and what happened there.

    Raises:
        UnknownRun, StepOutOfRange, InvalidRange, CorruptFile
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    first, last = _within(record, first, last)
    found = [_line(workspace, record, name, first, last, num_stretches) for name in METRICS]
    there = [c for c in workspace.checkpoints(record) if first <= c.step <= last]
    kept = {c.step for c in there if c.is_available() is not False}
    home = workspace.home(run)
    # Steps without a number, new levels and growth have no peak.
    spikes = [row for row in workspace.learned(home, "spikes") if row["peak"] is not None]
    events = sorted(spikes, key=lambda row: int(row["peak"]))
    return Ribbon(
        run=run,
        first=first,
        last=last,
        lines=tuple(line for line in found if line is not None),
        checkpoints=tuple(sorted(kept)),
        lost=tuple(sorted({c.step for c in there} - kept)),
        segments=tuple(s for s in record.kept_stretches() if s.last_step > first and s.first_step <= last),
        spikes=tuple(row for row in events if row["onset"] <= last and (row["last"] or row["peak"]) > first),
        searched=bool(workspace.learned_files(home, "spikes")),
        forks=tuple(f for f in forks_of_run(workspace, run) if f[1] <= last and f[2] > first),
        restarts=tuple(sorted(_restarts(record, first, last))),
        given_up=tuple(_given_up(workspace, record, first, last, num_stretches)),
    )


def with_marks(found: Ribbon, steps: Iterable[int], num_stretches: int = NUM_STRETCHES) -> Ribbon:
    """The same with steps marked: of those that a pixel covers the first."""
    by_pixel: dict[int, int] = {}
    for step in sorted(set(steps)):
        if found.first < step <= found.last:
            by_pixel.setdefault((step - found.first - 1) * num_stretches // (found.last - found.first), step)
    return replace(found, marked=tuple(by_pixel.values()))


def _within(run: Run, first: int | None, last: int | None) -> tuple[int, int]:
    lowest, highest = run.first_step - 1, run.last_step
    if highest <= lowest:
        raise StepOutOfRange(
            f"no step of {run.name} is known here; forensics import {run.name} LOG puts what it logged beside it"
        )
    first, last = lowest if first is None else first, highest if last is None else last
    if not lowest <= first < last <= highest:
        raise InvalidRange(
            f"{run.name} goes from checkpoint {lowest} to checkpoint {highest}; {first}:{last} is no stretch of it "
            "(A:B means from checkpoint A to checkpoint B)"
        )
    return first, last


def _line(workspace: Workspace, run: Run, name: str, first: int, last: int, num_stretches: int) -> RibbonLine | None:
    stretches = stretches_of_metric(workspace, run, name, first, last, num_stretches)
    return line_of_stretches(name, stretches) if len(stretches["first_step"]) else None


def _given_up(workspace: Workspace, run: Run, first: int, last: int, num_stretches: int) -> Iterator[RibbonLine]:
    for name in METRICS if is_of_several_attempts(workspace, run) else ():
        found = given_up_stretches(workspace, run, name, first, last, num_stretches)
        for attempt, stretches in found.items():
            yield line_of_stretches(name, stretches, attempt)


def line_of_stretches(name: str, stretches: Mapping[str, Any], attempt: int | None = None) -> RibbonLine:
    """The line through what `stretches_of_metric` found: in each stretch first, lowest, highest and last value."""
    gaps = gaps_between(stretches["first_step"], stretches["last_step"], stretches["num_values"])
    points: dict[int, float | None] = {}
    for which in ("first", "lowest", "highest", "last"):
        steps = stretches[f"{which}_finite_step" if which in ("first", "last") else f"{which}_step"]
        values = stretches[f"{which}_value" if which in ("first", "last") else which]
        there = ~np.ma.getmaskarray(steps)
        points |= zip(np.asarray(steps)[there].tolist(), np.asarray(values)[there].tolist(), strict=True)
    not_finite = np.ma.compressed(np.ma.asarray(stretches["not_finite_step"])).astype(int).tolist()
    # A point of its own in every hole breaks the line there.
    points |= dict.fromkeys([start for start, _ in gaps] + not_finite)
    ordered = sorted(int(step) for step in points)
    return RibbonLine(
        name=name,
        steps=tuple(ordered),
        values=tuple(points[step] for step in ordered),
        not_finite=tuple(not_finite),
        num_not_finite=int(np.sum(stretches["num_not_finite"])),
        gaps=tuple(gaps),
        num_values=int(np.sum(stretches["num_values"])),
        attempt=attempt,
    )


def gaps_between(firsts: Any, lasts: Any, counts: Any) -> list[tuple[int, int]]:
    """Stretches of steps (first, last) that were not logged, as far as they are wider than a pixel.

    Args:
        firsts, lasts, counts: of each stretch with logged steps the first and last of them, and how many they are.
    """
    firsts, lasts, counts = (np.asarray(values, dtype=np.int64) for values in (firsts, lasts, counts))
    between = firsts[1:] - lasts[:-1]
    inside = (lasts - firsts)[counts > 1] / (counts[counts > 1] - 1)
    distances = np.concatenate([inside, between])
    usual = float(np.median(distances)) if len(distances) else 1.0
    (wide,) = np.nonzero(between > LONGER_THAN_USUAL * usual)
    return [(int(lasts[n]) + 1, int(firsts[n + 1]) - 1) for n in wide]


def _restarts(run: Run, first: int, last: int) -> set[int]:
    return {s.first_step for s in run.segments if s.attempt > 1 and first < s.first_step <= last}


def forks_of_run(workspace: Workspace, run: str) -> list[tuple[str, int, int]]:
    """(id, the checkpoint it starts at, its last step) of a run's forks; one that cannot be read is left out."""
    found = []
    for name in workspace.fork_ids():
        try:
            child = workspace.run(name)
        except ForensicsError:
            continue
        if child.parent is not None and child.parent[0] == run:
            found.append((name, child.parent[1], child.last_step))
    return sorted(found, key=lambda fork: fork[1:])
