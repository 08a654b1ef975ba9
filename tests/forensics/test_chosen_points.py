"""Of a large scatter no flagged point and no extreme is lost."""

from __future__ import annotations

import numpy as np
import pytest

from forensics.chosen_points import chosen_points

NUM = 20_000


@pytest.fixture(scope="module")
def cloud() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return random.normal(size=NUM), random.normal(size=NUM)


def test_few_points_are_all_kept(cloud: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = cloud
    x = np.where(np.arange(NUM) == 7, np.nan, x)

    assert chosen_points(x[:100], y[:100], np.zeros(100, bool), 100).tolist() == [n for n in range(100) if n != 7]


def test_flagged_ones_and_extremes_stay_and_the_rest_is_spread(cloud: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (values.copy() for values in cloud)
    flagged = np.arange(NUM) % 40 == 0
    x[123], y[123], x[456] = np.nan, 99.0, -50.0
    kept = chosen_points(x, y, flagged, 4_000)
    there = set(kept.tolist())

    assert set(np.flatnonzero(flagged).tolist()) <= there and 123 not in there and len(kept) == 4_000
    y_there = np.where(np.isnan(x), np.nan, y)
    assert {456, int(np.nanargmax(x)), int(np.nanargmax(y_there)), int(np.nanargmin(y_there))} <= there
    others = kept[~flagged[kept]]
    assert np.diff(others).max() < 100  # no stretch of ids is left out


def test_more_flagged_ones_than_there_is_room_for_are_thinned_where_they_cover_each_other() -> None:
    """As where a thousand rows of padding lie in one point."""
    apart = np.arange(1_000.0)
    x = np.concatenate([np.full(5_000, 500.0), apart])
    kept = chosen_points(x, x, np.ones(6_000, bool), 1_500)

    assert len(kept) == 1_000 and set(x[kept]) == set(apart)


def test_points_in_one_place_are_no_error() -> None:
    assert len(chosen_points(np.zeros(50), np.zeros(50), np.zeros(50, bool), 10)) == 10
    assert len(chosen_points(np.full(50, np.nan), np.zeros(50), np.zeros(50, bool), 10)) == 0
