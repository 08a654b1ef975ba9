"""The report of `tokens`: what was read, which rows are known to be unused, which indicator is trusted, the tokens.

Everything from data is text: escaped for Markdown and for HTML, control characters as their escapes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import InvalidRange
from data_index.files import write_bytes
from forensics.figure import BLACK, GREY, Figure, Panel, Series, write_html, write_png
from forensics.marked_text import shown
from forensics.token_answer import UndertrainedTokens

MOST_ROWS = 1000
_MOST_IDS = 24
_BINS = 120
_LEAST_SHOWN = 1e-9  # of probabilities
_MOST_POINTS = 20_000  # of ordinary tokens in a scatter; all others are drawn
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~$&])")
_SHOWN = ("rank", "token_id", "text", "category", "indicator", "max_probability", "verified", "label", "said")


def require_report_suffix(path: Path) -> None:
    """
    Raises:
        InvalidRange
    """
    if path.suffix not in (".md", ".html"):
        raise InvalidRange(f"a report is FILE.md or FILE.html, not {path.name}")


def write_report(found: UndertrainedTokens, path: Path) -> list[Path]:
    """Write FILE.md with a picture FILE.png beside it, or FILE.html with it inside; returns what was written."""
    require_report_suffix(path)
    figure = figure_of(found)
    if path.suffix == ".html":
        write_html(figure, path, below=_html(found))
        return [path]
    picture = path.with_suffix(".png")
    write_png(figure, picture)
    write_bytes(path, _markdown(found, picture.name).encode())
    return [path, picture]


# --- pictures --------------------------------------------------------------------------------------------------------


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


# --- text ------------------------------------------------------------------------------------------------------------


def facts(found: UndertrainedTokens) -> Iterator[tuple[str, str]]:
    """What has to be known to believe the ranking, as pairs."""
    counts, groups = found.counts(), found.analysis.counts()
    kind = "byte-level" if found.analysis.byte_level else "SentencePiece-like"
    space = ", with a space before texts" if found.analysis.leading_space else ""
    tied = "tied" if found.tied else "untied"
    yield "matrix", f"{found.shape[0]:,} x {found.shape[1]:,}, {tied}; {found.num_bytes:,} bytes read"
    yield "tokenizer", f"{len(found.analysis.tokens):,} ids, {kind}{space}"
    yield "categories", ", ".join(f"{name} {count:,}" for name, count in groups.items() if name.islower())
    yield "known unused", found.unused.reason
    for one in found.unused.evidence:
        sure = "" if one.coherence is None else f"; coherence {one.coherence:.3f}"
        mark = ", used" if one.chosen else ""
        yield f"evidence: {one.kind}{mark}", f"{len(one.token_ids):,}{sure}; {one.detail}: {short_ids(one.token_ids)}"
    yield "indicator", f"{found.indicator}: {found.reason}"
    for name, trust in found.trust.items():
        told = "not known" if trust.separation is None else f"{trust.separation:.2%}"
        nothing = "; carries no information here" if trust.informative is False else ""
        yield f"separation: {name}", f"{told}{nothing}"
    cut = "none" if found.gap is None else f"{found.gap.cut:.6g}"
    yield "cut at the gap", f"{cut}; {_counted(counts, 'below_gap')}"
    yield "published cut (2 %)", f"{found.published_cut:.6g}; {_counted(counts, 'below_2_percent')}"
    if found.verification is not None:
        yield from found.verification.told()
        threshold = _published_threshold(found)
        yield "published threshold for showing", "none" if threshold is None else f"{threshold:.6g}"
    if "never_updated" in counts:
        yield "never updated", f"{counts['never_updated']:,} rows whose second moments are exactly 0"
    for message in found.messages:
        yield "note", message


def _counted(counts: dict[str, int], name: str) -> str:
    """With bytes and specials and without: the published tables count the one, the published reports the other."""
    less = f"{name}_without_bytes_and_specials"
    if (verified := counts.get(f"{name}_verified")) is None:
        return f"{counts[name]:,} candidates, {counts[less]:,} without bytes and specials"
    less_verified = counts[f"{name}_verified_without_bytes_and_specials"]
    return (
        f"{verified:,} of {counts[name]:,} candidates verified (below 1 %), {less_verified:,} of {counts[less]:,} "
        "without bytes and specials"
    )


def _published_threshold(found: UndertrainedTokens) -> float | None:
    from probes.token_repetition import published_threshold

    rows = [row for row in found.rows if row["rank"] and row["category"] == "ok" and row["verified"] is not None]
    return published_threshold(
        np.array([row["indicator"] for row in rows]), np.array([row["verified"] for row in rows], dtype=bool)
    )


def short_ids(ids: np.ndarray) -> str:
    """Ids with stretches as first-last."""
    parts: list[str] = []
    for run in np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1):
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return " ".join(parts[:_MOST_IDS]) + (" …" if len(parts) > _MOST_IDS else "")


def suspicious(found: UndertrainedTokens) -> list[dict[str, Any]]:
    """Rows for the table of a report: what lies below either cut, whatever its category, lowest first."""
    low = [row for row in found.rows if row["category"] != "no_token" and (row["below_gap"] or row["below_2_percent"])]
    return sorted(low, key=lambda row: (row["indicator"], row["token_id"]))[:MOST_ROWS]


def _cells(row: dict[str, Any]) -> Sequence[str]:
    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:.6g}" if isinstance(value, float) else shown(str(value))

    return [cell(row[name]) for name in _SHOWN]


def as_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", shown(text))


def _markdown(found: UndertrainedTokens, picture: str) -> str:
    lines = [f"# Under-trained tokens of {as_markdown(found.label)}", ""]
    lines += [f"- **{as_markdown(name)}**: {as_markdown(value)}" for name, value in facts(found)]
    lines += ["", f"![distribution and scatter]({picture.replace(' ', '%20')})", "", f"| {' | '.join(_SHOWN)} |"]
    lines.append("| " + " | ".join("---" for _ in _SHOWN) + " |")
    lines += ["| " + " | ".join(as_markdown(cell) for cell in _cells(row)) + " |" for row in suspicious(found)]
    return "\n".join(lines) + "\n"


def _html(found: UndertrainedTokens) -> str:
    told = "".join(
        f"<li><b>{html.escape(shown(name))}</b>: {html.escape(shown(value))}</li>" for name, value in facts(found)
    )
    head = "".join(f"<th>{name}</th>" for name in _SHOWN)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>" for row in suspicious(found)
    )
    return f"<ul>{told}</ul><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
