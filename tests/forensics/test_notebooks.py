"""The notebooks are run, cell after cell, on the tiny run; on the sample run they are what the README promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_index.registration import add
from data_index.workspace import Workspace

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What their first cells read; defaults are those of the sample run `demo`.
TINY = {"RUN": "tiny", "STEP": "9", "FROM": "5", "STEPS": "5", "ROWS": "2"}


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


@pytest.fixture(scope="module")
def shared(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("notebooks"))
    add(tiny_source, workspace=workspace)
    return workspace


def run_cells(path: Path) -> dict[str, Any]:
    """Run a notebook's code in one namespace, as Jupyter does; returns what it leaves."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
    return names


@pytest.fixture
def in_tiny(shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORENSICS_WORKSPACE", str(shared.folder))
    for name, value in TINY.items():
        monkeypatch.setenv(f"NOTEBOOK_{name}", value)


def test_a_run_is_asked(in_tiny: None) -> None:
    names = run_cells(ROOT / "notebooks" / "ask_a_run.ipynb")

    assert len(names["read"]) == 8 and names["batch"].step == 9
    assert names["blamed"].to_json()["candidates"] and len(names["highest"]) == 5


def test_what_if_is_followed_to_another_workspace(in_tiny: None) -> None:
    names = run_cells(ROOT / "notebooks" / "what_if.ipynb")

    assert names["again"].grade == "R0" and names["opened"].sha256 == names["packed"].sha256
    assert {row["run"] for row in names["followed"].rows} == {"tiny", names["fork"].id}
    assert names["theirs"].run_names() == [names["fork"].id]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    """They would hold numbers and paths of one machine."""
    told = json.loads(path.read_text())

    assert (told["nbformat"], told["nbformat_minor"]) == (4, 5) and len({cell["id"] for cell in told["cells"]}) > 5
    for cell in told["cells"]:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None


def test_every_notebook_is_run() -> None:
    assert [path.name for path in NOTEBOOKS] == ["ask_a_run.ipynb", "what_if.ipynb"]
