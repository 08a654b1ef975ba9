import numpy as np
import pytest

from probes.frequency_bins import frequency_bins
from probes.grouped_loss import grouped_loss


def test_bins_without_ties_are_the_deciles_of_the_logarithm() -> None:
    """Against numpy's quantiles of log counts: a hundred seen tokens, ten a bin; unseen ones in a bin of their own."""
    counts = np.concatenate([np.zeros(7, dtype=np.int64), 3 ** np.arange(1, 31), 10**15 + np.arange(70)])
    counts = np.random.default_rng(0).permutation(counts)
    found = frequency_bins(counts)
    logarithms = np.log(counts[counts > 0].astype(np.longdouble))
    borders = np.quantile(logarithms, np.arange(1, 10) / 10, method="hazen")
    expected = np.zeros(107, dtype=np.int64)
    expected[counts > 0] = 1 + np.searchsorted(borders, logarithms)

    assert found.bin_of_token.tolist() == expected.tolist()
    assert found.bin_ids.tolist() == list(range(11))
    assert found.num_tokens.tolist() == [7] + [10] * 10
    assert found.least_count[1:3].tolist() == [3, 3**11] and found.most_count[1] == 3**10
    assert found.least_count[0] == found.most_count[0] == 0


def test_tokens_of_one_count_are_never_parted() -> None:
    """Nine of ten tokens were seen once, as in any tail: they are one bin, and the bins between stay empty."""
    counts = np.array([1] * 90 + [5] * 10)
    found = frequency_bins(counts)

    assert found.bin_ids.tolist() == [5, 10]  # the middle of 90 of 100 is at 45 %
    assert set(found.bin_of_token[:90]) == {5} and set(found.bin_of_token[90:]) == {10}


def test_bins_can_hold_equal_shares_of_the_text_instead() -> None:
    """By hand: 60 of 120 occurrences are one token's, so two halves part it from all others."""
    counts = np.array([60, 1, 2, 3, 4, 50, 0])

    assert frequency_bins(counts, num_bins=2, equal="occurrences").bin_of_token.tolist() == [2, 1, 1, 1, 1, 1, 0]
    assert frequency_bins(counts, num_bins=2).bin_of_token.tolist() == [2, 1, 1, 1, 2, 2, 0]


def test_the_loss_of_a_bin_is_the_grouped_loss_of_its_tokens() -> None:
    bins = frequency_bins(np.array([0, 1, 10, 100]), num_bins=3)
    token_ids = np.array([[3, 0, 1, 2], [0, 3, 3, 0]])
    losses = np.array([[9.0, 5.0, 4.0], [1.0, 2.0, 11.0]])
    found = grouped_loss(losses, groups=bins.bin_of_token[token_ids])

    assert found.group_ids.tolist() == [0, 1, 2, 3]
    assert found.nats_per_token.tolist() == [10.0, 5.0, 4.0, 1.5]


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_nothing_counted_is_no_bin_of_seen_tokens(counts: list[int]) -> None:
    assert frequency_bins(np.array(counts, dtype=np.int64)).bin_ids.tolist() == [0] * bool(counts)
