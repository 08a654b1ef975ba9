"""The mixture of what a run read, over its steps, as a picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from data_index.document_queries import overlapping_namespaces
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.figure import BLACK, Figure, Panel, Series

SHOWN_GROUPS = 7  # in one panel
SHOWN_PANELS = 5
AREA_COLOURS = (0, 1, 2, 3, 4, 5, 7)
LINE_COLOURS = (0, 1, 2, 3, 4, 5, BLACK)
OTHERS_COLOUR = 6  # grey
NAME_CHARACTERS = 40

Shares = Mapping[str, Sequence[float]]  # group -> its share of the tokens of each stretch


def mixture_figure(workspace: Workspace, run: Run, table: Any, by: str, every: int) -> Figure:
    """Shares of tokens by group, the largest groups apart; every count of the table is drawn as it is.

    Tags have a panel for each of their namespaces (`source:` and the like). Areas are stacked where each token counts
    for one group at most; where documents carry several tags of a namespace, shares overlap, and lines are drawn.

    Args:
        table: rows of `batch --by --every`.
    """
    edges, shares = _shares(table, by)
    spaces = _namespaces(shares) if by == "tag" else {by: shares}
    largest = sorted(spaces, key=lambda space: (-_total(spaces[space]), space))
    overlapping = overlapping_namespaces(workspace, run) if by == "tag" else set()
    first, last = edges[0], edges[-1]
    return Figure(
        title=f"What {run.name} read, steps {first + 1} to {last}, by {by}, counted every {every} steps",
        x_label="step",
        panels=[_panel(space, edges, spaces[space], overlapping) for space in largest[:SHOWN_PANELS]]
        or [Panel(title=f"no {by} is known", y_label="", series=())],
        note=_note(by, [spaces[space] for space in largest if space not in overlapping], largest[SHOWN_PANELS:]),
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


def _namespaces(shares: Shares) -> dict[str, dict[str, Sequence[float]]]:
    spaces: dict[str, dict[str, Sequence[float]]] = defaultdict(dict)
    for tag, values in shares.items():
        space, colon, name = tag.partition(":")
        spaces[space if colon else ""][name if colon else tag] = values
    return spaces


def _total(shares: Shares) -> float:
    return sum(sum(values) for values in shares.values())


def _note(by: str, stacked: Sequence[Shares], not_drawn: Sequence[str]) -> str:
    gaps = any(min(map(sum, zip(*shares.values(), strict=True)), default=1.0) < 1 - 1e-9 for shares in stacked)
    said = [f"White: tokens without such a {by}."] if gaps else []
    return " ".join([*said, *([f"Not drawn: tags of {', '.join(not_drawn)}."] if not_drawn else [])])


def _panel(space: str, edges: Sequence[int], shares: Shares, overlapping: Collection[str]) -> Panel:
    stacked = space not in overlapping
    largest = sorted(shares, key=lambda group: (-sum(shares[group]), group))
    shown, others = largest[:SHOWN_GROUPS], largest[SHOWN_GROUPS:]
    series = [
        _series(_name(group), edges, shares[group], stacked, colour)
        for group, colour in zip(shown, AREA_COLOURS if stacked else LINE_COLOURS, strict=False)
    ]
    title = space
    if not stacked:
        title += " (documents may carry several, so that shares overlap)"
        title += f"; the {len(shown)} largest of {len(largest)}" if others else ""
    elif others:
        rest = [sum(shares[group][n] for group in others) for n in range(len(edges) - 1)]
        series.append(_series(f"{len(others)} others", edges, rest, stacked, OTHERS_COLOUR))
    return Panel(title=title, y_label="share of the tokens read", series=series, top=1.0)


def _series(name: str, edges: Sequence[int], values: Sequence[float], stacked: bool, colour: int) -> Series:
    held = [*values, *values[-1:]]
    return Series(name=name, x=edges, y=held, style="area" if stacked else "stairs", colour=colour)


def _name(group: str) -> str:
    """A group's name as a legend can show it: of a long one the end."""
    text = "".join(char if char.isprintable() else "?" for char in group)
    return text if len(text) <= NAME_CHARACTERS else "…" + text[1 - NAME_CHARACTERS :]
