"""Runs: what is here, how far each goes, what is kept of it, and what is known to be wrong."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, frame
from app.jobs_panel import offer

frame.begin("Runs", "What is here, what is kept of it, and why is its order to be believed?")
with frame.stated():
    version = data.version()
    rows = data.overview(version)
    issues = data.known_issues(version)
if not rows:
    frame.no_runs()


def steps_of(row: dict[str, Any]) -> str:
    return f"{row['first_step']}..{row['last_step']}" if row["last_step"] >= row["first_step"] else "none known"


sound = [row for row in rows if not row["problem"]]
shown = [
    {
        "run": row["run"],
        "parent": row["parent"] or "",
        "steps": steps_of(row),
        "order": row["order"],
        "checkpoints": row["checkpoints"],
        "available": row["available"],
        "weights": row["weights"],
        "optimizer": row["optimizer"],
        "issues": row["issues"],
        "layout": row["layout"],
        # Others need not know where on this machine things lie.
        **({"source": row["source"]} if not data.shared() else {}),
    }
    for row in sound
]
chosen = st.dataframe(
    shown,
    hide_index=True,
    key="runs_table",
    on_select="rerun",
    selection_mode="single-row",
    column_config={
        "order": st.column_config.TextColumn(
            help="exact: proved against the trainer's record; derived; chunk; unknown"
        ),
        "available": st.column_config.NumberColumn(help="checkpoints that are there, or were when last looked for"),
        "weights": st.column_config.NumberColumn(help="checkpoints that hold weights"),
        "optimizer": st.column_config.NumberColumn(
            help="checkpoints that hold the optimizer's state: replays start there"
        ),
        "issues": st.column_config.NumberColumn(help="checkpoints with a known issue"),
    },
)
picked = chosen["selection"]["rows"] if chosen else []
if picked:
    frame.look_at(sound[picked[0]]["run"])
row = next((row for row in sound if row["run"] == frame.selected("run")), None)
if row is None:
    st.caption("Choose a row to see more of a run.")
else:
    st.subheader("Chosen run", anchor=False, divider="grey")
    frame.facts(
        {
            "run": row["run"],
            "steps": steps_of(row),
            "instances": f"{row['instances']:,} of {row['sequence_length']:,} tokens",
            "order": row["why"],
            "known of it": ", ".join(row["learned"]) or "nothing besides the index",
        }
    )
    with st.container(horizontal=True):
        frame.link("views/run.py", "Look at its loss", ":material/show_chart:", run=row["run"])
        frame.link("views/step.py", "Read its first step", ":material/article:", run=row["run"], step=row["first_step"])

for row in rows:
    if row["problem"]:
        frame.failed(row["problem"], "A run cannot be read:")


def add_one() -> None:
    """A form that makes the command, and starts it."""
    st.text("A run's folder, a repository of the hub (ORG/NAME), or a name of the catalog. Nothing of it is changed.")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        source = st.text_input("Source", key="add_source", placeholder="pythia-160m").strip()
        name = st.text_input("Name here", key="add_name", placeholder="as its source calls it").strip()
        tokens = st.text_input("Token files", key="add_data", placeholder="a folder, if they lie elsewhere").strip()
    if source:
        given = [word for option, value in (("--name", name), ("--data", tokens)) if value for word in (option, value)]
        offer("add", source, *given)
    frame.link("views/released.py", "Released runs that the toolkit knows", ":material/public:")


if not data.shared():
    with st.expander("Add a run", icon=":material/add:"):
        add_one()

st.subheader("Known issues", anchor=False, divider="grey")
if issues:
    kinds_tab, each_tab = st.tabs(["By kind", "One by one"])
    with kinds_tab:
        frame.show_table(data.issue_matrix(issues), key="issues_matrix")
    with each_tab:
        frame.show_table(issues, key="issues_table")
    frame.downloads("known-issues", table=frame.table_of_dicts(issues))
else:
    st.text("None is known. forensics audit RUN --deep looks for them.")
frame.downloads("runs", table=frame.table_of_dicts(shown))
frame.reproduce(["forensics runs", "forensics forks", "forensics checkpoints RUN"], "from runs")
