"""How faithful is a replay? Compare it with the log and with the checkpoint at its end, and grade it.

R0  every tensor of the states that checkpoint B holds (without one, the trainer's hash of the weights), and every
    logged loss, is bit-equal
R1  every logged loss within 1e-6 relative; the best that can be earned without a checkpoint or hash at B
unbanded  below R1, with no measured noise band to place it in
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

R1_RELATIVE = 1e-6
COMPARED_METRICS = ("loss", "z_loss", "grad_norm", "learning_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """One tensor that is not bit-equal to the checkpoint's."""

    name: str
    max_abs: float
    relative: float
    num_different: int
    num_elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What a replay found. `None` means that there was nothing to compare with.

    Attributes:
        weights_equal: with checkpoint B, or else with the trainer's hash of them.
        states_equal: everything that checkpoint B holds, moments too.
        differences: tensors of checkpoint B that differ, in the model's order.
        weight_distance: L2 distance of all weights over the L2 norm of checkpoint B's; 0.0 when equal.
        notes: everything that could lower the grade, each in a sentence.
    """

    run: str
    first: int
    last: int
    grade: str
    fingerprint_matches: bool | None
    first_divergent_step: int | None
    max_abs_loss_difference: float | None
    weights_equal: bool | None
    states_equal: bool | None
    weight_distance: float | None
    differences: tuple[TensorDifference, ...]
    steps: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)


def same_bits(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def step_row(step: int, replayed: Mapping[str, float], logged: Mapping[str, float]) -> dict[str, Any]:
    """One row of the report: each metric beside the logged one, None where it was not logged."""
    row: dict[str, Any] = {"step": step}
    for name in COMPARED_METRICS:
        row[name] = replayed.get(name)
        row[f"{name}_logged"] = logged.get(name)
    row["skipped"] = bool(replayed.get("skipped"))
    row["skipped_logged"] = None if "skipped" not in logged else bool(logged["skipped"])
    row["parameters_equal"] = None if "parameters_equal" not in replayed else bool(replayed["parameters_equal"])
    return row


def step_diverges(row: Mapping[str, Any]) -> bool:
    """Does anything that was logged for this step differ in a bit?"""
    pairs = ((row[name], row[f"{name}_logged"]) for name in COMPARED_METRICS)
    if row["skipped_logged"] is not None and row["skipped"] != row["skipped_logged"]:
        return True
    return row["parameters_equal"] is False or any(
        logged is not None and replayed is not None and not same_bits(replayed, logged) for replayed, logged in pairs
    )


def compare_tensors(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> list[TensorDifference]:
    """Tensors that are not bit-equal, in our order; one that is missing or of another shape is infinitely far."""
    differences = []
    for name in [*ours, *(n for n in theirs if n not in ours)]:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            differences.append(
                TensorDifference(name=name, max_abs=math.inf, relative=math.inf, num_different=0, num_elements=0)
            )
            continue
        a, b = ours[name].detach().cpu(), theirs[name].detach().cpu()
        if torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
            continue
        gap = a.double() - b.double()
        differences.append(
            TensorDifference(
                name=name,
                max_abs=float(gap.abs().max()),
                relative=float(gap.norm() / b.double().norm().clamp_min(1e-300)),
                num_different=int((gap != 0).sum()),
                num_elements=a.numel(),
            )
        )
    return differences


def relative_distance(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """L2 distance of all tensors together, over the L2 norm of the second."""
    gap = sum(float((ours[n].detach().cpu().double() - theirs[n].double()).square().sum()) for n in theirs)
    return math.sqrt(gap / max(sum(float(t.double().square().sum()) for t in theirs.values()), 1e-300))


def grade(rows: Sequence[Mapping[str, Any]], states_equal: bool | None, *, approximate: bool = False) -> str:
    """The fidelity grade.

    Args:
        states_equal: all tensors of checkpoint B, or its hash, equal; None where neither exists.
        approximate: settings of the trainer were passed over; equal numbers would not show that the step is the same.
    """
    compared = [(row["loss"], row["loss_logged"]) for row in rows if row["loss_logged"] is not None]
    equal = all(same_bits(a, b) for a, b in compared)
    if states_equal and equal and not approximate:
        return "R0"
    if approximate:
        return "unbanded"
    if compared and all(same_bits(a, b) or abs(a - b) <= R1_RELATIVE * abs(b) for a, b in compared):
        return "R1"
    return "unbanded"
