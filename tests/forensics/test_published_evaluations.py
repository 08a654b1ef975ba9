"""Published evaluations contradict weights that are served at steps where they were not measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from data_index.evaluations import Evaluation, Evaluations
from data_index.workspace import Workspace
from forensics.published_evaluations import by_step, difference, evaluation_rows
from forensics.run_continuity import Continuity
from forensics.soundness import audit
from tests.forensics.walked_run import STEPS, added, carry, write_walked_run


@pytest.fixture(scope="module")
def published() -> Path:
    fixtures = Path(os.environ.get("FORENSICS_FIXTURES", "/nowhere")) / "metrics"
    if not fixtures.is_dir():
        pytest.skip("published metrics are not beside the checkout")
    return fixtures / "pythia" / "pythia-2.8b"


def not_ok(rows: Any, check: str) -> list[tuple[str, list[int], str]]:
    return [(r["result"], r["steps"], r["detail"]) for r in rows if r["check"] == check and r["result"] != "ok"]


def test_final_weights_at_early_steps_contradict_what_was_published(
    published: Path, tmp_path: Path, workspace: Workspace
) -> None:
    """As pythia-2.8b is served since August 2026: branches up to step 65000 carry final weights."""
    folder = write_walked_run(tmp_path / "run")
    early = [step for step in STEPS if 2 <= step <= 63000]
    for step in early:
        carry(folder, 143000, step)
    result = audit("walked", evaluations=published, workspace=added(folder, workspace))

    (expected, equal) = not_ok(result.rows, "equal bytes")
    assert expected[:2] == ("expected", [0, 1]) and "the learning rate is 0" in expected[2]
    assert equal[:2] == ("failed", early) and "carry the weights of step 143000" in equal[2]
    same, contradiction, unclear = not_ok(result.rows, "agree")
    assert same[:2] == ("expected", [0, 1])
    assert contradiction[0] == "failed" and {2, 512, 1000, 3000, 13000} <= set(contradiction[1])
    for said in (
        "final weights at early steps: steps 2, 4, 8 … 63000",
        "lambada_openai acc 0.00 against 0.65",
        "z = 97",
    ):
        assert said in contradiction[2]
    assert unclear[0] == "not known" and set(contradiction[1]) | set(unclear[1]) == set(early)


def test_an_honest_run_is_not_flagged(published: Path, tmp_path: Path, workspace: Workspace) -> None:
    """Step 0 is step 1, weights and evaluations alike: Pythia's first update has learning rate 0."""
    there = added(write_walked_run(tmp_path / "run"), workspace)
    result = audit("walked", deep=True, evaluations=published, workspace=there)

    assert result.failed == []
    assert [found[:2] for found in not_ok(result.rows, "equal bytes")] == [("expected", [0, 1])]
    assert [found[:2] for found in not_ok(result.rows, "agree")] == [("expected", [0, 1])]
    again = audit("walked", workspace=there)  # evaluations once given are kept
    assert [found[:2] for found in not_ok(again.rows, "agree")] == [("expected", [0, 1])]
    assert not any("--evals" in note for note in again.notes)


def test_exchanged_weights_contradict_evaluations_of_their_own_step(
    published: Path, tmp_path: Path, workspace: Workspace
) -> None:
    folder = write_walked_run(tmp_path / "run")
    one, other, aside = folder / "step512", folder / "step123000", folder / "aside"
    one.rename(aside), other.rename(one), aside.rename(other)
    result = audit("walked", evaluations=published, workspace=added(folder, workspace))

    assert [found[1] for found in not_ok(result.rows, "continuity")] == [[512, 123000]]
    agree = [r for r in result.rows if r["check"] == "agree"]
    found = sorted((r["step"], r["result"]) for r in agree)
    assert found == [(0, "expected"), (512, "failed"), (123000, "failed")]  # and nothing is "ok"


# --- numbers ---------------------------------------------------------------------------------------------------------


def numbers(step: int, **values: float) -> list[Evaluation]:
    return [
        Evaluation(step=step, task=task, metric="acc", value=value, stderr=0.01, num_fewshot=0, source="test")
        for task, value in values.items()
    ]


@pytest.mark.parametrize(
    ("values", "contradicts", "equal"),
    [
        ({"a": 0.5, "b": 0.5, "c": 0.5}, False, True),
        ({"a": 0.51, "b": 0.49, "c": 0.5}, False, False),
        ({"a": 0.9, "b": 0.5, "c": 0.5}, False, False),  # one metric alone may have been measured otherwise
        ({"a": 0.9, "b": 0.9, "c": 0.5}, True, False),
        ({"a": 0.55, "b": 0.55, "c": 0.55}, False, False),  # 3.5 standard errors each
    ],
)
def test_metrics_must_differ_beyond_chance(values: dict[str, float], contradicts: bool, equal: bool) -> None:
    table = by_step([*numbers(1, a=0.5, b=0.5, c=0.5), *numbers(2, **values)])
    found = difference(table[1], table[2])

    assert (found.contradicts, found.equal) == (contradicts, equal)


def test_equal_weights_of_which_no_step_is_the_owner_are_named_together() -> None:
    table = Evaluations(rows=(*numbers(10, a=0.1, b=0.1), *numbers(20, a=0.9, b=0.9)))
    (found,) = evaluation_rows(table, Continuity(groups=[(10, 20)]), 30)

    assert (found["result"], found["steps"]) == ("failed", [20])
    assert "steps 10 and 20 hold the same weights, yet published evaluations differ" in found["detail"]


def test_what_is_wrong_with_a_file_is_a_failure() -> None:
    rows = list(evaluation_rows(Evaluations(rows=(), problems=(("a.json", "is not JSON"),)), Continuity(), 0))

    assert [(row["artifact"], row["result"]) for row in rows] == [("evaluations a.json", "failed")]  # nothing agrees


@pytest.mark.parametrize(
    ("values", "results"),
    [
        ({}, ["failed", "failed"]),  # of the step's own time, which the weights are not; and nothing is "ok"
        ({20: 0.72, 50: 0.12}, ["ok"]),  # they moved with the weights
        ({20: 0.42, 50: 0.42}, ["ok"]),  # of neither time: that they were of this one cannot be said
    ],
    ids=["stayed", "moved", "neither"],
)
def test_numbers_of_weights_in_each_others_place(values: dict[int, float], results: list[str]) -> None:
    times = {10: 0.10, 20: 0.12, 30: 0.14, 40: 0.70, 50: 0.72} | values
    table = Evaluations(rows=tuple(one for step, value in times.items() for one in numbers(step, a=value, b=value)))

    found = evaluation_rows(table, Continuity(belongs={20: (50,), 50: (20,)}), 50)

    assert [row["result"] for row in found] == results
