"""Breaks are found where they were planted, and not where there is noise alone."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from probes.breakpoints import FEWEST, adjacent_noise, breakpoints

PYTHIA = np.log10([0.5, *(2**k for k in range(10)), *range(1000, 144_000, 1000)])


def planted(x: np.ndarray, slopes: tuple[float, float], border: float, noise: float, seed: int) -> np.ndarray:
    bent = np.where(x < border, slopes[0] * (x - border), slopes[1] * (x - border))
    return np.asarray(bent + noise * np.random.default_rng(seed).standard_normal(len(x)))


def test_a_planted_break_is_found_with_its_slopes() -> None:
    """On Pythia's uneven checkpoints, at step 1000, in 45 of 50 series at the least."""
    found = [breakpoints(PYTHIA, planted(PYTHIA, (-0.2, -1.5), 3.0, 0.03, seed), num_draws=50)[0] for seed in range(50)]
    right = [breaks[0] for breaks in found if len(breaks) == 1 and abs(PYTHIA[breaks[0].last] - 3.0) < 0.35]

    assert len(right) >= 45
    assert np.median([one.slope_before for one in right]) == pytest.approx(-0.2, abs=0.03)
    assert np.median([one.slope_after for one in right]) == pytest.approx(-1.5, abs=0.03)


def test_the_interval_holds_the_planted_change() -> None:
    """Nominally of 95 %; of 100 series, fewer than 85 would be chance in one of 10,000 cases."""
    x = np.linspace(0.0, 5.0, 40)
    held = []
    for seed in range(100):
        breaks, _ = breakpoints(x, planted(x, (-0.1, -1.0), 2.5, 0.05, seed), num_draws=200)
        if len(breaks) == 1:
            held.append(breaks[0].low <= -0.9 <= breaks[0].high)

    assert len(held) >= 90 and sum(held) >= 0.85 * len(held)


def test_noise_about_a_line_has_no_break() -> None:
    """At most 6 of 50 series: a sharper test would leave no break of a short series to be found."""
    x = np.linspace(0.0, 5.0, 40)
    found = [breakpoints(x, planted(x, (-0.3, -0.3), 2.5, 0.05, seed), num_draws=2)[0] for seed in range(50)]

    assert sum(map(bool, found)) <= 6


def test_the_stretches_are_the_best_of_all() -> None:
    """Against every way to cut twelve points, each line fitted by least squares."""
    rng = np.random.default_rng(3)
    x = np.sort(rng.random(12))
    y = np.concatenate([np.zeros(4), np.full(4, 3.0), np.linspace(0, 2, 4)]) + 0.1 * rng.standard_normal(12)
    breaks, noise = breakpoints(x, y, num_draws=2)

    def cost(borders: tuple[int, ...]) -> float:
        total = 0.0
        for start, stop in zip((0, *borders), (*borders, 12), strict=True):
            if stop - start < FEWEST:
                return np.inf
            line = np.polyfit(x[start:stop], y[start:stop], 1)
            total += float(((y[start:stop] - np.polyval(line, x[start:stop])) ** 2).sum()) / noise**2 + 4 * np.log(12)
        return total

    best = min((borders for count in range(4) for borders in combinations(range(1, 12), count)), key=cost)
    assert tuple(one.last + 1 for one in breaks) == best and len(best) > 0
    assert breaks[0].slope_before == pytest.approx(np.polyfit(x[: best[0]], y[: best[0]], 1)[0])


def test_noise_is_told_apart_from_a_trend() -> None:
    """Also where points are unevenly far from each other; a line alone has none."""
    noise = np.random.default_rng(0).standard_normal(len(PYTHIA))

    assert adjacent_noise(PYTHIA, 100 * PYTHIA + 0.5 * noise) == pytest.approx(0.5, rel=0.15)
    assert adjacent_noise(PYTHIA, 3 * PYTHIA) == pytest.approx(0.0, abs=1e-12)
    bent = 20 * np.maximum(PYTHIA - 3, 0) * (PYTHIA < 5)
    assert adjacent_noise(PYTHIA, bent + 0.1 * noise) == pytest.approx(0.1, rel=0.2)


def test_a_score_that_stays_0_at_first_has_noise_after_that() -> None:
    """Most distances between its points are 0, which is not how exact the others are."""
    y = np.concatenate([np.zeros(20), 0.1 * np.random.default_rng(0).standard_normal(10)])

    assert adjacent_noise(np.arange(30.0), y) > 0.01


def test_exact_lines_break_exactly() -> None:
    x = np.arange(10.0)
    breaks, _ = breakpoints(x, np.where(x < 5, 2 * x, 10 - 3 * (x - 5)))

    assert [(one.last, round(one.slope_before, 9), round(one.slope_after, 9)) for one in breaks] == [(4, 2.0, -3.0)]


def test_rounding_is_no_noise() -> None:
    """Values on a line, as far as their digits go."""
    for y in (PYTHIA / 3 + 1000, 3 * PYTHIA):
        assert breakpoints(PYTHIA, y)[0] == []


@pytest.mark.parametrize("y", [[], [1.0], [1.0, 5.0, 1.0, 5.0, 1.0], [2.0] * 20], ids=["none", "one", "few", "flat"])
def test_what_cannot_break_does_not(y: list[float]) -> None:
    assert breakpoints(np.arange(float(len(y))), np.array(y))[0] == []


@pytest.mark.parametrize(("x", "y"), [([0.0, 0.0], [1.0, 2.0]), ([0.0, 1.0], [1.0, np.nan]), ([0.0], [1.0, 2.0])])
def test_values_without_an_order_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="finite values at places that rise"):
        breakpoints(np.array(x), np.array(y))
