"""The columns of an index, in pure numpy: which step read which position, and at which positions each instance stands.

An order has 10^9 instances and more in real runs. Nothing here is as long but the order itself, and that part of its
inverse that is being made; the rest comes stretch by stretch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data_index.errors import OrderMismatch
from data_index.run import Segment

# Positions scattered together, so that they stay in the processor's cache: five times as fast as all at once.
SCATTER_POSITIONS = 2**18


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpochOrder:
    """An epoch's instances in consumption order.

    Attributes:
        instances: unsigned, shape [positions]; None where position p holds instance p, which needs no array.
        num_positions: its length.
        num_instances: of the run; every instance of the order lies below.
    """

    instances: np.ndarray | None
    num_positions: int
    num_instances: int

    @property
    def dtype(self) -> np.dtype:
        """What holds any instance and any position, and one value more that stands for none."""
        return np.dtype(np.uint32 if max(self.num_positions, self.num_instances) < 2**32 - 1 else np.uint64)

    @property
    def nowhere(self) -> int:
        return int(np.iinfo(self.dtype).max)

    def stretch(self, start: int, stop: int) -> np.ndarray:
        """Instances at positions start .. stop (half-open)."""
        if self.instances is None:
            return np.arange(start, min(stop, self.num_positions), dtype=self.dtype)
        return self.instances[start:stop].astype(self.dtype, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readings:
    """Readings of positions, int64 arrays of one length."""

    instance: np.ndarray
    step: np.ndarray
    attempt: np.ndarray
    position: np.ndarray


def stop_position(segment: Segment) -> int:
    return segment.first_position + segment.num_steps * segment.instances_per_batch


def require_inside(segments: Sequence[Segment], order: EpochOrder) -> None:
    """
    Raises:
        OrderMismatch: a segment reaches past the order.
    """
    for segment in segments:
        if (stop := stop_position(segment)) > order.num_positions:
            raise OrderMismatch(
                f"steps {segment.first_step}..{segment.last_step} need {stop:,} positions of epoch {segment.epoch}; "
                f"its order has {order.num_positions:,}"
            )


def readings_of_stretch(
    segments: Sequence[Segment], order: EpochOrder, start: int, stop: int
) -> tuple[np.ndarray, Readings]:
    """Who read positions start .. stop (half-open) of an epoch.

    Args:
        segments: of that epoch.
    Returns:
        The step that read each position in a first attempt, int64 of shape [stop - start], 0 where none did; and all
        other readings (later attempts, positions that were read once more), by position and attempt.
    """
    step = np.zeros(stop - start, dtype=np.int64)
    others: list[tuple[np.ndarray, np.ndarray, int]] = []
    for segment in sorted(segments, key=lambda segment: (segment.attempt, segment.first_step)):
        first, last = max(start, segment.first_position), min(stop, stop_position(segment))
        if first >= last:
            continue
        position = np.arange(first, last)
        steps = segment.first_step + (position - segment.first_position) // segment.instances_per_batch
        here = step[first - start : last - start]
        if segment.attempt == 1 and not here.any():  # almost always; masks would cost as much as all the rest
            here[:] = steps
            continue
        free = (here == 0) & (segment.attempt == 1)
        here[free] = steps[free]
        if not free.all():
            others.append((position[~free], steps[~free], segment.attempt))
    return step, _by_position(others, order)


def _by_position(found: list[tuple[np.ndarray, np.ndarray, int]], order: EpochOrder) -> Readings:
    nothing = np.empty(0, dtype=np.int64)
    position = np.concatenate([nothing, *(position for position, _, _ in found)])
    step = np.concatenate([nothing, *(steps for _, steps, _ in found)])
    attempt = np.concatenate([nothing, *(np.full(len(steps), attempt) for _, steps, attempt in found)])
    rows = np.lexsort((step, attempt, position))
    position = position[rows]
    instance = position if order.instances is None else order.instances[position].astype(np.int64)
    return Readings(instance=instance, step=step[rows], attempt=attempt[rows], position=position)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """Where instances first .. first + len(position) stand in an order.

    Attributes:
        position: the first of each that was read, or else the first; of the order's dtype, its `nowhere` for an
            instance that the order leaves out.
        more_instances, more_positions: of those that stand at several, the others; int64, by instance.
    """

    first: int
    position: np.ndarray
    more_instances: np.ndarray
    more_positions: np.ndarray


def places_of_instances(segments: Sequence[Segment], order: EpochOrder, first: int, stop: int) -> Places:
    """Where instances first .. stop (half-open) stand.

    Args:
        segments: of that epoch; of several positions, one that was read comes first.
    """
    nothing = np.empty(0, dtype=np.int64)
    if order.instances is None:
        position = np.arange(first, stop, dtype=order.dtype)
        position[max(order.num_positions - first, 0) :] = order.nowhere
        return Places(first=first, position=position, more_instances=nothing, more_positions=nothing)
    position = np.full(stop - first, order.nowhere, dtype=order.dtype)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        num_scattered = sum(threads.map(lambda range_: _scatter(order, position, first, *range_), _ranges(order)))
    if num_scattered == np.count_nonzero(position != order.nowhere):
        return Places(first=first, position=position, more_instances=nothing, more_positions=nothing)
    return _with_repeats(segments, order, position, first)


def _ranges(order: EpochOrder) -> Iterator[tuple[int, int]]:
    for start in range(0, order.num_positions, SCATTER_POSITIONS):
        yield start, min(start + SCATTER_POSITIONS, order.num_positions)


def _scatter(order: EpochOrder, position: np.ndarray, first: int, start: int, stop: int) -> int:
    """Write the places of a stretch of the order; how many it held of the wanted instances."""
    instances, places = _wanted(order, len(position), first, start, stop)
    position[instances] = places
    return len(instances)


def _wanted(order: EpochOrder, count: int, first: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Instances of a stretch that lie in first .. first + count, counted from `first`, and their positions."""
    instances = order.stretch(start, stop)
    if first == 0 and count == order.num_instances:
        return instances, np.arange(start, stop, dtype=order.dtype)
    here = instances - order.dtype.type(first)  # what lies before wraps around to the top
    inside = np.flatnonzero(here < count)  # with numbers, taking is twice as fast as by a mask
    return here[inside], (inside + start).astype(order.dtype)


def _with_repeats(segments: Sequence[Segment], order: EpochOrder, position: np.ndarray, first: int) -> Places:
    """Places of instances some of which stand at several; which of them the threads wrote last is chance."""
    several = np.zeros(len(position), dtype=bool)
    for start, stop in _ranges(order):
        instances, places = _wanted(order, len(position), first, start, stop)
        several[instances[position[instances] != places]] = True
    found = []
    for start, stop in _ranges(order):
        instances, places = _wanted(order, len(position), first, start, stop)
        chosen = several[instances]
        found.append(np.stack([instances[chosen], places[chosen]]).astype(np.int64))
    instance, place = np.concatenate(found, axis=1)
    rows = np.lexsort((place, ~_was_read(segments, place), instance))
    instance, place = instance[rows], place[rows]
    leads = np.append(True, instance[1:] != instance[:-1])
    position[instance[leads]] = place[leads]
    return Places(first=first, position=position, more_instances=instance[~leads] + first, more_positions=place[~leads])


def _was_read(segments: Sequence[Segment], position: np.ndarray) -> np.ndarray:
    read = np.zeros(len(position), dtype=bool)
    for segment in segments:
        read |= (position >= segment.first_position) & (position < stop_position(segment))
    return read


def steps_of_positions(segments: Sequence[Segment], position: np.ndarray) -> np.ndarray:
    """The step that reads each position, 0 where none does; int64, of the same shape.

    Args:
        segments: no two read the same position (see `layers`); in order of position.
    """
    first = np.array([segment.first_position for segment in segments], dtype=np.int64)
    stop = np.array([stop_position(segment) for segment in segments], dtype=np.int64)
    if len(segments) == 1:  # almost every run: no search
        number = np.zeros((), dtype=np.int64)
    else:
        number = np.searchsorted(stop, position, side="right").clip(max=len(segments) - 1)
    step = np.array([segment.first_step for segment in segments], dtype=np.int64)
    rows = np.array([segment.instances_per_batch for segment in segments], dtype=np.int64)
    found = step[number] + (position.astype(np.int64) - first[number]) // rows[number]
    found[(position < first[number]) | (position >= stop[number])] = 0
    return found


def layers(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments of an epoch, so divided that no two of a layer read the same position; each in order of position."""
    found: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda segment: segment.first_position):
        fitting = (layer for layer in found if stop_position(layer[-1]) <= segment.first_position)
        layer = next(fitting, None)
        if layer is None:
            found.append(layer := [])
        layer.append(segment)
    return found
