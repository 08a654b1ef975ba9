"""The page of forks: what there is, what one would be before it is made, what runs; nothing starts without a click."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from data_index.errors import DiskFull
from data_index.files import write_json
from data_index.registration import add
from data_index.workspace import Workspace
from forensics import background_jobs
from forensics.background_jobs import jobs
from forensics.explorer_server import main_script
from forensics.forking import ForkResult, fork
from forensics.imported_metrics import import_metrics
from forensics.processes import identity_of_process

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests is not installed

from tests.app.test_pages import HOSTILE, read_as_markdown, texts

BAD_ROWS = "drop where:\"source LIKE '%.pyc.z'\" @9"
Visit = Callable[..., AppTest]


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Visit]:
    """Opens the page of a workspace with what its link says."""
    import streamlit

    streamlit.cache_data.clear()

    def open_page(workspace: Workspace, **link: str) -> AppTest:
        monkeypatch.setenv("FORENSICS_WORKSPACE", str(workspace.folder))
        found = AppTest.from_file(str(main_script()), default_timeout=60)
        found.run()
        found.query_params.clear()
        for name, value in link.items():
            found.query_params[name] = value
        return found.switch_page("views/forks.py").run()

    yield open_page
    streamlit.cache_data.clear()


@pytest.fixture(scope="module")
def forked(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, ForkResult]:
    """A workspace with one fork, for tests that only look."""
    folder = tmp_path_factory.mktemp("forked")
    workspace = Workspace(folder / "workspace")
    add(shutil.copytree(tiny_source, folder / "tiny"), workspace=workspace)
    return workspace, fork("tiny", from_step=5, num_steps=10, edits=[BAD_ROWS], workspace=workspace, device="cpu")


def press(page: AppTest, label: str) -> AppTest:
    (button,) = [button for button in page.button if button.label == label]
    return button.click().run()


def labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button]


def link_of(page: AppTest, name: str) -> str:
    value = page.query_params.get(name, "")
    return value if isinstance(value, str) else value[0]


# --- what there is ---------------------------------------------------------------------------------------------------


def test_forks_are_listed_and_compared(visit: Visit, forked: tuple[Workspace, ForkResult]) -> None:
    workspace, made = forked
    page = visit(workspace, run="tiny")
    assert not page.exception and page.dataframe[0].value["fork"].tolist() == [made.id]
    assert page.dataframe[0].value["done"].tolist() == [1.0] and not page.get("plotly_chart")
    page = page.multiselect[0].set_value([made.id]).run()
    (chart,) = page.get("plotly_chart")

    assert not page.exception and link_of(page, "compare") == made.id
    assert f"fork {made.id}" in [trace["name"] for trace in json.loads(chart.proto.spec)["data"]]
    assert "no nulls, no claim" in texts(page) and f"forensics compare {made.id}" in texts(page)
    assert not visit(workspace, run="tiny", compare=made.id).exception


def test_a_fork_is_composed_again_by_one_click(visit: Visit, forked: tuple[Workspace, ForkResult]) -> None:
    workspace, made = forked
    page = press(visit(workspace, run="tiny", compare=made.id), f"Compose one like {made.id}")
    assert (link_of(page, "view"), link_of(page, "start"), link_of(page, "edits")) == ("compose", "5", BAD_ROWS)
    page = press(page, "Preview and cost")

    assert not page.exception and "This fork is there already." in texts(page) and "Start" not in labels(page)


def test_what_a_fork_has_saved_meanwhile_is_seen(visit: Visit, tiny: Workspace) -> None:
    """Others look while it writes."""
    made = fork("tiny", from_step=5, num_steps=10, workspace=tiny, device="cpu", save_every=2)
    home = tiny.home(made.id)
    aside = home.with_name("aside")
    aside.mkdir()
    for path in [*home.glob("checkpoints/*"), *home.glob("metrics/*")]:
        if int(path.stem.removeprefix("step").split("-")[-1]) > 10:
            path.rename(aside / path.name)
    page = visit(tiny, run="tiny", compare=made.id)
    before = json.loads(page.get("plotly_chart")[0].proto.spec)["data"][1]["x"]
    assert page.dataframe[0].value["done"].tolist() == [0.5] and before == [6, 7, 8, 9, 10]
    for path in aside.iterdir():
        path.rename(home / ("checkpoints" if path.is_dir() else "metrics") / path.name)
    page = page.run()

    assert page.dataframe[0].value["done"].tolist() == [1.0]
    assert json.loads(page.get("plotly_chart")[0].proto.spec)["data"][1]["x"] == list(range(6, 16))


def test_a_fork_that_is_none_is_said(visit: Visit, forked: tuple[Workspace, ForkResult]) -> None:
    page = visit(forked[0], run="tiny", compare="<b>none</b>")

    assert not page.exception and "no fork is called '<b>none</b>'" in texts(page)
    assert "<b>" not in read_as_markdown(page)


# --- composing -------------------------------------------------------------------------------------------------------


def test_no_forks_say_how_to_make_one(visit: Visit, tiny_shared: Workspace) -> None:
    page = visit(tiny_shared, run="tiny")

    assert not page.exception and page.subheader[0].value == "No forks here yet"
    assert "forensics fork tiny --from STEP" in texts(page)


def test_an_edit_is_built_from_fields_and_its_reach_shown(visit: Visit, tiny_shared: Workspace) -> None:
    """Nothing is computed before it is asked for, and all of it stands in the link."""
    page = visit(tiny_shared, run="tiny", view="compose", start="5", num_steps="10")
    (which,) = [box for box in page.selectbox if box.label == "Which"]
    page = which.set_value("where").run()
    page.text_input(key="new_value").set_value("source LIKE '%.pyc.z'")
    page.text_input(key="new_steps").set_value("9")
    page = press(page, "Add")
    assert not page.exception and link_of(page, "edits") == BAD_ROWS
    assert page.text_input(key="new_value").value == "" and not page.dataframe[1:]
    page = press(page, "Preview and cost")
    (reached,) = [table.value for table in page.dataframe if "instance" in table.value]

    assert not page.exception and "drop 2 rows in 1 steps (9..9)" in texts(page) and "Start" in labels(page)
    assert reached["step"].tolist() == [9, 9] and reached["text"].tolist()[0] in texts(page)
    assert "forensics fork tiny --from 5 --num-steps 10 --edit" in texts(page)
    again = visit(tiny_shared, **{name: link_of(page, name) for name in ("run", "view", "start", "num_steps", "edits")})
    assert again.text_input(key="compose_edits_0").value == BAD_ROWS and "What it would be" not in again.subheader
    page = press(page, "Remove")
    assert "edits" not in page.query_params


def test_an_edit_is_typed_and_a_wrong_one_told_beside_it(visit: Visit, tiny_shared: Workspace) -> None:
    page = visit(tiny_shared, run="tiny", view="compose", start="5", num_steps="10")
    page = page.text_input(key="new_text").set_value("shuffel").run()
    assert "names no operation" in texts(page) and "edits" not in page.query_params
    page = page.text_input(key="new_text").set_value("shuffle seed=3").run()
    assert link_of(page, "edits") == "shuffle seed=3" and "names no operation" not in texts(page)
    page = page.text_input(key="new_text").set_value("mask document:99999").run()
    page = press(page, "Preview and cost")

    assert not page.exception and [error.value for error in page.error] == ["Edit 2 is not possible:"]
    assert "is document:99999" in texts(page) and "Start" not in labels(page)


def test_the_recipe_is_changed_by_its_fields(visit: Visit, tiny_shared: Workspace) -> None:
    page = visit(tiny_shared, run="tiny", view="compose", start="5", num_steps="10")
    page = page.selectbox(key="new_field").set_value("recipe.learning_rate").run()
    page.text_input(key="new_setting").set_value("1e-4")
    page = press(page, "Set")
    assert link_of(page, "set") == "recipe.learning_rate=1e-4"
    page = press(page, "Preview and cost")

    assert not page.exception and page.dataframe[-1].value["after"].tolist() == ["0.0001"]
    page = page.text_input(key="compose_set_0").set_value("recipe.nonsense=1").run()
    page = press(page, "Preview and cost")
    assert "the recipe has no field 'recipe.nonsense'" in texts(page)


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ({"start": "7"}, "cannot start at '7'"),
        ({"start": "20"}, "cannot start at '20'"),
        ({"start": "9" * 99}, "cannot start at '999"),
        ({"start": "5", "num_steps": "16"}, "takes 1 to 15 steps, not 16"),
        ({"start": "5", "num_steps": "-1"}, "takes 1 to 15 steps, not -1"),
        ({"start": "5", "num_steps": "2", "edits": f"drop {HOSTILE}"}, "has no place in"),
    ],
)
def test_a_wrong_link_is_told(visit: Visit, tiny_shared: Workspace, link: dict[str, str], said: str) -> None:
    page = visit(tiny_shared, run="tiny", view="compose", **link)

    assert not page.exception and said in texts(page) and page.error
    assert "alert(1)" not in read_as_markdown(page) and "\u202e" not in texts(page)


def test_where_no_checkpoint_can_be_started_at_is_said(visit: Visit, tiny: Workspace, tiny_copy: Path) -> None:
    for path in tiny_copy.glob("checkpoints/*/optimizer.safetensors"):
        path.unlink()
    page = visit(tiny, run="tiny", view="compose")

    assert not page.exception and page.subheader[0].value == "No checkpoint to start at"
    assert set(page.dataframe[0].value["why not"]) == {
        "it has no optimizer state",
        "what comes after it is not known",
    }
    page = page.checkbox(key="compose_fresh").set_value(True).run()
    assert link_of(page, "fresh") == "1" and "--fresh-optimizer" in texts(page)


def test_of_a_run_without_checkpoints_nothing_is_composed(visit: Visit, workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n1,5.5\n2,5.0\n")
    import_metrics("logged", tmp_path / "log.csv", new=True, workspace=workspace)
    page = visit(workspace, run="logged", view="compose")

    assert not page.exception and "None is known of this run" in texts(page) and "Preview and cost" not in labels(page)


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_a_running_job_is_cancelled_and_hostile_words_of_it_stand_as_text(
    visit: Visit, tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    folder = tiny.folder / "jobs" / "20260101-000000-0001"
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    record = {"arguments": ["fork", HOSTILE], "started": time.time(), "pid": process.pid, "fork": HOSTILE}
    write_json(folder / "job.json", record | {"process": identity_of_process(process.pid)})
    (folder / "output.log").write_text(HOSTILE)
    try:
        page = visit(tiny, run="tiny")
        shown = HOSTILE.replace("\x1b[31m", "").replace("\u202e", "\\u202e")
        assert not page.exception and shown in texts(page) and "alert(1)" not in read_as_markdown(page)
        page = press(page, "Cancel")
    finally:
        process.kill()
        process.wait()

    assert not page.exception and "Cancel" not in labels(page)
    assert page.dataframe[-1].value["state"].tolist() == ["cancelled"] and "alert(1)" not in read_as_markdown(page)


def test_a_job_that_cannot_be_started_says_why(visit: Visit, tiny: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise DiskFull("no space to write it")

    page = visit(tiny, run="tiny", view="compose", start="5", num_steps="2")
    page = press(page, "Preview and cost")
    monkeypatch.setattr(background_jobs, "_spawn", full)
    page = press(page, "Start")

    assert not page.exception and "no space to write it" in texts(page) and not jobs(workspace=tiny)


def test_who_looks_from_another_machine_composes_and_starts_nothing(
    visit: Visit, tiny_shared: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORENSICS_SHARED", "1")
    before = sorted(tiny_shared.folder.rglob("*"))
    page = visit(tiny_shared, run="tiny", view="compose", start="5", num_steps="10", edits=BAD_ROWS)
    page = press(page, "Preview and cost")
    assert not page.exception and "drop 2 rows" in texts(page)
    assert not {"Start", "Cancel", "Go on"} & set(labels(page)) and "nothing is started here" in texts(page)
    (tmp_path / "rows.jsonl").write_text('{"text": "secret"}\n')
    page = page.text_input(key="compose_edits_0").set_value(f"insert with={tmp_path}/rows.jsonl @9").run()
    page = press(page, "Preview and cost")

    assert not page.exception and "names a file" in texts(page) and "secret" not in texts(page)
    assert sorted(tiny_shared.folder.rglob("*")) == before
