"""What the pages show, asked of forensics and kept for as long as the same files are in force.

Every cached question takes a version: the names, sizes and times of the small files that say what is in force. A run
that appears, or a table that is learned, changes it. The connections themselves are made, kept and locked in
data_index.store, which keys them the same way; each question gets a cursor of its own there.
"""

from __future__ import annotations

import os
from typing import Any

import streamlit as st

from data_index.workspace import Workspace

Version = tuple[tuple[str, int, int], ...]
MOST_ROWS = 10_000  # of a result that are shown; all of them can be downloaded


def workspace() -> Workspace:
    return Workspace(os.environ.get("FORENSICS_WORKSPACE") or None)


def shared() -> bool:
    """Do other machines look? Then nothing may be written."""
    return os.environ.get("FORENSICS_SHARED") == "1"


def version() -> Version:
    """What changes when anything that the pages show does."""
    folder = workspace().folder
    paths = [
        path
        for kind in ("runs", "forks")
        for name in ("run.toml", "current.json", "checkpoints")
        for path in folder.glob(f"{kind}/*/{name}")
    ]
    paths += folder.glob("findings/*.json")
    found = []
    for path in sorted(paths):
        try:
            status = path.stat()
        except FileNotFoundError:  # it was removed while we looked
            continue
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return (str(folder), 0, 0), *found


def run_names() -> list[str]:
    """Runs, then forks."""
    there = workspace()
    return [*there.run_names(), *there.fork_ids()]


def steps_of(run: str) -> tuple[int, int]:
    record = workspace().run(run)
    return record.first_step, record.last_step


@st.cache_data(max_entries=4, show_spinner=False)
def overview(at: Version) -> list[dict[str, Any]]:
    from forensics.overview import overview as found

    return found(workspace())


@st.cache_data(max_entries=4, show_spinner=False)
def known_issues(at: Version) -> list[dict[str, Any]]:
    from forensics.overview import known_issues as found

    return found(workspace())


def issue_matrix(issues: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from forensics.overview import issue_matrix as found

    return found(issues)


@st.cache_data(max_entries=64, show_spinner=False)
def ribbon(at: Version, run: str, first: int | None, last: int | None) -> Any:
    from forensics.ribbon import ribbon as found

    return found(run, first, last, workspace=workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def logged_values(at: Version, run: str, query: str) -> Any:
    """The values behind a ribbon, as an Arrow table."""
    from data_index.store import run_query

    return run_query(workspace(), query)


@st.cache_data(max_entries=64, show_spinner=False)
def everything_at(at: Version, run: str, step: int) -> dict[str, Any]:
    from forensics.lookup import at as found

    return found(run, step, workspace=workspace())


@st.cache_data(max_entries=64, show_spinner=False)
def batch(at: Version, run: str, step: int) -> Any:
    """Rows of the batch as the index knows them, without reading a token; an Arrow table."""
    from data_index.batch_queries import batch_rows

    there = workspace()
    return batch_rows(there, there.run(run), step - 1, step)


@st.cache_data(max_entries=64, show_spinner=False)
def other_readings(at: Version, run: str, step: int) -> list[dict[str, Any]]:
    """When other steps, or other attempts of this one, read the rows of a step."""
    from forensics.step_text import other_readings as found

    return found(run, step, workspace=workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def stretch_by(at: Version, run: str, first: int, last: int, by: str) -> Any:
    """What was read from checkpoint `first` to checkpoint `last`, counted; an Arrow table."""
    from forensics.lookup import batch as found

    return found(run, f"{first}:{last}", by=by, workspace=workspace())


@st.cache_data(max_entries=64, show_spinner=False)
def bytes_of_text(at: Version, run: str, step: int, first_row: int, num_rows: int) -> int:
    from forensics.step_text import bytes_of_step_text

    return bytes_of_step_text(run, step, first_row=first_row, num_rows=num_rows, workspace=workspace())


@st.cache_data(max_entries=64, show_spinner=False)
def text(at: Version, run: str, step: int, first_row: int, num_rows: int) -> Any:
    from forensics.step_text import step_text

    asked: dict[str, Any] = {"first_row": first_row, "num_rows": num_rows, "remember": not shared()}
    return step_text(run, step, **asked, workspace=workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def readings(at: Version, run: str, kind: str, what: str, limit: int) -> tuple[Any, list[str]]:
    """Every reading of a text, document, instance or token as an Arrow table, and sentences about the search."""
    from forensics.lookup import where

    notes: list[str] = []
    asked: dict[str, Any] = {kind: what if kind == "text" else int(what)}
    # Who looks from another machine must not have anything fetched.
    asked |= {"limit": limit, "note": notes.append, "max_fetch": 0 if shared() else None}
    return where(run, **asked, workspace=workspace()), notes


@st.cache_data(max_entries=4, show_spinner=False)
def schema(at: Version) -> list[tuple[str, str, str, str]]:
    """(view, columns, what it holds, an example) of every view and macro."""
    from data_index.store import view_columns
    from data_index.view_catalog import DESCRIPTIONS

    columns = {line.partition("(")[0]: line.partition("(")[2].removesuffix(")") for line in view_columns(workspace())}
    return [(name, columns.get(name, ""), *told) for name, told in DESCRIPTIONS.items()]


@st.cache_data(max_entries=16, show_spinner=False)
def answer(at: Version, query: str, seconds: float) -> Any:
    """The answer to one SELECT as an Arrow table."""
    from data_index.store import run_query

    return run_query(workspace(), query, seconds)


@st.cache_data(max_entries=1, show_spinner=False)
def released() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Released runs, and how many known issues of each kind each has; they change with the toolkit alone."""
    from data_index.registry import released_runs
    from forensics.released import issue_matrix, released_row

    return [released_row(run) for run in released_runs()], issue_matrix()


def issues_of_released(name: str) -> list[dict[str, Any]]:
    from data_index.registry import issues_of
    from forensics.released import issue_rows

    return issue_rows(issues_of(name))
