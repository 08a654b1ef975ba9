import numpy as np
import pytest

from probes.position_loss import in_context_learning_score, loss_by_position

LOSSES = np.random.default_rng(0).random((6, 511)).astype(np.float32)


def test_position_p_is_the_pth_token_of_its_row() -> None:
    """By an explicit loop over rows and places, the second token being the first with a loss."""
    scored = np.random.default_rng(1).random((6, 512)) < 0.5
    found = loss_by_position(LOSSES, scored=scored)

    for position, nats, count in zip(found.group_ids, found.total_nats, found.num_tokens, strict=True):
        values = [float(LOSSES[row, position - 2]) for row in range(6) if scored[row, position - 1]]
        assert (count, nats) == (len(values), pytest.approx(sum(values), rel=1e-12))
    assert loss_by_position(LOSSES).group_ids.tolist() == list(range(2, 513))


def test_the_score_is_the_loss_of_the_500th_token_minus_that_of_the_50th() -> None:
    """A closed form: where the loss of the p-th token is p / 100, it is 4.5; of windows, the difference of middles."""
    losses = np.broadcast_to(np.arange(2, 513) / 100, (6, 511))
    found = in_context_learning_score(losses)

    assert found.value == found.low == found.high == pytest.approx(4.5)
    windows = in_context_learning_score(losses, early=range(2, 5), late=range(510, 513))
    assert windows.value == pytest.approx(5.11 - 0.03)


def test_tokens_that_are_not_scored_are_in_neither_window() -> None:
    scored = np.ones((6, 512), dtype=bool)
    scored[0, 499] = scored[1, 49] = False  # the 500th, the 50th
    found = in_context_learning_score(LOSSES, scored=scored)
    expected = np.delete(LOSSES[:, 498], 0).mean(dtype=np.float64) - np.delete(LOSSES[:, 48], 1).mean(dtype=np.float64)

    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("late", [range(513, 514), range(512, 514), range(1, 2), range(9, 9)])
def test_positions_without_a_loss_are_refused(late: range) -> None:
    """A slice would silently be shorter."""
    with pytest.raises(ValueError, match="positions 2 to 512"):
        in_context_learning_score(LOSSES, late=late)
