"""What the tests of the explorer's pages share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from streamlit.testing.v1 import AppTest

from data_index.workspace import Workspace
from forensics.explorer_server import main_script

PAGES = {
    "runs": "views/runs.py",
    "search": "views/search.py",
    "run": "views/run.py",
    "step": "views/step.py",
    "sql": "views/query.py",
    "released": "views/released.py",
}
PAGES |= {"forks": "views/forks.py"}
PAGES |= {"tokens": "views/tokens.py", "trajectories": "views/trajectories.py"}

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
