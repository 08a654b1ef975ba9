"""Does `Tokens Seen` of a list of stages follow? Within a stage by steps; from stage to stage by what was loaded.

A stage counts on from the checkpoint that it was started from. A soup has seen no more than each of its ingredients.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_index.listings import ListedRow, Listing, Mistake
from data_index.registry import ReleasedRun

_NUMBER = re.compile(r"stage_?(\d)")
_INGREDIENTS = {2: "both ingredients"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """
    Attributes:
        base: tokens that the rows count from.
    """

    group: str
    number: int
    rows: tuple[ListedRow, ...]
    tokens_per_step: int
    base: int
    run: ReleasedRun | None

    @property
    def is_soup(self) -> bool:
        return self.group.endswith("_souped")

    @property
    def last(self) -> ListedRow:
        return max(self.rows, key=_step)


def wrong_tokens(listing: Listing, others: Sequence[Listing], known: Mapping[str, ReleasedRun]) -> Iterator[Mistake]:
    stages = _stages(listing, known)
    for stage in stages:
        before = [s for s in stages if s.number == stage.number - 1]
        ingredients = [s for s in stages if s.number == stage.number and not s.is_soup]
        yield from _rows_that_do_not_follow(stage)
        if stage.is_soup:
            yield from _soup(stage, ingredients, [s for s in stages if s.number == stage.number + 1])
        elif before:
            yield from _start(stage, before[-1], stages)
        elif stage.base:
            text = f"{stage.group}: Tokens Seen counts from {stage.base:,}, where it should count from 0"
            yield Mistake(kind="wrong_base", text=text, lines=_lines(stage))


def _stages(listing: Listing, known: Mapping[str, ReleasedRun]) -> list[_Stage]:
    found: list[_Stage] = []
    for group, rows in listing.groups.items():
        match = _NUMBER.match(group)
        run = known.get(group)
        stated = None if run is None else run.value("tokens_per_step")
        per_step = int(stated) if stated else _usual_tokens_per_step(rows)
        if per_step is None:  # one row says nothing of itself: its stage's other rows do
            same = [stage for stage in found if match and stage.number == int(match[1])]
            per_step = same[-1].tokens_per_step if same else None
        if match and per_step:
            bases = Counter(_tokens(row) - _step(row) * per_step for row in rows)
            base = bases.most_common(1)[0][0]
            stage = _Stage(group=group, number=int(match[1]), rows=rows, tokens_per_step=per_step, base=base, run=run)
            found.append(stage)
    return found


def _usual_tokens_per_step(rows: Sequence[ListedRow]) -> int | None:
    ratios: Counter[int] = Counter()
    for before, after in zip(rows, rows[1:], strict=False):
        steps, tokens = _step(after) - _step(before), _tokens(after) - _tokens(before)
        if steps > 0 and tokens > 0 and tokens % steps == 0:
            ratios[tokens // steps] += 1
    return ratios.most_common(1)[0][0] if ratios else None


def _rows_that_do_not_follow(stage: _Stage) -> Iterator[Mistake]:
    odd = [row for row in stage.rows if _tokens(row) != stage.base + _step(row) * stage.tokens_per_step]
    if odd:
        text = (
            f"{stage.group}: Tokens Seen of {len(odd)} rows is not {stage.tokens_per_step:,} times the steps after the "
            f"others, first at step {odd[0].step}"
        )
        yield Mistake(kind="tokens_jump", text=text, lines=tuple(row.line for row in odd))


def _start(stage: _Stage, before: _Stage, stages: Sequence[_Stage]) -> Iterator[Mistake]:
    """Does the stage count on from where the one before ended, and is that where it was started?"""
    first, total = min(stage.rows, key=_step), _tokens(before.last)
    right = _true_base(stage, stages)
    if _tokens(first) == total and stage.base != total:
        text = (
            f"{stage.group}: Tokens Seen is too low by {first.step} steps of its own ({total - stage.base:,} tokens) "
            f"in all {len(stage.rows)} rows: the first, of step {first.step}, repeats the {total:,} that "
            f"{before.group} ends with{_should_say(stage, right, total - stage.base)}"
        )
        yield Mistake(kind="tokens_low", text=text, lines=_lines(stage))
    elif stage.base != total:
        text = (
            f"{stage.group}: Tokens Seen counts from {stage.base:,}, where {before.group} ends with {total:,}"
            f"{_should_say(stage, right, total - stage.base)}"
        )
        yield Mistake(kind="wrong_base", text=text, lines=_lines(stage))
    parent, step = _parent(stage, stages)
    if parent is not None and step != before.last.step and not before.is_soup:
        loaded = parent.base + step * parent.tokens_per_step
        text = (
            f"{stage.group}: Tokens Seen counts on from step {before.last.step} of {before.group} ({total:,} tokens), "
            f"and the stage was started from step {step} ({loaded:,}){_should_say(stage, right, loaded - total)}"
        )
        yield Mistake(kind="wrong_base", text=text, lines=_lines(stage))


def _should_say(stage: _Stage, right: int | None, told: int) -> str:
    """What the first row should say; and how wrong it is, where `told`, the mistake just told, is not all of it."""
    if right is None:
        return ""
    first = min(stage.rows, key=_step)
    missing = right - stage.base
    other = "low" if missing > 0 else "high"
    total = f"all mistakes together, it is {abs(missing):,} too {other}: " if missing not in (0, told) else ""
    return f"; {total}step {first.step} should be {right + _step(first) * stage.tokens_per_step:,}"


def _soup(stage: _Stage, ingredients: Sequence[_Stage], after: Sequence[_Stage]) -> Iterator[Mistake]:
    if not ingredients:
        return
    seen, most = _tokens(stage.last), max(_tokens(ingredient.last) for ingredient in ingredients)
    if seen > most:
        which = _INGREDIENTS.get(len(ingredients), f"all {len(ingredients)} ingredients")
        later = f"; {', '.join(s.group for s in after)} counts on from there" if after else ""
        text = f"{stage.group}: Tokens Seen adds up {which}: {seen:,}, where each has seen {most:,} by this list{later}"
        yield Mistake(kind="soup_adds_ingredients", text=text, lines=_lines(stage))
    elif seen < most:
        text = f"{stage.group}: Tokens Seen is {seen:,}, less than the {most:,} of what it was averaged from"
        yield Mistake(kind="tokens_low", text=text, lines=_lines(stage))


def _parent(stage: _Stage, stages: Sequence[_Stage]) -> tuple[_Stage | None, int]:
    """The stage and step that the catalog says it was started from; for a soup, its first ingredient's."""
    stated = "" if stage.run is None else str(stage.run.value("parent", ""))
    name, _, step = stated.partition(",")[0].partition("@")
    for other in stages:
        if other.run is not None and other.run.name == name and other is not stage and step.isdigit():
            return other, int(step)
    return None, 0


def _true_base(stage: _Stage, stages: Sequence[_Stage], depth: int = 0) -> int | None:
    """Tokens seen before the stage, by what the catalog says was loaded; None where it does not say."""
    if stage.number == 1:
        return 0
    parent, step = _parent(stage, stages)
    base = None if parent is None or depth > len(stages) else _true_base(parent, stages, depth + 1)
    if parent is None or base is None:
        return None
    # A soup is no step further than the ingredient it was averaged from.
    return base if parent.is_soup else base + step * parent.tokens_per_step


def _lines(stage: _Stage) -> tuple[int, ...]:
    return tuple(row.line for row in stage.rows)


def _step(row: ListedRow) -> int:
    return row.step or 0


def _tokens(row: ListedRow) -> int:
    return row.tokens or 0
