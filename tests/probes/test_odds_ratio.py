"""Odds ratios and ranks, held against sums over all tables and all pairs."""

import math

import numpy as np
import pytest

from probes.odds_ratio import odds_of, superiority_of


def fisher_by_enumeration(a: int, n: int, b: int, m: int) -> float:
    """Sum of the probabilities of all tables with these margins that are no more probable."""
    marked = a + b
    ways = [math.comb(n, k) * math.comb(m, marked - k) for k in range(max(0, marked - m), min(n, marked) + 1)]
    own = math.comb(n, a) * math.comb(m, b)
    return sum(way for way in ways if way <= own) / sum(ways)


@pytest.mark.parametrize("table", [(3, 4, 2, 100), (0, 5, 7, 40), (5, 5, 0, 30), (2, 8, 10, 40), (0, 3, 0, 9)])
def test_the_p_value_sums_all_tables_as_improbable(table: tuple[int, int, int, int]) -> None:
    assert odds_of(*table).p_value == pytest.approx(fisher_by_enumeration(*table))


def test_the_ratio_adds_a_half_to_every_count() -> None:
    odds = odds_of(3, 4, 2, 100)

    assert odds.ratio == pytest.approx((3.5 / 1.5) / (2.5 / 98.5))
    spread = math.sqrt(1 / 3.5 + 1 / 1.5 + 1 / 2.5 + 1 / 98.5)
    assert math.log(odds.high) - math.log(odds.ratio) == pytest.approx(1.96 * spread, rel=1e-4)
    assert odds.low * odds.high == pytest.approx(odds.ratio**2)


def test_the_interval_holds_the_true_ratio_in_95_of_100_samples() -> None:
    random = np.random.default_rng(0)
    true = (0.3 / 0.7) / (0.1 / 0.9)
    draws = zip(random.binomial(40, 0.3, 400), random.binomial(300, 0.1, 400), strict=True)

    held = sum(odds.low <= true <= odds.high for odds in (odds_of(int(a), 40, int(b), 300) for a, b in draws))

    assert 0.92 <= held / 400 <= 0.98


def test_superiority_counts_pairs() -> None:
    values, base = np.array([3.0, 5.0, 5.0]), np.array([1.0, 3.0, 4.0, 5.0, 9.0])
    pairs = [(v > b) + (v == b) / 2 for v in values for b in base]

    superiority, p_value = superiority_of(values, base)

    assert superiority == pytest.approx(sum(pairs) / len(pairs))
    assert 0.3 < p_value <= 1


def test_few_values_show_no_more_than_they_can() -> None:
    """The normal approximation would say 4e-23 of one value among a hundred equal ones; 1 in 101 is all it can be."""
    _, p_value = superiority_of(np.array([1.0]), np.zeros(100))

    assert p_value == pytest.approx(1 / 101)
