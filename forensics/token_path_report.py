"""The report of `tokens --track`: facts, a picture of the paths, and the tables; text from data is shown as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from forensics.token_answer import for_people
from forensics.token_path_answer import TokenPaths
from forensics.token_path_picture import figure_of
from forensics.token_path_rows import FELL_BACK, HARDLY, HARDLY_READ, NEVER_READ, READ_UNTRAINED
from forensics.token_report import short_ids

MOST_ROWS = 500  # of a table
_COLUMNS = (
    *("token_id", "text", "category", "exposures", "first_step", "last_step", "indicator", "untrained"),
    *("left_step", "left_after_min", "left_after_max", "fell_back_step", "documents", "tags"),
)
_MOST_LISTED = 5  # documents and tags of a row


def write_path_report(found: TokenPaths, path: Path) -> list[Path]:
    """Write FILE.md with a picture FILE.png beside it, or FILE.html with it inside; returns what was written.

    Raises:
        InvalidRange: the name says neither.
    """
    return write_report_file(
        path, figure_of(found), markdown=lambda picture: _markdown(found, picture), page=lambda: _html(found)
    )


def path_facts(found: TokenPaths) -> Iterator[tuple[str, str]]:
    """What has to be known to believe the paths, as pairs."""
    steps, choice = found.steps, found.choice
    yield "checkpoints", f"{len(steps)}, steps {steps[0]} to {steps[-1]}; {found.num_bytes:,} bytes of tensors read now"
    yield "indicator", f"{choice.indicator}, that of checkpoint {steps[-1]} for all: {choice.reason}"
    yield "known unused", f"those of checkpoint {steps[-1]} for all: {choice.unused_reason}"
    if len(choice.known):
        never = "" if len(choice.unused) else "never updated, whose norms tell where the cluster is: "
        yield "unused rows", never + short_ids(choice.known)
    yield "exposures", _how_counted(found)
    cluster = found.points[-1].cluster
    if cluster.limit is not None:
        centre = "" if cluster.centre is None else f"; known-unused rows have {cluster.centre:.6g}"
        yield (
            "untrained cluster",
            f"up to {cluster.limit:.6g} at checkpoint {steps[-1]}{centre}, half of all tokens up to "
            f"{cluster.ordinary:.6g}",
        )
    yield from agreements(found)
    yield from _findings(found)
    for message in found.messages:
        yield "note", message


def _how_counted(found: TokenPaths) -> str:
    if found.exposures is None:
        return "not known"
    return {
        "as_target": "as target: the indicator is of the output matrix, whose rows are moved apart by being the target",
        "as_input": "as input: the indicator is of the input matrix, whose rows are moved by being read",
        "either": "the larger of as input and as target: one matrix reads and predicts",
    }[found.counted]


def agreements(found: TokenPaths) -> Iterator[tuple[str, str]]:
    if (agreed := found.agreement) is not None:
        others = ""
        if agreed.others_read is not None:
            median, most = agreed.others_read
            others = f"; the other {agreed.inside - agreed.both:,} were read {median:g} times at the median, "
            others += f"{most:,} at most"
        yield (
            "in the cluster against no exposure",
            f"{agreed.inside:,} in it, {agreed.unread:,} without, {agreed.both:,} both: precision "
            f"{_share(agreed.precision)}, recall {_share(agreed.recall)}{others}",
        )
    never, read = found.choice.never_updated, found.exposures
    if never is not None and read is not None and not found.choice.tied:
        unread = np.flatnonzero(read.as_input[-1] == 0)
        both = len(np.intersect1d(never, unread))
        yield (
            "second moments of 0 against never an input",
            f"{len(never):,} rows, {len(unread):,} without, {both:,} both: precision "
            f"{_share(both / len(never) if len(never) else None)}, recall "
            f"{_share(both / len(unread) if len(unread) else None)}",
        )


def _share(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"


def _findings(found: TokenPaths) -> Iterator[tuple[str, str]]:
    with_text = [row for row in found.rows if row["text"] is not None]
    gone = [row for row in with_text if row["left_step"] is not None]
    after = [row["left_after_max"] for row in gone if row["left_after_max"] is not None]
    bound = f"; half of them within {int(np.median(after)):,} exposures" if after else ""
    yield "left the cluster", f"{len(gone):,} of {len(with_text):,} tokens{bound}"
    if found.exposures is not None:
        yield NEVER_READ, f"{len(found.found(NEVER_READ)):,} tokens of the vocabulary"
        yield HARDLY_READ, f"{len(found.found(HARDLY_READ)):,}, fewer than {HARDLY} times"
        yield READ_UNTRAINED, f"{len(found.found(READ_UNTRAINED)):,}, at least {found.often:,} times and in the cluster"
    fell = sum(row["fell_back_step"] is not None for row in with_text)
    yield FELL_BACK, f"{fell:,} were in the cluster again after they had been outside"


# --- tables ----------------------------------------------------------------------------------------------------------


def _tables(found: TokenPaths) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Headings with all their rows."""
    if found.exposures is not None:
        yield "In the vocabulary, never or hardly in the data", found.found(NEVER_READ, HARDLY_READ)
        yield "Seen often, still untrained", found.found(READ_UNTRAINED)
    yield "Fell back", [row for row in found.rows if row["text"] is not None and row["fell_back_step"] is not None]


def _cells(found: TokenPaths, rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows[:MOST_ROWS]:
        written = for_people(found.analysis, row)
        yield [cell(_listed(written[name])) for name in _COLUMNS]


def _listed(value: Any) -> Any:
    """Of a list, the first few."""
    if not isinstance(value, list):
        return value
    return ", ".join(map(str, value[:_MOST_LISTED])) + (" …" if len(value) > _MOST_LISTED else "")


def _cut(rows: Sequence[dict[str, Any]]) -> str:
    return f"{len(rows):,} tokens" + (f", the first {MOST_ROWS} of them" if len(rows) > MOST_ROWS else "")


def _markdown(found: TokenPaths, picture: str) -> str:
    lines = [f"# Paths of the tokens of {as_markdown(found.run)}", "", *markdown_facts(path_facts(found))]
    lines += ["", markdown_picture("paths of the tokens", picture)]
    for heading, rows in _tables(found):
        lines += ["", f"## {heading}", "", _cut(rows) + "."]
        if rows:
            lines += ["", *markdown_table(_COLUMNS, _cells(found, rows))]
    return "\n".join(lines) + "\n"


def _html(found: TokenPaths) -> str:
    parts = [html_facts(path_facts(found))]
    for heading, rows in _tables(found):
        table = html_table(_COLUMNS, _cells(found, rows)) if rows else ""
        parts.append(f"<h2>{heading}</h2><p>{_cut(rows)}.</p>{table}")
    return "".join(parts)
