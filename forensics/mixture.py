"""The mixture of what a run read, over its steps, as a picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from data_index.run import Run
from data_index.store import tags_overlap
from data_index.workspace import Workspace
from forensics.figure import Figure, Panel, Series

SHOWN_GROUPS = 7
OTHERS_COLOUR = 6  # grey
COLOURS = (0, 1, 2, 3, 4, 5, 7)
NAME_CHARACTERS = 40


def mixture_figure(workspace: Workspace, run: Run, table: Any, by: str, every: int) -> Figure:
    """Shares of tokens by group, the largest groups apart; every count of the table is drawn as it is.

    Areas are stacked where each token counts for one group. Where documents carry several tags the shares overlap, and
    lines are drawn instead.

    Args:
        table: rows of `batch --by --every`.
    """
    edges, shares = _shares(table, by)
    stacked = by != "tag" or not tags_overlap(workspace, run)
    largest = sorted(shares, key=lambda group: (-sum(shares[group]), group))
    shown, others = largest[:SHOWN_GROUPS], largest[SHOWN_GROUPS:]
    series = [
        _series(_name(group), edges, shares[group], stacked, colour)
        for group, colour in zip(shown, COLOURS, strict=False)
    ]
    if stacked:
        rest = [max(1.0 - sum(shares[group][n] for group in shown), 0.0) for n in range(len(edges) - 1)]
        if max(rest, default=0.0) > 1e-9:
            series.append(_series(_name_of_rest(by, others, shares), edges, rest, stacked, OTHERS_COLOUR))
    first, last = edges[0], edges[-1]
    return Figure(
        title=f"What {run.name} read, steps {first + 1} to {last}, by {by}, counted every {every} steps",
        x_label="step",
        panels=[Panel(title="", y_label="share of the tokens read", series=series)],
        note=_note(stacked, len(shown), len(others)),
    )


def _shares(table: Any, by: str) -> tuple[list[int], dict[str, list[float]]]:
    """Borders of the stretches as checkpoints, and the share of every group in each stretch."""
    stretches = sorted(set(zip(table["first_step"].to_pylist(), table["last_step"].to_pylist(), strict=True)))
    number = {first: n for n, (first, _) in enumerate(stretches)}
    shares: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(stretches))
    for row in table.select(["first_step", by, "share"]).to_pylist():
        shares[f"no {by}" if row[by] is None else row[by]][number[row["first_step"]]] += row["share"]
    edges = [first - 1 for first, _ in stretches] + [last for _, last in stretches[-1:]]
    return edges or [0], dict(shares)


def _series(name: str, edges: Sequence[int], values: Sequence[float], stacked: bool, colour: int) -> Series:
    held = [*values, *values[-1:]]
    return Series(name=name, x=edges, y=held, style="area" if stacked else "stairs", colour=colour)


def _name_of_rest(by: str, others: Sequence[str], shares: dict[str, list[float]]) -> str:
    counted = [sum(column) for column in zip(*shares.values(), strict=True)]
    named = f"{len(others)} others" if others else ""
    nothing = f"no {by}" if min(counted, default=0.0) < 1 - 1e-9 else ""
    return " and ".join(filter(None, (named, nothing)))


def _note(stacked: bool, num_shown: int, num_others: int) -> str:
    if stacked:
        return ""
    said = "A document may carry several tags, so that shares overlap."
    return said + (f" The {num_shown} largest of {num_shown + num_others} tags are drawn." if num_others else "")


def _name(group: str) -> str:
    """A group's name as a legend can show it: of a long one the end."""
    text = "".join(char if char.isprintable() else "?" for char in group)
    return text if len(text) <= NAME_CHARACTERS else "…" + text[1 - NAME_CHARACTERS :]
