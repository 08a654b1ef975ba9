import math

import numpy as np
import pytest
import torch

import probes.norms
from probes.norms import group_norm, norms_by_group, root_mean_square, root_mean_squares_by_group, travel_distance

STATE = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}


def test_the_norm_of_a_group_is_the_norm_of_all_its_elements() -> None:
    assert group_norm(STATE.values()) == 5.0
    assert norms_by_group(STATE, {"one": ["a"], "both": ["a", "b"]}) == [3.0, 5.0]


def test_a_norm_is_taken_in_parts_and_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 the squares of numbers this large would overflow."""
    monkeypatch.setattr(probes.norms, "ELEMENTS_AT_ONCE", 3)
    numbers = 1e30 * torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    expected = np.linalg.norm(numbers.numpy().astype(np.float64))

    assert group_norm([numbers.T, torch.tensor(0.0)]) == pytest.approx(expected, rel=1e-14)


def test_the_root_mean_square_of_a_group_is_over_all_its_elements_together() -> None:
    """Not the mean of the tensors' own: 3, 0 and 4 have sqrt(25 / 3). Sizes do not matter to it, dtypes neither."""
    ones = torch.ones(7, 11, dtype=torch.bfloat16)

    assert root_mean_square(STATE.values()) == pytest.approx(math.sqrt(25 / 3), rel=1e-15)
    assert root_mean_square([3 * ones, -3 * ones[:2]]) == pytest.approx(3.0, rel=1e-15)
    assert root_mean_squares_by_group(STATE, {"one": ["a"], "other": ["b"]}) == pytest.approx([math.sqrt(4.5), 4.0])
    assert math.isnan(root_mean_square([]))


def test_travel_distance_is_in_units_of_the_others_way() -> None:
    start = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    double = {name: 2 * tensor for name, tensor in STATE.items()}

    assert travel_distance(double, STATE, start, STATE) == 1.0
    assert travel_distance(STATE, STATE, start, STATE) == 0.0
    assert math.isnan(travel_distance(double, STATE, STATE, STATE))
