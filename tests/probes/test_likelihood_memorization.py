"""Difference-in-differences against a regression, against planted effects, and against how often intervals hold."""

import numpy as np
import pytest

from probes.likelihood_memorization import difference_in_differences, mean_memorization, memorization_profile
from probes.next_batch_generalization import next_batch_gap

RNG = np.random.default_rng(0)
NUM_ROWS = 300
FIRST = RNG.integers(0, 7, NUM_ROWS)  # of 5 checkpoints: 0 is read before all, 5 and 6 after all
TREND = np.array([4.0, 3.5, 3.2, 3.1, 3.05])


def planted(noise: float, seed: int = 0, effect: float = 0.4, kept: float = 0.5) -> np.ndarray:
    """Losses [checkpoints, rows]: a common trend, rows of their own difficulty, and what was read, half forgotten."""
    rng = np.random.default_rng(seed)
    losses = TREND[:, None] + rng.standard_normal(NUM_ROWS) + noise * rng.standard_normal((5, NUM_ROWS))
    for row, first in enumerate(FIRST):
        for checkpoint in range(first, 5):
            losses[checkpoint, row] -= effect * kept ** (checkpoint - first)
    return losses


def test_without_noise_the_profile_is_what_was_planted() -> None:
    """A closed form: 0.4 nats at once, half of it a checkpoint later, nothing before; whatever the common trend."""
    found = memorization_profile(planted(0.0), FIRST, num_draws=50)

    cells = {(one.cohort, one.checkpoint) for one in found}
    assert cells == {(g, c) for g in range(1, 5) for c in range(5) if c != g - 1}
    for one in found:
        expected = 0.4 * 0.5 ** (one.checkpoint - one.cohort) if one.checkpoint >= one.cohort else 0.0
        assert one.effect.value == pytest.approx(expected, abs=1e-12)
        assert one.num_treated == (one.cohort == FIRST).sum()
        assert one.num_control == (max(one.cohort, one.checkpoint) < FIRST).sum()
    assert mean_memorization(planted(0.0), FIRST).value == pytest.approx(0.4)
    assert mean_memorization(planted(0.0), FIRST, checkpoints_later=2).value == pytest.approx(0.1)


def test_the_estimate_is_the_interaction_of_a_regression() -> None:
    """Least squares on arm, time and their product, each row as often as it has tokens."""
    losses, num_tokens = planted(0.3), RNG.integers(1, 50, NUM_ROWS)
    treated, control = FIRST == 2, FIRST > 2
    rows = treated | control
    found = difference_in_differences(
        losses[1, rows], losses[2, rows], treated[rows], num_tokens=num_tokens[rows], num_draws=50
    )
    arm, time = np.tile(treated[rows], 2).astype(float), np.repeat([0.0, 1.0], rows.sum())
    design = np.stack([np.ones_like(arm), arm, time, arm * time], axis=1)
    scale = np.sqrt(np.tile(num_tokens[rows], 2))
    measured = np.concatenate([losses[1, rows], losses[2, rows]])
    fitted = np.linalg.lstsq(design * scale[:, None], measured * scale, rcond=None)[0]

    assert found.value == pytest.approx(-fitted[3], rel=1e-9)
    in_profile = memorization_profile(losses, FIRST, num_tokens=num_tokens, num_draws=50)
    same = next(one for one in in_profile if (one.cohort, one.checkpoint) == (2, 2))
    assert same.effect.value == pytest.approx(found.value, rel=1e-12)


def test_the_mean_over_cohorts_is_that_of_the_profile_by_rows() -> None:
    losses = planted(0.5)
    cells = [one for one in memorization_profile(losses, FIRST, num_draws=9) if one.checkpoint == one.cohort + 1]
    expected = sum(one.effect.value * one.num_treated for one in cells) / sum(one.num_treated for one in cells)

    assert len(cells) == 3
    assert mean_memorization(losses, FIRST, checkpoints_later=1, num_draws=9).value == pytest.approx(expected)


def test_intervals_hold_the_planted_effect_as_often_as_they_say() -> None:
    """A row's difficulty, common to both its losses, does not widen them: rows are drawn with both."""
    found = [mean_memorization(planted(0.3, seed), FIRST, num_draws=200, seed=seed) for seed in range(100)]
    hits = sum(one.low <= 0.4 <= one.high for one in found)

    assert 87 <= hits < 100  # four binomial deviations about 95, less what 200 draws and few rows cost
    # √2 · 0.3 · √(1/n + 1/m) of about 170 read rows and fewer unread ones; with difficulties it would be above 0.4.
    assert np.mean([one.high - one.low for one in found]) < 0.4
    assert np.std([one.value for one in found]) == pytest.approx(
        np.mean([one.high - one.low for one in found]) / 3.92, rel=0.25
    )


def test_documents_are_drawn_whole() -> None:
    """Rows of a document move together: the interval of clusters is wider, by about √10 for ten rows each."""
    documents = np.repeat(np.arange(60), 10)
    before = np.zeros(600)
    after = np.random.default_rng(3).standard_normal(60)[documents]
    treated = documents < 30
    of_rows = difference_in_differences(before, after, treated)
    of_documents = difference_in_differences(before, after, treated, clusters=documents)

    assert of_rows.value == pytest.approx(of_documents.value)
    assert (of_documents.high - of_documents.low) / (of_rows.high - of_rows.low) == pytest.approx(10**0.5, rel=0.15)
    assert of_documents.num_clusters == 60


def test_without_unread_rows_there_is_no_estimate() -> None:
    first = np.array([1, 1, 2, 2])
    losses = np.zeros((3, 4))

    assert [(one.cohort, one.checkpoint) for one in memorization_profile(losses, first, num_draws=9)] == [(1, 1)]
    with pytest.raises(ValueError, match="not read by the later"):
        mean_memorization(losses, first, checkpoints_later=1)
    assert np.isnan(difference_in_differences(losses[0], losses[1], np.ones(4, dtype=bool)).value)


def test_the_gap_to_the_next_batches_is_the_difference_of_their_means() -> None:
    """By hand with tokens as weights; a row without tokens, whose mean is no number, does not matter."""
    losses = np.array([2.0, 4.0, 5.0, 7.0, np.nan])
    is_read = np.array([True, True, False, False, False])
    found = next_batch_gap(losses, is_read, num_tokens=np.array([1, 3, 1, 1, 0]))

    assert (found.read, found.unread, found.gap.value) == (3.5, 6.0, 2.5)
    assert found.gap.low < 2.5 < found.gap.high
    assert next_batch_gap(losses[:4], is_read[:4]).gap.value == 3.0
    assert np.isnan(next_batch_gap(losses, is_read).gap.value)


def test_an_interval_of_the_gap_holds_where_whole_batches_differ() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(100):
        batches = np.repeat(np.arange(24), 8)
        losses = 3 + 0.2 * rng.standard_normal(24)[batches] + 0.1 * rng.standard_normal(192) + 0.5 * (batches >= 12)
        gap = next_batch_gap(losses, batches < 12, clusters=batches, num_draws=200, seed=trial).gap
        hits += gap.low <= 0.5 <= gap.high

    assert 84 <= hits < 100  # 95 % nominal, about 93 % for 12 batches a side
