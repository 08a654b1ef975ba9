"""Losses of rows by when they were read, against loops and against planted effects."""

import math

import numpy as np
import pytest

from probes.loss import TokenLosses
from probes.probe import TokenRows
from probes.row_loss_probes import NextBatchLoss, RowLosses, memorization_by_checkpoint
from tests.probes.test_prediction_probes import IDS, PLACES, ROWS, loss_at, measured

IS_READ = np.array([True, False, True, False, False, True])


def test_the_gap_is_the_loss_of_rows_read_next_less_that_of_rows_read_before() -> None:
    found = measured(NextBatchLoss(rows=ROWS, is_read=IS_READ))
    read = loss_at([at for at in PLACES if IS_READ[at[0]]])
    unread = loss_at([at for at in PLACES if not IS_READ[at[0]]])

    assert list(found) == ["gap", "loss, read just before", "loss, read next"]
    assert found["loss, read just before"].value == pytest.approx(read, rel=1e-5)
    assert found["loss, read next"].value == pytest.approx(unread, rel=1e-5)
    assert found["gap"].value == pytest.approx(unread - read, abs=1e-5)
    assert all(one.low < one.value < one.high and one.unit == "nats per token" for one in found.values())


@pytest.mark.parametrize(("is_read", "only"), [(True, "loss, read just before"), (False, "loss, read next")])
def test_with_one_side_only_its_loss_is_measured(is_read: bool, only: str) -> None:
    """At checkpoint 0 nothing was read, after the last nothing will be."""
    found = measured(NextBatchLoss(rows=ROWS, is_read=np.full(6, is_read)))

    assert list(found) == [only] and found[only].value == pytest.approx(loss_at(PLACES), rel=1e-5)


def test_a_side_without_a_scored_token_is_missing() -> None:
    scored = np.broadcast_to(IS_READ[:, None], IDS.shape).copy()

    assert list(measured(NextBatchLoss(rows=TokenRows(token_ids=IDS, scored=scored), is_read=IS_READ))) == [
        "loss, read just before"
    ]


def test_every_row_has_its_own_loss() -> None:
    found = measured(RowLosses(rows=ROWS))

    assert list(found) == [f"row {row}" for row in range(6)]
    for row in range(6):
        expected = loss_at([at for at in PLACES if at[0] == row])
        assert found[f"row {row}"].value == pytest.approx(expected, rel=1e-5)
    losses = np.array([[1.0, np.nan], [np.nan, np.nan]])
    rows = TokenRows(token_ids=np.zeros((2, 3), dtype=np.int64), scored=np.array([[1, 1, 0], [1, 0, 0]], dtype=bool))
    of_rows = RowLosses(rows=rows).measure_predictions(TokenLosses(losses=losses))
    assert of_rows[0].value == 1.0 and math.isnan(of_rows[1].value)


NUM_CHECKPOINTS = 7
FIRST = np.random.default_rng(3).integers(0, NUM_CHECKPOINTS + 1, 400)  # 7: read by none


def planted(ahead: float = 0.0) -> np.ndarray:
    """A common trend, rows of their own difficulty, 0.4 nats from reading of which half is left each checkpoint later,
    and `ahead` of them at the checkpoint before the row is read.
    """
    losses = np.add.outer(5 / np.arange(1.0, NUM_CHECKPOINTS + 1), np.random.default_rng(4).standard_normal(len(FIRST)))
    for row, first in enumerate(FIRST):
        for checkpoint in range(first, NUM_CHECKPOINTS):
            losses[checkpoint, row] -= 0.4 * 0.5 ** (checkpoint - first)
        if 0 < first < NUM_CHECKPOINTS:
            losses[first - 1, row] -= ahead
    return losses


def test_memorization_is_what_was_planted_by_how_long_ago_rows_were_read() -> None:
    """Closed form without noise: 0.4 · 2^-k nats; nothing before the rows are read."""
    found = memorization_by_checkpoint(planted(), FIRST)
    names = {0: "read right before", 1: "read 1 checkpoint before"} | {
        k: f"read {k} checkpoints before" for k in (2, 4)
    }

    assert len(found) == NUM_CHECKPOINTS and found[0] == []
    for checkpoint, of_checkpoint in enumerate(found[1:], start=1):
        values = {one.metric: one.value for one in of_checkpoint}
        lags = [later for later in names if checkpoint - later >= 1]
        placebo = ["before being read"] if checkpoint + 1 < NUM_CHECKPOINTS else []
        assert list(values) == [names[later] for later in lags] + placebo
        assert [values[names[later]] for later in lags] == pytest.approx([0.4 * 0.5**later for later in lags])
        assert [values[name] for name in placebo] == pytest.approx([0.0] * len(placebo), abs=1e-12)
        assert all(one.unit == "nats per token" and one.low is not None for one in of_checkpoint)


def test_rows_that_were_read_ahead_show_before_being_read() -> None:
    """Copies of rows that come a checkpoint earlier: the check must say so, and by how much."""
    for checkpoint, of_checkpoint in enumerate(memorization_by_checkpoint(planted(ahead=0.3), FIRST)):
        values = {one.metric: one.value for one in of_checkpoint}
        assert "before being read" not in values or values["before being read"] == pytest.approx(0.3)
        assert ("before being read" in values) == (0 < checkpoint < NUM_CHECKPOINTS - 1)


def test_tokens_weigh_before_rows_are_read_as_well_and_clusters_are_drawn_whole() -> None:
    """By hand: of the rows that checkpoint 2 reads first the loss fell by 1 and 3, of the later one by 1; then one
    cluster on each side, of which there is nothing to draw.
    """
    losses = np.array([[5.0, 5.0, 5.0, 5.0], [4.0, 2.0, 4.0, 1.0], [3.0, 1.0, 4.0, 1.0]])
    first, num_tokens = np.array([2, 2, 3, 1]), np.array([3, 1, 2, 2])
    of_rows = memorization_by_checkpoint(losses, first, num_tokens=num_tokens)
    placebo = {one.metric: one for one in of_rows[1]}["before being read"]
    assert placebo.value == pytest.approx((3 * 1 + 1 * 3) / 4 - 1)
    assert placebo.low < placebo.value < placebo.high

    of_clusters = memorization_by_checkpoint(losses, first, clusters=np.array([0, 0, 1, 2]))
    assert {one.metric: one for one in of_clusters[1]}["before being read"].low is None
    assert [(one.metric, one.low) for one in of_clusters[2]] == [
        ("read right before", None),
        ("read 1 checkpoint before", None),
    ]


def test_a_cohort_of_rows_without_tokens_is_no_cohort() -> None:
    losses = np.array([[4.0, 4.0, np.nan], [3.0, 3.0, np.nan], [2.0, 2.5, np.nan]])
    found = memorization_by_checkpoint(losses, np.array([2, 3, 1]), num_tokens=np.array([1, 1, 0]))

    assert [[one.metric for one in of_checkpoint] for of_checkpoint in found] == [
        [],
        ["before being read"],
        ["read right before"],
    ]


def test_tokens_weigh_and_rows_without_any_do_not_matter() -> None:
    """Four rows by hand, and one whose loss is no number because it has no token."""
    losses = np.array([[4.0, 4.0, 4.0, 4.0, np.nan], [1.0, 3.0, 3.5, 2.5, np.nan]])
    first, num_tokens = np.array([1, 1, 2, 2, 1]), np.array([1, 3, 3, 1, 0])
    found = memorization_by_checkpoint(losses, first, num_tokens=num_tokens, clusters=np.array([0, 1, 2, 2, 3]))

    (one,) = found[1]
    assert one.metric == "read right before"
    assert one.value == pytest.approx((3.0 * 1 + 1.0 * 3) / 4 - (0.5 * 3 + 1.5 * 1) / 4)
    assert one.low < one.value < one.high


def test_without_rows_of_both_kinds_there_is_nothing() -> None:
    losses = np.zeros((4, 3))

    assert memorization_by_checkpoint(losses, np.array([2, 2, 2])) == [[], [], [], []]
    assert memorization_by_checkpoint(losses, np.array([4, 4, 4])) == [[], [], [], []]
