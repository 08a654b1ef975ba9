"""The trainers' instance filter, held against their own search; and documents inside a row."""

import numpy as np
import pytest

from data_index.masking import document_lengths, hidden_by_repetition


def hidden(row: list[int] | np.ndarray, *, max_period: int = 13, min_period: int = 1, max_count: int = 32) -> bool:
    rows = np.asarray(row)[None, :]
    (answer,) = hidden_by_repetition(rows, max_period=max_period, min_period=min_period, max_count=max_count)
    return bool(answer)


def adversarial_rows(seed: int, num_rows: int = 200, length: int = 97) -> np.ndarray:
    """Rows with planted repetitions of every phase and length, some cut by the row's end, over few token ids."""
    random = np.random.RandomState(seed)
    rows = random.randint(0, 4, size=(num_rows, length))
    for row in rows:
        for _ in range(random.randint(0, 4)):
            period, start = random.randint(1, 14), random.randint(0, length)
            planted = np.tile(random.randint(0, 9, size=period), random.randint(1, 40))[: length - start]
            row[start : start + len(planted)] = planted
    return rows


# Which adversarial rows OLMo-core 3.0.0's find_periodic_sequences finds repetitive, row 0 in the highest bit.
FOUND_UPSTREAM = {
    (0, 1, 13, 32): 0x1000000000000000000400010012000000000000000000,
    (1, 1, 13, 7): 0xC9908255665102694984443C14A4E2B74A33222B0E54A93226,
    (2, 2, 5, 4): 0x8845818046580544290AC0408CA063405D692015202914740,
    (3, 1, 40, 6): 0xFAA21E9B79956B2E5A9A514FE2E43247760EF9201FF502B9EB,
    (4, 3, 3, 1): 0x604220022000208488160000100000041C5005044900110000,
}


@pytest.mark.parametrize(("seed", "min_period", "max_period", "max_count"), FOUND_UPSTREAM)
def test_the_filter_hides_the_rows_that_the_trainer_hides(
    seed: int, min_period: int, max_period: int, max_count: int
) -> None:
    rows = adversarial_rows(seed)

    found = hidden_by_repetition(rows, max_period=max_period, min_period=min_period, max_count=max_count)

    expected = FOUND_UPSTREAM[seed, min_period, max_period, max_count]
    assert int("".join("1" if row else "0" for row in found), 2) == expected


@pytest.mark.parametrize("period", [1, 2, 5, 13])
@pytest.mark.parametrize("start", [0, 1, 7, 500])
def test_32_repeats_are_hidden_and_31_are_not(period: int, start: int) -> None:
    """At every phase, also at the row's start; the last repeat may be the row's end."""
    for repeats, expected in ((31, False), (32, True)):
        planted = np.tile(np.arange(period), repeats)
        row = np.concatenate([1000 + np.arange(start), planted])
        assert hidden(row) is expected
        assert hidden(np.append(row, [5000, 5001])) is expected


@pytest.mark.parametrize("period", [1, 3, 13])
def test_an_unfinished_repeat_does_not_count(period: int) -> None:
    almost = np.tile(np.arange(period), 32)[:-1]

    assert not hidden(np.append(almost, [500] * 3))


def test_a_longer_period_is_not_looked_for() -> None:
    row = np.tile(np.arange(14), 40)

    assert not hidden(row)
    assert hidden(row, max_period=14)


def test_a_shorter_period_is_found_as_a_multiple_of_itself() -> None:
    """64 times one token is 32 times two."""
    assert hidden([7] * 64, min_period=2, max_period=2)
    assert not hidden([7] * 63, min_period=2, max_period=2)


def test_fewer_than_three_repeats_are_never_seen() -> None:
    assert not hidden([1, 2, 9, 9, 3, 4, 5], max_count=1)
    assert hidden([1, 2, 9, 9, 9, 4, 5], max_count=1)


def test_repetition_does_not_go_around_the_end_of_a_row() -> None:
    assert not hidden([7] * 20 + list(range(100, 140)) + [7] * 20)


def test_a_row_of_one_token_is_hidden_in_any_dtype() -> None:
    for dtype in (np.int64, np.uint16, np.uint32, np.int32):
        assert hidden(np.zeros(64, dtype=dtype))


def test_rows_are_judged_one_by_one_however_many_there_are() -> None:
    """More rows than are looked at together, and no row's tokens run on into the next."""
    rows = np.arange(600_000, dtype=np.int64).reshape(3000, 200)
    rows[:, :20] = rows[:, -20:] = 7
    rows[[0, 17, 2999], 100:140] = 5

    found = hidden_by_repetition(rows, max_period=13, min_period=1, max_count=32)

    assert np.flatnonzero(found).tolist() == [0, 17, 2999]


def test_padding_is_a_repetition_unless_it_is_not_looked_at() -> None:
    """A packed row's padding counts in OLMo-core, a padded row's does not."""
    rows = np.full((4, 64), 1, dtype=np.uint16)
    rows[:, :10] = np.arange(100, 110)
    rows[1] = np.arange(64)
    rows[2, :40] = 7
    rows[3, :31] = 7
    lengths = np.array([10, 64, 40, 31])

    def found(lengths: np.ndarray | None) -> list[bool]:
        answer = hidden_by_repetition(rows, max_period=13, min_period=1, max_count=32, lengths=lengths)
        return [bool(row) for row in answer]

    assert found(None) == [True, False, True, True]
    assert found(lengths) == [False, False, True, False]


@pytest.mark.parametrize("shape", [(0, 128), (3, 0), (3, 2)])
def test_rows_too_few_or_too_short_to_repeat_are_not_hidden(shape: tuple[int, int]) -> None:
    found = hidden_by_repetition(np.zeros(shape, dtype=int), max_period=13, min_period=1, max_count=3)

    assert found.tolist() == [False] * shape[0]


@pytest.mark.parametrize(
    ("row", "bos", "lengths"),
    [
        ([5, 6, 0, 7, 0], None, [3, 2]),
        ([5, 6, 0, 7], None, [3, 1]),
        ([0, 0, 7], None, [1, 1, 1]),
        ([5, 6], None, [2]),
        ([0], None, [1]),
        ([], None, []),
        ([9, 5, 0, 9, 0], 9, [3, 2]),
        ([9, 5, 0, 0, 9], 9, [4, 1]),
        ([9, 5, 0, 6, 0], 9, [5]),
    ],
)
def test_documents_end_at_their_last_token_or_at_the_rows_end(
    row: list[int], bos: int | None, lengths: list[int]
) -> None:
    assert document_lengths(np.array(row, dtype=np.uint16), 0, bos).tolist() == lengths
