"""What the page of tokens shows, kept as app/data.py keeps it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.data import Version, workspace


@st.cache_data(max_entries=64, show_spinner=False)
def checkpoints(at: Version, run: str) -> list[dict[str, Any]]:
    from data_index.token_queries import token_checkpoints

    there = workspace()
    return token_checkpoints(there, there.run(run))


@st.cache_data(max_entries=64, show_spinner=False)
def axes(at: Version, run: str, step: int) -> list[str]:
    from forensics.token_scatter import axes as found

    there = workspace()
    return found(there, there.run(run), step)


@st.cache_data(max_entries=16, show_spinner=False)
def scatter(at: Version, run: str, step: int, x: str, y: str) -> Any:
    from forensics.token_scatter import scatter as found

    return found(run, step, x, y, workspace=workspace())


@st.cache_data(max_entries=64, show_spinner=False)
def categories(at: Version, run: str, step: int) -> dict[str, int]:
    from data_index.token_queries import categories_of_tokens

    there = workspace()
    return categories_of_tokens(there, there.run(run), step)


@st.cache_data(max_entries=16, show_spinner=False)
def table(at: Version, run: str, step: int, categories: tuple[str, ...], only: str, text: str) -> Any:
    """An Arrow table of all rows that a filter lets through."""
    from data_index.token_queries import token_table

    there = workspace()
    return token_table(there, there.run(run), step, categories=categories, only=only, text=text)


@st.cache_data(max_entries=4, show_spinner=False)
def paths(at: Version, run: str) -> Any:
    from forensics.kept_token_paths import kept_token_paths

    return kept_token_paths(run, workspace=workspace())


@st.cache_data(max_entries=64, show_spinner=False)
def has_paths(at: Version, run: str) -> bool:
    from data_index.token_queries import path_indicator

    there = workspace()
    return path_indicator(there, there.run(run)) is not None


@st.cache_data(max_entries=64, show_spinner=False)
def one(at: Version, run: str, token_id: int) -> Any:
    from forensics.token_page import token_page

    return token_page(run, token_id, workspace=workspace())
