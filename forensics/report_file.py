"""A report as one file: Markdown with its picture beside it, or a page with the picture inside.

Everything from data is text: escaped for Markdown and for HTML, control characters as their escapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

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


def as_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", shown(text))
