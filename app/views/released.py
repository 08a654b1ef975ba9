"""Released runs: what was published of each, what is missing, what is known to be wrong, and how to add it."""

from __future__ import annotations

import streamlit as st

from app import data, frame

frame.begin("Released runs", "Which runs were released, what is published of each, and what is known to be wrong?")
rows, matrix = data.released()
family = st.selectbox("Family", sorted({row["family"] for row in rows}), index=None, placeholder="all families")
rows = [row for row in rows if family in (None, row["family"])]
matrix = [row for row in matrix if family in (None, row["family"])]

published_tab, issues_tab = st.tabs(["Published", "Known issues"])
with published_tab:
    shown = [row | {"states": ", ".join(row["states"])} for row in rows]
    chosen = st.dataframe(
        shown,
        hide_index=True,
        key=f"released {family}",
        height=330,
        on_select="rerun",
        selection_mode="single-row",
        placeholder="",
        column_config={
            "tokens": st.column_config.NumberColumn(format="compact"),
            "order": st.column_config.TextColumn(help="the best trust that the order of its data can reach"),
            "replay": st.column_config.TextColumn(help="whether what is published defines its steps"),
            "issues": st.column_config.NumberColumn(help="known issues, by kind on the other tab"),
        },
    )
    picked = chosen["selection"]["rows"] if chosen else []
    if picked:
        frame.select(released=rows[picked[0]]["run"])
with issues_tab:
    known = [kind for kind in matrix[0] if kind not in ("family", "run") and any(row[kind] for row in matrix)]
    # Kinds are words of the catalog's, with _ for a space.
    heads = {kind: st.column_config.NumberColumn(kind.replace("_", " "), width="small") for kind in known}
    columns = [{name: row[name] for name in ("run", *known)} for row in matrix]
    st.dataframe(columns, hide_index=True, key=f"matrix {family}", height=330, placeholder="", column_config=heads)
    frame.downloads("known-issues", table=frame.table_of_dicts(columns))

name = frame.selected("released")
if name is None:
    st.caption("Choose a row to see what is known of a run, and how to add it.")
else:
    with frame.stated():
        issues = data.issues_of_released(name)
    st.subheader("Chosen run", anchor=False, divider="grey")
    st.code(f"{frame.command('catalog', name)}\n{frame.command('add', name)}", language=None)
    if issues:
        frame.show_table(issues, key="released_issues")
    else:
        st.text("No issue is known of it.")

frame.downloads("released-runs", table=frame.table_of_dicts(shown))
frame.reproduce(["forensics catalog", frame.command("catalog", family or "FAMILY")])
