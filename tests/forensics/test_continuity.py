"""Departures are found where they were planted, and none are where the weights only walk."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from probes.distances import correlations, pairwise_distances
from tests.forensics.walks import ELEMENTS, GRIDS, RATES, found_in, walk


@pytest.mark.parametrize("kind", ["steady", "random"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rate", RATES)
def test_untouched_runs_raise_no_alarm(kind: str, grid: str, rate: str) -> None:
    steps = GRIDS[grid]
    for seed in range(3):
        assert found_in(walk(kind, steps, RATES[rate](len(steps) - 1), seed), steps) == []


@pytest.mark.parametrize("seed", range(5))
def test_weights_that_only_jitter_raise_no_alarm(seed: int) -> None:
    """Where all checkpoints are equally far from each other, no order can be told, so none is."""
    random = np.random.default_rng(seed)
    states = random.normal(0, 0.02, ELEMENTS) + random.normal(0, 1e-3, (20, ELEMENTS))

    assert found_in(states, range(20)) == []


@pytest.mark.parametrize("kind", ["steady", "random"])
@pytest.mark.parametrize("grid", ["even", "powers of two, then even"])
def test_every_exchange_is_named(kind: str, grid: str) -> None:
    steps = GRIDS[grid]
    states = walk(kind, steps, RATES["constant"](len(steps) - 1), 0)
    named = []
    for one, other in combinations(range(len(steps)), 2):
        planted = states.copy()
        planted[[one, other]] = planted[[other, one]]
        found = found_in(planted, steps)
        assert found, (one, other)
        named.append([(d.kind, tuple(sorted(d.places))) for d in found] == [("exchanged", (one, other))])

    assert np.mean(named) >= 0.97  # at random, the first states may lie too close to tell which of the two it was


@pytest.mark.parametrize("kind", ["steady", "random"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_foreign_state_is_named_wherever_it_is(kind: str, grid: str) -> None:
    steps = GRIDS[grid]
    rates = RATES["decaying"](len(steps) - 1)
    states, others = walk(kind, steps, rates, 0), walk(kind, steps, rates, 1)
    for place in range(len(steps)):
        planted = states.copy()
        planted[place] = others[place]

        assert [(d.kind, d.places) for d in found_in(planted, steps)] == [("foreign", (place,))]


@pytest.mark.parametrize("kind", ["steady", "random"])
def test_a_state_of_another_time_is_placed_there(kind: str) -> None:
    steps = range(0, 400, 10)
    fine = walk(kind, steps, RATES["constant"](len(steps) - 1), 0)
    states = fine[::2]
    for place, time in ((3, 31), (17, 5), (10, 35)):
        planted = states.copy()
        planted[place] = fine[time]
        (found,) = found_in(planted, range(20))

        assert (found.kind, found.places, found.between) == ("elsewhere", (place,), (time // 2, time // 2 + 1))
        assert found.ratio > 1


def test_several_faults_are_told_apart_and_neighbours_are_not_blamed() -> None:
    steps = range(40)
    states = walk("steady", steps, RATES["constant"](39), 0)
    others = walk("steady", steps, RATES["constant"](39), 1)
    states[[4, 25]] = states[[25, 4]]
    states[12], states[30], states[31] = others[12], others[30], others[31]
    found = {d.places: d.kind for d in found_in(states, steps)}

    assert found == {(4, 25): "exchanged", (12,): "foreign", (30,): "foreign", (31,): "foreign"}


def test_three_states_are_too_few_for_a_pattern() -> None:
    assert found_in(np.random.default_rng(0).normal(size=(3, ELEMENTS)), range(3)) == []


def test_distances_of_equal_and_of_near_rows_are_exact() -> None:
    """Between near rows of large norm, a difference of squares would leave nothing."""
    rows = np.full((3, 1000), 1e4, dtype=np.float32)
    rows[2, 0] += 0.125
    distances = pairwise_distances(rows)

    assert distances[0, 1] == 0 and distances[1, 2] == 0.125
    assert distances[0, 2] == pytest.approx(0.125, rel=1e-6)


def test_what_all_runs_have_in_common_is_no_correlation() -> None:
    """Gains that all lie about 1 say nothing about a shared start."""
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(0, 0.02, (2, 2000)), 1 + random.normal(0, 0.02, (2, 2000))], axis=1)

    assert abs(correlations(rows, np.repeat([0, 1], 2000))[0, 1]) < 0.1
    assert correlations(rows, np.zeros(4000, dtype=int))[0, 1] > 0.9
