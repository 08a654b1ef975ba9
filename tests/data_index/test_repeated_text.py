"""Nearly the same texts: signatures, buckets and groups, held against every pair compared one by one."""

from collections.abc import Callable

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from data_index.errors import InvalidRange
from data_index.repeated_text import (
    NUM_PERMUTATIONS,
    SEED,
    SHINGLES_AT_ONCE,
    Shingles,
    bands_for,
    buckets,
    group_alike,
    jaccard,
    proposed_share,
    shingles_of,
    signature_of,
    without_end,
)

Texts = list[np.ndarray]


def five_grams(text: np.ndarray) -> set[bytes]:
    """Brute force, by another way than the module's."""
    return {text[start : start + 5].astype("<i8").tobytes() for start in range(max(len(text) - 4, 1))}


def share(one: np.ndarray, other: np.ndarray) -> float:
    a, b = five_grams(one), five_grams(other)
    return len(a & b) / len(a | b)


def edited(text: np.ndarray, num_changes: int, random: np.random.Generator) -> np.ndarray:
    """Each change at a place of its own, far from the others, takes 5 shingles away and brings 5 new ones."""
    text = text.copy()
    text[np.arange(num_changes) * (len(text) // max(num_changes, 1)) + 7] = random.integers(60_000, 65_000, num_changes)
    return text


@pytest.fixture(scope="module")
def planted() -> Texts:
    """60 texts of nothing in common, then copies of each of the first 40 with 0 to 39 tokens changed."""
    random = np.random.default_rng(5)
    originals = [random.integers(0, 50_000, 400) for _ in range(60)]
    return originals + [edited(originals[number], number, random) for number in range(40)]


def grouped(texts: Texts, threshold: float) -> tuple[list[int], np.ndarray]:
    signatures = np.stack([signature_of(text) for text in texts])
    shingles: Callable[[int], Shingles] = lambda number: shingles_of(texts[number])  # noqa: E731
    found = group_alike(buckets(signatures, *bands_for(threshold)), len(texts), shingles, threshold)
    return found.group.tolist(), found.similarity


def components(texts: Texts, threshold: float) -> list[int]:
    """Groups by every pair."""
    group = list(range(len(texts)))
    for one in range(len(texts)):
        for other in range(one):
            if share(texts[one], texts[other]) >= threshold and group[one] != group[other]:
                old, new = max(group[one], group[other]), min(group[one], group[other])
                group = [new if number == old else number for number in group]
    return group


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_groups_are_those_of_every_pair_compared(planted: Texts, threshold: float) -> None:
    """The planted copies have similarities of 1.0, 0.975 … 0.34; none is within 0.003 of a threshold."""
    assert grouped(planted, threshold)[0] == components(planted, threshold)


def test_the_planted_copies_span_the_thresholds(planted: Texts) -> None:
    found = [share(planted[number], planted[60 + number]) for number in range(40)]

    assert found[0] == 1.0 and found[1] == (396 - 5) / (396 + 5) and found[39] == (396 - 195) / (396 + 195)


def test_similarity_is_the_exact_share_of_shingles(planted: Texts) -> None:
    group, similarity = grouped(planted, 0.5)
    linked = [number for number in range(40) if group[60 + number] == number]

    assert len(linked) == 27  # (396 - 5n) / (396 + 5n) >= 0.5 for n <= 26
    assert all(similarity[60 + n] == similarity[n] == share(planted[n], planted[60 + n]) for n in linked)
    assert all(similarity[number] == 0 for number in range(100) if group.count(group[number]) == 1)


def test_nearly_all_pairs_at_the_threshold_are_proposed() -> None:
    """And many more where they are more alike: what a user asks for is not lost to the method."""
    for threshold in (0.1, 0.25, 0.5, 0.8, 0.95, 1.0):
        bands, rows = bands_for(threshold)
        assert bands * rows <= NUM_PERMUTATIONS
        assert proposed_share(threshold, bands, rows) >= 0.999
        assert rows == 128 or proposed_share(threshold, NUM_PERMUTATIONS // (rows + 1), rows + 1) < 0.999


@pytest.mark.parametrize("threshold", [0.0, 0.09, 1.01, -1.0, float("nan"), float("inf")])
def test_similarities_that_cannot_be_found_are_refused(threshold: float) -> None:
    with pytest.raises(InvalidRange, match=r"--near takes 0\.1 \.\. 1"):
        bands_for(threshold)


def test_buckets_are_those_of_the_library(planted: Texts) -> None:
    """Sorted bands propose the pairs that datasketch's tables of Python sets do, in a fraction of the memory."""
    signatures = [signature_of(text) for text in planted]
    bands, rows = bands_for(0.3)
    tables = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=(bands, rows))
    sketches = [MinHash(NUM_PERMUTATIONS, SEED, hashvalues=values, scheme="affine32") for values in signatures]
    for number, sketch in enumerate(sketches):
        tables.insert(number, sketch)
    theirs = {(n, other) for n, sketch in enumerate(sketches) for other in tables.query(sketch) if n < other}

    ours = {
        (int(a), int(b))
        for bucket in buckets(np.stack(signatures), bands, rows)
        for a in bucket
        for b in bucket
        if a < b
    }

    assert ours == theirs and len(ours) >= 40


def test_a_signature_estimates_the_share_of_shingles(planted: Texts) -> None:
    """128 permutations: a standard error of 0.044 at 0.5, so that the mean over 40 pairs is near."""
    agree = [np.mean(signature_of(planted[n]) == signature_of(planted[60 + n])) for n in range(40)]
    true = [share(planted[n], planted[60 + n]) for n in range(40)]

    assert abs(np.mean(agree) - np.mean(true)) < 0.02
    assert max(abs(a - t) for a, t in zip(agree, true, strict=True)) < 0.2


def test_signatures_are_the_same_in_every_process() -> None:
    """They are kept: another version of the library that hashes otherwise must not pass unnoticed."""
    signature = signature_of(np.arange(100))

    assert signature.dtype == np.uint32 and signature.shape == (128,)
    assert signature[:4].tolist() == [37261817, 100329733, 40989302, 17382573]


def test_a_long_text_is_signed_in_parts(planted: Texts) -> None:
    random = np.random.default_rng(1)
    text = random.integers(0, 50_000, 3 * SHINGLES_AT_ONCE + 11)
    whole = signature_of(text)
    halves = [signature_of(text[: SHINGLES_AT_ONCE + 900]), signature_of(text[SHINGLES_AT_ONCE + 896 :])]

    assert np.array_equal(whole, np.minimum(*halves))


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i8", ">i4"])
def test_the_file_type_of_the_tokens_makes_no_difference(dtype: str) -> None:
    text = np.random.default_rng(2).integers(0, 60_000, 50)

    assert np.array_equal(signature_of(text), signature_of(text.astype(dtype)))
    assert shingles_of(text) == shingles_of(text.astype(dtype))


@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_a_short_text_is_one_shingle(length: int) -> None:
    text = np.arange(length)

    assert shingles_of(text) == {tuple(range(length))}
    assert not np.array_equal(signature_of(text), signature_of(np.arange(length + 1)))


def test_texts_without_tokens_are_unlike() -> None:
    assert shingles_of(np.array([], dtype=int)) == frozenset()
    assert jaccard(frozenset(), frozenset()) == 0


def test_many_copies_of_a_text_cost_one_comparison_each() -> None:
    text = np.arange(300)
    signatures = np.stack([signature_of(text)] * 500)
    found = group_alike(buckets(signatures, *bands_for(0.8)), 500, lambda number: shingles_of(text), 0.8)

    assert found.num_compared == 499 and set(found.group.tolist()) == {0}


def test_unlike_texts_in_one_bucket_are_compared_once() -> None:
    texts = [np.arange(10), np.arange(100, 110), np.arange(200, 210)]
    everything = [np.array([0, 1, 2])] * 5
    found = group_alike(everything, 3, lambda number: shingles_of(texts[number]), 0.5)

    assert found.num_compared == 3 and found.group.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("ids", "left"), [([1, 2, 9], [1, 2]), ([1, 9, 2], [1, 9, 2]), ([9, 9], [9]), ([9], []), ([], [])]
)
def test_one_end_token_is_not_of_the_text(ids: list[int], left: list[int]) -> None:
    assert without_end(np.array(ids, dtype="<u2"), 9).tolist() == left
    assert without_end(np.array(ids, dtype="<u2"), None).tolist() == ids
