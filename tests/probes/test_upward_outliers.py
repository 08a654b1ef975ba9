"""The fast detector finds what a loop over the values finds, value for value, and what it says of levels is right."""

import math

import numpy as np
import pytest

from probes.robust_statistics import growth_p_value, robust_z, smallest_scale, theil_sen
from probes.upward_outliers import Outliers, upward_outliers


def loop_over_values(values: np.ndarray, starts: list[int], floor: float) -> tuple[list[bool], list[float]]:
    """Flags and z as the definition says them, one value after another."""
    flags, scores, window = [], [], []
    for place, value in enumerate(values.tolist()):
        if place in starts:
            window = []
        flags.append(False)
        scores.append(math.nan)
        if not math.isfinite(value):
            continue
        if len(window) >= 16:
            median = float(np.median(window[-128:]))
            mad = float(np.median(np.abs(np.array(window[-128:]) - median)))
            scores[-1] = (value - median) / max(1.4826 * mad, floor)
            flags[-1] = scores[-1] > 6
        if not flags[-1]:
            window.append(value)
    return flags, scores


def noise(num_values: int, seed: int = 0) -> np.ndarray:
    return 2.5 + 0.03 * np.random.default_rng(seed).standard_normal(num_values)


def spiked(num_values: int, seed: int) -> np.ndarray:
    """Heavy tails, clusters of spikes, NaN and infinity, rounded to what a log prints, two level shifts."""
    random = np.random.default_rng(seed)
    values = 2.5 + 0.03 * random.standard_t(3, num_values)
    for place in random.integers(20, num_values, num_values // 60):
        length = min(int(random.integers(1, 30)), num_values - place)
        values[place : place + length] += random.exponential(0.5) * np.exp(-np.arange(length) / 9)
    values[num_values // 3 :] += 0.7
    values[num_values // 2 :] -= 0.6
    values[random.integers(0, num_values, num_values // 200)] = [math.nan, math.inf, -math.inf][seed % 3]
    return values.round(4) if seed % 2 else values


@pytest.mark.parametrize("seed", range(4))
def test_flags_and_z_are_those_of_the_loop(seed: int) -> None:
    values = spiked(6000, seed)
    found = upward_outliers(values)
    flags, scores = loop_over_values(values, found.starts.tolist(), found.floor)

    assert sum(flags) > 60 and found.changes
    assert found.flagged.tolist() == flags
    np.testing.assert_array_equal(robust_z(values, found.flagged, found.starts, found.floor), scores)
    of_flags = (values - found.medians) / found.scales
    np.testing.assert_array_equal(of_flags[flags], np.array(scores)[flags])


def test_a_spike_does_not_hide_the_next() -> None:
    """With mean and standard deviation the second would have to exceed 8.9 times the old threshold."""
    values = noise(400)
    values[300], values[301], values[302] = 30.0, 2.9, 2.8

    assert np.flatnonzero(upward_outliers(values).flagged).tolist() == [300, 301, 302]


def test_the_value_itself_is_in_no_window_of_its_own() -> None:
    """Among its own 17, a value could never be more than (n - 1) / sqrt(n) deviations away."""
    values = noise(17)
    values[16] = 3.5
    found = upward_outliers(values)

    assert np.flatnonzero(found.flagged).tolist() == [16]
    assert found.medians[16] == np.median(values[:16])


def test_with_fewer_than_16_values_before_nothing_is_judged() -> None:
    values = noise(16)
    values[15] = 30.0
    found = upward_outliers(values)

    assert not found.flagged.any()
    assert np.isnan(robust_z(values, found.flagged, found.starts, found.floor)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_enters_no_window(value: float) -> None:
    """In the trainers' own rules one NaN silences 128 steps; here the spike after it is found."""
    values = noise(400)
    without = upward_outliers(np.delete(values, range(200, 230)))
    values[200:230] = value
    values[240] = 4.0
    found = upward_outliers(values)

    assert np.flatnonzero(found.flagged).tolist() == [240]
    assert not without.flagged.any()


def test_equal_values_have_no_outlier_and_a_rounded_log_has_a_floor() -> None:
    values = np.full(300, 0.22)
    values[200] = 0.23  # one unit of the last digit: below half a unit nothing can be told
    values[250] = 0.6
    found = upward_outliers(values)

    assert found.floor == pytest.approx(0.5 * 0.01 * 1.4826)
    assert np.flatnonzero(found.flagged).tolist() == [250]
    assert np.isfinite(found.scales[250])


def test_the_floor_is_half_of_the_last_digit() -> None:
    single = np.random.default_rng(0).standard_normal(100).astype(np.float32).astype(np.float64)

    assert smallest_scale(np.array([2.198845, 5.0])) == pytest.approx(0.74130e-6)
    assert smallest_scale(np.array([1.0, 2.0])) == pytest.approx(0.74130e-2)
    assert 1e-9 < smallest_scale(single) < 1e-7
    assert smallest_scale(np.array([math.nan])) > 0


def test_negative_values_zeros_and_huge_values_are_judged_like_others() -> None:
    values = noise(400) - 2.5
    values[300], values[350] = 1.0, 1e308
    assert np.flatnonzero(upward_outliers(values).flagged).tolist() == [300, 350]


def changes(found: Outliers) -> list[tuple[int, str]]:
    return [(change.index, change.cause) for change in found.changes]


@pytest.mark.parametrize("shift", [0.3, 2.0, -0.3, -1.0])
def test_a_new_level_is_a_shift_and_no_outlier(shift: float) -> None:
    values = noise(600)
    values[300:] += shift
    values[450] += 0.5
    found = upward_outliers(values)

    assert changes(found) == [(300, "shift")]
    assert np.flatnonzero(found.flagged).tolist() == [450]
    assert found.changes[0].after - found.changes[0].before == pytest.approx(shift, abs=0.03)


def test_a_spike_that_leaves_the_level_changed_is_a_spike() -> None:
    """It goes beyond the level at which it ends; from there on the next spike is found."""
    values = noise(600)
    values[300:] += 0.5 + 3 * np.exp(-np.arange(300) / 6)
    values[500] += 0.5
    found = upward_outliers(values)

    (change,) = found.changes
    assert change.cause == "spike" and 305 < change.index < 340
    assert found.flagged[300 : change.index].all()
    assert np.flatnonzero(found.flagged[change.index :]).tolist() == [500 - change.index]


def test_a_climb_to_a_new_level_is_a_spike() -> None:
    values = noise(600)
    values[300:] += np.minimum(np.arange(300) / 30, 1.0)
    (change,) = upward_outliers(values).changes

    assert change.cause == "spike" and change.index > 320


def test_a_long_spike_that_comes_back_is_neither() -> None:
    values = noise(700)
    values[300:] += 4 * np.exp(-np.arange(400) / 25)
    found = upward_outliers(values)

    assert found.changes == () and found.flagged[300:370].all() and not found.flagged[450:].any()


def test_after_a_fall_small_spikes_are_found_at_once() -> None:
    """With values of the old level in the window, the new one would have to be passed by as much as the old."""
    values = noise(600)
    values[300:] -= 0.5
    values[330] += 0.4

    assert np.flatnonzero(upward_outliers(values).flagged).tolist() == [330]


def test_few_false_alarms_and_most_spikes() -> None:
    """On a falling loss with normal noise: at most one alarm in 10,000 steps, 95 % of spikes of 10 deviations."""
    steps = np.arange(1, 100_001)
    values = 2 + 9 * (steps / 50 + 1) ** -0.35 + 0.03 * np.random.default_rng(3).standard_normal(len(steps))
    planted = np.arange(1000, 99_000, 97)
    raised = values.copy()
    raised[planted] += 0.3

    assert upward_outliers(values).flagged.sum() <= 10
    assert upward_outliers(raised).flagged[planted].mean() >= 0.95


def test_slopes_are_the_medians_of_pairs() -> None:
    random = np.random.default_rng(0)
    x, y = np.arange(40.0), random.standard_normal(40)
    y[3] = 1e9
    slopes = [(y[j] - y[i]) / (x[j] - x[i]) for i in range(40) for j in range(i + 1, 40)]

    assert theil_sen(x, y) == np.median(slopes)
    assert theil_sen(np.arange(5000.0), 3 * np.arange(5000.0)) == pytest.approx(3)


def test_growth_is_told_from_correlated_noise() -> None:
    """The block bootstrap holds its level where values hang together, and sees a rise of one and a half deviations."""
    random = np.random.default_rng(1)
    steps = np.arange(500.0)
    flat = random.standard_normal((300, 500))
    for place in range(1, 500):
        flat[:, place] += 0.5 * flat[:, place - 1]
    growing = random.standard_normal((100, 500)) + 1.5 * steps / 500

    assert np.mean([growth_p_value(steps, row) < 0.01 for row in flat]) <= 0.03
    assert np.mean([growth_p_value(steps, row) < 0.01 for row in growing]) >= 0.95
    assert growth_p_value(steps, -steps) == 1.0
