"""The picture of `tokens --track`: exposures against the indicator, each token a path; and when tokens left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from forensics.figure import BLACK, BLUE, GREY, Figure, Panel, Series
from forensics.marked_text import shown
from forensics.token_path_rows import FELL_BACK, HARDLY_READ, NEVER_READ, READ_UNTRAINED, Row

MOST_POINTS = 20_000  # of tokens without a path, at the last checkpoint
MOST_PATHS = 75  # of one kind of tokens
_MOST_ALONG = 50  # checkpoints of a path
NO_EXPOSURE = 0.5  # where none is drawn, on an axis that has no 0
_COUNTED = {"as_input": "as input", "as_target": "as target", "either": "as input or as target"}
_COLOURS = {NEVER_READ: 1, HARDLY_READ: 4, READ_UNTRAINED: BLACK, FELL_BACK: 3}
_ORDINARY = "others"


class PathsPoint(Protocol):
    """A checkpoint: the indicator of every row, and where its cluster of untrained rows ends; None: nothing tells."""

    @property
    def values(self) -> np.ndarray: ...

    @property
    def inside(self) -> np.ndarray | None: ...

    @property
    def limit(self) -> float | None: ...


class Paths(Protocol):
    """What is drawn: `TokenPaths`, or what is kept of them."""

    @property
    def run(self) -> str: ...

    @property
    def indicator(self) -> str: ...

    @property
    def steps(self) -> list[int]: ...

    @property
    def points(self) -> Sequence[PathsPoint]: ...

    @property
    def rows(self) -> Sequence[Row]: ...

    @property
    def counted(self) -> str: ...

    @property
    def often(self) -> int | None: ...

    def exposures_at(self) -> np.ndarray | None: ...


def figure_of(found: Paths) -> Figure:
    panels = []
    if found.exposures_at() is not None:
        panels = [_at_the_end(found), _paths(found), _leaving(found)]
    panels.append(_inside(found))
    indicator = f"indicator: {found.indicator}, the main one of checkpoint {found.steps[-1]}, held fixed"
    cluster = "the cluster holds what cannot be told from rows that are known to be unused"
    return Figure(
        title=f"paths of the tokens of {shown(found.run)}, checkpoints {found.steps[0]} to {found.steps[-1]}",
        x_label="step",
        panels=panels,
        shared_x=False,
        note=f"{indicator}; {cluster}",
    )


def _at_the_end(found: Paths) -> Panel:
    """Every token with a finding, and of the others as many as can be told apart."""
    counts = found.exposures_at()
    assert counts is not None
    x, values, series, kinds = np.maximum(counts[-1], NO_EXPOSURE), found.points[-1].values, [], _kinds(found)
    num_drawn = 0
    for name, tokens in kinds.items():
        chosen = tokens[_evenly(len(tokens), MOST_POINTS)] if name == _ORDINARY else tokens
        num_drawn += len(chosen)
        series.append(
            Series(
                name=f"{name} ({len(tokens):,})",
                x=x[chosen].tolist(),
                y=values[chosen].tolist(),
                style="points",
                colour=_COLOURS.get(name, BLUE),
            )
        )
    limit = found.points[-1].limit
    if limit is not None:
        ends = [NO_EXPOSURE, 10.0, float(x.max())]
        series.append(Series(name="limit of the cluster", x=ends, y=[limit] * 3, style="dashed", colour=2))
    total = sum(map(len, kinds.values()))
    which = "all" if num_drawn == total else f"{num_drawn:,} of"
    return Panel(
        title=f"at checkpoint {found.steps[-1]}: {which} {total:,} tokens",
        y_label="indicator",
        x_label=_counted(found),
        series=series,
        log_x=True,
        log_y=_spans_decades(values),
        marks=[(NO_EXPOSURE, "none")],
        inches=2.8,
    )


def _paths(found: Paths) -> Panel:
    counts = found.exposures_at()
    assert counts is not None
    along = _evenly(len(found.points), _MOST_ALONG)
    values = np.stack([found.points[number].values for number in along])
    x, series, num_drawn, kinds = np.maximum(counts[along], NO_EXPOSURE), [], 0, _kinds(found)
    for name, tokens in kinds.items():
        chosen = tokens[_evenly(len(tokens), MOST_PATHS)]
        num_drawn += len(chosen)
        label = f"{name} ({len(chosen):,} of {len(tokens):,})"
        series.append(_path_series(label, x, values, chosen, _COLOURS.get(name, GREY)))
    return Panel(
        title=f"paths from checkpoint to checkpoint: {num_drawn:,} of {sum(map(len, kinds.values())):,} tokens",
        y_label="indicator",
        x_label=_counted(found),
        series=series,
        log_x=True,
        log_y=_spans_decades(values),
        marks=[(NO_EXPOSURE, "none")],
        inches=3.4,
    )


def _counted(found: Paths) -> str:
    return f"exposures so far, {_COUNTED[found.counted]}"


def _spans_decades(values: np.ndarray) -> bool:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return bool(0 < low and high > 20 * low)


def _kinds(found: Paths) -> dict[str, np.ndarray]:
    """Ids of tokens with a text by what is said of them, ordinary ones first: they are drawn beneath the others."""
    order = (_ORDINARY, HARDLY_READ, NEVER_READ, FELL_BACK, READ_UNTRAINED)
    kinds: dict[str, list[int]] = {name: [] for name in order}
    for row in found.rows:
        if row["text"] is not None:
            kinds[row["finding"] or _ORDINARY].append(row["token_id"])
    return {name: np.array(tokens, dtype=np.int64) for name, tokens in kinds.items() if tokens}


def _path_series(name: str, x: np.ndarray, values: np.ndarray, tokens: np.ndarray, colour: int) -> Series:
    """Paths one after the other, None between them."""
    xs: list[float] = []
    ys: list[float | None] = []
    for token in tokens.tolist():
        xs += [*x[:, token].tolist(), float(x[-1, token])]
        ys += [*values[:, token].tolist(), None]
    return Series(name=name, x=xs, y=ys, colour=colour, thin=True)


def _evenly(count: int, most: int) -> np.ndarray:
    """Numbers 0 .. count - 1, or so many of them, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)) if count else np.arange(0)


def _leaving(found: Paths) -> Panel:
    """What share of the tokens that left had done so within so many exposures."""
    rows = [row for row in found.rows if row["text"] is not None and row["left_after_max"] is not None]
    series = []
    for name, label, colour in (
        ("left_after_min", "at the last checkpoint inside", 5),
        ("left_after_max", "at the next one, outside", 0),
    ):
        counts = np.sort([row[name] for row in rows if row[name] is not None])
        if len(counts):
            places, share = _cumulative(np.maximum(counts, NO_EXPOSURE))
            series.append(Series(name=label, x=places, y=share, style="stairs", colour=colour))
    marks = [] if found.often is None else [(float(found.often), f"often: {found.often:,}")]
    return Panel(
        title=f"exposures between which {len(rows):,} tokens left the untrained cluster; none is drawn at 0.5",
        y_label="% with at most so many",
        x_label=_counted(found),
        series=series,
        log_x=True,
        marks=marks,
        top=103,
    )


def _cumulative(ordered: np.ndarray) -> tuple[list[float], list[float]]:
    places, counts = np.unique(ordered, return_counts=True)
    return places.tolist(), (100 * np.cumsum(counts) / len(ordered)).tolist()


def _inside(found: Paths) -> Panel:
    texts = np.array([row["token_id"] for row in found.rows if row["text"] is not None], dtype=np.int64)
    inside: Sequence[float | None] = [
        None if point.inside is None else int(point.inside[texts].sum()) or None for point in found.points
    ]
    series = [Series(name="in the cluster", x=found.steps, y=inside, colour=1)]
    counts = found.exposures_at()
    if counts is not None:
        unread = [int(number) or None for number in (counts[:, texts] == 0).sum(axis=1)]
        series.append(Series(name="no exposure so far", x=found.steps, y=unread, style="dashed", colour=BLACK))
    return Panel(
        title=f"tokens in the untrained cluster, of {len(texts):,}",
        y_label="tokens",
        x_label="step",
        series=series,
        log_y=True,
    )
