"""The page of trajectories, and probes under the ribbon of a run, as Streamlit runs them."""

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

STEPS = (0, 5, 10, 15, 20)


def number(probe: str, metric: str, step: int, value: float, unit: str = "nats per token") -> dict[str, Any]:
    return {"step": step, "tokens": 512 * step, "probe": probe, "metric": metric, "value": value, "unit": unit} | {
        "low": value - 0.1,
        "high": value + 0.1,
        "settings": "{}",
    }


@pytest.fixture(scope="module")
def kept(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two runs of which probes are kept, one of them without the checkpoint 10, and published evaluations of one."""
    workspace = Workspace(tmp_path_factory.mktemp("kept"))
    for name in ("tiny", "twin"):
        add(tiny_source, name=name, workspace=workspace)
        rows = [number("loss", "loss", step, 6 - step / 10 + (name == "twin") * (step - 11) / 50) for step in STEPS]
        rows += [number("norms", f"norm, layer {n}", step, n + step, "") for n in range(12) for step in STEPS]
        rows = [row for row in rows if (name, row["step"]) != ("twin", 10)]
        learn(workspace.home(name), "probes", table_of_rows("probes", rows, "test"))
    row = {"task": "sciq", "metric": "acc", "stderr": 0.01, "num_fewshot": 0, "source": "a.json", "unit": "share"}
    evaluations = [row | {"step": step, "value": step / 40} for step in STEPS]
    learn(workspace.home("tiny"), "evaluations", table_of_rows("evaluations", evaluations, "test"))
    return workspace


def chart(page: AppTest) -> dict[str, Any]:
    (found,) = page.get("plotly_chart")
    spec: dict[str, Any] = json.loads(found.proto.spec)
    return spec


def lines(page: AppTest) -> dict[str, dict[str, Any]]:
    """Traces that a legend could name."""
    return {trace["name"]: trace for trace in chart(page)["data"] if trace.get("name")}


def linked(page: AppTest, name: str) -> list[str]:
    """What the link says under a name; AppTest tells a single value without its list."""
    values = page.query_params[name]
    return [values] if isinstance(values, str) else list(values)


def options(page: AppTest, label: str) -> list[str]:
    (box,) = [box for box in page.multiselect if box.label.startswith(label)]
    found: list[str] = box.options
    return found


def test_a_run_is_drawn_with_its_bands_and_points_that_lead_to_checkpoints(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "trajectories", run="tiny")
    (line,) = [trace for trace in chart(page)["data"] if trace.get("customdata")]

    assert not page.exception and page.title[0].value == "Trajectories"
    assert line["x"] == list(STEPS) and [place[1:] for place in line["customdata"]] == [["tiny", s] for s in STEPS]
    assert any(trace.get("fill") == "toself" for trace in chart(page)["data"])
    assert "forensics trajectory tiny loss" in texts(page) and "from probes where run in ('tiny')" in texts(page)
    assert options(page, "Probes") == ["loss", "norms", "task:sciq"]


def test_a_link_opens_the_same_view(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "trajectories", runs=["tiny", "twin"], probes=["loss"], x="log-steps", more=["gaps", "numbers"])

    assert not page.exception and {"tiny", "twin"} <= lines(page).keys()
    assert chart(page)["layout"]["xaxis"]["type"] == "log" and lines(page)["tiny"]["x"][0] == 2.5
    gaps, numbers = (frame.value for frame in page.dataframe)
    assert gaps["run"].tolist() == ["twin"] and gaps["step"].tolist() == [10]
    assert len(numbers) == 9 and "twin: 1 checkpoint lacks a value that others have: 10" in texts(page)
    assert "forensics trajectory tiny,twin loss --x log-steps" in texts(page)


def test_breaks_and_crossings_are_computed_when_they_are_asked_for(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "trajectories", runs=["tiny", "twin"], probes=["loss"])
    assert not page.dataframe
    (more,) = [box for box in page.multiselect if box.label == "Also"]
    page = more.set_value(["breaks", "crossings"]).run()
    crossings = page.dataframe[-1].value

    assert not page.exception and linked(page, "more") == ["breaks", "crossings"]
    assert crossings["higher_now"].tolist() == ["twin"] and 5 < crossings["crosses_at_step"].tolist()[0] < 15
    assert [found.value for found in page.subheader] == ["Breaks", "Crossings"]


def test_what_is_chosen_stands_in_the_link(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "trajectories", run="tiny")
    (probes,) = [box for box in page.multiselect if box.label == "Probes"]
    page = probes.set_value(["norms"]).run()
    assert linked(page, "probes") == ["norms"] and options(page, "Metrics, 8 of 12 shown")
    (metrics,) = [box for box in page.multiselect if box.label.startswith("Metrics")]
    page = metrics.set_value(["norm, layer 9"]).run()
    assert linked(page, "metrics") == ["norm, layer 9"] and "--metric 'norm, layer 9'" in texts(page)
    (probes,) = [box for box in page.multiselect if box.label == "Probes"]
    page = probes.set_value([]).run()

    assert not page.exception and "Choose a probe." in texts(page)


def test_published_evaluations_stand_beside_what_was_measured(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "trajectories", run="tiny", probes=["loss", "task:sciq"])
    assert lines(page)["acc, published"]["line"]["dash"] == "dash"
    page = opened(kept, "trajectories", run="tiny", probes=["task:sciq"], source="published")

    assert not page.exception and "--published-only" in texts(page) and "acc" in lines(page)
    page = opened(kept, "trajectories", run="tiny", probes=["task:sciq"], source="measured")
    assert not page.exception and "nothing was measured" in texts(page).lower() and not page.get("plotly_chart")


def test_two_checkpoints_stand_side_by_side(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "trajectories", run="tiny", show="Two side by side", one="tiny@0", other="twin@20")
    table = page.dataframe[0].value

    assert not page.exception and table["difference"].round(2).tolist()[0] == -1.82
    assert "forensics probe tiny loss norms --checkpoints 0 --against twin@20" in texts(page)
    usual = opened(kept, "trajectories", run="tiny", show="Two side by side")
    assert [box.value for box in usual.selectbox] == ["tiny@0", "tiny@20"]
    wrong = opened(kept, "trajectories", run="tiny", show="Two side by side", one="<b>@1")
    assert not wrong.exception and wrong.error and "<b>" not in read_as_markdown(wrong)


def test_what_is_not_measured_yet_comes_with_its_command(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "trajectories", run="tiny", show="Not measured yet")
    missing, there = (frame.value for frame in page.dataframe)

    assert "loss" not in missing["probe"].tolist() and "induction" in missing["probe"].tolist()
    assert missing["command"].tolist()[0].startswith("forensics probe tiny ")
    assert there["probe"].tolist() == ["loss", "norms", "task:sciq"] and "--plan" in texts(page)


def test_a_run_without_numbers_says_how_to_measure_them(opened: Open, tiny_shared: Workspace) -> None:
    page = opened(tiny_shared, "trajectories", run="tiny")
    sides = opened(tiny_shared, "trajectories", run="tiny", show="Two side by side")
    missing = opened(tiny_shared, "trajectories", run="tiny", show="Not measured yet")

    for found in (page, sides):
        assert not found.exception and found.subheader[0].value == "Nothing is measured yet"
        assert "forensics probe tiny loss norms" in texts(found)
    assert not missing.exception and "loss" in missing.dataframe[0].value["probe"].tolist()


def test_an_empty_workspace_says_what_to_do_with_trajectories(opened: Open, workspace: Workspace) -> None:
    page = opened(workspace, "trajectories")

    assert not page.exception and page.subheader[0].value == "No runs here yet"


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ({"runs": ["<b>no</b>"]}, "no run or fork is called '<b>no</b>'"),
        ({"run": "tiny", "probes": ["<b>no</b>", "loss"]}, "'<b>no</b>' is not among the probes"),
        ({"run": "tiny", "metrics": ["<b>no</b>"]}, "'<b>no</b>' is not among the metrics"),
        ({"run": "tiny", "x": "<b>", "show": "<b>"}, ""),
    ],
)
def test_a_wrong_link_is_said(opened: Open, kept: Workspace, link: dict[str, Any], said: str) -> None:
    page = opened(kept, "trajectories", **link)

    assert not page.exception and said in texts(page) and bool(page.error) == bool(said)
    assert "<b>" not in read_as_markdown(page)


def test_tokens_that_are_not_known_are_no_axis(opened: Open, tiny: Workspace) -> None:
    rows = [number("loss", "loss", step, 1.0) | {"tokens": None} for step in STEPS]
    learn(tiny.home("tiny"), "probes", table_of_rows("probes", rows, "test"))
    page = opened(tiny, "trajectories", run="tiny", x="tokens")

    assert not page.exception and "is not known here" in texts(page) and not page.get("plotly_chart")


def test_hostile_names_of_probes_stand_as_text(opened: Open, tiny: Workspace) -> None:
    rows = [number(HOSTILE, HOSTILE, step, 1.0 + step, HOSTILE) for step in STEPS]
    learn(tiny.home("tiny"), "probes", table_of_rows("probes", rows, "test"))
    for link in ({}, {"show": "Two side by side"}, {"show": "Not measured yet"}, {"more": ["breaks", "numbers"]}):
        page = opened(tiny, "trajectories", run="tiny", **link)

        assert not page.exception and "alert(1)" not in read_as_markdown(page)
        for spec in page.get("plotly_chart"):
            assert "<script>" not in spec.proto.spec


# --- the page of a run -----------------------------------------------------------------------------------------------


def test_a_run_shows_up_to_three_probes_under_its_ribbon(opened: Open, kept: Workspace) -> None:
    page = opened(kept, "run", run="tiny")
    titles = [note["text"] for note in chart(page)["layout"]["annotations"]]

    assert not page.exception
    assert titles[2:5] == ["probe loss", "probe norms: norm, layer 0", "probe task:sciq: acc"]
    (box,) = page.sidebar.multiselect
    page = box.set_value(["norms: norm, layer 3"]).run()
    assert linked(page, "probes") == ["norms: norm, layer 3"]
    assert [note["text"] for note in chart(page)["layout"]["annotations"]][2] == "probe norms: norm, layer 3"
    (box,) = page.sidebar.multiselect
    page = box.set_value([]).run()
    assert not any("probe" in note["text"] for note in chart(page)["layout"]["annotations"])


def test_a_run_without_probes_has_none_to_choose(opened: Open, tiny_shared: Workspace) -> None:
    assert not opened(tiny_shared, "run", run="tiny").multiselect


def test_names_beside_low_panels_do_not_run_into_the_next_ones() -> None:
    from app.figures import figure_canvas
    from forensics.figure import Curves, Figure
    from forensics.figure_curves import IntervalCurve

    none = [None, None]
    curves = [IntervalCurve(name=f"c{n}", x=[0, 1], y=[0, n], low=none, high=none, colour="#0072B2") for n in range(8)]
    panel = Curves(title="p", y_label="", curves=curves, x_range=(0, 1), inches=1.9)
    canvas = figure_canvas(Figure(title="f", x_label="step", panels=[panel] * 3), dark=True)

    assert canvas.layout.height >= 3 * 8 * 20 and canvas.layout.legend.tracegroupgap == 0


def test_what_was_measured_beside_another_model_is_shown_again(opened: Open, tiny: Workspace) -> None:
    """As `probe --against` keeps it: the other model is no run, and both texts may hold anything."""
    from forensics.finding import Finding, keep_finding

    rows = [{"probe": "loss", "metric": "loss", "value": 2.5, "other": 2.0, "difference": -0.5}]
    rows += [{"probe": "generations", "metric": "1", "text": HOSTILE, "other_text": "b"}]
    answer = {"one": "tiny@20", "other": HOSTILE, "rows": rows}
    command = "forensics probe tiny loss --against FOLDER"
    found = Finding(name="sides-tiny_20-other", verb="probe", command=command, runs=("tiny",), answer=answer)
    keep_finding(tiny, found)
    page = opened(tiny, "trajectories", run="tiny", show="Two side by side", kept="sides-tiny_20-other")
    (table,) = [frame.value for frame in page.dataframe]
    wrong = opened(tiny, "trajectories", run="tiny", show="Two side by side", kept="<b>")

    assert not page.exception and page.selectbox(key="kept_choice").options == ["sides-tiny_20-other"]
    assert table["difference"].tolist()[0] == -0.5 and command in texts(page)
    assert "alert(1)" in texts(page) and "alert(1)" not in read_as_markdown(page)
    assert not wrong.exception and "no comparison of tiny is kept as '<b>'" in texts(wrong)
