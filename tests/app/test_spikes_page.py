"""The pages of spikes and of coloured text: what was found, what was not asked yet, and text that others wrote."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from app.figures import figure_canvas
from data_index.files import write_json
from data_index.kinds import table_of_rows
from data_index.registration import add
from data_index.workspace import Workspace, learn
from forensics.attribution import blame
from forensics.figure import Bar, Bars, Figure, Panel, Series
from forensics.finding import Finding, keep_finding
from forensics.investigation import Search
from forensics.kept_findings import finding_of_blame
from forensics.marked_text import MarkedText
from tests.app.conftest import Open
from tests.app.test_pages import HOSTILE, read_as_markdown, spike_row, texts

SHOWN = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
OTHERS = [
    {"onset": 4, "peak": None, "last": 5, "kind": "not_finite", "series": ["loss"], "detail": "2 logged steps"},
    {
        "onset": 14,
        "peak": None,
        "last": 14,
        "kind": "level_shift",
        "series": ["loss"],
        "detail": "5 to 4: a restart",
    },
]
DEFINITIONS = [{"definition": "olmo2_paper", "series": "either", "flagged": 3, "percent": 1.5, "events": 2}]
WATERFALL = Bars(
    title="From the usual loss to the peak",
    x_label="nats",
    bars=[Bar(name="without instance 7", start=6.0, stop=5.0, colour="#000000", text="5 (50 %)", band=(5.9, 6.1))],
    lines=[(6.0, "peak")],
    band_name="without random rows",
)


def spikes_finding(*spikes: dict[str, Any]) -> Finding:
    line = Series(name="loss", x=list(range(1, 21)), y=[5.0] * 20, colour=8)
    rows = [*spikes, *(spike_row() | row for row in OTHERS)]
    rows.append(spike_row() | {"definition": "olmo_core_skip", "detail": "1 flagged step"})
    return Finding(
        name="spikes-tiny",
        verb="spikes",
        command="forensics spikes tiny",
        runs=("tiny",),
        answer={"rows": rows, "definitions": DEFINITIONS, "messages": ["restart: step 9 was taken again"]},
        figure=Figure(
            title="Spikes of tiny", x_label="step", panels=(Panel(title="Loss", y_label="nats", series=[line]),)
        ),
    )


@pytest.fixture(scope="module")
def traced(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Finding]:
    """A workspace in which `blame` was asked of step 9, and what it found; the run is too short for a verdict."""
    there = Workspace(tmp_path_factory.mktemp("traced"))
    add(tiny_source, name="tiny", workspace=there)
    found = blame("tiny", 9, workspace=there, search=Search(before=2, top=3, nulls=2))
    finding = finding_of_blame(found, "forensics blame tiny 9")
    keep_finding(there, finding)
    keep_finding(there, spikes_finding(spike_row()))
    return there, finding


@pytest.fixture
def own(traced: tuple[Workspace, Finding], tmp_path: Path) -> Workspace:
    """A copy of it that a test may change."""
    shutil.copytree(traced[0].folder, tmp_path / "own")
    return Workspace(tmp_path / "own")


def told(finding: Finding) -> Finding:
    """The same with a verdict and a waterfall, as a longer log gives."""
    answer = {**finding.answer, "verdict": "data", "cause": "group", "reason": "without 2 rows it is 5"}
    answer["group"] = {"rows": [[9, 4], [9, 3]], "steps": [9], "loss_if_removed": 5.25, "restored": 0.875}
    answer["group"] |= {"loss_null_low": 6.0, "loss_null_high": 6.5}
    answer["commands"] = ["forensics fork tiny --from 5 --num-steps 4 --edit 'drop instance:78 @9'"]
    assert finding.figure is not None
    return replace(finding, answer=answer, figure=replace(finding.figure, panels=(WATERFALL, *finding.figure.panels)))


def htmls(page: AppTest) -> list[str]:
    return [element.proto.body for element in page.get("html")]


class Parsed(HTMLParser):
    """What a browser makes of some HTML: elements with their attributes, and the text of each coloured token."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "span":
            self.tokens.append("")

    def handle_data(self, data: str) -> None:
        if self.tokens:
            self.tokens[-1] += data


def coloured(page: AppTest) -> list[Parsed]:
    """The coloured rows of a page, each sure to hold nothing but spans of known classes."""
    found = [Parsed(source) for source in htmls(page) if source.startswith('<p class="losses">')]
    for row in found:
        for tag, attributes in row.elements[1:]:
            assert tag == "span" and set(attributes) == {"class", "title"}
            assert re.fullmatch(r"(d\d+|none|broken)( inside)?", str(attributes["class"]))
            assert re.fullmatch(r"token \d+: (-?\d+\.\d\d nats|no target|no number)", str(attributes["title"]))
    return found


def button(page: AppTest, label: str) -> Any:
    (found,) = [button for button in page.button if button.label == label]
    return found


def linked(page: AppTest) -> list[str]:
    return [f"{link.proto.label} {link.proto.query_string}" for link in page.get("page_link")]


# --- spikes ----------------------------------------------------------------------------------------------------------


def test_spikes_are_listed_with_what_others_count_and_what_is_none(
    opened: Open, traced: tuple[Workspace, Finding]
) -> None:
    page = opened(traced[0], "spikes", run="tiny")
    tables = [frame.value for frame in page.dataframe]

    assert not page.exception and len(page.get("plotly_chart")) == 1
    assert tables[0]["peak"].tolist() == [9] and tables[0]["blame"].tolist() == ["asked"]
    (others,) = [table for table in tables if "kind" in table and "not a number" in table["kind"].tolist()]
    assert others["detail"].tolist() == ["2 logged steps", "5 to 4: a restart"]
    assert [t["flagged"].tolist() for t in tables if "flagged" in t] == [[3]]
    assert "restart: step 9 was taken again" in texts(page) and "forensics spikes tiny" in texts(page)


def test_a_link_opens_a_spike_with_its_cause(opened: Open, own: Workspace, traced: tuple[Workspace, Finding]) -> None:
    """Verdict and reason first; then what the peak comes to without each suspect, beside random ones."""
    finding = told(traced[1])
    keep_finding(own, finding)
    page = opened(own, "spikes", run="tiny", peak="9")
    tables = [frame.value for frame in page.dataframe]
    charts = [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")]

    assert not page.exception and page.subheader[0].value == "Step 9: the data made it"
    assert "A group of rows did: without 2 rows it is 5." in texts(page)
    assert [trace["type"] for trace in charts[1]["data"]] == ["bar", "bar", "scatter"]
    (removals,) = [table for table in tables if "without" in table]
    rows = finding.answer["candidates"]
    assert removals["without"].tolist() == [*(f"instance {row['instance']}" for row in rows), "2 rows at once"]
    assert removals["value"].tolist() == [*(row["loss_if_removed"] for row in rows), 5.25]
    assert removals["null_high"].tolist() == [*(row["null_high"] for row in rows), 6.5]
    (candidates,) = [table for table in tables if "grad_norm_z" in table]
    assert candidates["instance"].tolist() == [row["instance"] for row in rows]
    assert finding.answer["commands"][0] in texts(page)
    links = linked(page)
    assert "Compose this fork run=tiny&view=compose&start=5&num_steps=4&edits=drop+instance%3A78+%409" in links
    assert f"Row {rows[0]['row']} of step 9 run=tiny&step=9&row={rows[0]['row']}&under=traced" in links


def test_suspects_are_coloured_by_the_loss_of_each_token(opened: Open, traced: tuple[Workspace, Finding]) -> None:
    page = opened(traced[0], "spikes", run="tiny", peak="9")
    rows = coloured(page)

    assert (
        not page.exception and page.subheader[0].value == "Step 9: unexplained" and "too little history" in texts(page)
    )
    assert len(rows) == len(traced[1].texts) == 3
    for row, text in zip(rows, traced[1].texts, strict=True):
        assert len(row.tokens) == 64 and row.elements[1][1]["title"] == "token 0: no target"
        assert row.elements[6][1]["title"] == f"token 5: {text.losses[5]:.2f} nats"
    (table,) = [frame.value for frame in page.dataframe if "stands out" in frame.value]
    assert table["loss"].tolist()[1] == traced[1].texts[0].losses[1] and len(table) == 3 * 64


def test_a_spike_that_nobody_looked_into_says_how_to(opened: Open, own: Workspace) -> None:
    """What it would take is told by a click, and not before."""
    keep_finding(own, spikes_finding(spike_row(), spike_row() | {"onset": 12, "peak": 13, "last": 13}))
    page = opened(own, "spikes", run="tiny", peak="13")

    assert "forensics blame tiny 13" in texts(page) and not [f for f in page.dataframe if "forwards" in f.value]
    page = button(page, "What would it take?").click().run()
    (stages,) = [frame.value for frame in page.dataframe if "forwards" in frame.value]
    assert not page.exception and stages["stage"].tolist()[:2] == ["scan", "replay"]


def test_what_was_not_asked_yet_is_started_by_a_click(
    opened: Open, own: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forensics import background_jobs

    started: list[list[str]] = []
    monkeypatch.setattr(background_jobs, "_start", lambda workspace, arguments, fork: started.append(arguments))
    page = button(opened(own, "spikes", run="tiny", peak="13"), "Start it").click().run()
    assert not page.exception and started == [["blame", "tiny", "13"]]
    (own.folder / "findings" / "spikes-tiny.json").unlink()
    page = button(opened(own, "spikes", run="tiny"), "Start it").click().run()
    assert not page.exception and started[1:] == [["spikes", "tiny"]]


def test_a_job_that_failed_says_why(opened: Open, own: Workspace) -> None:
    folder = own.folder / "jobs" / "20260101-000000-abcd"
    record = {"arguments": ["blame", "tiny", "13"], "pid": 0, "process": "ended at once", "started": 0.0}
    write_json(folder / "job.json", record)
    write_json(folder / "ended.json", {"exit_code": 1, "ended": 1.0})
    (folder / "output.log").write_text(f"no such checkpoint {HOSTILE}\n")
    page = opened(own, "spikes", run="tiny", peak="13")

    assert not page.exception and "It failed with exit code 1" in texts(page) and button(page, "Start it")
    assert f"no such checkpoint {SHOWN.split(chr(92))[0]}" in texts(page) and "alert(1)" not in read_as_markdown(page)
    assert "exit code" not in texts(opened(own, "spikes", run="tiny", peak="12"))


@pytest.mark.parametrize(
    ("command", "edits"),
    [
        ("forensics fork tiny --from 5 --num-steps 4 --edit 'drop instance:7 @9' --edit 'drop instance:8 @9'", 2),
        ("forensics fork tiny --from 5 --num-steps 4", 0),
        ("forensics fork tiny --from 5 --num-steps 4 --edit", None),
        ("forensics fork tiny --from x --num-steps 4", None),
        ("forensics fork tiny --from 5 --num-steps 4 --set a=b", None),
        ("rm -r tiny --from 5 --num-steps 4", None),
        ("forensics fork", None),
        ("'", None),
    ],
)
def test_a_command_of_a_finding_is_a_fork_or_none(command: str, edits: int | None) -> None:
    from forensics.spike_answers import fork_of_command

    found = fork_of_command(command)
    assert (found is None) == (edits is None)
    if found is not None:
        assert len(found.edits) == edits and shlex.join(["forensics", *found.arguments()]) == command


def test_for_who_looks_from_afar_nothing_is_planned(
    opened: Open, own: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORENSICS_SHARED", "1")
    page = opened(own, "spikes", run="tiny", peak="13")

    assert not page.exception and "forensics blame tiny 13" in texts(page) and "No spike was found" in texts(page)
    assert not {"What would it take?", "Start it"} & {button.label for button in page.button}


def test_a_run_without_spikes_or_without_a_search_says_so(opened: Open, own: Workspace) -> None:
    keep_finding(own, spikes_finding())
    page = opened(own, "spikes", run="tiny")
    assert not page.exception and "No spike: no value stands out" in texts(page)
    (own.folder / "findings" / "spikes-tiny.json").unlink()
    page = opened(own, "spikes", run="tiny")
    assert not page.exception and page.subheader[0].value == "Spikes were not looked for yet"
    assert "forensics spikes tiny" in texts(page) and not page.dataframe


def test_without_a_finding_the_kept_events_are_drawn_on_the_log(opened: Open, own: Workspace) -> None:
    """Also events that have no peak."""
    (own.folder / "findings" / "spikes-tiny.json").unlink()
    rows = [spike_row(), *(spike_row() | row for row in OTHERS)]
    learn(own.home("tiny"), "spikes", table_of_rows("spikes", rows, "test"))
    page = opened(own, "spikes", run="tiny")

    assert not page.exception and page.dataframe[0].value["peak"].tolist() == [9]
    assert len(page.get("plotly_chart")) == 1 and "are kept with the finding" in texts(page)
    assert not opened(own, "run", run="tiny").exception


@pytest.mark.parametrize(("content", "said"), [("{", "is not JSON"), ('{"version": 99}', "no finding of version")])
def test_findings_that_cannot_be_read_are_said(opened: Open, own: Workspace, content: str, said: str) -> None:
    for name in ("spikes-tiny", "blame-tiny-9"):
        (own.folder / "findings" / f"{name}.json").write_text(content)
    page = opened(own, "spikes", run="tiny", peak="9")

    assert not page.exception and texts(page).count(said) == 2 and "forensics blame tiny 9" in texts(page)


def test_a_finding_of_another_state_of_the_run_is_not_believed(opened: Open, own: Workspace) -> None:
    path = own.folder / "findings" / "blame-tiny-9.json"
    value = json.loads(path.read_text())
    value["inputs"]["tiny"]["run_toml"] = "0" * 64
    path.write_text(json.dumps(value))

    assert "Ask again: tiny was registered again since" in texts(opened(own, "spikes", run="tiny", peak="9"))
    assert not coloured(opened(own, "step", run="tiny", step="9", under="traced"))


def test_a_step_that_is_none_is_said(opened: Open, traced: tuple[Workspace, Finding]) -> None:
    page = opened(traced[0], "spikes", run="tiny")
    for peak in ("999", "0", "-1", "<b>", "9" * 40):
        page.query_params["peak"] = peak
        page.run()

        assert not page.exception and "<b>" not in read_as_markdown(page)
        assert bool(page.error) == (peak in ("999", "0"))


# --- text that others wrote ------------------------------------------------------------------------------------------


def test_hostile_findings_stand_as_text(opened: Open, own: Workspace, traced: tuple[Workspace, Finding]) -> None:
    """Scripts, Markdown, control characters, right-to-left overrides, and a token of 100,000 characters."""
    pieces = (HOSTILE, "\u05d0\u202e", "x" * 100_000, "\n\r\t", '"><img src=x onerror=alert(1)>', "</span></p><b>")
    losses = np.array([np.nan, 3.0, 99.0, np.inf, -1.0, 0.0])
    text = MarkedText(title=HOSTILE, pieces=pieces, losses=losses, span=(1, 3))
    answer = {**traced[1].answer, "verdict": HOSTILE, "cause": HOSTILE, "reason": HOSTILE, "notes": [HOSTILE]}
    answer |= {
        "commands": [HOSTILE],
        "documents": [{"source": HOSTILE, "rows": {"a": 1}}],
        "odds": [{"signal": HOSTILE}],
    }
    answer["candidates"] = [{"rank": "1", "step": HOSTILE, "instance": [HOSTILE], "loss_if_removed": "nan", "x": None}]
    answer |= {"group": {"rows": 3, "steps": HOSTILE}, "batch": 5, "steps": "none", "peak": "nine"}
    figure = Figure(title=HOSTILE, x_label="", panels=(replace(WATERFALL, title=HOSTILE),), note=HOSTILE)
    keep_finding(own, replace(traced[1], answer=answer, texts=(text,), figure=figure))
    spikes = spikes_finding(
        spike_row() | {"detail": HOSTILE, "kind": HOSTILE}, spike_row() | {"onset": "9"}, spike_row()
    )
    keep_finding(
        own, replace(spikes, answer={**spikes.answer, "messages": [HOSTILE, 3], "definitions": [{"series": 1}, 2]})
    )
    page = opened(own, "spikes", run="tiny", peak="9")
    (row,) = coloured(page)

    assert not page.exception and "alert(1)" not in read_as_markdown_alone(page) and SHOWN in texts(page)
    (removals,) = [frame.value for frame in page.dataframe if "without" in frame.value]
    assert removals["value"].isna().all()  # "nan" is a number that is none
    assert row.tokens == [SHOWN, "\u05d0\\u202e", "x" * 100_000, "⏎\n\\r→", pieces[4], pieces[5]]
    assert [attributes["class"] for _, attributes in row.elements[1:]] == [
        *("none", "d6 inside", "d24 inside", "broken", "d0", "d0"),
    ]


def read_as_markdown_alone(page: AppTest) -> str:
    """HTML is looked at element by element."""
    found = read_as_markdown(page)
    for source in htmls(page):
        found = found.replace(source, "")
    return re.sub(r"html \{.*?\}", "", found, flags=re.DOTALL)


def test_a_picture_that_cannot_be_drawn_is_said(
    opened: Open, own: Workspace, traced: tuple[Workspace, Finding]
) -> None:
    """A finding comes with its colours, and may come from anyone."""
    bars = replace(WATERFALL, bars=[replace(WATERFALL.bars[0], colour="no colour")])
    keep_finding(own, replace(traced[1], figure=Figure(title="t", x_label="", panels=(bars,))))
    page = opened(own, "spikes", run="tiny", peak="9")

    assert not page.exception and page.error[0].value == "This picture cannot be drawn." and len(coloured(page)) == 3


@pytest.mark.parametrize("dark", [False, True])
def test_pictures_take_the_colours_of_the_theme(dark: bool, traced: tuple[Workspace, Finding]) -> None:
    """Black on a dark page cannot be seen."""
    finding = told(traced[1])
    assert finding.figure is not None
    canvas = figure_canvas(finding.figure, dark=dark)
    (_, bars, _, *lines) = canvas.data

    assert bars.marker.color == (("#FFFFFF",) if dark else ("#000000",))
    assert lines and {line.line.color for line in lines} <= {"#999999", "#D55E00", "#3D86F0" if dark else "#0072B2"}


# --- coloured text of a step -----------------------------------------------------------------------------------------


def choose_coloured(page: AppTest) -> AppTest:
    """Switch from plain text to the loss of each token."""
    (mode,) = [group for group in page.button_group if group.key == "mode"]
    return mode.set_value("Loss of each token").run()


def test_a_step_is_coloured_by_a_click_and_not_before(opened: Open, own: Workspace) -> None:
    from forensics import token_losses

    page = choose_coloured(opened(own, "step", run="tiny", step="8"))
    assert not page.exception and not coloured(page) and "of weights and 8 of the step's 8 rows." in texts(page)
    assert page.query_params["under"] in ("5", ["5"]) and "forensics batch tiny 8 --losses --checkpoint 5" in texts(
        page
    )
    assert not own.learned_files(own.home("tiny"), "token_losses")
    page = button(page, "Colour by the loss under checkpoint 5").click().run()
    rows = coloured(page)
    table = token_losses("tiny", 8, workspace=own).table

    assert not page.exception and len(rows) == 8
    expected = ["no target" if loss is None else f"{loss:.2f} nats" for loss in table.column("loss").to_pylist()]
    titles = [str(attributes["title"]).partition(": ")[2] for row in rows for _, attributes in row.elements[1:]]
    assert titles == expected
    later = opened(own, "step", run="tiny", step="8", under="20")
    assert not later.exception and not coloured(later)
    assert "Colour by the loss under checkpoint 20" in [button.label for button in later.button]


def test_rows_that_blame_traced_are_coloured(opened: Open, traced: tuple[Workspace, Finding]) -> None:
    page = opened(traced[0], "step", run="tiny", step="9", under="traced")
    rows = coloured(page)

    assert not page.exception and len(rows) == 3
    assert {row.elements[6][1]["title"] for row in rows} == {
        f"token 5: {text.losses[5]:.2f} nats" for text in traced[1].texts
    }


def test_for_who_looks_from_afar_no_loss_is_computed(
    opened: Open, own: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORENSICS_SHARED", "1")
    before = sorted(own.folder.rglob("*"))
    page = opened(own, "step", run="tiny", step="8", under="5")

    assert not page.exception and "forensics batch tiny 8 --losses --checkpoint 5" in texts(page)
    assert not [b for b in page.button if b.label.startswith("Colour")] and sorted(own.folder.rglob("*")) == before


def test_weights_that_are_not_there_are_said(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "step", run="tiny", step="8")
    for under in ("7", "<b>", "traced"):
        page.query_params["under"] = under
        page.run()

        assert not page.exception and not coloured(page) and f"No checkpoint {under!r} of tiny" in texts(page)
        assert "<b>" not in read_as_markdown(page) and "instance" in texts(page)
