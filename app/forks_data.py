"""What the page of forks shows, asked of forensics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from app.data import Version, shared, version, workspace
from forensics.background_jobs import command_of
from forensics.fork_list import Composition, Start, file_of_edit, parsed_edits


def version_of(run: str) -> Version:
    """What changes when anything of one run or fork does, and nothing when another fork takes a step."""
    home = f"{workspace().home(run)}/"
    return tuple(entry for entry in version() if entry[0].startswith(home))


@st.cache_data(max_entries=4, show_spinner=False)
def forks(at: Version) -> list[dict[str, Any]]:
    from forensics.fork_list import forks_of

    return forks_of(workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def comparison(at: Version, names: tuple[str, ...]) -> Any:
    from forensics.divergence import compare

    return compare(*names, workspace=workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def starts(at: Version, run: str, fresh_optimizer: bool) -> list[Start]:
    from forensics.fork_list import starts_of

    return starts_of(workspace(), run, fresh_optimizer=fresh_optimizer)


@st.cache_data(max_entries=16, show_spinner=False)
def recipe_fields(at: Version, run: str) -> dict[str, Any]:
    """Fields that can be set, with their values."""
    from forensics.fork_list import recipe_fields_of

    return recipe_fields_of(workspace(), run)


def preview(asked: Composition) -> Any:
    """What a fork would be; asked anew when a file that it names has changed."""
    files = [edit_file for edit in parsed_edits(asked.edits) if (edit_file := file_of_edit(edit)) is not None]
    seen = [] if shared() else [(str(file), *_size_and_time(file)) for file in files]
    return _preview((*version_of(asked.run), *seen), asked)


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        return file.stat().st_size, file.stat().st_mtime_ns
    except (OSError, ValueError):  # the preview says what is wrong with it
        return 0, 0


@st.cache_data(max_entries=16, show_spinner=False)
def _preview(at: Version, asked: Composition) -> Any:
    from forensics.cli.edits import read_overrides
    from forensics.fork_preview import preview_fork

    return preview_fork(
        asked.run,
        from_step=asked.from_step,
        num_steps=asked.num_steps,
        edits=asked.edits,
        overrides=read_overrides(asked.settings),
        fresh_optimizer=asked.fresh_optimizer,
        workspace=workspace(),
        guest=shared(),
    )


def steps_done(fork: str) -> int | None:
    from forensics.fork_list import steps_done as found

    return found(workspace(), fork)


def composition_of(fork: str) -> Composition:
    from forensics.fork_list import composition_of as found

    return found(workspace(), fork)


def is_any_being_written(names: list[str]) -> bool:
    from forensics.fork_list import is_being_written

    return any(is_being_written(workspace(), name) for name in names)


def command(asked: Composition) -> str:
    return command_of(asked.arguments())
