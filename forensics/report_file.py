"""A report as one file: Markdown with its picture beside it, or a page with the picture inside.

Everything from data is text: escaped for Markdown and for HTML, control characters as their escapes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from data_index.errors import InvalidRange
from data_index.files import write_bytes
from forensics.figure import Figure, write_html, write_png
from forensics.marked_text import shown

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~$&])")


def require_report_suffix(path: Path) -> None:
    """
    Raises:
        InvalidRange
    """
    if path.suffix not in (".md", ".html"):
        raise InvalidRange(f"a report is FILE.md or FILE.html, not {path.name}")


def write_report_file(
    path: Path, figure: Figure, *, markdown: Callable[[str], str], page: Callable[[], str]
) -> list[Path]:
    """Write FILE.md with a picture FILE.png beside it, or FILE.html with it inside; returns what was written.

    Args:
        markdown: the text of FILE.md, given the picture's name. page: what stands below the picture of FILE.html.
    Raises:
        InvalidRange: the name says neither.
    """
    require_report_suffix(path)
    if path.suffix == ".html":
        write_html(figure, path, below=page())
        return [path]
    picture = path.with_suffix(".png")
    write_png(figure, picture)
    write_bytes(path, markdown(picture.name).encode())
    return [path, picture]


# Pairs of a name and what is to be known; and rows of a table, whose cells are text already (`cell`).
Facts = Iterable[tuple[str, str]]
Cells = Iterable[Sequence[str]]


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else shown(str(value))


def markdown_facts(facts: Facts) -> list[str]:
    return [f"- **{as_markdown(name)}**: {as_markdown(value)}" for name, value in facts]


def markdown_picture(text: str, name: str) -> str:
    return f"![{text}]({name.replace(' ', '%20')})"


def markdown_table(columns: Sequence[str], rows: Cells) -> list[str]:
    head = [f"| {' | '.join(columns)} |", "| " + " | ".join("---" for _ in columns) + " |"]
    return head + ["| " + " | ".join(map(as_markdown, cells)) + " |" for cells in rows]


def html_facts(facts: Facts) -> str:
    items = (f"<li><b>{html.escape(shown(name))}</b>: {html.escape(shown(value))}</li>" for name, value in facts)
    return f"<ul>{''.join(items)}</ul>"


def html_table(columns: Sequence[str], rows: Cells) -> str:
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in cells) + "</tr>" for cells in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def as_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", shown(text))
