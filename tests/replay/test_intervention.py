import shlex

import numpy as np
import pytest

from data_index.batch import IndexedPlan, StepPlan
from data_index.errors import InvalidEdit
from replay.intervention import (
    Edit,
    Insert,
    Row,
    RowEdit,
    Shuffle,
    SwapSteps,
    merged,
    parse_edit,
    rows_of,
    shell_word,
    text_of_edit,
)

LENGTH = 8
STEPS = range(1, 4)
PLAN = IndexedPlan(
    by_step={
        step: StepPlan(
            step=step, epoch=1, instances=np.arange(4 * step, 4 * step + 4), masks=((1, 2, 5),) * (step == 2)
        )
        for step in STEPS
    }
)


def weight(row: Row) -> int:
    """Targets of a row: all tokens but the first, less the hidden ones."""
    return LENGTH - 1 - sum(stop - max(start, 1) for start, stop in merged(row.masks) if stop > 1)


def instances(plan: object) -> list[list[int]]:
    return [plan[step].instances.tolist() for step in STEPS]  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        (
            "drop instance:12,40 @137",
            Edit(operation="drop", selector=("instance", "12,40"), steps=(136, 137)),
        ),
        ("mask document:881", Edit(operation="mask", selector=("document", "881"))),
        (
            "replace instance:12 with=file.jsonl @137",
            Edit(operation="replace", selector=("instance", "12"), steps=(136, 137), options={"with": "file.jsonl"}),
        ),
        ("shuffle @100:160 seed=1", Edit(operation="shuffle", steps=(100, 160), options={"seed": "1"})),
        (
            "drop where:\"source LIKE '%.pyc'\" @3 rescale=false",
            Edit(
                operation="drop", selector=("where", "source LIKE '%.pyc'"), steps=(2, 3), options={"rescale": "false"}
            ),
        ),
        ("mask span:12:30-64", Edit(operation="mask", selector=("span", "12:30-64"))),
        ("drop tag:package:json", Edit(operation="drop", selector=("tag", "package:json"))),
        ("swap @137 with=150", Edit(operation="swap", steps=(136, 137), options={"with": "150"})),
    ],
)
def test_the_grammar(text: str, edit: Edit) -> None:
    assert parse_edit(text) == edit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "delete instance:1",
        "drop",
        "drop @3",
        "drop instance:1 @3:3",
        "drop instance:1 @three",
        "drop instance:1 colour=red",
        "drop instance:1 instance:2",
        "drop span:1:2-3",
        "replace instance:1",
        "insert @3",
        "swap @3",
        "shuffle instance:3",
        'drop where:"unbalanced',
    ],
)
def test_what_cannot_be_read_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(InvalidEdit, match="an edit reads OP|holds no step"):
        parse_edit(text)


def row_edit(**fields: object) -> RowEdit:
    defaults = {"weight": weight, "steps": STEPS}
    return RowEdit(**(defaults | fields))  # type: ignore[arg-type]


def test_dropping_leaves_other_steps_alone() -> None:
    plan = row_edit(change={5: (), 9: ()})(PLAN)

    assert instances(plan) == [[4, 6, 7], [8, 10, 11], [12, 13, 14, 15]]
    assert plan[3] is PLAN[3]


def test_masks_move_with_their_rows() -> None:
    plan = row_edit(change={8: ()})(PLAN)

    assert plan[2].masks == ((0, 2, 5),)


def test_dropping_rescales_unless_told_not_to() -> None:
    """rescale=false divides by the targets there were, so that the remaining rows weigh what they weighed."""
    assert row_edit(change={5: ()})(PLAN)[1].loss_denominator is None
    assert row_edit(change={5: ()}, rescale=False)(PLAN)[1].loss_denominator == 4 * (LENGTH - 1)
    assert row_edit(change={8: ()}, rescale=False)(PLAN)[2].loss_denominator == 4 * (LENGTH - 1) - 3


def test_masking_hides_targets_only_once() -> None:
    plan = row_edit(hide={9: ((3, 8),)})(PLAN)

    assert plan[2].masks == ((1, 2, 8),)
    assert sum(map(weight, rows_of(plan[2]))) == 4 * (LENGTH - 1) - 6
    assert weight(Row(1, ((0, 8),))) == 0


def test_repeat_replace_and_swap_keep_the_place() -> None:
    assert instances(row_edit(times={5: 3})(PLAN))[0] == [4, 5, 5, 5, 6, 7]
    assert instances(row_edit(change={5: (Row(99),)})(PLAN))[0] == [4, 99, 6, 7]
    assert instances(row_edit(swap=(5, 14))(PLAN)) == [
        [4, 14, 6, 7],
        [8, 9, 10, 11],
        [12, 13, 5, 15],
    ]


def test_insert_appends_to_each_of_its_steps() -> None:
    plan = Insert(weight=weight, steps=range(2, 4), rows=(Row(50), Row(51, ((6, 8),))))(PLAN)

    assert instances(plan)[0] == [4, 5, 6, 7] and instances(plan)[2] == [12, 13, 14, 15, 50, 51]
    assert plan[2].masks == ((1, 2, 5), (5, 6, 8))


def test_swapped_steps_keep_their_own_number() -> None:
    plan = SwapSteps(weight=weight, first=1, second=3)(PLAN)

    assert instances(plan) == [[12, 13, 14, 15], [8, 9, 10, 11], [4, 5, 6, 7]]
    assert [plan[step].step for step in STEPS] == [1, 2, 3]


def test_shuffle_permutes_all_rows_with_their_masks() -> None:
    plan = Shuffle(weight=weight, steps=STEPS, seed=1)(PLAN)
    rows = [row for step in STEPS for row in rows_of(plan[step])]
    before = [row for step in STEPS for row in rows_of(PLAN[step])]

    assert rows != before and sorted(rows, key=lambda row: row.instance) == before
    assert instances(Shuffle(weight=weight, steps=STEPS, seed=1)(PLAN)) == instances(plan)


def test_a_step_without_rows_is_an_error() -> None:
    plan = row_edit(change={i: () for i in range(4, 8)})(PLAN)

    with pytest.raises(InvalidEdit, match="step 1 is left without a row"):
        plan[1]


def test_edits_add_up_in_order() -> None:
    plan = row_edit(change={5: (Row(99),)})(PLAN)
    plan = row_edit(change={99: ()})(plan)

    assert instances(plan)[0] == [4, 6, 7]


def test_rows_keep_their_masks_when_repeated_or_swapped() -> None:
    """Row 9 has tokens 2..5 hidden; copying or moving it must not bring them back into the loss."""
    assert row_edit(times={9: 2})(PLAN)[2].masks == ((1, 2, 5), (2, 2, 5))
    swapped = row_edit(swap=(9, 14))(PLAN)
    assert swapped[2].masks == () and swapped[3].masks == ((2, 2, 5),)


def test_overlapping_spans_are_one_span() -> None:
    assert merged(((3, 8), (2, 5), (10, 12), (8, 9))) == ((2, 9), (10, 12))


@pytest.mark.parametrize(
    "edit",
    [
        Edit(operation="drop", selector=("where", "source LIKE '%.py' AND \"offset\" > 3"), steps=(136, 137)),
        Edit(operation="drop", selector=("where", "source = '$HOME `x` \\\\ !'"), options={"rescale": "false"}),
        Edit(operation="mask", selector=("tag", "source:code:x")),
        Edit(operation="insert", steps=(100, 160), options={"with": "my rows's.jsonl"}),
        Edit(operation="shuffle", options={"seed": "1"}),
    ],
)
def test_an_edit_is_read_back_as_it_was_written(edit: Edit) -> None:
    text = text_of_edit(edit)

    assert parse_edit(text) == edit
    assert shlex.split(f"forensics --edit {shell_word(text)}") == ["forensics", "--edit", text]
