"""Runs whose tokens lie on a server: nothing is fetched before a click, and nothing at all for who looks from afar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from data_index.registration import add
from data_index.workspace import Workspace
from forensics.explorer_server import main_script

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests is not installed

from tests.forensics.test_remote_runs import OLMO, write_manifest
from tests.servers.range_server import RangeServer


@pytest.fixture
def server(range_server: RangeServer, hub_environment: Path) -> RangeServer:
    for path in [*OLMO.glob("data/*.npy"), *OLMO.glob("run/step10-unsharded/*")]:
        if path.is_file():
            range_server.files[f"/olmo/{path.relative_to(OLMO)}"] = path.read_bytes()
    return range_server


@pytest.fixture
def step(
    server: RangeServer, tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AppTest]:
    """The page of a step, not opened yet."""
    import streamlit

    add(write_manifest(tmp_path / "m", server), workspace=workspace)
    monkeypatch.setenv("FORENSICS_WORKSPACE", str(workspace.folder))
    streamlit.cache_data.clear()
    page = AppTest.from_file(str(main_script()), default_timeout=30).run()
    page.query_params["run"], page.query_params["step"] = "far", "11"
    yield page.switch_page("views/step.py")
    streamlit.cache_data.clear()


def texts(page: AppTest) -> str:
    return "\n".join(str(element.value) for element in page.text)


def test_tokens_are_fetched_by_a_click_and_not_before(step: AppTest, server: RangeServer) -> None:
    before = server.body_bytes
    page = step.run()
    assert not page.exception and "2,048 bytes would be fetched" in texts(page) and server.body_bytes == before
    (fetch,) = [button for button in page.button if button.label == "Fetch and show"]
    page = fetch.click().run()

    assert not page.exception and texts(page).count("· instance") == 8
    assert server.body_bytes - before == 2048
    page = page.run()
    assert texts(page).count("· instance") == 8 and server.body_bytes - before == 2048


def test_for_who_looks_from_afar_nothing_is_fetched(
    step: AppTest, server: RangeServer, monkeypatch: pytest.MonkeyPatch, workspace: Workspace
) -> None:
    monkeypatch.setenv("FORENSICS_SHARED", "1")
    before = server.body_bytes, sorted(workspace.folder.rglob("*"))
    page = step.run()

    assert not page.exception and "cannot have them fetched" in texts(page)
    assert not [button for button in page.button if button.label == "Fetch and show"]
    assert (server.body_bytes, sorted(workspace.folder.rglob("*"))) == before
