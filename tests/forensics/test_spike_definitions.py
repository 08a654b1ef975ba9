"""The published definitions of a spike, against loops that say them in their own words, and the trainer's own rule."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from forensics.spike_definitions import (
    moving_mean_and_deviation,
    olmo2_paper,
    olmo_core_monitor,
    olmo_core_skip,
)
from replay.skip_step import SkipWindow


def series(num_values: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    loss = 3 + 0.05 * random.standard_normal(num_values)
    norm = 0.3 * np.exp(0.2 * random.standard_normal(num_values))
    for place in random.integers(70, num_values, num_values // 80):
        loss[place] += random.exponential(0.4)
        norm[place : place + 3] *= 1 + random.exponential(4)
    return {"loss": loss.astype(np.float32).astype(np.float64), "grad_norm": norm.astype(np.float32).astype(np.float64)}


def test_the_paper_compares_with_the_last_thousand_on_both_sides() -> None:
    values = series(2600, 0)
    values["loss"][2000] -= 1.0
    found = olmo2_paper(values)
    for name, of in values.items():
        expected = [
            place >= 1000 and abs(of[place] - of[place - 1000 : place].mean()) >= 7 * of[place - 1000 : place].std()
            for place in range(len(of))
        ]
        assert found.flags[name].tolist() == expected and any(expected)
        assert found.scores[name] == pytest.approx(100 * sum(expected) / len(of))
    assert found.flags["loss"][2000]


def test_the_monitor_needs_a_full_window_and_lets_flagged_values_in() -> None:
    values = series(900, 1)
    values["loss"][300:303] = 9.0, 4.0, 4.0  # the first hides the others
    found = olmo_core_monitor(values)
    for name, of in values.items():
        expected = [
            place >= 128 and of[place] > of[place - 128 : place].mean() + 6 * of[place - 128 : place].std()
            for place in range(len(of))
        ]
        assert found.flags[name].tolist() == expected
    assert found.flags["loss"][300:303].tolist() == [True, False, False]
    assert found.num_flagged == int((found.flags["loss"] | found.flags["grad_norm"]).sum())
    assert found.scores["total"] == pytest.approx(100 * found.num_flagged / 900)


def test_the_monitor_is_silent_where_nothing_varies() -> None:
    values = np.full(300, 2.5)
    values[200] = 9.0

    assert olmo_core_monitor({"loss": values}).num_flagged == 0


def skipped_by_the_trainers_rule(values: dict[str, np.ndarray]) -> list[bool]:
    window = SkipWindow()
    skipped = []
    for place in range(len(values["loss"])):
        numbers = [torch.tensor(of[place], dtype=torch.float32) for of in values.values()]
        window.append(numbers[0], numbers[1] if len(numbers) > 1 else None)
        skipped.append(window.step_factor().item() == 0.0)
    return skipped


@pytest.mark.parametrize("both", [True, False])
def test_the_skip_rule_is_the_optimizers(both: bool) -> None:
    """Every step of a log against the rule as `replay` has it, which is the trainer's to the operation."""
    values = series(700, 2)
    if not both:
        del values["grad_norm"]
    found = olmo_core_skip(values)

    assert found.flagged.tolist() == skipped_by_the_trainers_rule(values)
    assert found.num_flagged > 3


def test_one_nan_makes_the_skip_rule_leave_out_129_steps() -> None:
    values = series(500, 3)
    values["loss"][200] = math.nan
    found = olmo_core_skip(values).flagged

    assert found[200:329].all() and not found[329]
    assert found.tolist() == skipped_by_the_trainers_rule(values)
    assert not olmo_core_monitor(values).flags["loss"][200:329].any()


def test_the_skip_rule_judges_from_the_64th_step_on() -> None:
    values = {"loss": np.random.default_rng(0).standard_normal(100) / 100 + 3}
    values["loss"][62:64] = 9.0, 9.9
    found = olmo_core_skip(values).flagged

    assert np.flatnonzero(found).tolist() == [63]
    assert found.tolist() == skipped_by_the_trainers_rule(values)


@pytest.mark.parametrize("window", [1, 2, 7, 128, 1000])
@pytest.mark.parametrize("ddof", [0, 1])
def test_moving_moments_are_those_of_each_window(window: int, ddof: int) -> None:
    values = np.random.default_rng(4).standard_normal(1300) + 40
    mean, deviation = moving_mean_and_deviation(values, window, ddof=min(ddof, window - 1))
    windows = np.lib.stride_tricks.sliding_window_view(values[:-1], window)

    assert np.isnan(mean[:window]).all()
    np.testing.assert_allclose(mean[window:], windows.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(deviation[window:], windows.std(axis=1, ddof=min(ddof, window - 1)), atol=1e-11)


def test_a_huge_value_leaves_no_trace_once_it_is_out_of_the_window() -> None:
    """Running sums would have lost every digit of what follows."""
    values = np.random.default_rng(5).standard_normal(600) + 3
    huge = values.copy()
    huge[100] = 1e15
    expected, found = (moving_mean_and_deviation(of, 128) for of in (values, huge))

    np.testing.assert_array_equal(found[0][300:], expected[0][300:])
    np.testing.assert_array_equal(found[1][300:], expected[1][300:])


def test_planted_rates_are_the_spike_score() -> None:
    """The score is a percentage of steps: 0.40 before, 0.03 after a change of initialization in the OLMo 2 paper."""
    random = np.random.default_rng(6)
    for percent in (0.40, 0.03):
        norm = 0.3 + 0.01 * random.standard_normal(100_000)
        places = np.linspace(2000, 99_000, round(percent * 1000)).astype(int)
        norm[places] += 0.3
        found: Any = olmo2_paper({"grad_norm": norm})
        assert found.scores["grad_norm"] == pytest.approx(percent, rel=0.02)
