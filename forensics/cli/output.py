"""Rows on stdout as table, JSON or CSV; progress and messages on stderr."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import DiskFull, NotWritable

if TYPE_CHECKING:
    from data_index.workspace import Workspace
    from forensics.figure import Figure
    from forensics.finding import Finding

MAX_CELL = 60


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


def emit_rows(rows: Sequence[Mapping[str, Any]], format: Format, columns: Sequence[str] | None = None) -> None:
    """Print rows; `columns` names them where there may be no row."""
    names = list(columns or (rows[0].keys() if rows else ()))
    if format is Format.json:
        print(to_json([{name: row.get(name) for name in names} for row in rows]))
    elif format is Format.csv:
        print(to_csv(names, rows), end="")
    elif not rows:
        say("no rows")
    else:
        print_table(names, rows)


def emit_arrow(table: Any, format: Format) -> None:
    emit_rows(table.to_pylist(), format, table.column_names)


def emit_object(value: Mapping[str, Any], format: Format, show: Callable[[], None]) -> None:
    """Print one object: as JSON, as CSV of its rows (`steps`, or its fields), or by `show`."""
    if format is Format.json:
        print(to_json(value))
    elif format is Format.csv:
        steps = value.get("steps")
        # Of a plan that is how many.
        rows = steps if isinstance(steps, list | tuple) and steps else None
        emit_rows(rows or [{"field": key, "value": item} for key, item in value.items()], format)
    else:
        show()


def to_json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity; they become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def to_csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = [row.get(name) for name in names]
        writer.writerow([to_json(v) if isinstance(v, list | tuple | Mapping) else v for v in values])
    return out.getvalue()


def print_table(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A plain aligned table; text from data is shown as text, control characters escaped."""
    cells = [[show_value(row.get(name)) for name in names] for row in rows]
    widths = [max([len(name), *(len(line[n]) for line in cells)]) for n, name in enumerate(names)]
    right = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]

    def line(values: Sequence[str]) -> str:
        padded = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    print(line(names))
    print("  ".join("-" * width for width in widths))
    for values in cells:
        print(line(values))


def show_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = printable(text)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def printable(text: str) -> str:
    """Text from data as text: what a terminal would obey instead of show is escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


def say(message: str) -> None:
    """A message for people, on stderr."""
    print(message, file=sys.stderr, flush=True)


def keep(
    workspace: Workspace,
    finding: Finding,
    picture: Path | None = None,
    below: str = "",
    *,
    base: Path | None = None,
) -> None:
    """Keep an answer among the findings, and draw it: where that was asked for, else beside it.

    Args:
        picture: one file that was asked for. base: two of one name, FILE.png and FILE.html.
        below: HTML that follows the picture, whatever comes from data in it escaped.
    Raises:
        DiskFull, NotWritable: the picture was asked for. Else it is only said.
    """
    from data_index.finding_files import findings_folder
    from forensics.finding import keep_finding

    try:
        say(f"finding: {keep_finding(workspace, finding)}")
    except (DiskFull, NotWritable) as error:
        say(f"the finding is not kept: {error}")
    if (figure := finding.figure) is None:
        return
    if base is not None:
        base = base.with_suffix("") if base.suffix in (".png", ".html") else base
        for ending in (".png", ".html"):
            draw(lambda: figure, base.with_name(f"{base.name}{ending}"), None, below)
    else:
        draw(lambda: figure, picture, findings_folder(workspace) / finding.name, below)


def draw(figure_of: Callable[[], Figure], picture: Path | None, base: Path | None, below: str = "") -> None:
    """Draw a picture where it was asked for; else, if anywhere, as PNG and HTML named like `base`.

    Args:
        below: HTML that follows it.
    Raises:
        DiskFull, NotWritable: it was asked for. Else it is only said.
    """
    from forensics.figure import write_figure

    places = [picture] if picture is not None else []
    if picture is None and base is not None:
        places = [base.with_name(f"{base.name}{ending}") for ending in (".png", ".html")]
    figure = figure_of() if places else None
    for place in places:
        assert figure is not None
        try:
            write_figure(figure, place, below)
        except (DiskFull, NotWritable) as error:
            if picture is not None:
                raise
            say(f"no picture: {error}")
        else:
            say(f"picture: {place}")


class FetchProgress:
    """Shows how far a fetch from servers is; nothing for one that is over at once."""

    def __init__(self) -> None:
        self.began = self.told = time.monotonic()
        self.total = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if total != self.total:
            self.began, self.total = now, total
        pause = 0.5 if sys.stderr.isatty() else 10.0
        if now - self.began < 1 or (now - self.told < pause and done < total):
            return
        self.told = now
        text = f"fetched {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        else:
            say(text)


class _Progress:
    """One moving line on a terminal, a line now and then elsewhere; nothing for what is over within a second."""

    def __init__(self) -> None:
        self.began = self.told = 0.0
        self.moving = sys.stderr.isatty()

    def tell(self, text: str, *, last: bool) -> None:
        now = time.monotonic()
        self.began = self.began or now
        if now - self.began < 1 or (now - self.told < (0.5 if self.moving else 10.0) and not last):
            return
        self.told = now
        if self.moving:
            print(f"\r\033[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            say(text)


class SearchProgress(_Progress):
    """Shows how far a search through token files is."""

    def __call__(self, done: int, total: int, found: int) -> None:
        text = f"searched {done / 1e6:,.0f} of {total / 1e6:,.0f} MB; found in {found:,} instances so far"
        self.tell(text, last=done == total)


class SortProgress(_Progress):
    """Shows how far the building of an n-gram index is."""

    def __call__(self, done: int, total: int) -> None:
        self.tell(f"sorted {done:,} of {total:,} tokens", last=done == total)


class PromptProgress(_Progress):
    """Shows how far the prompting of a model is, and how long it will take."""

    def __call__(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - (self.began or time.monotonic())
        left = f", {(total - done) * elapsed / done:,.0f} s left" if elapsed > 1 else ""
        self.tell(f"prompting: {done:,} of {total:,} prompt tokens{left}", last=done == total)


class WriteProgress(_Progress):
    """Shows how much of a model is written."""

    def __call__(self, done: int, total: int) -> None:
        self.tell(f"wrote {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", last=done == total)


class TrackProgress(_Progress):
    """Shows which part of a tracking is gone through, and how far."""

    def __call__(self, what: str, done: int, total: int) -> None:
        self.tell(f"{what}: {done:,} of {total:,}", last=done == total)


class CheckpointProgress(_Progress):
    """Shows how many checkpoints are measured, and how long the others will take."""

    def __call__(self, done: int, total: int, step: int) -> None:
        elapsed = time.monotonic() - (self.began or time.monotonic())
        left = f", {(total - done) * elapsed / (done - 1):,.0f} s left" if done > 1 and elapsed > 1 else ""
        self.tell(f"measured {done:,} of {total:,} checkpoints, step {step}{left}", last=done == total)


class StepProgress:
    """Shows how far a replay is: one moving line on a terminal, a line now and then elsewhere."""

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self.moving = sys.stderr.isatty()

    def __call__(self, result: Any, last: int) -> None:
        text = f"{self.doing}: step {result.step} of {last}  loss {result.loss:.3f}  grad norm {result.grad_norm:.3f}"
        if self.moving:
            end = "\n" if result.step == last else ""
            print(f"\r\033[K{text}", end=end, file=sys.stderr, flush=True)
        elif result.step == last or result.step % 20 == 0:
            say(text)
