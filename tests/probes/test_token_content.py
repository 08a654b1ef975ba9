"""Statistics of token rows, held against plain counting and against the trainers' filter."""

import math
from collections import Counter

import numpy as np
import pytest

from data_index.masking import hidden_by_repetition
from probes.token_content import (
    Repetition,
    longest_repetitions,
    ngram_hashes,
    repeated_share,
    statistics_of,
    token_entropy,
)

END = 0


def found_in(row: list[int] | np.ndarray, **options: int) -> Repetition | None:
    (answer,) = longest_repetitions(np.asarray(row)[None, :], **options)
    return answer


def by_looking_everywhere(row: list[int], max_period: int, min_repeats: int) -> Repetition | None:
    best: Repetition | None = None
    for period in range(1, max_period + 1):
        for start in range(len(row)):
            stop = start + period
            while stop < len(row) and row[stop] == row[stop - period]:
                stop += 1
            longer = best is None or stop - start > best.stop - best.start
            if stop <= len(row) and (stop - start) // period >= min_repeats and longer:
                best = Repetition(period=period, num_repeats=(stop - start) // period, start=start, stop=stop)
    return best


@pytest.mark.parametrize(("seed", "max_period", "min_repeats"), [(0, 13, 3), (1, 13, 6), (2, 5, 4), (3, 3, 2)])
def test_the_longest_repetition_is_the_one_that_looking_everywhere_finds(
    seed: int, max_period: int, min_repeats: int
) -> None:
    """Rows over few token ids, with planted repetitions of every phase, some cut by the row's end."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 3, size=(80, 61))
    for row in rows:
        for _ in range(random.integers(0, 4)):
            period, start = random.integers(1, 14), random.integers(0, 61)
            planted = np.tile(random.integers(0, 9, size=period), random.integers(1, 30))[: 61 - start]
            row[start : start + len(planted)] = planted

    found = longest_repetitions(rows, max_period=max_period, min_repeats=min_repeats)

    assert found == [by_looking_everywhere(row.tolist(), max_period, min_repeats) for row in rows]
    assert any(found)
    if min_repeats >= 3:  # the trainers' search sees no fewer
        hidden = hidden_by_repetition(rows, max_period=max_period, min_period=1, max_count=min_repeats)
        assert [one is not None for one in found] == hidden.tolist()


@pytest.mark.parametrize("period", [1, 2, 3, 5, 6, 13])
def test_a_planted_repetition_is_told_once_with_its_own_period(period: int) -> None:
    """64 repeats of p tokens are 32 of 2p as well; that is the same stretch."""
    row = np.concatenate([np.arange(1000, 1050), np.tile(np.arange(1, period + 1), 64), np.arange(2000, 2030)])

    expected = Repetition(period=period, num_repeats=64, start=50, stop=50 + 64 * period)
    assert found_in(row) == expected


def test_31_repeats_are_none_and_an_unfinished_one_belongs_to_the_stretch() -> None:
    row = np.concatenate([np.arange(100, 120), np.tile([1, 2, 3], 31), [1, 2], np.arange(200, 220)])

    assert found_in(row) is None
    assert found_in(np.insert(row, 20, [1, 2, 3])) == Repetition(period=3, num_repeats=32, start=20, stop=20 + 98)


def test_repetition_goes_across_document_ends_where_the_tokens_repeat_and_only_there() -> None:
    short_documents = [7, 8, END] * 40
    one_long_and_its_end = [7] * 20 + [END] + [7] * 20

    assert found_in(short_documents) == Repetition(period=3, num_repeats=40, start=0, stop=120)
    assert found_in(one_long_and_its_end) is None


def test_padding_is_no_repetition() -> None:
    rows = np.zeros((2, 100), dtype=np.uint16)
    rows[:, :40] = 9

    found = longest_repetitions(rows, lengths=np.array([40, 30]))

    assert found == [
        Repetition(period=1, num_repeats=40, start=0, stop=40),
        None,
    ]


def test_many_rows_are_searched_apart() -> None:
    """More rows than are looked at together."""
    rows = np.arange(600_000).reshape(3000, 200)
    rows[:, :20] = rows[:, -20:] = 7
    rows[[0, 2999], 100:140] = 5

    found = longest_repetitions(rows)

    assert [n for n, one in enumerate(found) if one] == [0, 2999]
    assert found[2999] == Repetition(period=1, num_repeats=40, start=100, stop=140)


def test_entropy_counts_how_evenly_tokens_are_used() -> None:
    assert token_entropy(np.arange(64)) == pytest.approx(6)
    assert token_entropy(np.full(64, 3)) == 0
    assert token_entropy(np.array([1, 1, 1, 2])) == pytest.approx(2 - 0.75 * math.log2(3))


def test_repeated_share_is_what_stood_in_the_row_before() -> None:
    copied = ngram_hashes(np.tile(np.arange(50), 2))

    assert repeated_share(copied) == pytest.approx((93 - 50) / 93)  # those across the border of the copies are new
    assert repeated_share(ngram_hashes(np.arange(100))) == 0
    assert repeated_share(ngram_hashes(np.arange(7))) == 0  # no run of 8 tokens


def test_ngrams_are_the_same_only_with_the_same_tokens_in_the_same_order() -> None:
    a, b, c = (
        ngram_hashes(np.array(row, dtype=np.uint16))[0] for row in ([*range(8)], [*range(7), 8], [1, 0, *range(2, 8)])
    )

    assert len({a, b, c}) == 3
    assert ngram_hashes(np.arange(8, dtype=np.int64))[0] == a


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    """Text in which each token is followed by one of three, in rows of several lengths."""
    random = np.random.default_rng(5)
    found = []
    for length in random.integers(2, 60, size=40):
        steps = np.cumsum(random.integers(1, 4, size=length))
        found.append(((steps * 7) % 31).astype(np.uint16))
    return found


def test_surprise_is_that_of_counting_plainly(rows: list[np.ndarray]) -> None:
    statistics = statistics_of(rows, vocabulary=50)
    counts = Counter(token for row in rows for token in row.tolist())
    total = sum(counts.values()) + 50
    row = [*rows[3].tolist(), 49]

    expected = [-math.log2((counts[token] + 1) / total) for token in row]
    assert statistics.mean_surprise(np.array(row)) == pytest.approx(sum(expected) / len(row))
    assert statistics.rare_share(np.array(row), sorted(expected)[-2] + 1e-9) == pytest.approx(1 / len(row))


def test_order_gain_is_that_of_counting_plainly(rows: list[np.ndarray]) -> None:
    statistics = statistics_of(rows, vocabulary=50)
    counts = Counter(token for row in rows for token in row.tolist())
    pairs = Counter(pair for row in rows for pair in zip(row.tolist(), row[1:].tolist(), strict=False))
    followed = Counter(a for (a, _), count in pairs.items() for _ in range(count))
    row = [3, 10, 3, 17, 48, 70, 80, 70]  # 70 and 80 are no ids of the sample

    gains = []
    for a, b in zip(row, row[1:], strict=False):
        alone = (counts[b] + 1) / (sum(counts.values()) + 50)
        gains.append(math.log2((pairs[a, b] + 4 * alone) / (followed[a] + 4) / alone))
    assert statistics.order_gain(np.array(row)) == pytest.approx(sum(gains) / len(gains))


def test_a_row_that_was_counted_is_measured_as_if_it_had_not_been(rows: list[np.ndarray]) -> None:
    """Else rows that stand for the run would seem more ordinary than those held against them."""
    everything, others = statistics_of(rows, 50), statistics_of(rows[1:], 50)

    assert everything.mean_surprise(rows[0], counted=True) == pytest.approx(others.mean_surprise(rows[0]))
    assert everything.order_gain(rows[0], counted=True) == pytest.approx(others.order_gain(rows[0]))
    assert everything.rare_share(rows[0], 5.2, counted=True) == others.rare_share(rows[0], 5.2)
    assert everything.order_gain(rows[0]) > others.order_gain(rows[0])


def test_shuffled_tokens_lose_their_order_and_nothing_else(rows: list[np.ndarray]) -> None:
    statistics, random = statistics_of(rows, 50), np.random.default_rng(1)
    row = np.concatenate(rows[:5])

    shuffled = random.permutation(row)

    assert statistics.order_gain(row) > 1
    assert statistics.order_gain(shuffled) < 0
    assert statistics.mean_surprise(shuffled) == pytest.approx(statistics.mean_surprise(row))


def test_so_many_tokens_are_rare_as_were_asked_for(rows: list[np.ndarray]) -> None:
    statistics = statistics_of(rows, 50)
    for share in (0.01, 0.2, 0.5):
        bits = statistics.surprise_exceeded_by(share)
        rare = sum(statistics.rare_share(row, bits) * len(row) for row in rows) / sum(map(len, rows))
        just_below = sum(statistics.rare_share(row, bits - 1e-6) * len(row) for row in rows) / sum(map(len, rows))
        assert rare <= share < just_below
