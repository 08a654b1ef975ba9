"""When texts came back, drawn: the step of a first reading against the step of each later one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from forensics.figure import Figure, Panel, Series
from forensics.repetition import Repeats


def figure_of_repeats(found: Repeats) -> Figure:
    """A point for each two steps of which the later read again what the earlier read; exact repeats, and near ones."""
    same, near = repeat_steps(found.rows)
    drawn = [("nearly the same", near, 1), ("the same", same, 0)]
    return Figure(
        title=f"{found.run}: {found.of} that were read more than once",
        x_label="step of the first reading",
        panels=[
            Panel(
                title=f"{len(same):,} pairs of steps with the same text, {len(near):,} with nearly the same",
                y_label="step of the repeat",
                series=[
                    Series(name=name, x=pairs[:, 0].tolist(), y=pairs[:, 1].tolist(), style="points", colour=colour)
                    for name, pairs, colour in drawn
                    if len(pairs)
                ],
            )
        ],
        note=str(found),
    )


def repeat_steps(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of steps (first reading, repeat), each once: int64 of shape [pairs, 2], of exact repeats and of near ones.

    An exact repeat is a reading of which any token was read before, by the first step that read it. A near one is a
    reading in a group of texts that are nearly the same, of a text of which none was read before but another was.
    """
    wanted = ("group", "text", "step", "num_tokens")
    column = {name: rows.column(name).to_numpy(zero_copy_only=False) for name in wanted}
    first = rows.column("first_token").to_numpy() if "first_token" in rows.column_names else np.zeros(len(rows), int)
    same: set[tuple[int, int]] = set()
    near: set[tuple[int, int]] = set()
    for group in _stretches(column["group"]):
        texts, steps = column["text"][group], column["step"][group].tolist()
        places = list(zip(first[group].tolist(), column["num_tokens"][group].tolist(), strict=True))
        for text in dict.fromkeys(texts.tolist()):
            chosen = np.flatnonzero(texts == text).tolist()
            same.update(_again([steps[row] for row in chosen], [places[row] for row in chosen]))
            if chosen[0] > 0:  # another text of the group was read first
                near.add((steps[0], steps[chosen[0]]))
    return _pairs(same), _pairs(near)


def _stretches(groups: np.ndarray) -> Iterator[slice]:
    borders = np.flatnonzero(np.diff(groups)) + 1
    for start, stop in zip([0, *borders], [*borders, len(groups)], strict=True):
        yield slice(start, stop)


def _again(steps: Sequence[int], places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(First step, step) of each reading of a text, in the order of steps, of which a token was read before.

    Args:
        places: first token and number of tokens of each reading.
    """
    borders = np.unique([(first, first + count) for first, count in places])
    read_by = np.full(len(borders), -1)  # the first step that read from a border to the next
    for step, (first, count) in zip(steps, places, strict=True):
        here = read_by[np.searchsorted(borders, first) : np.searchsorted(borders, first + count)]
        before = here[here >= 0]
        if before.size:
            yield int(before.min()), step
        here[here < 0] = step


def _pairs(found: set[tuple[int, int]]) -> np.ndarray:
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)
