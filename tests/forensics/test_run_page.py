"""A report tells all that is known of a run on one page that runs nothing and asks no network."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_index.errors import InvalidRange
from data_index.registration import add
from data_index.workspace import Workspace
from forensics.finding import keep_finding
from forensics.page_sections import MOST_ROWS, Section, page_html
from forensics.probing import probe
from forensics.run_page import report
from forensics.spike_detection import spikes
from tests.forensics.packs import EVIL, finding

VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Fails where elements are not closed in their order; keeps the names of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def asked(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("asked"))
    add(tiny_source, workspace=workspace)
    spikes("tiny", workspace=workspace)
    probe("tiny", "norms", checkpoints=[0, 10], workspace=workspace)
    keep_finding(workspace, finding(command=f"forensics blame tiny 8 --note '{EVIL}'"))
    return workspace


@pytest.fixture(scope="module")
def page(asked: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "r.html"
    assert report("tiny", path, workspace=asked) == [path]
    return path.read_text()


def test_a_report_says_what_is_known_and_how(asked: Workspace, page: str) -> None:
    run = asked.run("tiny")

    for heading in ("At a glance", "How far it came", "Checkpoints", "Spikes", "Measured at its checkpoints"):
        assert f"<h2>{heading}</h2>" in page
    for said in (run.trust.witness, run.files[0].sha256, "forensics audit tiny --deep", "Finding blame-tiny-8"):
        assert said and html.escape(said) in page
    assert page.count("data:image/png;base64,") == 3  # the run, what was measured, the finding
    assert re.search(r"last loss</b>: [\d.]+ at step 20<", page)


def test_a_report_runs_nothing_and_asks_no_network(page: str) -> None:
    found = parsed(page)

    assert EVIL not in page and "&lt;script&gt;" in page
    assert not found.seen & {"script", "iframe", "object", "embed", "form", "a", "link", "base", "svg"}
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert all(value and value.startswith("data:") for name, value in found.attributes if name in ("src", "href"))
    assert "url(" not in page and "@import" not in page


def test_markdown_has_its_pictures_beside_it(asked: Workspace, tmp_path: Path) -> None:
    written = report("tiny", tmp_path / "r.md", workspace=asked)
    text = (tmp_path / "r.md").read_text()

    assert [path.name for path in written] == ["r.md", "r-1.png", "r-2.png", "r-3.png"]
    assert all(f"]({path.name})" in text and path.is_file() for path in written[1:])
    prose = [line for line in text.split("\n") if not line.startswith("    ")]  # the others are code
    assert EVIL in text and not re.search(r"(?<!\\)<", "\n".join(prose))


def test_a_report_is_html_or_markdown(tiny_shared: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InvalidRange, match="a report is FILE.md or FILE.html"):
        report("tiny", tmp_path / "r.pdf", workspace=tiny_shared)


def test_long_tables_are_cut_and_say_so() -> None:
    rows = [{"n": number} for number in range(MOST_ROWS + 1)]
    page = page_html("t", [Section(title="s", rows=rows)])

    assert page.count("<tr>") == MOST_ROWS + 1 and "501 rows; the first 500 are shown" in page
    parsed(page)
