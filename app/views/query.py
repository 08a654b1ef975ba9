"""SQL: one read-only statement over the views, with their columns beside it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, frame
from app.figures import show_figure
from forensics.figure import Figure
from forensics.quick_chart import chart_of, number_columns, x_columns

SECONDS = 60.0
EXAMPLE = "select run, count(*) as checkpoints, max(step) as last from checkpoints group by run order by run"

frame.begin("SQL", "Anything else: one SELECT over the views of all runs. Nothing can be changed by it.")
with frame.stated():
    version = data.version()
    schema = data.schema(version)


def use(query: str) -> None:
    frame.select(query=query)


def take() -> None:
    frame.select(query=st.session_state["query_text"])


def chart(table: Any) -> Figure | None:
    """Columns of numbers, drawn once some are chosen."""
    numbers = number_columns(table)
    if table.num_rows < 2 or not numbers:
        return None
    draw, along, style = st.columns([3, 2, 2], vertical_alignment="bottom")
    with draw:
        ys = frame.several("y", "Draw", numbers, placeholder="choose columns", format_func=frame.as_text)
    if not ys:
        return None
    with along:
        x = frame.one_of("x", "Along", x_columns(table), format_func=frame.as_text)
    with style:
        drawn: Any = frame.choice("style", "As", ["line", "points"])
    figure = chart_of(table, x, ys, drawn)
    show_figure(figure, key="answer_chart")
    return figure


ask, look = st.columns([2, 1], gap="medium")
with look:
    st.markdown("**Views and macros**")
    wanted = st.text_input("Find", placeholder="a view or a column", key="schema_filter").strip().lower()
    with st.container(height=460, border=True):
        matching = [entry for entry in schema if wanted in " ".join(entry).lower()]
        if not matching:
            st.text("No view or column of that name.")
        for name, columns, description, example in matching:
            with st.expander(name):
                st.text(description)
                if columns:
                    st.code(columns.replace(", ", "\n"), language=None)
                st.code(example, language="sql", wrap_lines=True)
                st.button("Use it", key=f"use {name}", on_click=use, args=(example,))

with ask:
    asked = frame.selected("query")
    st.session_state["query_text"] = asked or EXAMPLE
    with st.form("query", border=False):
        st.text_area("Query", key="query_text", height=150)
        st.form_submit_button("Run", type="primary", icon=":material/play_arrow:", on_click=take)
    if asked is None:
        st.caption("Run it, or take an example from the right.")
        st.stop()
    with frame.stated(), st.spinner("Asking …"):
        table = data.answer(version, asked, SECONDS)
    st.caption(f"{table.num_rows:,} rows, {table.num_columns} columns")
    if table.num_rows:
        frame.show_table(table, key="answer_table")
    else:
        st.text("No rows.")
    frame.downloads("query", table=table, figure=chart(table))
    frame.reproduce([frame.command("sql", asked), frame.command("sql", asked, "-o", "query.parquet")], asked)
