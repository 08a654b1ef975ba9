"""Continuity of a run's checkpoints, from what was read of each: equal ones, misplaced ones, elements that jump."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forensics.audit_rows import Row, named_steps, row
from forensics.continuity import FEWEST, Departure, States, find_departures
from forensics.odd_elements import number_rows, parameter_rows, without_odd_elements
from forensics.weight_samples import Reading
from probes.distances import correlations, pairwise_distances

CLEARLY_NEARER = 0.7  # a group of equal checkpoints is that one's whose neighbours are so much nearer than the others'

# (first, last) checkpoint -> did the steps between them leave the weights as they were? None: not known.
Rests = Callable[[int, int], bool | None]


@dataclass(slots=True, kw_only=True)
class Continuity:
    """What was found.

    Attributes:
        curve: (step, next step, L2 distance of the samples per root of an element).
        owner: step -> the step whose weights it holds, where equal ones were found and one of them fits; of others the
            steps that the group is made of are in `groups`.
        belongs: step -> steps between or at which its weights fit, by distance.
    """

    rows: list[Row] = field(default_factory=list)
    curve: list[tuple[int, int, float]] = field(default_factory=list)
    groups: list[tuple[int, ...]] = field(default_factory=list)
    owner: dict[int, int] = field(default_factory=dict)
    belongs: dict[int, tuple[int, ...]] = field(default_factory=dict)


def judge(readings: Sequence[Reading], rests: Rests) -> Continuity:
    """Judge checkpoints against the run's own pattern.

    Args:
        readings: in step order.
    """
    found = Continuity()
    found.rows += number_rows(readings)
    alike = _of_one_model(readings, found)
    if not alike:
        return found
    found.rows += parameter_rows(alike)
    vectors, rows = without_odd_elements(alike)
    found.rows += rows
    distances = pairwise_distances(vectors)
    root = max(vectors.shape[1], 1) ** 0.5
    for n, (one, other) in enumerate(zip(alike, alike[1:], strict=False)):
        found.curve.append((one.step, other.step, float(distances[n, n + 1]) / root))
    kept = _collapse(alike, distances, rests, found)
    if len(kept) < FEWEST:
        detail = f"{len(kept)} distinct checkpoints; a pattern takes {FEWEST}"
        found.rows.append(row("checkpoints", "continuity", "not known", detail))
        return found
    states = States(
        distances=distances[np.ix_(kept, kept)],
        correlations=correlations(vectors[kept], alike[0].groups),
        steps=[alike[n].step for n in kept],
        num_elements=vectors.shape[1],
    )
    departures = find_departures(states)
    found.rows += [_departure_row(departure, states.steps, found) for departure in departures]
    odd = {states.steps[place] for departure in departures for place in departure.places}
    found.rows += _ordinary_rows(found.curve, odd | set(found.owner))
    return found


def _of_one_model(readings: Sequence[Reading], found: Continuity) -> list[Reading]:
    """The readings that share parameters and shapes with most others; the rest are rows."""
    kinds = [tuple(reading.shapes.items()) for reading in readings]
    usual = max(kinds, key=kinds.count, default=())
    for reading, kind in zip(readings, kinds, strict=True):
        if kind != usual:
            names = sorted({name for name, _ in set(kind) ^ set(usual)})
            detail = f"another model: {len(names)} parameters differ from the other checkpoints', {names[0]} first"
            found.rows.append(
                row(f"checkpoint {reading.step} weights", "continuity", "failed", detail, step=reading.step)
            )
    return [reading for reading, kind in zip(readings, kinds, strict=True) if kind == usual and len(reading.sample)]


# --- equal ones ------------------------------------------------------------------------------------------------------


def _collapse(readings: Sequence[Reading], distances: np.ndarray, rests: Rests, found: Continuity) -> list[int]:
    """Numbers of the distinct states, each at its own step as far as that is known; equal ones become rows."""
    groups: dict[str, list[int]] = {}
    for n, reading in enumerate(readings):
        groups.setdefault(reading.sample_sha256, []).append(n)
    dropped: set[int] = set()
    for members in groups.values():
        if len(members) < 2:
            continue
        steps = tuple(readings[n].step for n in members)
        found.groups.append(steps)
        resting = [rests(one, other) for one, other in zip(steps, steps[1:], strict=False)]
        may_be_one = all(resting) or (steps == (0, 1) and False not in resting)
        owner = None if may_be_one else _owner(members, distances)
        dropped |= set(members) - {members[0] if owner is None else owner}
        if owner is not None:
            found.owner |= {readings[n].step: readings[owner].step for n in members if n != owner}
        found.rows.append(_equal_row([readings[n] for n in members], resting, readings[-1].step, found.owner))
    if len(readings) > 1 and not found.groups:
        found.rows.append(row("weights", "equal bytes", "ok", f"{len(readings)} checkpoints, no two alike"))
    return [n for n in range(len(readings)) if n not in dropped]


def _owner(members: Sequence[int], distances: np.ndarray) -> int | None:
    """The member whose own neighbours are clearly the nearest: the weights are that step's. None: cannot be told."""
    near = []
    for n in members:
        beside = [k for k in (n - 1, n + 1) if 0 <= k < len(distances)]
        near.append(min((float(distances[n, k]) for k in beside if k not in members), default=np.inf))
    best, *others = np.argsort(near, kind="stable")
    own = int(members[int(best)])
    # Of two side by side, each has one neighbour besides the other: that tells nothing.
    clearly = near[best] < CLEARLY_NEARER * near[others[0]] and not {own - 1, own + 1} & set(members)
    return own if clearly else None


def _equal_row(members: Sequence[Reading], resting: Sequence[bool | None], last: int, owner: Mapping[int, int]) -> Row:
    steps = [reading.step for reading in members]
    wholes = {reading.weights_sha256 for reading in members}
    if None in wholes:
        how = f"equal in all {len(members[0].sample):,} sampled elements"
    else:
        how = f"sha256 {str(members[0].weights_sha256)[:12]}…" if len(wholes) == 1 else "equal in all sampled elements"
    same = f"{named_steps(steps)} hold the same weights ({how})"
    if all(resting):
        detail = f"{same}, as they should: the learning rate is 0 between them, or the steps were skipped"
        return row("weights", "equal bytes", "expected", detail, steps=steps)
    unknown = None in resting and False not in resting
    if unknown and steps == [0, 1]:
        detail = f"{same}; whether the first update's learning rate is 0, as in some trainers, is not known"
        return row("weights", "equal bytes", "not known", detail, steps=steps)
    own = next((owner[step] for step in steps if step in owner), None)
    if own is not None:
        others = [step for step in steps if step != own]
        what = "final weights at earlier steps: " if own == last else ""
        detail = (
            f"{what}{named_steps(others)} {'carry' if len(others) > 1 else 'carries'} the weights of step {own} ({how})"
        )
        return row("weights", "equal bytes", "failed", detail, steps=others)
    rate = "" if unknown else " at a learning rate that is not 0"
    detail = f"{same}, with {_counted(steps[-1] - steps[0])} of training between them{rate}"
    return row("weights", "equal bytes", "failed", detail, steps=steps)


def _counted(steps: int) -> str:
    return f"{steps:,} {'step' if steps == 1 else 'steps'}"


# --- misplaced ones --------------------------------------------------------------------------------------------------


def _departure_row(departure: Departure, steps: Sequence[int], found: Continuity) -> Row:
    places = [steps[place] for place in departure.places]
    artifact = f"checkpoint {places[0]} weights"
    times = f"{departure.ratio:.3g} times"
    if departure.kind == "exchanged":
        one, other = places
        found.belongs |= {one: (other,), other: (one,)}
        few = len(steps) < 6 and {*departure.places} <= set(range(1, len(steps) - 1))
        doubt = f" (or {steps[0]} and {steps[-1]} do: of {len(steps)} checkpoints, that cannot be told)" if few else ""
        detail = (
            f"steps {one} and {other} hold each other's weights{doubt}: the distances around them are {times} what "
            "they are in the other order"
        )
        return row(artifact, "continuity", "failed", detail, steps=sorted(places))
    far = f"{times} as far from the nearer neighbour as the neighbours are from each other"
    if departure.kind == "elsewhere":
        left, right = (None if place is None else steps[place] for place in departure.between)
        found.belongs[places[0]] = tuple(step for step in (left, right) if step is not None)
        where = f"between steps {left} and {right}"
        if left is None or right is None:
            where = f"before step {right}" if left is None else f"after step {left}"
        return row(artifact, "continuity", "failed", f"the weights belong {where}: {far} here", steps=places)
    detail = f"the weights fit nowhere in this run, as another run's or damaged ones: {far}"
    return row(artifact, "continuity", "failed", detail, steps=places)


def _ordinary_rows(curve: Sequence[tuple[int, int, float]], odd: set[int]) -> Iterator[Row]:
    steps = [curve[0][0], *(other for _, other, _ in curve)]
    for n, step in enumerate(steps):
        if step in odd:
            continue
        beside = [curve[k] for k in (n - 1, n) if 0 <= k < len(curve)]
        near = "; ".join(f"{size:.3g} from step {one if one != step else other}" for one, other, size in beside)
        yield row(f"checkpoint {step} weights", "continuity", "ok", f"root mean square distance {near}", step=step)
