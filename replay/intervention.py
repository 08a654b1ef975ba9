"""Edits to the plan of a fork: frozen values, each a function from plan to plan.

The grammar is `OP [SELECTOR] [@STEPS] [key=value …]`, one edit a line, applied in order. `parse_edit` reads it; the
selector is resolved to instances and spans by `forensics.edits`, which can ask the index; what results is one of the
frozen classes below, and calling it on a plan gives the edited plan, read lazily.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_index.batch import Plan, StepPlan
from data_index.errors import InvalidEdit

OPERATIONS: Mapping[str, frozenset[str]] = {
    "drop": frozenset({"rescale"}),
    "replace": frozenset({"with"}),
    "insert": frozenset({"with"}),
    "mask": frozenset({"rescale"}),
    "swap": frozenset({"with"}),
    "shuffle": frozenset({"seed"}),
    "repeat": frozenset({"times"}),
}
SELECTORS = ("instance", "document", "span", "tag", "where")
GRAMMAR = (
    "an edit reads OP [SELECTOR] [@STEPS] [key=value …], for example: drop instance:12,40 @137; mask document:881; "
    "replace instance:12 with=rows.jsonl @137; insert with=rows.jsonl @137; swap instance:12,40; swap @137 with=150; "
    "shuffle @100:160 seed=1; repeat instance:12 times=3; drop where:\"source LIKE '%.pyc'\"; mask span:12:30-64"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One edit as written, not yet resolved.

    Attributes:
        steps: (a, b): steps a+1 .. b; None: all steps of the fork.
    """

    operation: str
    selector: tuple[str, str] | None = None
    steps: tuple[int, int] | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def to_table(self) -> dict[str, Any]:
        table: dict[str, Any] = {"operation": self.operation}
        if self.selector:
            table[self.selector[0]] = self.selector[1]
        if self.steps:
            table["steps"] = list(self.steps)
        return table | ({"options": dict(self.options)} if self.options else {})


def parse_edit(text: str) -> Edit:
    """Read one edit.

    Raises:
        InvalidEdit: with the grammar.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidEdit(f"{text!r} cannot be read ({error}); {GRAMMAR}") from error
    if not words or words[0] not in OPERATIONS:
        raise InvalidEdit(f"{text!r} names no operation ({', '.join(OPERATIONS)}); {GRAMMAR}")
    operation, selector, steps, options = words[0], None, None, {}
    for word in words[1:]:
        kind, colon, value = word.partition(":")
        if word.startswith("@"):
            steps = _parse_edit_steps(word[1:], text)
        elif colon and kind in SELECTORS and selector is None:
            selector = (kind, value)
        elif (pair := word.partition("="))[1] and pair[0] in OPERATIONS[operation]:
            options[pair[0]] = pair[2]
        else:
            raise InvalidEdit(f"{word!r} has no place in {text!r}; {GRAMMAR}")
    edit = Edit(operation=operation, selector=selector, steps=steps, options=options)
    _require_operands(edit, text)
    return edit


def text_of_edit(edit: Edit) -> str:
    """The edit as `parse_edit` reads it."""
    words = [edit.operation]
    if edit.selector:
        kind, value = edit.selector
        words.append(f"{kind}:{shell_word(value)}")
    if edit.steps:
        first, last = edit.steps
        words.append(f"@{last}" if last == first + 1 else f"@{first}:{last}")
    return " ".join([*words, *(f"{name}={shell_word(value)}" for name, value in edit.options.items())])


def shell_word(text: str) -> str:
    """A text as one word of a command line, of a shell or of an edit; as legible as may be where it holds quotes."""
    if "'" not in text or any(special in text for special in "$`\\!"):
        return shlex.quote(text)
    return '"{}"'.format(text.replace('"', '\\"'))


def _parse_edit_steps(text: str, edit: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,18})(?::(\d{1,18}))?", text)
    if not match:
        raise InvalidEdit(f"@{text} in {edit!r} is neither a step nor a range; {GRAMMAR}")
    first, last = int(match[1]), int(match[2] or 0)
    if not match[2]:
        return first - 1, first
    if last <= first:
        raise InvalidEdit(f"@{text} in {edit!r} holds no step: A:B means from checkpoint A to checkpoint B")
    return first, last


def _require_operands(edit: Edit, text: str) -> None:
    needs_selector = edit.operation in ("drop", "mask", "replace", "repeat")
    if needs_selector and edit.selector is None:
        raise InvalidEdit(f"{text!r} does not say which rows; {GRAMMAR}")
    if edit.operation == "replace" and "with" not in edit.options:
        raise InvalidEdit(f"{text!r} does not say with=what; {GRAMMAR}")
    if edit.operation == "insert" and (edit.selector is None) == ("with" not in edit.options):
        raise InvalidEdit(f"{text!r}: insert takes either instances or with=rows.jsonl; {GRAMMAR}")
    if edit.operation == "swap" and (edit.selector is None) == ("with" not in edit.options):
        raise InvalidEdit(f"{text!r}: swap takes two instances, or a step and with=another step; {GRAMMAR}")
    if edit.operation == "shuffle" and edit.selector is not None:
        raise InvalidEdit(f"{text!r}: shuffle permutes all rows of its steps and takes no selector; {GRAMMAR}")
    if edit.selector and edit.selector[0] == "span" and edit.operation != "mask":
        raise InvalidEdit(f"{text!r}: {edit.operation} works on whole rows; a span can only be masked; {GRAMMAR}")


def option_number(edit: Edit, name: str, default: int) -> int:
    text = edit.options.get(name, str(default))
    if not re.fullmatch(r"\d{1,18}", text):
        raise InvalidEdit(f"{name}={text} of {edit.operation} is not a whole number")
    return int(text)


def option_flag(edit: Edit, name: str, default: bool) -> bool:
    text = edit.options.get(name, str(default).lower())
    if text not in ("true", "false"):
        raise InvalidEdit(f"{name}={text} of {edit.operation} is neither true nor false")
    return text == "true"


# --- plans as rows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a step with the token spans hidden from its loss."""

    instance: int
    masks: tuple[tuple[int, int], ...] = ()


def rows_of(plan: StepPlan) -> list[Row]:
    masks: dict[int, list[tuple[int, int]]] = {}
    for row, start, stop in plan.masks:
        masks.setdefault(row, []).append((start, stop))
    return [Row(int(instance), tuple(masks.get(row, ()))) for row, instance in enumerate(plan.instances)]


def merged(spans: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """The same tokens as spans in order that do not overlap."""
    union: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(stop, union[-1][1]))
        else:
            union.append((start, stop))
    return tuple(union)


# What a row adds to the denominator of its step's loss, by the recipe's rule: its targets, mostly.
RowWeight = Callable[[Row], int]


def with_rows(plan: StepPlan, rows: list[Row], weight: RowWeight, *, rescale: bool = True) -> StepPlan:
    """The step with other rows.

    Args:
        rescale: divide the loss by what is there now; otherwise by as much as there was, so that rows taken away count
            as rows with zero loss and the remaining ones weigh what they weighed.
    """
    if not rows:
        raise InvalidEdit(f"step {plan.step} is left without a row: mask the rows instead of dropping all of them")
    denominator = plan.loss_denominator
    if denominator is not None or not rescale:
        before, after = (sum(weight(row) for row in some) for some in (rows_of(plan), rows))
        denominator = (before if denominator is None else denominator) + (after - before if rescale else 0)
    return replace(
        plan,
        instances=np.array([row.instance for row in rows], dtype=np.int64),
        masks=tuple((number, start, stop) for number, row in enumerate(rows) for start, stop in row.masks),
        loss_denominator=denominator,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EditedPlan:
    """A plan seen through an edit; each step is edited when it is asked for."""

    base: Plan
    change: Callable[[StepPlan], StepPlan]
    where: range

    @property
    def steps(self) -> range:
        return self.base.steps

    def __getitem__(self, step: int) -> StepPlan:
        plan = self.base[step]
        return self.change(plan) if step in self.where else plan


# --- interventions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RowEdit:
    """Put any number of rows in the place of each row: drop, mask, replace, repeat and swap of instances.

    Attributes:
        change: instance -> the rows that stand in its place.
        hide: instance -> spans that leave the loss.
        times: instance -> how often its row stands there, with the masks it has.
        swap: two instances whose rows change places, each with the masks it has.
    """

    weight: RowWeight
    steps: range
    change: Mapping[int, tuple[Row, ...]] = field(default_factory=dict)
    hide: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    times: Mapping[int, int] = field(default_factory=dict)
    swap: tuple[int, int] | None = None
    rescale: bool = True

    def __call__(self, plan: Plan) -> Plan:
        if self.swap is None:
            return EditedPlan(base=plan, change=self._edit, where=self.steps)
        there = {row.instance: row for step in self.steps for row in rows_of(plan[step]) if row.instance in self.swap}
        one, other = self.swap
        swapped = replace(self, swap=None, change={one: (there[other],), other: (there[one],)})
        return swapped(plan)

    def _edit(self, plan: StepPlan) -> StepPlan:
        before = rows_of(plan)
        rows = [new for row in before for new in self._rows(row)]
        return plan if rows == before else with_rows(plan, rows, self.weight, rescale=self.rescale)

    def _rows(self, row: Row) -> tuple[Row, ...]:
        if row.instance in self.hide:
            row = Row(row.instance, merged(row.masks + self.hide[row.instance]))
        return self.change.get(row.instance, (row,) * self.times.get(row.instance, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """Add rows at the end of each of the steps' batches."""

    weight: RowWeight
    steps: range
    rows: tuple[Row, ...]

    def __call__(self, plan: Plan) -> Plan:
        return EditedPlan(
            base=plan, change=lambda p: with_rows(p, rows_of(p) + list(self.rows), self.weight), where=self.steps
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapSteps:
    """Exchange what two steps read; each keeps its own place in the epoch and its own learning rate."""

    weight: RowWeight
    first: int
    second: int

    def __call__(self, plan: Plan) -> Plan:
        other = {self.first: self.second, self.second: self.first}

        def change(own: StepPlan) -> StepPlan:
            return with_rows(own, rows_of(plan[other[own.step]]), self.weight)

        steps = range(min(other), max(other) + 1, max(max(other) - min(other), 1))
        return EditedPlan(base=plan, change=change, where=steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle:
    """Permute all rows of the steps with PCG64; batch sizes stay as they are."""

    weight: RowWeight
    steps: range
    seed: int

    def __call__(self, plan: Plan) -> Plan:
        rows = [row for step in self.steps for row in rows_of(plan[step])]
        order = np.random.Generator(np.random.PCG64(seed=self.seed)).permutation(len(rows))
        shuffled = iter([rows[i] for i in order])
        taken = {step: [next(shuffled) for _ in rows_of(plan[step])] for step in self.steps}
        return EditedPlan(base=plan, change=lambda p: with_rows(p, taken[p.step], self.weight), where=self.steps)


Intervention = RowEdit | Insert | SwapSteps | Shuffle
