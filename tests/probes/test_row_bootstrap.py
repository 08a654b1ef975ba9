import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from probes.row_bootstrap import estimate_of

RNG = np.random.default_rng(0)
COUNTS = RNG.integers(1, 40, 60)
TOTALS = COUNTS * (2 + RNG.standard_normal(60))


def test_the_interval_of_a_ratio_is_that_of_another_implementation() -> None:
    """scipy's percentile bootstrap of the same ratio of sums, with other draws: both vary by less than a tenth."""
    found = estimate_of(TOTALS[:, None], COUNTS[:, None], [1.0], num_draws=4000)
    theirs = bootstrap(
        (TOTALS, COUNTS),
        lambda total, count, axis: total.sum(axis=axis) / count.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=1,
    ).confidence_interval
    tenth = (theirs.high - theirs.low) / 10

    assert found.value == pytest.approx(TOTALS.sum() / COUNTS.sum(), rel=1e-14)
    assert found.low == pytest.approx(theirs.low, abs=tenth)
    assert found.high == pytest.approx(theirs.high, abs=tenth)


def test_intervals_hold_their_level_for_clusters_and_not_for_their_rows() -> None:
    """Rows of a cluster are the same draw here: taken as independent, half the rows' intervals miss the mean."""
    hits, misses_of_rows, num_trials = 0, 0, 200
    clusters = np.repeat(np.arange(40), 5)
    for trial in range(num_trials):
        values = np.random.default_rng(trial).standard_normal(40)[clusters][:, None]
        found = estimate_of(values, np.ones_like(values), [1.0], clusters=clusters, num_draws=300)
        of_rows = estimate_of(values, np.ones_like(values), [1.0], num_draws=300)
        hits += found.low <= 0 <= found.high
        misses_of_rows += not of_rows.low <= 0 <= of_rows.high
        assert (found.num_clusters, of_rows.num_clusters) == (40, 200)
    # 95 % nominal, 93 to 94 % for 40 clusters; four binomial deviations below and above.
    assert 0.87 < hits / num_trials < 1
    assert misses_of_rows / num_trials > 0.25


def test_the_spread_of_a_difference_of_two_samples_is_the_textbook_one() -> None:
    """√(s²/n + s²/m), within the error of 4,000 draws; each sample keeps its size in every draw."""
    one, other = RNG.standard_normal(400), 3 * RNG.standard_normal(100)
    is_one = np.arange(500) < 400
    values = np.concatenate([one, other])[:, None]
    counts = np.stack([is_one, ~is_one], axis=1)
    found = estimate_of(np.where(counts, values, 0), counts, [1.0, -1.0], num_draws=4000)
    half = 1.96 * math.sqrt(one.var() / 400 + other.var() / 100)

    assert found.value == pytest.approx(one.mean() - other.mean(), rel=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


def test_no_draw_lacks_a_side_however_small_it_is() -> None:
    """Two rows against a hundred: drawn from all, one draw in seven would have neither of the two."""
    values = np.concatenate([[1.0, 3.0], np.zeros(100), [np.nan] * 50])[:, None]
    counts = np.zeros((152, 2))
    counts[:2, 0] = counts[2:102, 1] = 1
    found = estimate_of(np.where(counts > 0, values, 0), counts, [1.0, -1.0])

    assert (found.value, found.low, found.high) == (2.0, 1.0, 3.0)  # both the one, or both the other, half of the time
    assert found.num_clusters == 102  # rows in neither mean are not drawn


def test_the_same_seed_gives_the_same_interval_and_no_interval_is_made_up() -> None:
    one = estimate_of(TOTALS[:, None], COUNTS[:, None], [1.0], seed=4)
    alone = estimate_of(TOTALS[:1, None], COUNTS[:1, None], [1.0])
    empty = estimate_of(TOTALS[:, None], 0 * COUNTS[:, None], [1.0])

    assert one == estimate_of(TOTALS[:, None], COUNTS[:, None], [1.0], seed=4)
    assert one != estimate_of(TOTALS[:, None], COUNTS[:, None], [1.0], seed=5)
    assert alone.value == pytest.approx(TOTALS[0] / COUNTS[0]) and math.isnan(alone.low) and math.isnan(alone.high)
    assert not math.isfinite(empty.value) and math.isnan(empty.low)
    with pytest.raises(ValueError, match="do not match"):
        estimate_of(TOTALS[:, None], COUNTS[:, None], [1.0, -1.0])
    with pytest.raises(ValueError, match="60 rows"):
        estimate_of(TOTALS[:, None], COUNTS[:, None], [1.0], clusters=np.arange(59))
