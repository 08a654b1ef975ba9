"""When texts came back, drawn: the step of a first reading against the step of each later one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from forensics.figure import Figure, Panel, Series
from forensics.repetition import Repeats


def figure_of_repeats(found: Repeats) -> Figure:
    """A point for each two steps of which the later read again what the earlier read; exact repeats, and near ones."""
    same, near = repeat_steps(found.rows)
    return Figure(
        title=f"{found.run}: {found.of} that were read more than once",
        x_label="step of the first reading",
        panels=[
            Panel(
                title=f"{len(same):,} pairs of steps with the same text, {len(near):,} with nearly the same",
                y_label="step of the repeat",
                series=[
                    Series(name="nearly the same", x=near[:, 0], y=near[:, 1], style="points", colour=1),
                    Series(name="the same", x=same[:, 0], y=same[:, 1], style="points", colour=0),
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
    columns = {name: rows.column(name).to_numpy() for name in ("group", "step")}
    texts = rows.column("text").to_pylist()
    ...


def _groups(groups: np.ndarray) -> Iterator[slice]:
    borders = np.flatnonzero(np.diff(groups)) + 1
    for start, stop in zip([0, *borders], [*borders, len(groups)], strict=True):
        yield slice(start, stop)
