"""The explorer's pages as Streamlit runs them, without a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from data_index.files import write_json
from data_index.kinds import table_of_rows
from data_index.workspace import Workspace, learn
from tests.app.conftest import Open

HOSTILE = "<script>alert(1)</script> **bold** [link](http://x) $x^2$ :red[no] \x1b[31m\u202egnol"


def texts(page: AppTest) -> str:
    """All that stands as text or code on a page."""
    return "\n".join(str(element.value) for kind in (page.text, page.code) for element in kind)


def read_as_markdown(page: AppTest) -> str:
    """All that Streamlit reads as Markdown, or as HTML."""
    kinds = ("markdown", "caption", "title", "header", "subheader", "error", "warning", "info", "success", "html")
    values = [str(getattr(e, "value", "") or e.proto) for kind in kinds for e in page.get(kind)]
    labels = [str(e.label) for kind in ("button", "expander", "tab") for e in page.get(kind)]
    return "\n".join(values + labels)


def spike_row() -> dict[str, Any]:
    return {
        **{"onset": 9, "peak": 9, "last": 9, "recovery": 11, "kind": "fast", "lead_steps": 0, "attempt": 1},
        **{"series": ["loss"], "level": 5.0, "peak_value": 6.0, "peak_z": 9.0, "area": 1.0, "lasting_offset": 0.0},
        **{"detail": "", "definition": "robust", "parameters": "{}"},
    }


# --- what each page shows --------------------------------------------------------------------------------------------


def test_runs_lists_what_is_here(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "runs")
    table = page.dataframe[0].value

    assert not page.exception and page.title[0].value == "Runs"
    assert table["run"].tolist() == ["tiny"] and table["steps"].tolist() == ["1..20"]
    assert table["available"].tolist() == [5] and table["order"].tolist() == ["exact"]


def test_a_run_is_added_by_a_form(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "runs")
    assert "Start it" not in [button.label for button in page.button]
    page.text_input(key="add_source").set_value("ORG/a run")
    page = page.text_input(key="add_name").set_value("mine").run()

    assert "forensics add 'ORG/a run' --name mine" in texts(page)
    assert "Start it" in [button.label for button in page.button]


def test_who_looks_from_afar_adds_nothing_and_sees_no_folder(
    opened: Open, tiny_shared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORENSICS_SHARED", "1")
    page = opened(tiny_shared, "runs")

    assert not page.text_input and "source" not in page.dataframe[0].value.columns


def test_run_draws_every_metric_and_what_happened(opened: Open, tiny: Workspace) -> None:
    learn(tiny.home("tiny"), "spikes", table_of_rows("spikes", [spike_row()], "test"))
    page = opened(tiny, "run", run="tiny")
    (chart,) = page.get("plotly_chart")
    drawn = json.loads(chart.proto.spec)

    assert not page.exception
    assert [trace["name"] for trace in drawn["data"][:3]] == ["loss", "gradient norm", "checkpoint"]
    assert "spike" in [trace["name"] for trace in drawn["data"]]
    assert page.dataframe[0].value["peak"].tolist() == [9]
    assert "forensics sql" in texts(page)


def test_a_link_opens_the_same_stretch_of_a_run(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "run", run="tiny", first="5", last="15")

    assert "Steps 6 to 15" in texts(page) and "step > 5 and step <= 15" in texts(page)
    (whole,) = [button for button in page.button if button.label == "Whole run"]
    page = whole.click().run()
    assert "Steps 1 to 20" in texts(page) and "first" not in page.query_params


def test_step_shows_its_rows_as_text(opened: Open, tiny_shared: Workspace) -> None:
    from data_index.text import decode
    from forensics.lookup import batch

    page = opened(tiny_shared, "step", run="tiny", step="8")
    rows = batch("tiny", 8, tokens=True, workspace=tiny_shared).to_pylist()
    run = tiny_shared.run("tiny")

    assert not page.exception and page.subheader[0].value == "Step 8"
    for row in rows:
        assert f"instance {row['instance']} " in texts(page)
        whole = decode(run, row["token_ids"])
        longest = max(whole.split("\n"), key=len)
        # A row is cut where documents meet, and longer lines may be cut there.
        assert longest[:15].strip() in texts(page) and len(longest) > 15
    assert page.dataframe[0].value["instance"].tolist() == [row["instance"] for row in rows]


def test_step_tells_who_else_read_its_rows_and_what_its_stretch_read(opened: Open, tiny_shared: Workspace) -> None:
    """Nothing is counted before it is asked for."""
    page = opened(tiny_shared, "step", run="tiny", step="11")
    (again,) = [frame.value for frame in page.dataframe if "step" in frame.value and "num_tokens" not in frame.value]
    assert 3 in again["step"].tolist() and 11 not in again["step"].tolist()
    assert "documents are in its rows" in texts(page)
    assert len([frame for frame in page.dataframe if "tag" in frame.value]) == 1
    (count,) = [button for button in page.button if button.label == "Count it by tag"]
    page = count.click().run()
    _, stretch = (frame.value for frame in page.dataframe if "tag" in frame.value)

    assert not page.exception and "batch tiny 10:15 --by tag" in texts(page)
    assert 8 * 64 < stretch["tokens"].max() <= 5 * 8 * 64


def test_another_step_is_chosen_and_stands_in_the_link(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "step", run="tiny", step="8")
    page = page.sidebar.number_input[0].set_value(9).run()

    assert page.subheader[0].value == "Step 9" and page.query_params["step"] in ("9", ["9"])


def test_sql_answers_and_gives_its_command(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "sql")
    page.text_area[0].set_value("select run, 'a''b' as quoted, 1 as x, 2 as x from runs")
    page = page.button[-1].click().run() if page.button[-1].label == "Run" else _submit(page)

    assert not page.exception
    assert page.dataframe[0].value.columns.tolist() == ["run", "quoted", "x", "x_4"]
    assert "forensics sql" in texts(page) and page.query_params["query"]


def _submit(page: AppTest) -> AppTest:
    (run,) = [button for button in page.button if button.label == "Run"]
    return run.click().run()


def test_an_answer_is_drawn_as_its_link_says(opened: Open, tiny_shared: Workspace) -> None:
    query = "select step, value from metrics where name = 'loss' order by value"
    page = opened(tiny_shared, "sql", query=query, x="step", y="value")
    (chart,) = page.get("plotly_chart")
    (line,) = json.loads(chart.proto.spec)["data"]
    plain = opened(tiny_shared, "sql", query=query)

    assert not page.exception and line["name"] == "value"
    assert not plain.exception and not plain.get("plotly_chart")


def test_an_example_is_taken_by_one_click(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "sql")
    (use,) = [button for button in page.button if button.key == "use runs"]
    page = use.click().run()

    assert page.text_area[0].value == "from runs" and page.dataframe[0].value["run"].tolist() == ["tiny"]


def test_a_new_run_appears_without_a_restart(opened: Open, tiny: Workspace, tiny_copy: Path) -> None:
    """Others can look while something is registered."""
    from data_index.registration import add

    page = opened(tiny, "runs")
    assert page.dataframe[0].value["run"].tolist() == ["tiny"]
    add(tiny_copy, name="second", workspace=tiny)
    page = page.run()

    assert page.dataframe[0].value["run"].tolist() == ["second", "tiny"]


def test_search_marks_the_steps_that_read_an_instance(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "search", run="tiny", kind="instance", what="50")
    (chart,) = page.get("plotly_chart")
    (found,) = [trace for trace in json.loads(chart.proto.spec)["data"] if trace["name"] == "found"]

    assert not page.exception and found["x"] == page.dataframe[0].value["step"].tolist()
    assert found["x"][:2] == [3, 11] and "forensics where tiny --instance 50" in texts(page)


def test_search_for_a_text_starts_with_a_click(opened: Open, tiny_shared: Workspace) -> None:
    """A link may come from anyone, and a search through all tokens takes long."""
    from forensics.lookup import where

    page = opened(tiny_shared, "search", run="tiny", kind="text", what="import")
    assert "once you press Search" in texts(page) and not page.dataframe
    (search,) = [button for button in page.button if button.label == "Search"]
    page = search.click().run()
    expected = where("tiny", text="import", workspace=tiny_shared)

    assert not page.exception and page.dataframe[0].value["step"].tolist() == expected.column("step").to_pylist()
    page.text_input[0].set_value("no such text anywhere: \u2603")
    (search,) = [button for button in page.button if button.label == "Search"]
    page = search.click().run()
    assert not page.exception and page.subheader[0].value == "No step read it" and not page.dataframe


@pytest.mark.parametrize(
    ("kind", "what", "said"),
    [
        ("instance", "99999", "tiny has instances 0.."),
        ("document", "99999", "tiny has no document 99999"),
        ("instance", "<b>", "is a number, not '<b>'"),
        ("token", "-1", "is a number"),
    ],
)
def test_what_cannot_be_searched_is_said(opened: Open, tiny_shared: Workspace, kind: str, what: str, said: str) -> None:
    page = opened(tiny_shared, "search", run="tiny", kind=kind, what=what)

    assert not page.exception and said in texts(page) and page.error and "<b>" not in read_as_markdown(page)


def test_released_runs_are_listed_with_what_is_wrong(opened: Open, workspace: Workspace) -> None:
    from data_index.registry import issues_of, released_runs

    page = opened(workspace, "released", released="pythia-2.8b")
    published, matrix, issues = (frame.value for frame in page.dataframe)
    names = [run.name for run in released_runs()]

    assert not page.exception and published["run"].tolist() == matrix["run"].tolist() == names
    assert len(issues) == len(issues_of("pythia-2.8b")) > 0 and "forensics add pythia-2.8b" in texts(page)
    counted = matrix.set_index("run").loc["pythia-2.8b"].dropna()
    assert counted.sum() == len(issues)
    page = page.selectbox[0].set_value("bloom").run()
    assert set(page.dataframe[0].value["family"]) == {"bloom"}


def test_a_released_run_that_nobody_knows_is_said(opened: Open, workspace: Workspace) -> None:
    page = opened(workspace, "released", released="pythia-2.9b")

    assert not page.exception and "pythia-2.8b" in texts(page) and page.error


# --- nothing there ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["runs", "run", "step", "search", "forks"])
def test_an_empty_workspace_says_what_to_do(opened: Open, workspace: Workspace, page: str) -> None:
    found = opened(workspace, page)

    assert not found.exception
    assert found.subheader[0].value == "No runs here yet" and "forensics demo" in texts(found)


def test_sql_answers_in_an_empty_workspace(opened: Open, workspace: Workspace) -> None:
    page = opened(workspace, "sql", query="from runs")

    assert not page.exception and "No rows." in texts(page)


def test_a_run_without_a_log_says_how_to_import_one(opened: Open, tiny: Workspace) -> None:
    write_json(tiny.home("tiny") / "current.json", {})
    page = opened(tiny, "run", run="tiny")

    assert not page.exception and "forensics import tiny LOG" in texts(page)


def test_a_run_of_logs_alone_is_drawn_and_its_steps_say_what_is_missing(
    opened: Open, workspace: Workspace, tmp_path: Path
) -> None:
    """Nobody published what its steps read."""
    from forensics.imported_metrics import import_metrics

    (tmp_path / "log.csv").write_text("step,loss\n1,5.5\n2,5.0\n3,nan\n")
    import_metrics("logged", tmp_path / "log.csv", new=True, workspace=workspace)
    run = opened(workspace, "run", run="logged")
    (chart,) = run.get("plotly_chart")
    step = opened(workspace, "step", run="logged", step="2")

    assert not run.exception
    assert [trace["name"] for trace in json.loads(chart.proto.spec)["data"]] == ["loss", "not a number"]
    assert not step.exception and "what the steps of logged read is not known" in texts(step)


def test_a_run_of_which_no_step_is_known_is_told(opened: Open, workspace: Workspace, tmp_path: Path) -> None:
    """As of a model of which nothing but an evaluation is here."""
    from forensics.imported_metrics import import_metrics

    (tmp_path / "step0.json").write_text('{"results": {"sciq": {"acc": 0.5}}}')
    import_metrics("bare", tmp_path / "step0.json", new=True, workspace=workspace)

    assert opened(workspace, "runs").dataframe[0].value["steps"].tolist() == ["none known"]
    for page in ("run", "step", "search"):
        found = opened(workspace, page, run="bare", kind="instance", what="1")
        assert not found.exception and found.error
    assert "no step of bare is known here" in texts(opened(workspace, "run", run="bare"))


def test_a_run_whose_spikes_nobody_sought_says_how_to(opened: Open, tiny_shared: Workspace) -> None:
    assert "forensics spikes tiny" in texts(opened(tiny_shared, "run", run="tiny"))


# --- what cannot be shown --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["run", "step", "search", "forks"])
def test_a_run_that_is_not_here_is_named(opened: Open, tiny_shared: Workspace, page: str) -> None:
    found = opened(tiny_shared, page, run="<b>none</b>")

    assert not found.exception and "no run or fork is called '<b>none</b>'" in texts(found)
    assert len(found.error) == 1 and "<b>" not in read_as_markdown(found)


def test_a_step_that_was_not_taken_is_said(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "step", run="tiny", step="8")
    for asked in ("0", "21", "1.5", "-3", "x" * 99, "99999999999999999999"):
        page.query_params["step"] = asked
        page.run()

        assert not page.exception and f"tiny took steps 1..20, not {asked[:40]}" in texts(page)


def test_a_stretch_that_is_none_is_said(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "run", run="tiny")
    for first, last in (("15", "5"), ("0", "21"), ("7", "7")):
        page.query_params["first"], page.query_params["last"] = first, last
        page.run()

        assert not page.exception and f"{first}:{last} is no stretch of it" in texts(page)


def test_refused_sql_says_why(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "sql")
    for query, said in (
        ("drop table runs", "exactly one SELECT"),
        ("select 1; select 2", "exactly one SELECT"),
        ("from read_csv('/etc/passwd')", "reaches outside the workspace"),
        ("selec 1", "this is not SQL"),
        ("from nowhere", "nowhere"),
    ):
        page.query_params["query"] = query
        page.run()

        assert not page.exception and said in texts(page) and not page.dataframe
        assert page.text_area[0].value == query  # it can be mended


def test_a_damaged_run_is_told_beside_the_others(opened: Open, tiny: Workspace, tiny_copy: Path) -> None:
    from data_index.registration import add

    add(tiny_copy, name="broken", workspace=tiny)
    path = tiny.home("broken") / "run.toml"
    path.write_text(path.read_text() + "\n# changed\n")
    page = opened(tiny, "runs")

    assert not page.exception and page.dataframe[0].value["run"].tolist() == ["tiny"]
    assert "broken" in texts(page) and page.error


def test_a_later_workspace_is_not_opened(opened: Open, workspace: Workspace) -> None:
    write_json(workspace.folder / "workspace.json", {"version": 99})
    page = opened(workspace, "runs")

    assert not page.exception and "update the toolkit" in texts(page)


# --- text from data --------------------------------------------------------------------------------------------------


def test_hostile_text_of_data_stands_as_text(opened: Open, tiny: Workspace) -> None:
    """Sources, tags, issues and metric names come from files that anyone may have written."""
    home = tiny.home("tiny")
    documents = [row | {"source": HOSTILE, "tags": [HOSTILE]} for row in tiny.learned(home, "documents")]
    learn(home, "documents", table_of_rows("documents", documents, "test"))
    audit = {"artifact": HOSTILE, "step": 5, "check": "c", "result": "failed", "detail": HOSTILE}
    audit |= {"num_bytes": 1, "checked_at": "2026-01-01"}
    learn(home, "audit", table_of_rows("audit", [audit], "test"))
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")

    step = opened(tiny, "step", run="tiny", step="8")
    assert not step.exception and shown in texts(step)
    tags = [frame.value for frame in step.dataframe if "tag" in frame.value.columns]
    assert tags and tags[0]["tag"].tolist() == [shown]
    runs = opened(tiny, "runs")
    assert runs.dataframe[2].value["what"].tolist() == [shown]
    query = opened(tiny, "sql", query="select source from documents limit 1")
    assert query.dataframe[0].value["source"].tolist() == [shown]
    for page in (step, runs, query):
        assert "alert(1)" not in read_as_markdown(page) and "gnol" not in read_as_markdown(page)


def test_a_hostile_link_stands_as_text(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "sql", query=f"select '{HOSTILE}' as \"{HOSTILE}\"")

    assert not page.exception
    assert "alert(1)" not in read_as_markdown(page)
    assert "\x1b" not in page.dataframe[0].value.columns[0] and "\u202e" not in page.dataframe[0].value.iloc[0, 0]


def test_tokens_of_any_size_stand_as_text() -> None:
    from forensics.step_text import readable_text

    assert readable_text("a\r\nb\tc\x00\x9b\u2066") == "a\nb\tc\\x00\\x9b\\u2066"
    assert readable_text("אבג " * 50_000) == "אבג " * 50_000
