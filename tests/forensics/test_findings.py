"""Findings: what a question keeps, and how it is read again, also when someone else wrote it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from data_index.errors import CorruptFile, MissingFile
from data_index.files import sha256_of_file
from data_index.finding_files import finding_names
from data_index.store import run_query
from data_index.workspace import Workspace
from forensics.figure import Bar, Figure, Matrix, Panel, Series, State
from forensics.figure_bars import Bars
from forensics.figure_curves import Curves, Gaps, IntervalCurve
from forensics.finding import Finding, finding_name, keep_finding, read_finding, rows_of
from forensics.marked_text import MarkedText
from forensics.plain_values import from_plain, to_plain

FIGURE = Figure(
    title="all kinds of panels",
    x_label="step",
    panels=(
        Panel(
            title="lines",
            y_label="nats",
            series=(Series(name="loss", x=(1, 2, 3), y=(1.5, None, 2.5), style="dashed"),),
            marks=((2, "here"),),
            bands=((1, 2.5, "there"),),
            top=None,
        ),
        Matrix(
            title="states",
            rows=("a",),
            cells=(("ok", ""),),
            details=(("", ""),),
            states=(State(name="ok", colour="#009E73", symbol="·"),),
        ),
        Bars(title="bars", x_label="x", bars=(Bar(name="b", start=1.0, stop=2.0, colour="#000000", band=(0.5, 1.5)),)),
        Curves(
            title="curves",
            y_label="y",
            curves=(IntervalCurve(name="c", x=(1,), y=(2.0,), low=(1.0,), high=(None,), colour="#000000"),),
            x_range=(0.0, 2.0),
            gaps=(Gaps(name="g", x=(1.0,), colour="#000000"),),
        ),
    ),
)
TEXT = MarkedText(title="a row", pieces=("a", "b", "<c>"), losses=np.array([np.nan, 2.5, np.inf]), span=(1, 3))


def finding(**changes: Any) -> Finding:
    given = {
        "name": "blame-tiny-8",
        "verb": "blame",
        "command": "forensics blame tiny 8",
        "runs": ("tiny",),
        "answer": {"verdict": "data", "rows": [{"step": 8, "loss": np.float64(1.25)}], "worst": float("inf")},
        "figure": FIGURE,
        "texts": (TEXT,),
    }
    return Finding(**{**given, **changes})


def test_a_finding_is_read_as_it_was_kept(tiny: Workspace) -> None:
    path = keep_finding(tiny, finding())
    again = read_finding(tiny, "blame-tiny-8")

    assert path == tiny.folder / "findings" / "blame-tiny-8.json"
    assert to_plain(again.figure) == to_plain(FIGURE) and isinstance(again.figure, Figure)
    assert [type(panel) for panel in again.figure.panels] == [Panel, Matrix, Bars, Curves]
    (text,) = again.texts
    assert (text.title, text.pieces, text.span) == (TEXT.title, TEXT.pieces, TEXT.span)
    assert np.array_equal(text.losses, TEXT.losses, equal_nan=True)
    assert again.answer == {"verdict": "data", "rows": [{"step": 8, "loss": 1.25}], "worst": "inf"}
    assert rows_of(again.answer) == {"rows": [{"step": 8, "loss": 1.25}]}


def test_a_finding_says_what_it_was_made_from(tiny: Workspace) -> None:
    keep_finding(tiny, finding())
    again = read_finding(tiny, "blame-tiny-8")
    home = tiny.home("tiny")

    assert again.inputs["tiny"]["run_toml"] == sha256_of_file(home / "run.toml")
    assert again.inputs["tiny"]["order"] == str(tiny.run("tiny").trust)
    assert set(again.inputs["tiny"]["tables"]) == set(json.loads((home / "current.json").read_text()))
    assert {"at", "python", "checkpoint-forensics", "numpy", "duckdb"} <= again.made.keys()


def test_the_same_question_replaces_its_finding_and_the_view_lists_them(tiny: Workspace) -> None:
    keep_finding(tiny, finding())
    keep_finding(tiny, finding(command="forensics blame tiny 8 --top 3"))
    keep_finding(tiny, finding(name="spikes-tiny", verb="spikes", command="forensics spikes tiny"))
    (tiny.folder / "findings" / "no-finding.json").write_text('{"verdict": "data"}')
    rows = run_query(tiny, "select finding, verb, runs, command from findings order by finding").to_pylist()

    assert set(finding_names(tiny)) == {"blame-tiny-8", "spikes-tiny", "no-finding"}
    assert rows == [
        {"finding": "blame-tiny-8", "verb": "blame", "runs": ["tiny"], "command": "forensics blame tiny 8 --top 3"},
        {"finding": "spikes-tiny", "verb": "spikes", "runs": ["tiny"], "command": "forensics spikes tiny"},
    ]


def test_what_is_not_there_is_said_with_what_is(tiny: Workspace) -> None:
    keep_finding(tiny, finding())
    for name in ("spikes-tiny", "../runs/tiny/run", "", "a\nb"):
        with pytest.raises(MissingFile, match="there are: blame-tiny-8"):
            read_finding(tiny, name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "no finding of version 1"),
        ({"name": "../../x"}, "cannot name a file"),
        ({"runs": "tiny"}, "runs should be a list"),
        ({"command": 7}, "command should be str"),
        ({"extra": 1}, "has a field 'extra'"),
        ({"figure": {"class": "Panel"}}, "should be a class known here"),
        ({"figure": {"class": "Figure", "title": "t", "x_label": "x"}}, "lacks panels"),
        ({"figure": {"class": "Figure", "title": "t", "x_label": "x", "panels": [3]}}, "should be Panel or Matrix"),
        ({"texts": [{"class": "MarkedText", "title": "t", "pieces": ["a"], "losses": ["x"]}]}, "should be a number"),
        ({"texts": [{"class": "MarkedText", "title": "t", "pieces": [1], "losses": [1]}]}, "should be str"),
        ({"answer": []}, "answer should be an object"),
    ],
)
def test_a_file_that_is_no_finding_is_refused(tiny: Workspace, change: dict[str, Any], said: str) -> None:
    """They come from others: every field is held against its type before anything is drawn from it."""
    path = keep_finding(tiny, finding())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(CorruptFile, match=said):
        read_finding(tiny, "blame-tiny-8")


def test_a_truncated_finding_is_refused(tiny: Workspace) -> None:
    path = keep_finding(tiny, finding())
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(CorruptFile, match="is not JSON"):
        read_finding(tiny, "blame-tiny-8")


def test_names_of_findings_are_names_of_files() -> None:
    assert finding_name("sides", "a b/c@3", "hub:x") == "sides-a_b_c_3-hub_x"
    assert len(finding_name("trajectory", "x" * 500)) == 120


def test_records_keep_their_types() -> None:
    assert from_plain(to_plain(FIGURE.panels[0]), Panel) == FIGURE.panels[0]
    assert from_plain([1, "x"], tuple[int, str]) == (1, "x")
    for wrong in ([1], [1, 2], ["x", "x"], [True, "x"], {}):
        with pytest.raises(CorruptFile):
            from_plain(wrong, tuple[int, str])
    with pytest.raises(CorruptFile, match="one of 'line', 'dashed'"):
        from_plain(to_plain(Series(name="s", x=(1,), y=(1,))) | {"style": "blink"}, Series)
