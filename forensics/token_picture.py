"""The picture of `tokens`: the indicator's distribution, tokens by two indicators, and what prompting found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forensics.figure import BLACK, GREY, Figure, Panel, Series
from forensics.marked_text import shown
from forensics.token_answer import UndertrainedTokens

_BINS = 120
_LEAST_SHOWN = 1e-9  # of probabilities
_MOST_POINTS = 20_000  # of ordinary tokens in a scatter; all others are drawn


def figure_of(found: UndertrainedTokens) -> Figure:
    """The distribution of the main indicator with both cuts, and the tokens by two indicators."""
    panels = [_distribution(found)]
    if (second := _second_indicator(found)) is not None:
        panels.append(_scatter(found, second))
    if found.verification is not None:
        panels.append(_verdicts(found))
    return Figure(
        title=f"under-trained tokens of {shown(found.label)}",
        x_label="",
        panels=panels,
        shared_x=False,
        note=f"main indicator: {found.indicator} ({found.reason})",
    )


def _distribution(found: UndertrainedTokens) -> Panel:
    values = found.values[found.indicator]
    real = np.array([token.piece is not None for token in found.analysis.tokens] + [False] * len(values))[: len(values)]
    finite = np.isfinite(values)
    low, high = float(values[finite].min()), float(values[finite].max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    unused = np.isin(np.arange(len(values)), found.unused.token_ids)
    series = []
    for name, where, colour in (("all tokens", real, 0), ("known unused", unused, 1)):
        counts, _ = np.histogram(values[finite & where], bins=edges)
        heights = [int(count) or None for count in counts]
        series.append(Series(name=name, x=edges[:-1].tolist(), y=heights, style="stairs", colour=colour))
    marks = [(found.published_cut, "2 %")]
    if found.gap is not None:
        marks.append((found.gap.cut, "gap"))
    return Panel(
        title="distribution of the main indicator, with the published cut and the gap",
        y_label="tokens",
        series=series,
        log_y=True,
        marks=marks,
        x_label=found.indicator,
    )


def _second_indicator(found: UndertrainedTokens) -> str | None:
    """One of the other matrix, where there are two: they see different things."""
    others = [name for name in found.values if name != found.indicator]
    matrix = found.indicator.split("_")[0]
    return next((name for name in others if name.split("_")[0] != matrix), others[0] if others else None)


def _scatter(found: UndertrainedTokens, second: str) -> Panel:
    values, other = found.values[found.indicator], found.values[second]
    groups: dict[str, list[int]] = {"ordinary tokens": [], "bytes, specials, parts": [], "candidates": [], "unused": []}
    for row in found.rows:
        if row["in_unused_set"]:
            groups["unused"].append(row["token_id"])
        elif row["candidate"]:
            groups["candidates"].append(row["token_id"])
        else:
            groups["ordinary tokens" if row["category"] == "ok" else "bytes, specials, parts"].append(row["token_id"])
    ordinary = groups["ordinary tokens"]
    groups["ordinary tokens"] = ordinary[:: max(-(-len(ordinary) // _MOST_POINTS), 1)]
    series = [
        Series(name=name, x=values[ids].tolist(), y=other[ids].tolist(), style="points", colour=colour)
        for (name, ids), colour in zip(groups.items(), (5, 4, 1, BLACK), strict=True)
        if ids
    ]
    return Panel(title="tokens by two indicators", y_label=second, series=series, x_label=found.indicator)


def _verdicts(found: UndertrainedTokens) -> Panel:
    """Every token that was asked for, by its indicator and the highest probability that a prompt gave it."""
    assert found.verification is not None
    asked = [row for row in found.rows if row["verified"] is not None]
    values = found.values[found.indicator]
    groups = [
        ("verified", [(r["token_id"], r["max_probability"]) for r in asked if r["verified"]], 1),
        ("not verified", [(r["token_id"], r["max_probability"]) for r in asked if not r["verified"]], 5),
        ("controls", [(v.token_id, v.max_probability) for v in found.verification.controls], BLACK),
    ]
    # A probability may be 0 in fp32, which a log axis has no place for.
    series = [
        Series(
            name=name,
            x=[float(values[token]) for token, _ in pairs],
            y=[max(chance, _LEAST_SHOWN) for _, chance in pairs],
            style="points",
            colour=colour,
        )
        for name, pairs, colour in groups
        if pairs
    ]
    rule = Series(name="1 % rule", x=_ends(series), y=[0.01, 0.01], style="dashed", colour=GREY)
    return Panel(
        title="can the model repeat it?",
        y_label="highest probability",
        series=[*series, rule],
        log_y=True,
        x_label=found.indicator,
    )


def _ends(series: Sequence[Series]) -> list[float]:
    xs = [x for one in series for x in one.x]
    return [min(xs), max(xs)]
