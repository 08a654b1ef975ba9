import math

import pytest
import torch

from replay.fidelity import compare_tensors, grade, relative_distance, same_bits, step_diverges, step_row


def row(loss: float, logged: float | None) -> dict[str, object]:
    return step_row(1, {"loss": loss}, {} if logged is None else {"loss": logged})


@pytest.mark.parametrize(
    ("rows", "states_equal", "expected"),
    [
        ([row(2.0, 2.0)], True, "R0"),
        ([row(2.0, 2.0)], None, "R1"),
        ([row(2.0, 2.0)], False, "R1"),
        ([row(2.0, 2.0 + 1e-6)], True, "R1"),
        ([row(2.0, 2.0 + 1e-5)], True, "unbanded"),
        ([row(2.0, 2.0), row(2.0, 3.0)], False, "unbanded"),
        ([row(2.0, None)], None, "unbanded"),
        ([row(2.0, None)], True, "R0"),
        ([row(math.nan, math.nan)], True, "R0"),
        ([row(math.nan, 2.0)], False, "unbanded"),
    ],
)
def test_the_grade_is_what_the_evidence_earns(
    rows: list[dict[str, object]], states_equal: bool | None, expected: str
) -> None:
    assert grade(rows, states_equal) == expected


def test_a_nan_equals_a_nan_and_nothing_else() -> None:
    assert same_bits(math.nan, math.nan) and not same_bits(math.nan, 1.0) and not same_bits(1.0, 1.0 + 2**-52)


def test_any_logged_number_can_diverge() -> None:
    same = step_row(1, {"loss": 1.0, "grad_norm": 2.0}, {"loss": 1.0, "grad_norm": 2.0})
    other = step_row(1, {"loss": 1.0, "grad_norm": 2.0}, {"loss": 1.0, "grad_norm": 2.1})

    assert not step_diverges(same) and step_diverges(other)
    assert step_diverges(step_row(1, {"loss": 1.0, "parameters_equal": 0.0}, {"loss": 1.0}))


def test_differences_say_how_many_elements_and_how_far() -> None:
    ours = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.zeros(2)}
    theirs = {"a": torch.tensor([1.0, 2.5, 3.0]), "b": torch.zeros(2), "c": torch.ones(1)}
    a, c = compare_tensors(ours, theirs)

    assert (a.name, a.max_abs, a.num_different, a.num_elements) == ("a", 0.5, 1, 3)
    assert c.name == "c" and math.isinf(c.max_abs)


def test_minus_zero_is_another_bit_pattern() -> None:
    assert compare_tensors({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])})


def test_relative_distance_is_zero_only_for_equal_weights() -> None:
    weights = {"a": torch.tensor([3.0, 4.0])}

    assert relative_distance(weights, weights) == 0.0
    assert relative_distance({"a": torch.tensor([3.0, 4.5])}, weights) == pytest.approx(0.1)
