"""A page made of sections, as HTML that runs nothing and asks no network, or as Markdown with its pictures beside it.

Everything from data is escaped. The HTML begins with a policy that forbids scripts and addresses.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.errors import ForensicsError
from data_index.files import write_bytes
from data_index.pack_contents import PAGE_START
from forensics.figure import UNDRAWABLE, Figure, picture
from forensics.marked_text import MarkedText, colours_html, legend_html, shown
from forensics.report_file import (
    as_markdown,
    cell,
    html_facts,
    html_table,
    markdown_facts,
    markdown_picture,
    markdown_table,
)

MOST_ROWS = 500  # of a table that a page shows

_STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #ccc}
img{max-width:100%;height:auto}code,pre{font-family:ui-monospace,monospace;overflow-wrap:anywhere}
pre{white-space:pre-wrap;background:#f4f4f4;padding:.5rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px}
td,th{border:1px solid #ddd;padding:.2rem .5rem;text-align:left;vertical-align:top}th{background:#f4f4f4}
.note{color:#555}
</style>
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """What stands under one heading; each part is absent where it is empty.

    Attributes:
        lines: paragraphs. commands: as one would type them.
        rows: of a table; its columns are the keys of the first row.
    """

    title: str
    lines: Sequence[str] = ()
    facts: Sequence[tuple[str, Any]] = ()
    commands: Sequence[str] = ()
    figure: Figure | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    texts: Sequence[MarkedText] = ()


def page_html(title: str, sections: Iterable[Section]) -> str:
    return page_of(title, sections_html(sections))


def sections_html(sections: Iterable[Section]) -> str:
    return "".join(map(_section_html, sections))


def page_of(title: str, body: str) -> str:
    """A page of sections that are HTML already."""
    head = f"{PAGE_START}<title>{html.escape(shown(title))}</title>\n{_STYLE}</head>\n<body>\n"
    return f"{head}<h1>{html.escape(shown(title))}</h1>\n{body}</body>\n</html>\n"


def _section_html(section: Section) -> str:
    parts = [f"<section>\n<h2>{html.escape(shown(section.title))}</h2>\n"]
    parts += [f"<p>{html.escape(shown(line))}</p>\n" for line in section.lines]
    if section.figure is not None:
        parts.append(_image_html(section.figure))
    if section.facts:
        parts.append(html_facts((name, cell(value)) for name, value in section.facts) + "\n")
    if section.commands:
        parts.append("<pre>" + "\n".join(html.escape(shown(line)) for line in section.commands) + "</pre>\n")
    if section.rows:
        columns = [html.escape(shown(name)) for name in section.rows[0]]
        parts.append(f'<div class="wide">{html_table(columns, _cells(section))}</div>\n')
    if more := _more(section):
        parts.append(f'<p class="note">{more}</p>\n')
    if section.texts:
        parts += [colours_html(), legend_html(), *(text.as_html() for text in section.texts), "\n"]
    return "".join([*parts, "</section>\n"])


def _image_html(figure: Figure) -> str:
    try:
        inline = base64.b64encode(picture(figure, "png")).decode()
    except UNDRAWABLE as error:  # a finding of someone else
        return f'<p class="note">its picture cannot be drawn: {html.escape(shown(repr(error)))}</p>\n'
    return f'<img alt="{html.escape(shown(figure.title))}" src="data:image/png;base64,{inline}">\n'


def _cells(section: Section) -> list[list[str]]:
    return [[_told(row.get(name)) for name in section.rows[0]] for row in section.rows[:MOST_ROWS]]


def _told(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    return cell(value)


def _more(section: Section) -> str:
    return f"{len(section.rows):,} rows; the first {MOST_ROWS} are shown" if len(section.rows) > MOST_ROWS else ""


def write_page(path: Path, title: str, sections: Sequence[Section]) -> list[Path]:
    """Write FILE.html, or FILE.md with its pictures FILE-1.png … beside it; returns what was written.

    Raises:
        DiskFull, NotWritable
    """
    if path.suffix == ".html":
        write_bytes(path, page_html(title, sections).encode())
        return [path]
    written: list[Path] = []
    lines = [f"# {as_markdown(title)}", ""]
    for section in sections:
        image = None
        if section.figure is not None:
            image = path.with_name(f"{path.stem}-{len(written) + 1}.png")
            try:
                write_bytes(image, picture(section.figure, "png"))
                written.append(image)
            except ForensicsError:
                raise
            except UNDRAWABLE:
                image = None
        lines += _section_markdown(section, image)
    write_bytes(path, "\n".join(lines).encode())
    return [path, *written]


def _section_markdown(section: Section, image: Path | None) -> list[str]:
    lines = [f"## {as_markdown(section.title)}", ""]
    lines += [line for text in section.lines for line in (as_markdown(text), "")]
    if image is not None and section.figure is not None:
        lines += [markdown_picture(as_markdown(section.figure.title), image.name), ""]
    if section.facts:
        lines += [*markdown_facts((name, cell(value)) for name, value in section.facts), ""]
    if section.commands:
        lines += [*(f"    {shown(command)}" for command in section.commands), ""]
    if section.rows:
        lines += [*markdown_table([as_markdown(name) for name in section.rows[0]], _cells(section)), ""]
    if more := _more(section):
        lines += [more, ""]
    for text in section.texts:
        lines += [f"**{as_markdown(text.title)}**: {as_markdown(text.plain())}", ""]
    return lines
