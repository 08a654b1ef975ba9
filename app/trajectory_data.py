"""What pages show of probes, kept as app/data.py keeps it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.data import Version, workspace


@st.cache_data(max_entries=64, show_spinner=False)
def probe_names(at: Version, run: str) -> list[str]:
    from data_index.probe_queries import probe_names as found

    there = workspace()
    return found(there, there.run(run))


@st.cache_data(max_entries=32, show_spinner=False)
def trajectories(
    at: Version, runs: tuple[str, ...], probes: tuple[str, ...], metrics: tuple[str, ...], source: str
) -> Any:
    """`source`: measured, published, or both."""
    from forensics.trajectories import trajectory

    return trajectory(
        runs,
        probes,
        metrics=metrics or None,
        measured=source != "published",
        published=source != "measured",
        workspace=workspace(),
    )


@st.cache_data(max_entries=16, show_spinner=False)
def changes(at: Version, _found: Any, key: tuple[Any, ...], kind: str) -> list[dict[str, Any]]:
    """Breaks of curves, or crossings of runs; `key` is what `_found` was asked with."""
    from forensics.trajectory_changes import break_rows, crossing_rows

    rows = break_rows(_found) if kind == "breaks" else crossing_rows(_found)
    return [dict(row) for row in rows]


@st.cache_data(max_entries=64, show_spinner=False)
def measured_steps(at: Version, run: str) -> list[int]:
    from data_index.probe_queries import measured_steps as found

    there = workspace()
    return found(there, there.run(run))


@st.cache_data(max_entries=32, show_spinner=False)
def sides(at: Version, one: tuple[str, int], other: tuple[str, int], probes: tuple[str, ...]) -> Any:
    from forensics.kept_sides import kept_sides

    return kept_sides(*one, *other, probes=probes, workspace=workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def comparisons(at: Version, run: str) -> list[str]:
    """Findings of `probe --against` about a run, the newest first."""
    from data_index.finding_files import finding_rows

    return [name for name, verb, about, _, _ in finding_rows(workspace()) if verb == "probe" and run in about]


@st.cache_data(max_entries=64, show_spinner=False)
def summaries(at: Version, run: str) -> Any:
    """Probes of which a run has numbers, as `forensics probes RUN` lists them."""
    from data_index.probe_queries import probe_summaries

    there = workspace()
    return probe_summaries(there, there.run(run))


@st.cache_data(max_entries=64, show_spinner=False)
def unmeasured(at: Version, run: str) -> list[dict[str, Any]]:
    from data_index.probe_queries import probe_names as found
    from forensics.probe_catalogue import unmeasured_probes

    there = workspace()
    return unmeasured_probes(run, found(there, there.run(run)))


@st.cache_data(max_entries=64, show_spinner=False)
def probe_pairs(at: Version, run: str) -> list[tuple[str, str]]:
    """(probe, metric) of every number that a run has."""
    from data_index.probe_queries import probe_metrics

    there = workspace()
    return probe_metrics(there, there.run(run))


@st.cache_data(max_entries=64, show_spinner=False)
def panels(at: Version, run: str, pairs: tuple[tuple[str, str], ...], first: int, last: int) -> Any:
    """Probes under the ribbon of steps first+1 .. last."""
    from forensics.ribbon_probes import probe_panels

    return probe_panels(run, pairs, first, last, workspace=workspace())
