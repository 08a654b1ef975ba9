"""Do a run's weights go from checkpoint to checkpoint as one run's do? Distances in, departures from the pattern out.

In an untouched run the weights move on: the farther two checkpoints are apart in steps, the farther apart they are in
distance, or at least no nearer. So the path through the checkpoints in step order is about the shortest there is. A
checkpoint under a wrong step makes it longer, and the edit that shortens it most says what happened: two steps
exchanged, one that belongs elsewhere, some that belong nowhere here. Edits are accepted one after another, the largest
first, and each is carried out before the next is looked for: so neighbours of a bad checkpoint are not blamed for it.

All of it is relative to the distances around; no length is known in advance, and no learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

FEWEST = 4  # distinct states below which no pattern can be told from a departure from it
# Of the edges that an edit changes, the share it must save. In untouched runs no edit saves anything, whether they move
# steadily or at random; an exchange of even neighbours saves a sixth or more. Where a large edge hides a small one, the
# share of one side counts.
EXCHANGE_GAIN, MOVE_GAIN, SIDE_GAIN = 0.08, 0.12, 0.15
# How much farther from both its neighbours than they are from each other a state must be; in untouched runs at most 1.
FOREIGN_RATIO = 1.5
UNRELATED, RELATED = 0.02, 0.1  # correlations: of states that share no start, and of states that do
FORGOTTEN_AFTER = 5000  # steps
# An end that is so many times as far away as the distance next to it, for each step of training, and little related.
JUMP_RATIO, JUMP_CORRELATION = 10.0, 0.5
# Squared distance of a state's neighbours over the sum of the squares of both steps between them: 2 for a straight
# line, 1 for a random walk, 1/2 where the weights only jitter about a place, so that no order can be told.
LEAST_GROWTH, LEAST_GROWTH_OF_FEW = 0.8, 0.9
WINDOW = 6  # checkpoints on each side that are asked
TINY = float(np.finfo(float).tiny)

Kind = Literal["exchanged", "elsewhere", "foreign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A way in which the checkpoints are not in the order of their steps.

    Attributes:
        kind: `exchanged`: two hold each other's weights. `elsewhere`: the weights fit between two other checkpoints.
            `foreign`: they fit nowhere in this run.
        places: numbers of the checkpoints: two of `exchanged`, else one.
        ratio: how unusual that is. exchanged: the edges as they are over the edges after the repair. elsewhere and
            foreign: the distance to the nearer neighbour over what it is at most in a run, the neighbours' own.
        between: of `elsewhere`, the numbers of the checkpoints between which the weights fit; None: past an end.
    """

    kind: Kind
    places: tuple[int, ...]
    ratio: float
    between: tuple[int | None, int | None] = (None, None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class States:
    """Distinct states of a run in step order (equal ones collapsed to one).

    Attributes:
        distances: [n, n], L2.
        correlations: [n, n], of the weights, each parameter's mean taken away.
        steps: of the n states.
        num_elements: that the correlations were taken over; they scatter by 1 over its root.
    """

    distances: np.ndarray
    correlations: np.ndarray
    steps: Sequence[int]
    num_elements: int

    @property
    def unrelated(self) -> float:
        return max(UNRELATED, 4 / self.num_elements**0.5)

    def is_jump(self, end: int, near: int, inner: int) -> bool:
        """Is an end of a path another run's, by how far it lies from the state beside it?"""
        ratio = self.distances[end, near] / max(self.distances[near, inner], TINY)
        gaps = abs(self.steps[end] - self.steps[near]) / max(abs(self.steps[near] - self.steps[inner]), 1)
        far = ratio > JUMP_RATIO * max(gaps, 1) and self.correlations[end, near] < JUMP_CORRELATION
        return bool(far or abs(self.correlations[end, near]) < max(RELATED, self.unrelated))


def find_departures(states: States) -> list[Departure]:
    """The fewest departures that explain the distances, the largest first; none below FEWEST states."""
    order = list(range(len(states.distances)))
    found: list[Departure] = []
    while len(order) >= FEWEST and len(found) < len(states.distances):
        departures = _alone(states, order) or _Path(states, order).largest() or _far_end(states, order)
        if not departures:
            break
        found += departures
        order = _repaired(order, departures)
    return [_placed(departure, states, order) for departure in found]


def _placed(departure: Departure, states: States, order: list[int]) -> Departure:
    """Whether what was taken out fits elsewhere, seen once all that is odd has been taken out."""
    if departure.kind == "exchanged" or len(order) < FEWEST:
        return departure
    path = _Path(states, order)
    gap = path.fitting_gap(np.pad(states.distances[departure.places[0], order], 1), range(path.n + 1))
    if gap is None:
        return replace(departure, kind="foreign", between=(None, None))
    return replace(departure, kind="elsewhere", between=path.between(gap))


def _repaired(order: list[int], departures: Sequence[Departure]) -> list[int]:
    order = order[:]
    for departure in departures:
        if departure.kind == "exchanged":
            one, other = (order.index(place) for place in departure.places)
            order[one], order[other] = order[other], order[one]
        else:
            order.remove(departure.places[0])
    return order


def _growth(distances: np.ndarray, order: Sequence[int]) -> float:
    """The median of how distances add up along a path (see LEAST_GROWTH)."""
    a, b, c = np.array([order[k : k + 3] for k in range(len(order) - 2)]).T
    edges = distances[a, b] ** 2 + distances[b, c] ** 2
    return float(np.median(distances[a, c] ** 2 / np.maximum(edges, TINY)))


def _alone(states: States, order: list[int]) -> list[Departure]:
    """A state that shares nothing with any other, while those beside it share much."""
    for at, place in enumerate(order):
        others = [other for other in order if other != place]
        if float(np.abs(states.correlations[place, others]).max()) >= states.unrelated:
            continue
        near, inner = _beside(order, at)
        # What a run began with is forgotten in the end.
        forgotten = at == 0 and states.steps[near] - states.steps[place] > FORGOTTEN_AFTER
        if states.correlations[near, inner] > max(2 * RELATED, states.unrelated) and not forgotten:
            return [_stranger(states, place, near, inner)]
    return []


def _far_end(states: States, order: list[int]) -> list[Departure]:
    """The first or the last state, where it lies far off from those beside it, which share much."""
    for at in (0, len(order) - 1):
        place, (near, inner) = order[at], _beside(order, at)
        in_common = states.correlations[near, inner] > max(2 * RELATED, states.unrelated)
        far = states.distances[place, near] > JUMP_RATIO * states.distances[near, inner]
        if in_common and far and states.is_jump(place, near, inner):
            return [_stranger(states, place, near, inner)]
    return []


def _beside(order: list[int], at: int) -> tuple[int, int]:
    """Two states that a state is held against: those on both sides; of an end, the two next to it."""
    if at == 0:
        return order[1], order[2]
    return order[at - 1], order[at - 2 if at == len(order) - 1 else at + 1]


def _stranger(states: States, place: int, near: int, inner: int) -> Departure:
    ratio = float(states.distances[place, near] / max(states.distances[near, inner], TINY))
    return Departure(kind="foreign", places=(place,), ratio=ratio)


Candidate = tuple[float, list[Departure]]  # what a repair saves of the path, and what it says


class _Path:
    """The path through states in an order, open at both ends.

    `d` has a row and a column more at either end, 0 and n + 1, at no distance from anything: so an end is no exception.
    Numbers i, j, k are places in it, 1 .. n; gap p lies between p and p + 1.
    """

    def __init__(self, states: States, order: list[int]) -> None:
        self.states, self.order, self.n = states, order, len(order)
        self.d = np.pad(states.distances[np.ix_(order, order)], 1)
        self.edge = np.diagonal(self.d, 1).copy()

    def largest(self) -> list[Departure]:
        """The departure whose repair shortens the path most, of those that are significant."""
        found = [candidate for candidate in (self._exchange(), self._move(), self._block()) if candidate is not None]
        for _, departures in sorted(found, key=lambda candidate: -candidate[0]):
            if self._has_order_around(departures):
                return departures
        return []

    def _has_order_around(self, departures: Sequence[Departure]) -> bool:
        """Does distance grow with steps around here, once this is repaired? Where it does not, nothing can be told."""
        places = [place for departure in departures for place in (*departure.places, *departure.between)]
        at = [self.order.index(place) for place in places if place is not None]
        around = _repaired(self.order, departures)[max(min(at) - WINDOW, 0) : max(at) + WINDOW + 1]
        least = LEAST_GROWTH if len(around) > 5 else LEAST_GROWTH_OF_FEW
        return len(around) >= 3 and _growth(self.states.distances, around) >= least

    # --- two in each other's place -----------------------------------------------------------------------------------

    def _exchange(self) -> Candidate | None:
        d, inner = self.d, np.arange(1, self.n + 1)
        before = self.edge[inner - 1] + self.edge[inner]
        left, right = d[inner - 1][:, inner], d[inner + 1][:, inner]  # [i, j]: j in i's place, to its neighbours
        old, new = before[:, None] + before[None, :], left + right + (left + right).T
        # Neighbours keep the distance between them, which `before` holds twice and `new` not at all.
        between = d[1:-1, 1:-1] * (np.abs(inner[:, None] - inner[None, :]) == 1)
        old, new = old - between, new + between
        gain = np.triu(old - new, 1)
        side = np.maximum(
            1 - left / np.maximum(self.edge[:-1, None], TINY), 1 - right.T / np.maximum(self.edge[1:], TINY)
        )
        significant = np.argwhere((gain > EXCHANGE_GAIN * old) | ((gain > 0.01 * old) & (side > SIDE_GAIN)))
        best: Candidate | None = None
        for i, j in significant.tolist():
            agree = self._others_agree(i + 1, j + 1)
            # An exchange of both ends and one of all between them give the same path: others decide, if there are any.
            weight = {None: 0.9, True: 1.0, False: 0.0}[agree] * float(gain[i, j])
            if weight > (best[0] if best else 0):
                ratio = float(old[i, j] / max(new[i, j], TINY))
                places = (self.order[i], self.order[j])
                best = weight, [Departure(kind="exchanged", places=places, ratio=ratio)]
        return best

    def _others_agree(self, i: int, j: int) -> bool | None:
        """Do the states on either side say that what is at i comes after what is at j? None: there are none.

        A state that is only noisier than others is farther from both sides; one in a wrong place is nearer to one.
        """
        d = self.d
        before = [d[k, i] > d[k, j] for k in range(max(i - WINDOW, 1), i)]
        after = [d[k, i] < d[k, j] for k in range(j + 1, min(j + 1 + WINDOW, self.n + 1))]
        if not before and not after:
            return None
        return all(sum(votes) >= 0.75 * len(votes) for votes in (before, after))

    # --- some that lie apart, or fit elsewhere -----------------------------------------------------------------------

    def _move(self) -> Candidate | None:
        """One state that lies between two others, farther on or farther back than its neighbour."""
        best: Candidate | None = None
        for i in range(1, self.n + 1):
            gap = self._gap_for(i, range(i, i + 1))
            if gap is None or gap in (i - 2, i + 1):  # past its neighbour: an exchange
                continue
            d, edge = self.d, self.edge
            old = edge[i - 1] + edge[i] + edge[gap]
            gain = float(old - d[i - 1, i + 1] - d[gap, i] - d[i, gap + 1])
            if gain > MOVE_GAIN * old and (best is None or gain > best[0]):
                place = (self.order[i - 1],)
                moved = Departure(kind="elsewhere", places=place, ratio=self._oddness(i, i), between=self.between(gap))
                best = gain, [moved]
        return best

    def _block(self) -> Candidate | None:
        """A few neighbouring states that lie apart from all around them."""
        d, best, most = self.d, range(0), 0.0
        for length in range(1, max(self.n // 3, 1) + 1):
            first = np.arange(2, self.n - length + 1)  # an end has no neighbours on both sides
            last = first + length - 1
            across = d[first - 1, last + 1]
            near = np.minimum(d[first - 1, first], d[last, last + 1])
            # The more states are declared odd, the less is explained.
            gain = (d[first - 1, first] + d[last, last + 1] - across) * 0.95 ** (length - 1)
            for k in np.flatnonzero((near > FOREIGN_RATIO * across) & (gain > most)):
                block = range(int(first[k]), int(last[k]) + 1)
                if gain[k] > most and self._lies_apart(block, float(across[k])) and not self._belongs_past_end(block):
                    best, most = block, float(gain[k])
        if not best:
            return None
        i, ratio = best.start, self._oddness(best.start, best.stop - 1)
        gap = self._gap_for(i, best) if len(best) == 1 else None
        if gap is not None and gap in (i - 2, i + 1):  # past its neighbour
            places = (self.order[i - 1], self.order[i]) if gap == i + 1 else (self.order[i - 2], self.order[i - 1])
            return most, [Departure(kind="exchanged", places=places, ratio=ratio)]
        return most, [Departure(kind="foreign", places=(self.order[k - 1],), ratio=ratio) for k in best]

    def _lies_apart(self, block: range, across: float) -> bool:
        """Do most states around lie far from the block? Else it is they that are odd, on both sides of it."""
        around = [k for k in range(block.start - WINDOW, block.stop + WINDOW) if 1 <= k <= self.n and k not in block]
        return all(float(np.median(self.d[i, around])) > FOREIGN_RATIO * across for i in block)

    def _belongs_past_end(self, block: range) -> bool:
        """Is it the state beside an end, and far off only as the end itself may be? Then the two are exchanged."""
        if len(block) > 1 or block.start not in (2, self.n - 1):
            return False
        i = block.start
        end, inner = (1, 3) if i == 2 else (self.n, self.n - 2)
        place, end, inner = (self.order[k - 1] for k in (i, end, inner))
        # As if the end's step were its own.
        steps = list(self.states.steps)
        steps[place], steps[end] = steps[end], steps[place]
        return not replace(self.states, steps=steps).is_jump(place, end, inner)

    def _oddness(self, first: int, last: int) -> float:
        """How many times as far a block is from the nearer state beside it as those are from each other."""
        d = self.d
        sides = [d[i, k] for i, k in ((first, first - 1), (last, last + 1)) if 1 <= k <= self.n]
        across = d[first - 1, last + 1] if len(sides) == 2 else self.edge[last + 1 if first == 1 else first - 2]
        return float(min(sides) / max(across, TINY))

    def _gap_for(self, i: int, block: range) -> int | None:
        """The gap that the state at i fits in, outside a block that it is part of."""
        return self.fitting_gap(self.d[i], [p for p in range(self.n + 1) if p not in block and p + 1 not in block])

    def fitting_gap(self, to: np.ndarray, gaps: Sequence[int]) -> int | None:
        """The gap in which a state is as near to both sides as they are to each other.

        Past an end: about as near to it as the end's own neighbour, and nearer than to that one.

        Args:
            to: the state's distances to all of the path, padded as `d` is.
        """
        if not len(gaps):
            return None
        d, n, at = self.d, self.n, np.array(gaps)
        gap = int(at[np.argmin(to[at] + to[at + 1] - d[at, at + 1])])
        if 1 <= gap < n:
            return gap if max(to[gap], to[gap + 1]) <= 1.15 * d[gap, gap + 1] else None
        end, inner = (1, 2) if gap == 0 else (n, n - 1)
        return gap if to[end] <= 1.5 * d[end, inner] and to[end] < to[inner] else None

    def between(self, gap: int) -> tuple[int | None, int | None]:
        """The states on both sides of a gap; None past an end."""
        return (self.order[gap - 1] if gap else None, self.order[gap] if gap < self.n else None)
