"""The last crossing of two curves lies where it was planted, and is sure only where the band says so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from probes.crossings import Values, crossing


def values(x: Sequence[float], y: Sequence[float], width: float = np.nan) -> Values:
    return Values(x=np.array(x, dtype=float), y=np.array(y, dtype=float), half_widths=np.full(len(x), width))


X = [0.0, 1.0, 2.0, 3.0, 4.0]
FLAT = values(X, [0.0] * 5, 0.1)


def test_the_last_change_of_sign_is_bracketed() -> None:
    found = crossing(values(X, [1.0, -1.0, 1.0, 3.0, 4.0], 0.1), FLAT)

    assert found is not None
    assert (found.before, found.after, found.crosses_at, found.sign) == (1.0, 2.0, 1.5, 1)
    assert (found.was_sure, found.is_sure, found.num_places, found.next_at) == (True, True, 5, None)
    turned = crossing(FLAT, values(X, [1.0, -1.0, 1.0, 3.0, 4.0], 0.1))
    assert turned is not None and (turned.sign, turned.crosses_at) == (-1, 1.5)


def test_curves_that_never_cross_say_which_is_higher() -> None:
    found = crossing(values(X, [1.0, 2.0, 3.0, 4.0, 5.0], 0.1), FLAT)

    assert found is not None
    assert (found.before, found.after, found.crosses_at, found.sign) == (None, None, None, 1)
    assert (found.was_sure, found.is_sure) == (None, True)


def test_equal_values_are_neither_higher_nor_lower() -> None:
    """Two models before they learned anything answer alike; they did not cross there."""
    found = crossing(values(X, [0.0, 1.0, 0.0, 0.0, -2.0]), FLAT)
    same = crossing(FLAT, FLAT)

    assert found is not None and (found.before, found.after, found.crosses_at) == (1.0, 4.0, 2.5)
    assert same is not None and (same.sign, same.before, same.is_sure) == (0, None, False)


def test_a_difference_within_the_band_is_not_sure() -> None:
    """The band of five places reaches 2.576 standard errors of the difference, √2 of either curve's."""
    border = 2.5758293 * np.sqrt(2) * 0.1 / 1.96
    for size, sure in ((0.99 * border, False), (1.01 * border, True)):
        found = crossing(values(X, [-size, -size, size, size, size], 0.1), FLAT)
        assert found is not None and (found.was_sure, found.is_sure) == (sure, sure)
    unknown = crossing(values(X, [-1.0, -1.0, 1.0, 1.0, 1.0]), FLAT)
    assert unknown is not None and unknown.was_sure is unknown.is_sure is None


def test_a_sure_lead_of_the_other_sign_counts_for_its_side_only() -> None:
    """A lead that was lost is no evidence for the one that leads now."""
    found = crossing(values(X, [-5.0, -5.0, 0.01, 0.01, 0.01], 0.1), FLAT)

    assert found is not None and (found.was_sure, found.is_sure) == (True, False)
    regained = crossing(values(X, [5.0, 5.0, -0.01, 0.01, 0.01], 0.1), FLAT)
    assert regained is not None and (regained.was_sure, regained.is_sure) == (False, False)


def test_curves_of_other_checkpoints_are_compared_between_them() -> None:
    one, other = values([0.0, 2.0, 4.0], [0.0, 2.0, 4.0]), values([1.0, 3.0, 9.0], [3.0, 1.0, 1.0])
    found = crossing(one, other)

    assert found is not None and found.num_places == 4  # 1, 2, 3 and 4: where both are known
    assert (found.before, found.after, found.crosses_at, found.sign) == (1.0, 3.0, 2.0, 1)
    assert crossing(one, values([5.0, 6.0], [1.0, 1.0])) is None


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([9.0, 9.0, 1.5, 1.0, 0.5], 5.0),
        ([9.0, 9.0, -1.5, -1.0, -0.5], 5.0),
        ([9.0, 9.0, 1.0, 1.5, 2.0], None),  # they part
        ([9.0, 9.0, 3.0, 2.9, 2.8], None),  # too far for a line
        ([9.0, 9.0, 2.0, 2.0, 2.0], None),
    ],
    ids=["falls", "rises", "parts", "far", "level"],
)
def test_the_next_crossing_is_extrapolated_from_the_end(y: list[float], expected: float | None) -> None:
    found = crossing(values(X, y), FLAT)

    assert found is not None and found.next_at == (None if expected is None else pytest.approx(expected))
