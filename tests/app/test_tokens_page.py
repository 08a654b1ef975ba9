"""The page of tokens as Streamlit runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from data_index.kinds import table_of_rows
from data_index.registration import add
from data_index.workspace import Workspace, learn
from tests.app.conftest import Open
from tests.app.test_pages import HOSTILE, read_as_markdown, texts
from tests.forensics.test_token_scatter import exposure_row, path_row, token_rows

SHOWN = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


@pytest.fixture(scope="module")
def kept(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Tokens, exposures and paths of the tiny run; the text of token 2 is hostile."""
    workspace = Workspace(tmp_path_factory.mktemp("tokens_page"))
    add(tiny_source, workspace=workspace)
    rows = [row | ({"text": HOSTILE, "evidence": [HOSTILE]} if row["token_id"] == 2 else {}) for row in token_rows()]
    tables = {
        "tokens": [*rows, *token_rows(10)],
        "exposures": [exposure_row(step, n, n * step) for step in (5, 10, 15, 20) for n in range(1, 40)],
        "token_paths": [path_row(step, n, 1.0 + n, n < 20 - step) for step in (0, 5, 10, 20) for n in range(40)],
        "token_origins": [{"token_id": 2, "document_ids": [7], "tags": [HOSTILE], "tag_counts": [5]}],
    }
    for kind, some in tables.items():
        learn(workspace.home("tiny"), kind, table_of_rows(kind, some, "test"))
    return workspace


def drawn(page: AppTest) -> list[dict[str, Any]]:
    (chart,) = page.get("plotly_chart")
    found: list[dict[str, Any]] = json.loads(chart.proto.spec)["data"]
    return found


def test_tokens_are_drawn_by_their_readings_with_points_that_lead_to_them(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "tokens", run="tiny")
    tokens = {place[0]: place[1] for trace in drawn(page) for place in trace.get("customdata") or []}

    assert not page.exception and page.title[0].value == "Tokens"
    assert tokens.keys() == set(range(40)) and tokens[3] == "&lt;t3&gt;" and "<script>" not in tokens[2]
    assert [box.value for box in page.selectbox[:2]] == ["exposures as target", "indicator"]
    assert "forensics tokens tiny --checkpoint 20" in texts(page) and "2 of 4" in texts(page)


def test_a_link_chooses_checkpoint_and_axes(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "tokens", run="tiny", checkpoint="10", x="rank", y="exposures as input")

    assert not page.exception and "from tokens where run = 'tiny' and step = 10" in texts(page).replace(
        "select token_id, text, category, indicator, rank ", ""
    )
    assert {point for trace in drawn(page) for point in trace["x"]} == set(range(1, 39))
    (x,) = [box for box in page.selectbox if box.label == "Along"]
    page = x.set_value("indicator").run()
    assert page.query_params["x"] in ("indicator", ["indicator"])


def test_rows_are_filtered_by_category_kind_and_text(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "tokens", run="tiny", show="Table", category=["single_byte"], only="candidates")
    assert not page.exception and page.dataframe[0].value["token_id"].tolist() == [0]
    page = opened(kept, "tokens", run="tiny", show="Table")
    assert page.dataframe[0].value["text"].tolist()[2] == SHOWN and len(page.dataframe[0].value) == 40
    page = page.text_input[0].set_value("T17").run()
    assert page.dataframe[0].value["token_id"].tolist() == [17] and page.query_params["find"] in ("T17", ["T17"])
    page = page.text_input[0].set_value("nowhere").run()
    assert not page.exception and "No token is like that." in texts(page)


def test_paths_come_from_what_was_kept(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "tokens", run="tiny", show="Paths")
    findings = page.dataframe[0].value

    assert not page.exception and findings["finding"].tolist() == ["never read"]
    assert any(str(trace.get("name")).startswith("others") for trace in drawn(page))
    assert "forensics tokens tiny --track" in texts(page)


def test_one_token_has_a_page(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "tokens", run="tiny", token="3")

    assert not page.exception and page.subheader[0].value == "Token 3" and "<t3>" in texts(page)
    assert "no, highest probability 0.001" in texts(page) and "forensics where tiny --token 3" in texts(page)
    assert page.dataframe[-1].value["as_target"].dropna().tolist() == [30, 60, 90, 120]
    (back,) = [button for button in page.button if button.label == "All tokens"]
    page = back.click().run()
    assert "token" not in page.query_params and not page.exception and not page.subheader


def test_a_token_is_opened_by_its_id(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "tokens", run="tiny")
    (box,) = [box for box in page.text_input if box.label == "Open a token by its id"]
    page = box.set_value("17").run()

    assert page.subheader[0].value == "Token 17" and page.query_params["token"] in ("17", ["17"])


def test_hostile_tokens_stand_as_text(opened: Open, kept: Workspace) -> None:
    for link in ({"token": "2"}, {"show": "Table"}, {}, {"show": "Paths"}):
        page = opened(kept, "tokens", run="tiny", **link)

        assert not page.exception and "alert(1)" not in read_as_markdown(page)
        if "token" in link:
            assert SHOWN in texts(page) and page.dataframe[0].value["tag"].tolist() == [SHOWN]


def test_nothing_kept_names_the_commands(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "tokens", run="tiny")

    assert not page.exception and page.subheader[0].value == "No tokens are kept yet"
    for command in ("tokens tiny", "tokens tiny --verify", "tokens tiny --track", "exposures tiny"):
        assert f"forensics {command}" in texts(page)
    one = opened(tiny_shared, "tokens", run="tiny", token="300")
    assert not one.exception and "forensics exposures tiny" in texts(one) and not one.get("plotly_chart")


def test_tokens_that_were_not_prompted_or_tracked_say_how(opened: Open, tiny: Workspace) -> None:
    rows = [row | {"verified": None, "max_probability": None} for row in token_rows()]
    learn(tiny.home("tiny"), "tokens", table_of_rows("tokens", rows, "test"))
    table, paths = (opened(tiny, "tokens", run="tiny", show=show) for show in ("Table", "Paths"))

    assert not table.exception and "forensics tokens tiny --verify" in texts(table)
    assert not paths.exception and paths.subheader[0].value == "No paths are kept yet"
    one = opened(tiny, "tokens", run="tiny", token="1")
    for command in ("tokens tiny --verify", "exposures tiny", "tokens tiny --track"):
        assert f"forensics {command}" in texts(one)


def test_paths_alone_are_shown_without_the_rest(opened: Open, tiny: Workspace) -> None:
    """`tokens --track` was asked, `tokens` was not."""
    rows = [path_row(step, n, 1.0 + n, None) for step in (5, 10) for n in range(3)]
    learn(tiny.home("tiny"), "token_paths", table_of_rows("token_paths", rows, "test"))
    page = opened(tiny, "tokens", run="tiny")
    scatter = opened(tiny, "tokens", run="tiny", show="Scatter")

    assert not page.exception and "ids stand for them" in texts(page) and drawn(page)
    assert not scatter.exception and scatter.subheader[0].value == "No tokens are kept yet"


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ({"token": "<b>"}, "a number, not '<b>'"),
        ({"token": "999999"}, "nothing is known of a token 999999"),
        ({"checkpoint": "<b>"}, "no tokens of checkpoint <b> of tiny are kept, those of 10, 20 are"),
        ({"x": "<b>"}, "'<b>' is not kept of the tokens of tiny"),
        ({"run": "<b>"}, "no run or fork is called '<b>'"),
        ({"show": "Table", "only": "<b>", "category": "<b>"}, ""),
    ],
)
def test_a_wrong_link_is_said(opened: Open, kept: Workspace, link: dict[str, str], said: str) -> None:
    page = opened(kept, "tokens", **({"run": "tiny"} | link))

    assert not page.exception and said in texts(page) and bool(page.error) == bool(said)
    assert "<b>" not in read_as_markdown(page)


def test_an_empty_workspace_says_what_to_do_with_tokens(opened: Open, workspace: Workspace) -> None:
    page = opened(workspace, "tokens")

    assert not page.exception and page.subheader[0].value == "No runs here yet"


def test_nothing_is_written_for_who_looks_from_afar(
    opened: Open, kept: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORENSICS_SHARED", "1")
    before = {path: path.stat().st_mtime_ns for path in kept.folder.rglob("*")}
    for page, link in (("tokens", {"show": "Paths"}), ("tokens", {"token": "2"}), ("trajectories", {}), ("run", {})):
        assert not opened(kept, page, run="tiny", **link).exception

    assert {path: path.stat().st_mtime_ns for path in kept.folder.rglob("*")} == before
