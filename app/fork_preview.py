"""What a composed fork would be, what its edits reach, and the button that starts it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, forks_data, frame
from app.jobs_panel import running_job, show_running, start_button
from forensics.fork_list import Composition

SHOWN_ROWS = 8


def show_preview(asked: Composition, found: Any, at: data.Version) -> None:
    st.subheader("What it would be", anchor=False, divider="grey")
    cost = found.cost
    frame.facts(
        {
            "fork": found.id,
            "steps": f"{cost.steps:,}",
            "tokens": f"{cost.tokens:,}",
            "parameters": f"{cost.parameters:,}",
            "memory": size(cost.memory_bytes),
            "disk": f"{size(cost.disk_bytes)} of {size(found.free_bytes)} free",
            "to fetch": None if found.download is None else size(found.download) if found.download else "nothing",
            "time, about": duration(cost.seconds),
        }
    )
    for note in found.notes:
        st.text(note)
    start_it(asked, found.id)
    show_running(at)
    names = [f"Edit {number}" for number in range(1, len(found.edits) + 1)]
    names += ["Recipe"] if found.recipe else []
    tabs = st.tabs(names) if names else []
    for number, (tab, edit) in enumerate(zip(tabs, found.edits, strict=False), 1):
        with tab:
            show_reached(number, edit)
    if found.recipe:
        with tabs[-1]:
            changes = [{"field": field, "before": str(old), "after": str(new)} for field, old, new in found.recipe]
            frame.show_table(changes, key="recipe_table")


def show_reached(number: int, edit: Any) -> None:
    """The rows that an edit reaches, and the text of the first."""
    st.text(edit.said)
    counts = ("rows", edit.num_rows), ("instances", edit.num_instances), ("tokens", edit.num_tokens)
    frame.facts({name: f"{count:,}" for name, count in (*counts, ("steps", edit.num_steps))})
    table = [with_lists_as_text(row) for row in edit.rows]
    frame.show_table(table, key=f"reached {number}", height=38 + 35 * min(len(table), SHOWN_ROWS))
    if edit.num_rows > len(table):
        st.caption(f"the first {len(table):,} of {edit.num_rows:,} rows")
    text = table[0]["text"] if table else ""
    if text is None:
        st.text("The tokens of these rows lie on a server, and nothing is fetched for a preview.")
    elif text:
        st.caption("Text of the first one")
        st.code(text, language=None, wrap_lines=True, height=160 if text.count("\n") > 6 else "content")


def with_lists_as_text(row: Any) -> dict[str, Any]:
    return {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in row.items()}


def start_it(asked: Composition, fork: str) -> None:
    done = forks_data.steps_done(fork)
    if done == asked.num_steps:
        st.text("This fork is there already.")
        frame.link(
            "views/forks.py", "Compare it with its parent", ":material/compare_arrows:", compare=fork, view="compare"
        )
        return
    if done is not None:
        st.text(f"This fork has taken {done:,} of its {asked.num_steps:,} steps, and would go on from there.")
    if data.shared():
        st.text("The explorer is shared read-only, so that nothing is started here. On its machine this does it:")
        st.code(forks_data.command(asked), language=None, wrap_lines=True)
        return
    if (job := running_job(asked.arguments())) is not None:
        st.text(f"It runs as job {job.id}; see below.")
        return
    label = "Start" if done is None else "Go on"
    start_button(label, asked.arguments(), fork=fork, type="primary")


def size(num_bytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes:,} bytes"


def duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} s"
