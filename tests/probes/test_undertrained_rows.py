"""Indicators against the formulas written out; unused rows, the trust in an indicator, and the cut, on planted ones."""

import numpy as np
import pytest
import torch

from probes.embedding_indicators import (
    INPUT_NORM,
    OUTPUT_BIAS,
    OUTPUT_COSINE,
    OUTPUT_COSINE_CENTRED,
    OUTPUT_COSINE_WITHOUT_FIRST,
    OUTPUT_DISTANCE,
    all_indicators,
    cosine_distances,
    first_component,
)
from probes.indicator_trust import Trust, chosen_indicator, coherence, gap_of, published_cut, separation
from probes.unused_rows import exact_duplicates, near_duplicates, zero_rows

UNUSED = torch.arange(40, 60)


@pytest.fixture
def matrix() -> torch.Tensor:
    """[400, 32]; rows 40 .. 59 point nearly the same way, all rows share a mean and a strong component."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows = normal(400, 32) + normal(32) + 3 * normal(400, 1) * normal(32)
    rows[UNUSED] = normal(32) + 0.02 * normal(20, 32)
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_indicator_is_its_formula(matrix: torch.Tensor, dtype: torch.dtype) -> None:
    """In float64, from the same rounded numbers; 1e-5: float32 sums of 32 products."""
    entry, exit = matrix.to(dtype), matrix.flip(1).to(dtype)
    found = all_indicators(entry, exit, UNUSED, bias=torch.linspace(-1, 1, 400)).values
    rows = exit.double()
    unused = rows[UNUSED].mean(dim=0)
    first = torch.linalg.svd(rows - rows.mean(dim=0))[2][0]

    def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 1 - x @ y / (x.norm(dim=1) * y.norm()).clamp_min(1e-6)

    without = rows - torch.outer(rows @ first, first)
    expected = {
        INPUT_NORM: entry.double().norm(dim=1),
        OUTPUT_COSINE: cosine(rows, unused),
        OUTPUT_COSINE_CENTRED: cosine(rows - rows.mean(dim=0), unused - rows.mean(dim=0)),
        OUTPUT_COSINE_WITHOUT_FIRST: cosine(without, without[UNUSED].mean(dim=0)),
        OUTPUT_DISTANCE: (rows - unused).norm(dim=1),
        OUTPUT_BIAS: torch.linspace(-1, 1, 400).double(),
    }

    assert set(found) == set(expected)
    for name, values in expected.items():
        # The first component is sought until its residual is 1e-3; the others are exact up to rounding.
        tolerance = 2e-3 if name == OUTPUT_COSINE_WITHOUT_FIRST else 1e-5
        assert torch.allclose(found[name].double(), values, rtol=0, atol=tolerance), name


def test_tied_embeddings_are_compared_in_the_one_matrix(matrix: torch.Tensor) -> None:
    one, two = all_indicators(matrix, None, UNUSED).values, all_indicators(matrix, matrix, UNUSED).values

    assert all(torch.equal(one[name], two[name]) for name in one) and OUTPUT_BIAS not in one


def test_without_unused_rows_and_with_a_bias_in_name_only_the_norm_is_left(matrix: torch.Tensor) -> None:
    found = all_indicators(matrix, bias=torch.full((400,), 1e-6))

    assert set(found.values) == {INPUT_NORM} and not found.left_out


def test_rows_of_zeros_are_at_distance_one() -> None:
    """The constant in the cosine keeps them from dividing by nothing."""
    assert cosine_distances(torch.zeros(2, 4), torch.ones(4)).tolist() == [1.0, 1.0]


def test_chunks_change_nothing(matrix: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = all_indicators(matrix, None, UNUSED).values
    monkeypatch.setattr("probes.embedding_indicators.CHUNK_ELEMENTS", 32 * 7)
    parts = all_indicators(matrix, None, UNUSED).values

    assert all(torch.allclose(whole[name], parts[name], atol=2e-6) for name in whole)


def test_the_first_component_is_that_of_a_whole_decomposition(matrix: torch.Tensor) -> None:
    exact = torch.linalg.svd(matrix.double() - matrix.double().mean(dim=0))[2][0].float()

    assert float((first_component(matrix) @ exact).abs()) > 1 - 1e-6


def test_an_unused_row_left_out_of_the_mean_is_farther_from_it(matrix: torch.Tensor) -> None:
    """Rows that have nothing in common lie near a mean that holds them; left out, they do not."""
    ids = torch.arange(100, 104)
    found = all_indicators(matrix, None, ids)

    assert float(found.left_out[OUTPUT_COSINE].mean()) > float(found.values[OUTPUT_COSINE][ids].mean()) + 0.1
    row, others = matrix[100], matrix[101:104].mean(dim=0)
    assert float(found.left_out[OUTPUT_COSINE][0]) == pytest.approx(
        float(1 - torch.cosine_similarity(row, others, dim=0)), abs=1e-5
    )


# --- unused rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_near_duplicates_are_found_and_nothing_else(matrix: torch.Tensor, dtype: torch.dtype) -> None:
    rows = matrix.to(dtype)
    rows[[70, 71, 72, 73, 74]] = 0

    assert [group.tolist() for group in near_duplicates(rows)] == [UNUSED.tolist()]


def test_near_duplicates_do_not_depend_on_length(matrix: torch.Tensor) -> None:
    matrix[UNUSED[::2]] *= 5

    assert [group.tolist() for group in near_duplicates(matrix)] == [UNUSED.tolist()]


def test_a_matrix_as_it_was_initialized_has_no_near_duplicates() -> None:
    assert near_duplicates(torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_duplicates_are_equal_bit_for_bit(matrix: torch.Tensor, dtype: torch.dtype) -> None:
    rows = matrix.to(dtype)
    rows[[5, 9, 300]], rows[[6, 8]] = rows[1].clone(), rows[2].clone()

    assert [group.tolist() for group in exact_duplicates(rows)] == [[1, 5, 9, 300], [2, 6, 8]]


def test_only_rows_that_are_all_zero_are_zero_rows(matrix: torch.Tensor) -> None:
    matrix[[7, 11]] = 0
    matrix[8, 1:] = 0

    assert zero_rows(matrix).tolist() == [7, 11]


# --- trust and cuts --------------------------------------------------------------------------------------------------


def test_separation_counts_pairs() -> None:
    assert separation(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == (1 + 1 + 0 + 0.5) / 4


def test_rows_that_agree_are_coherent_and_others_are_not(matrix: torch.Tensor) -> None:
    agreeing, others = coherence(matrix, UNUSED), coherence(matrix, torch.arange(200, 220))

    assert agreeing is not None and agreeing > 0.99
    assert others is not None and others < 0.95
    assert coherence(matrix, torch.tensor([3])) is None


def test_the_published_cut_is_a_percentile() -> None:
    """GPT-2 has 49,913 tokens of the category OK, and 999 of them were tested."""
    values = np.arange(49_913.0)

    assert int((values <= published_cut(values)).sum()) == 999


def test_the_gap_lies_between_the_low_group_and_the_bulk() -> None:
    generator = np.random.default_rng(0)
    low, bulk = generator.uniform(0.01, 0.02, 30), generator.normal(0.6, 0.05, 3000)
    gap = gap_of(np.concatenate([low, bulk]), low)

    assert gap is not None and low.max() == gap.below and gap.above == bulk.min() and gap.below < gap.cut < gap.above


def test_a_gap_among_unused_rows_is_not_taken() -> None:
    generator = np.random.default_rng(0)
    low = np.concatenate([[0.001], generator.uniform(0.28, 0.29, 30)])
    bulk = generator.normal(0.6, 0.03, 3000)
    gap = gap_of(np.concatenate([low, bulk]), low)

    assert gap is not None and gap.below >= 0.28


def test_a_sparse_stretch_serves_where_no_gap_is_wide() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.uniform(0.0, 0.05, 200), np.linspace(0.05, 0.5, 24), generator.normal(0.6, 0.03, 3000)]
    gap = gap_of(np.concatenate(parts), parts[0])

    assert gap is not None and 0.05 <= gap.cut <= 0.5


@pytest.mark.parametrize("values", [np.random.default_rng(0).normal(1, 0.1, 5000), np.ones(100), np.empty(0)])
def test_where_no_group_stands_apart_there_is_no_gap(values: np.ndarray) -> None:
    assert gap_of(values) is None


@pytest.mark.parametrize(
    ("separations", "expected", "said"),
    [
        ({INPUT_NORM: 0.9992, OUTPUT_COSINE: 0.9999}, INPUT_NORM, "published default"),
        ({INPUT_NORM: 0.97, OUTPUT_COSINE: 0.9999}, OUTPUT_COSINE, "tells less"),
        ({INPUT_NORM: 0.4, OUTPUT_COSINE: 0.9999}, OUTPUT_COSINE, "no information"),
        ({INPUT_NORM: 0.55, OUTPUT_COSINE: 0.5}, INPUT_NORM, "none of them tells much"),
        ({INPUT_NORM: None}, INPUT_NORM, "no row is known"),
    ],
)
def test_the_published_default_stays_unless_another_tells_more(
    separations: dict[str, float | None], expected: str, said: str
) -> None:
    trust = {name: Trust(name=name, separation=told) for name, told in separations.items()}
    chosen, reason = chosen_indicator(trust, INPUT_NORM)

    assert chosen == expected and said in reason
