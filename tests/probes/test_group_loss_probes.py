"""Losses of parts of the rows against plain loops over a tiny model's fp64 log-probabilities."""

import math
from typing import Any

import numpy as np
import pytest

from probes.group_loss_probes import GroupLoss, LossByFrequency, LossByPosition, doubling_windows, score_windows
from probes.loss import TokenLosses
from probes.probe import Measurement, TokenRows
from tests.probes.test_prediction_probes import BYTES, COUNTS, IDS, PLACES, ROWS, SCORED, loss_at, measured

RNG = np.random.default_rng(2)


def measured_losses(probe: Any, losses: np.ndarray) -> dict[str, Measurement]:
    """Of losses that are handed in, in place of a model's."""
    return {one.metric: one for one in probe.measure_predictions(TokenLosses(losses=losses))}


def test_each_group_has_the_loss_and_the_bytes_of_its_own_scored_tokens() -> None:
    """Tokens may be in two groups or in none; a group without a scored token is left out, and one without bytes has no
    bits per byte.
    """
    code, prose = RNG.random(IDS.shape) < 0.5, RNG.random(IDS.shape) < 0.5
    groups = {"code": code, "prose": prose, "unscored": ~SCORED, "no bytes": BYTES == 0}
    found = measured(GroupLoss(rows=ROWS, groups=groups, utf8_bytes=BYTES))

    assert {name: one.unit for name, one in found.items()} == {
        **dict.fromkeys(["loss, code", "loss, prose", "loss, no bytes"], "nats per token"),
        **dict.fromkeys(["bits per byte, code", "bits per byte, prose"], "bits per byte"),
    }
    for name, members in (("code", code), ("prose", prose)):
        places = [at for at in PLACES if members[at]]
        num_bytes = sum(int(BYTES[at]) for at in places)
        of_group, bits = found[f"loss, {name}"], found[f"bits per byte, {name}"]
        assert of_group.value == pytest.approx(loss_at(places), rel=1e-5)
        assert bits.value == pytest.approx(loss_at(places) * len(places) / math.log(2) / num_bytes, rel=1e-5)
        assert of_group.low < of_group.value < of_group.high and bits.low < bits.value < bits.high
    assert list(measured(GroupLoss(rows=ROWS, groups={"code": code}))) == ["loss, code"]


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="bool of shape"):
        measured(GroupLoss(rows=ROWS, groups={"rows": np.ones(len(IDS), dtype=bool)}))


def test_losses_by_position_are_those_of_doubling_windows() -> None:
    found = measured(LossByPosition(rows=ROWS))

    score, *windows = found
    assert score == "in-context score, position 11 less 2"
    assert windows == ["loss, positions 2-3", "loss, positions 4-7", "loss, positions 8-11"]
    for name, first, last in (("2-3", 2, 3), ("4-7", 4, 7), ("8-11", 8, 11)):
        places = [(row, place) for row, place in PLACES if first <= place + 1 <= last]
        assert found[f"loss, positions {name}"].value == pytest.approx(loss_at(places), rel=1e-5)
        assert found[f"loss, positions {name}"].low < found[f"loss, positions {name}"].high
    expected = loss_at([at for at in PLACES if at[1] == 10]) - loss_at([at for at in PLACES if at[1] == 1])
    assert found[score].value == pytest.approx(expected, rel=1e-4)


def test_windows_tile_the_positions_that_have_a_loss() -> None:
    for length in range(1, 70):
        positions = [position for window in doubling_windows(length) for position in window]
        assert positions == list(range(2, length + 1))
    assert [window.start for window in doubling_windows(64)] == [2, 4, 8, 16, 32, 64]


def test_the_score_is_at_the_published_positions_where_rows_are_that_long() -> None:
    """Closed form: the loss of the p-th token is p / 100. The name says which positions where they are others."""
    losses = np.broadcast_to(np.arange(2, 513, dtype=np.float32) / 100, (3, 511))
    ids = np.zeros((3, 512), dtype=np.int64)
    found = measured_losses(LossByPosition(rows=TokenRows(token_ids=ids)), losses)
    short = measured_losses(LossByPosition(rows=TokenRows(token_ids=ids[:, :64])), losses[:, :63])
    chosen = LossByPosition(rows=TokenRows(token_ids=ids), early=range(10, 21), late=range(400, 501))

    assert found["in-context score"].value == pytest.approx(4.5)
    assert short["in-context score, positions 59-64 less 3-8"].value == pytest.approx(0.56)
    assert measured_losses(chosen, losses)["in-context score, positions 400-500 less 10-20"].value == pytest.approx(
        4.35
    )
    with pytest.raises(ValueError, match="positions 2 to 64"):
        late = LossByPosition(rows=TokenRows(token_ids=ids[:, :64]), late=range(65, 70))
        measured_losses(late, losses[:, :63])


@pytest.mark.parametrize("length", [*range(3, 45), 100, 499])
def test_windows_of_the_score_are_as_long_and_apart_and_in_the_row(length: int) -> None:
    early, late = score_windows(length)

    assert len(early) == len(late) == max(length // 10, 1)
    assert 2 <= early.start and early.stop <= late.start and late.stop == length + 1
    assert early.start <= max(length // 10, 2) < early.stop


def test_rows_of_500_tokens_are_long_enough_for_the_published_positions() -> None:
    assert score_windows(500) == (range(50, 51), range(500, 501)) != score_windows(499)


@pytest.mark.parametrize("length", [1, 2])
def test_rows_too_short_for_a_score_have_none(length: int) -> None:
    rows = TokenRows(token_ids=np.zeros((3, length), dtype=np.int64))
    found = measured_losses(LossByPosition(rows=rows), np.ones((3, length - 1)))

    assert list(found) == ["loss, position 2"][: length - 1]


def test_a_side_of_the_score_without_scored_tokens_leaves_it_out() -> None:
    scored = np.ones((3, 30), dtype=bool)
    scored[:, 27:] = False
    rows = TokenRows(token_ids=np.zeros((3, 30), dtype=np.int64), scored=scored)

    assert not any("score" in name for name in measured_losses(LossByPosition(rows=rows), np.ones((3, 29))))


def test_losses_by_frequency_are_those_of_the_tokens_in_each_bin() -> None:
    """Counts of 0 to 3 and two bins: ones are in the first, threes in the second, twos where their middle is."""
    found = measured(LossByFrequency(rows=ROWS, counts=COUNTS, num_bins=2))
    seen = [int((COUNTS == count).sum()) for count in (1, 2, 3)]
    twos_are_rare = 2 * seen[0] + seen[1] < sum(seen)
    most = 2 if twos_are_rare else 1
    bins = {"unseen": [0], f"tokens counted 1-{most} times": range(1, most + 1)}
    bins[f"tokens counted {most + 1}-3 times"] = range(most + 1, 4)

    assert list(found) == [f"loss, {name}" for name in bins]
    for name, counts in bins.items():
        one = found[f"loss, {name}"]
        assert one.value == pytest.approx(loss_at([at for at in PLACES if COUNTS[IDS[at]] in counts]), rel=1e-5)
        assert one.low < one.value < one.high and one.unit == "nats per token"


def test_bins_that_no_scored_token_is_in_are_left_out_and_names_depend_on_counts_alone() -> None:
    counts = np.array([5, 5, 0, 90])
    rows = TokenRows(token_ids=np.array([[3, 0, 1, 0]]))
    for losses in (np.ones((1, 3)), np.array([[7.0, np.inf, 2.0]])):
        found = measured_losses(LossByFrequency(rows=rows, counts=counts), losses)
        assert list(found) == ["loss, tokens counted 5-5 times"]
    with pytest.raises(ValueError, match="token 3, and there are counts of 3"):
        measured_losses(LossByFrequency(rows=rows, counts=counts[:3]), np.ones((1, 3)))
