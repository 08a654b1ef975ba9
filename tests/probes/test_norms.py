import math

import torch

from probes.norms import group_norm, norms_by_group, travel_distance

STATE = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}


def test_the_norm_of_a_group_is_the_norm_of_all_its_elements() -> None:
    assert group_norm(STATE.values()) == 5.0
    assert norms_by_group(STATE, {"one": ["a"], "both": ["a", "b"]}) == [3.0, 5.0]


def test_travel_distance_is_in_units_of_the_others_way() -> None:
    start = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    double = {name: 2 * tensor for name, tensor in STATE.items()}

    assert travel_distance(double, STATE, start, STATE) == 1.0
    assert travel_distance(STATE, STATE, start, STATE) == 0.0
    assert math.isnan(travel_distance(double, STATE, STATE, STATE))
