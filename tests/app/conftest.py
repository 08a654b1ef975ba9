"""Pages of the explorer, opened as a link opens them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from data_index.workspace import Workspace
from forensics.explorer_server import main_script

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests is not installed

PAGES = {
    "runs": "views/runs.py",
    "run": "views/run.py",
    "step": "views/step.py",
    "search": "views/search.py",
    "spikes": "views/spikes.py",
    "forks": "views/forks.py",
    "tokens": "views/tokens.py",
    "trajectories": "views/trajectories.py",
    "sql": "views/query.py",
    "released": "views/released.py",
}

Open = Callable[..., AppTest]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a page of a workspace with what its link says; a list stands for several values of one name."""
    import streamlit

    streamlit.cache_data.clear()

    def open_page(workspace: Workspace, page: str, **link: str | list[str]) -> AppTest:
        monkeypatch.setenv("FORENSICS_WORKSPACE", str(workspace.folder))
        found = AppTest.from_file(str(main_script()), default_timeout=30)
        found.run()
        found.query_params.clear()
        for name, value in link.items():
            found.query_params[name] = value
        return found.switch_page(PAGES[page]).run()

    yield open_page
    streamlit.cache_data.clear()
