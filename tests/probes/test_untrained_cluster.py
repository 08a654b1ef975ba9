"""The cluster of untrained rows on planted values, where every answer is known."""

import numpy as np
import pytest
import torch

from probes.departures import departures
from probes.embedding_indicators import INDICATORS, INPUT_NORM, OUTPUT_BIAS, all_indicators
from probes.untrained_cluster import cluster_of, indicator_of

UNUSED = torch.arange(40, 60)


@pytest.mark.parametrize("name", INDICATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_indicator_alone_is_the_same_as_among_all(name: str, dtype: torch.dtype) -> None:
    """1e-5: sums in another order. The matrix has a mean and a strong component, so that no two variants agree."""
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(400, 32, generator=generator) + torch.randn(32, generator=generator)
    matrix += 3 * torch.randn(400, 1, generator=generator) * torch.randn(32, generator=generator)
    matrix, bias = matrix.to(dtype), torch.linspace(-1, 1, 400)
    expected = all_indicators(matrix, None, UNUSED, bias)
    values, left_out = indicator_of(name, bias if name == OUTPUT_BIAS else matrix, UNUSED)

    assert left_out is not None
    assert torch.allclose(values, expected.values[name], atol=1e-5)
    assert torch.allclose(left_out, expected.left_out[name], atol=1e-5)


def test_a_single_unused_row_has_none_to_be_left_out_of() -> None:
    matrix = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))

    assert indicator_of("output_cosine_to_unused", matrix, torch.tensor([4]))[1] is None
    assert indicator_of(INPUT_NORM, matrix, torch.tensor([], dtype=torch.int64))[1] is None


@pytest.mark.parametrize("count", [5, 13, 72])
def test_further_unused_rows_are_inside_and_ordinary_ones_outside(count: int) -> None:
    """Of 10,000 rows of the same kind as those that are known, whatever their number; and the limit is no wider than
    the number asks for."""
    random = np.random.default_rng(count)
    others = random.normal(1, 0.05, 3_000)
    shares, limits = [], []
    for _ in range(40):
        cluster = cluster_of(random.normal(0.1, 0.01, count), others)
        assert cluster.limit is not None and cluster.centre == pytest.approx(0.1, abs=0.02)
        shares.append((random.normal(0.1, 0.01, 10_000) <= cluster.limit).mean())
        limits.append(cluster.limit)

    assert np.mean(shares) > 0.999 and (others > max(limits)).mean() > 0.99
    assert np.median(limits) < {5: 0.25, 13: 0.17, 72: 0.145}[count]


def test_before_training_all_rows_are_in_the_cluster() -> None:
    """Ordinary tokens are no farther than unused ones, and few of these are known."""
    random = np.random.default_rng(0)
    values = random.normal(1, 0.08, 3_000)
    shares = [
        (values <= (cluster_of(values[start : start + 13], values).limit or 0)).mean() for start in range(0, 390, 13)
    ]

    assert np.mean(shares) > 0.999


def test_two_rows_do_not_tell_how_far_they_scatter() -> None:
    """The limit is no more than half way to the ordinary tokens."""
    cluster = cluster_of(np.array([0.1, 0.12]), np.random.default_rng(0).normal(1, 0.05, 500))

    assert cluster.limit == pytest.approx(0.11 + 0.445, abs=0.01)


def test_one_wrong_row_does_not_widen_the_cluster_to_hold_itself() -> None:
    random = np.random.default_rng(0)
    known, others = random.normal(0.1, 0.01, 20), random.normal(1, 0.05, 500)
    wrong = cluster_of(np.append(known, 0.9), others)

    assert wrong.limit == pytest.approx(cluster_of(known, others).limit, abs=0.01)


def test_copies_of_one_row_still_have_a_cluster() -> None:
    """Known rows that are equal tell nothing of how others scatter: a hundredth of the way to ordinary tokens."""
    cluster = cluster_of(np.full(8, 0.1), np.append(np.full(8, 0.1), np.full(100, 1.1)))

    assert cluster.limit == pytest.approx(0.1 + 0.01)


@pytest.mark.parametrize("known", [None, np.array([0.1])])
def test_without_known_rows_the_gap_is_the_limit(known: np.ndarray | None) -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0.1, 0.005, 30), random.normal(1, 0.05, 1_000)])
    cluster = cluster_of(known, values)

    assert cluster.centre is None and cluster.limit is not None and 0.12 < cluster.limit < 0.9
    assert cluster_of(known, np.linspace(0.5, 1.5, 1_000)).limit is None


def test_rows_leave_for_good_or_fall_back() -> None:
    inside = np.array(
        [
            # stays, leaves, outside from the start, falls back and leaves, falls back and stays
            [1, 1, 0, 1, 1],
            [1, 1, 0, 0, 0],
            [1, 0, 0, 1, 0],
            [1, 0, 0, 0, 1],
        ],
        dtype=bool,
    )
    found = departures(inside)

    assert found.left.tolist() == [-1, 2, 0, 3, -1]
    assert found.fell_back.tolist() == [-1, -1, -1, 2, 3]
