"""The run that an import belongs to: one that is registered, or a new one that holds nothing but what is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_index.errors import RunExists, UnknownRun
from data_index.registration import register
from data_index.run import Run
from data_index.sources import Imported
from data_index.sources.records import run_of_records
from data_index.workspace import Workspace, valid_name


def registered(workspace: Workspace, name: str) -> Run:
    """
    Raises:
        UnknownRun: which says how a run is made of records alone.
    """
    try:
        return workspace.run(name)
    except UnknownRun as error:
        raise UnknownRun(f"{error}; --new makes a run of nothing but what is imported") from error


def new_record(workspace: Workspace, name: str, source: Path) -> Run:
    """A run that is not registered yet.

    Raises:
        UnknownRun: no run can be called so.
        RunExists
    """
    if valid_name(name) in (*workspace.run_names(), *workspace.fork_ids()):
        raise RunExists(f"{name} is registered already: without --new, the files are imported into it")
    return run_of_records(name, source.absolute(), last_step=0)


def register_records(workspace: Workspace, run: Run, tables: Mapping[str, Any]) -> list[str]:
    """Put a new run and its tables in force at once; returns their kinds.

    Raises:
        RunExists, Busy, DiskFull
    """
    from pyarrow import compute

    last_step = max(compute.max(table.column("step")).as_py() for table in tables.values())
    imported = Imported(run=run_of_records(run.name, run.source, last_step), tables=tables)
    register(run.name, lambda building: imported, None, workspace, lambda message: None)
    return list(tables)
