"""What `forensics probe RUN … --against OTHER` found, OTHER being any model: kept as findings, shown again here."""

from __future__ import annotations

import streamlit as st

from app import data, frame, trajectory_data
from app.figures import show_figure
from forensics.finding import read_finding
from forensics.tables import table_of_any_rows


def show_comparisons(run: str) -> None:
    """Those of a run, to choose one of; nothing where there is none."""
    names = trajectory_data.comparisons(data.version(), run)
    if not names:
        return
    asked = st.query_params.get("kept")
    if asked is not None and asked not in names:
        frame.failed(f"no comparison of {run} is kept as {asked[:80]!r}", "No such comparison is kept:")
    st.session_state["kept_choice"] = asked if asked in names else None
    st.selectbox(
        "Kept with another model",
        names,
        key="kept_choice",
        index=None,
        placeholder="what probe --against found",
        on_change=lambda: frame.select(kept=st.session_state["kept_choice"]),
    )
    if asked in names:
        show_comparison(asked)


def show_comparison(name: str) -> None:
    with frame.stated():
        found = read_finding(data.workspace(), name)
    st.text(f"value: {frame.as_text(str(found.answer.get('one')))}")
    st.text(f"other: {frame.as_text(str(found.answer.get('other')))}")
    if found.figure is not None:
        show_figure(found.figure, key=f"comparison {name}")
    rows = found.answer.get("rows")
    table = table_of_any_rows([row for row in rows if isinstance(row, dict)]) if isinstance(rows, list) else None
    if table is not None and table.num_rows:
        frame.show_table(table, key="comparison_rows", height=300)
    frame.downloads(name, table=table, figure=found.figure)
    st.code(frame.as_text(found.command), language=None, wrap_lines=True)
    st.divider()
