import math

import numpy as np
import pytest
from scipy.stats import kstest, pareto

from probes.spectral_tail import power_law_from, power_law_tail


def pareto_values(alpha: float, count: int, seed: int) -> np.ndarray:
    """Of a density ~ x^-alpha from 1 on, by inversion of its distribution."""
    return np.random.default_rng(seed).random(count) ** (-1 / (alpha - 1))


@pytest.mark.parametrize("alpha", [1.5, 2.5, 4.0])
def test_the_exponent_of_a_known_pareto_is_found_within_its_standard_error(alpha: float) -> None:
    """Over 200 samples: errors in units of the standard error (alpha - 1) / sqrt(n) have mean near 0 and spread near 1.

    The estimate of largest likelihood is high by (alpha - 1) / n, 0.03 of a standard error here.
    """
    fits = [power_law_from(np.sort(np.append(pareto_values(alpha, 999, seed), 1.0))) for seed in range(200)]
    scores = np.array([(fit.alpha - alpha) / fit.standard_error for fit in fits if fit is not None])

    assert len(scores) == 200
    assert abs(scores.mean()) < 4 / math.sqrt(200)
    assert 0.8 < scores.std() < 1.2


@pytest.mark.parametrize("seed", range(3))
def test_the_best_tail_is_that_of_a_brute_force_search_with_scipy(seed: int) -> None:
    """scipy fits and measures each tail: pareto.fit with fixed location and scale, kstest against its distribution."""
    random = np.random.default_rng(seed)
    # A bulk without a power law, a tail with one, and ties.
    values = np.concatenate([random.random(80) + 0.2, 1.2 * pareto_values(2.5, 60, seed), [0.7, 0.7, 3.0, 3.0]])
    tried = []
    for xmin in np.unique(values)[:-1]:
        tail = values[values >= xmin]
        shape, _, _ = pareto.fit(tail, floc=0, fscale=xmin)
        tried.append((kstest(tail, pareto(shape, scale=xmin).cdf).statistic, xmin, shape + 1, len(tail)))
    distance, xmin, alpha, num_tail = min(tried)
    found = power_law_tail(values)

    assert found is not None
    assert (found.xmin, found.num_tail, found.num_values) == (xmin, num_tail, len(values))
    assert found.alpha == pytest.approx(alpha, rel=1e-9)
    assert found.distance == pytest.approx(distance, rel=1e-9)


def test_the_tail_begins_where_the_power_law_does() -> None:
    """2000 values of a density that is flat below 1 and ~ x^-3 from 1 on: most of the flat part is left out."""
    random = np.random.default_rng(4)
    found = power_law_tail(np.concatenate([random.random(1000), pareto_values(3.0, 1000, 5)]))

    assert found is not None
    assert 0.9 < found.xmin < 2.0
    assert abs(found.alpha - 3.0) < 4 * found.standard_error
    assert found.distance < 1.36 / math.sqrt(found.num_tail)  # the 5 % point of the distance of the true distribution


def test_equal_values_are_in_the_tail_together() -> None:
    """Of the last 2 and the 4 alone the distance would be 1 / 2, which is less; but xmin = 2 means every 2."""
    found = power_law_tail(np.array([2.0, 2.0, 2.0, 2.0, 4.0]))

    assert found is not None
    assert (found.num_tail, found.distance) == (5, pytest.approx(0.8))
    assert found.alpha == pytest.approx(1 + 5 / math.log(2))


def test_units_and_zeros_do_not_matter() -> None:
    values = pareto_values(2.2, 300, 6)
    plain, scaled = power_law_tail(values), power_law_tail(np.concatenate([np.zeros(5), 1e-6 * values[::-1], [-1e-20]]))

    assert plain is not None and scaled is not None
    assert scaled.alpha == pytest.approx(plain.alpha, rel=1e-9)
    assert scaled.xmin == pytest.approx(1e-6 * plain.xmin, rel=1e-12)
    assert (scaled.num_tail, scaled.num_values) == (plain.num_tail, 300)


def test_short_tails_can_be_left_out_and_equal_values_have_none() -> None:
    values = pareto_values(2.2, 100, 7)
    long = power_law_tail(values, fewest_in_tail=90)

    assert long is not None and long.num_tail >= 90
    assert power_law_tail(values, fewest_in_tail=101) is None
    assert power_law_tail(np.full(10, 2.0)) is None
    assert power_law_tail(np.array([])) is None
