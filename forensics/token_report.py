"""The report of `tokens`: what was read, which rows are known to be unused, which indicator is trusted, the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forensics.report_file import (
    as_markdown,
    cell,
    html_facts,
    html_table,
    markdown_facts,
    markdown_picture,
    markdown_table,
    write_report_file,
)
from forensics.token_answer import UndertrainedTokens, for_people
from forensics.token_picture import figure_of

MOST_ROWS = 1000
_MOST_IDS = 24
_SHOWN = ("rank", "token_id", "text", "category", "indicator", "max_probability", "verified", "label", "said")


def write_report(found: UndertrainedTokens, path: Path) -> list[Path]:
    """Write FILE.md and its picture, or FILE.html; returns what was written.

    Raises:
        InvalidRange: the name says neither.
    """
    return write_report_file(
        path, figure_of(found), markdown=lambda picture: _markdown(found, picture), page=lambda: _html(found)
    )


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
    """Rows for the table of a report: candidates, and whatever lies below either cut, lowest first."""
    low = [
        row
        for row in found.rows
        if row["category"] != "no_token" and (row["candidate"] or row["below_gap"] or row["below_2_percent"])
    ]
    return sorted(low, key=lambda row: (row["indicator"], row["token_id"]))[:MOST_ROWS]


def _table(found: UndertrainedTokens) -> Iterator[list[str]]:
    for row in suspicious(found):
        written = for_people(found.analysis, row)
        yield [cell(written[name]) for name in _SHOWN]


def _markdown(found: UndertrainedTokens, picture: str) -> str:
    lines = [f"# Under-trained tokens of {as_markdown(found.label)}", "", *markdown_facts(facts(found))]
    lines += ["", markdown_picture("distribution and scatter", picture), "", *markdown_table(_SHOWN, _table(found))]
    return "\n".join(lines) + "\n"


def _html(found: UndertrainedTokens) -> str:
    return html_facts(facts(found)) + html_table(_SHOWN, _table(found))
