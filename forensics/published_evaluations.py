"""Do published evaluations contradict the weights that are served now?

Two checkpoints with the same weights answer the same questions alike, so their published numbers must agree. Where they
differ by far more than their standard errors, they were measured on other weights than those served. A standard error
is a cautious yardstick for that: it is of the choice of the questions, and the questions were the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import NormalDist

from data_index.evaluations import Evaluation, Evaluations
from forensics.audit_rows import Row, judged, named_steps, row
from forensics.run_continuity import Continuity

MOST_FALSE = 1e-4  # chance that any of the metrics of a pair of checkpoints passes for a difference
LEAST_Z = 5.0
LEAST_METRICS = 2  # that must differ

Key = tuple[int, str, str]  # examples in the prompt, task, metric
Numbers = Mapping[Key, Evaluation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two checkpoints' evaluations are apart.

    Attributes:
        num_metrics: that both have with standard errors.
        far: (z, metric of the one, of the other), of those beyond chance, the farthest first.
        equal: all numbers that both have are the same to the last digit.
        largest: the largest z.
    """

    num_metrics: int
    far: tuple[tuple[float, Evaluation, Evaluation], ...]
    equal: bool
    largest: float

    @property
    def contradicts(self) -> bool:
        return len(self.far) >= LEAST_METRICS


def difference(one: Numbers, other: Numbers) -> Difference:
    """Compare two checkpoints metric by metric."""
    pairs = [(one[key], other[key]) for key in sorted(one.keys() & other.keys())]
    scored = [(_z(a, b), a, b) for a, b in pairs if a.stderr is not None and b.stderr is not None]
    least = max(LEAST_Z, NormalDist().inv_cdf(1 - MOST_FALSE / 2 / max(len(scored), 1)))
    ranked = sorted(scored, key=lambda found: -found[0])
    return Difference(
        num_metrics=len(scored),
        far=tuple(found for found in ranked if found[0] > least),
        equal=bool(pairs) and all(a.value == b.value for a, b in pairs),
        largest=ranked[0][0] if ranked else 0.0,
    )


def _z(one: Evaluation, other: Evaluation) -> float:
    error = math.hypot(one.stderr or 0.0, other.stderr or 0.0)
    if error > 0:
        return abs(one.value - other.value) / error
    return 0.0 if one.value == other.value else LEAST_Z  # both at the border of what is possible: no errors to go by


def evaluation_rows(evaluations: Evaluations, continuity: Continuity, last_step: int) -> Iterator[Row]:
    """What files are wrong, and where evaluations and weights do not agree.

    Args:
        last_step: of the checkpoints that were read.
    """
    for name, problem in evaluations.problems:
        yield judged(f"evaluations {name}", "reads", problem)
    numbers = by_step(evaluations.rows)
    found = [
        compared for group in continuity.groups for compared in _group_rows(group, continuity.owner, numbers, last_step)
    ]
    suspects = continuity.belongs.keys() | continuity.owner.keys()
    for step, belongs in sorted(continuity.belongs.items()):
        found += _misplaced_rows(step, belongs, numbers, suspects)
    yield from found
    if numbers and not any(compared["result"] == "failed" for compared in found):
        detail = f"{len(evaluations.rows):,} numbers of {len(numbers)} checkpoints, no contradiction"
        yield row("evaluations", "agree", "ok", detail)


def by_step(rows: Iterable[Evaluation]) -> dict[int, dict[Key, Evaluation]]:
    numbers: dict[int, dict[Key, Evaluation]] = {}
    for found in filter(lambda row: math.isfinite(row.value), rows):
        numbers.setdefault(found.step, {})[found.num_fewshot, found.task, found.metric] = found
    return numbers


def _group_rows(
    group: Sequence[int], owner: Mapping[int, int], numbers: Mapping[int, Numbers], last_step: int
) -> Iterator[Row]:
    """Checkpoints with equal weights: each evaluated one against the one whose weights they are, else the first."""
    evaluated = [step for step in group if step in numbers]
    own = next((owner[step] for step in group if step in owner), None)
    base = own if own in numbers else evaluated[0] if evaluated else None
    others = [step for step in evaluated if step != base]
    if base is None or not others:
        return
    found = {step: difference(numbers[step], numbers[base]) for step in others}
    if against := [step for step in others if found[step].contradicts]:
        yield _contradiction(group, own, base, against, found, numbers, last_step)
    agreeing = [step for step in others if found[step].equal]
    if agreeing:
        detail = (
            f"{named_steps([base, *agreeing])} hold the same weights and have the same evaluations, to the last digit"
        )
        yield row("evaluations", "agree", "expected", detail, steps=sorted([base, *agreeing]))
    unclear = [step for step in others if step not in against and step not in agreeing]
    if unclear:
        most = max(found[step].largest for step in unclear)
        detail = (
            f"{named_steps(unclear)}: too few metrics differ from step {base}'s, whose weights these are, by more than "
            f"chance to decide (at most by {most:.1f} standard errors)"
        )
        yield row("evaluations", "agree", "not known", detail, steps=unclear)


def _contradiction(
    group: Sequence[int],
    own: int | None,
    base: int,
    against: Sequence[int],
    found: Mapping[int, Difference],
    numbers: Mapping[int, Numbers],
    last_step: int,
) -> Row:
    z, one, other = found[max(against, key=lambda step: found[step].far[0][0])].far[0]
    shown = f"{one.task} {one.metric} {one.value:.2f} against {other.value:.2f}, z = {z:.0f}"
    count = len(found[one.step].far)
    others = [step for step in group if step != base]
    if own == base:
        early = "final weights at early steps: " if own == last_step else ""
        carry = "carry" if len(others) > 1 else "carries"
        what = f"{early}{named_steps(others)} {carry} the weights of step {own}"
    else:
        what = f"{named_steps(group)} hold the same weights"
    detail = (
        f"{what}, yet published evaluations differ: at step {one.step}, {shown}, and {count - 1} more metrics beyond "
        f"chance. They were measured on other weights ({named_steps(against)})"
    )
    return row("evaluations", "agree", "failed", detail, steps=against)


def _misplaced_rows(
    step: int, belongs: Sequence[int], numbers: Mapping[int, Numbers], suspects: Set[int]
) -> Iterator[Row]:
    """Weights that fit at other steps, by distance: do the evaluations fit here all the same?"""
    trusted = [other for other in numbers if other not in suspects]
    if step not in numbers or not trusted:
        return
    here = min(trusted, key=lambda other: abs(other - step))
    there = min(trusted, key=lambda other: min(abs(other - place) for place in belongs))
    if here == there:
        return
    at_home = difference(numbers[step], numbers[here])
    away = difference(numbers[step], numbers[there])
    if not away.contradicts or at_home.contradicts:
        return
    z, one, other = away.far[0]
    detail = (
        f"the weights served at step {step} fit at {named_steps(list(belongs))}, its evaluations do not: "
        f"{one.task} {one.metric} {one.value:.2f} against {other.value:.2f} at step {there}, z = {z:.0f}. They were "
        "measured on other weights"
    )
    yield row("evaluations", "agree", "failed", detail, step=step)
