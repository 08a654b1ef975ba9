"""Forks: what a run would have become had it read something else: compose one, start it, compare it with its parent."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, forks_data, frame
from app.compose import choose_start, composed, lines_of, problems_of, show_edits, show_settings
from app.figures import show_figure
from app.fork_preview import show_preview
from app.jobs_panel import show_over, show_running
from data_index.errors import ForensicsError
from forensics.fork_list import Composition

COMPARE, COMPOSE = "compare", "compose"
VIEWS = {COMPARE: "Forks and how they differ", COMPOSE: "Compose a fork"}

frame.begin("Forks", "What would it have become, had it read something else?")
run = frame.choose_run()
with frame.stated():
    version = data.version()
    rows = forks_data.forks(version)


def take_view() -> None:
    frame.select(view=st.session_state["view_choice"])


view = frame.selected("view")
view = view if view in VIEWS else COMPARE
st.session_state["view_choice"] = view
st.segmented_control(
    "View",
    list(VIEWS),
    format_func=VIEWS.__getitem__,
    key="view_choice",
    on_change=take_view,
    required=True,
    label_visibility="collapsed",
)


# --- what there is, compared -----------------------------------------------------------------------------------------


def list_forks() -> None:
    if not rows:
        st.subheader("No forks here yet", anchor=False)
        st.text("Compose one above, or in a terminal:")
        st.code(
            frame.command("fork", run, "--from", "STEP", "--num-steps", "K", "--edit", "drop instance:12 @154"),
            language=None,
        )
        return
    shown = [
        {
            "fork": row["id"],
            "parent": row["parent"],
            "from": row["from_step"],
            "steps": row["num_steps"],
            "done": row["done"] / row["num_steps"],
            "edits": row["edits"],
            "recipe": row["recipe"],
        }
        for row in rows
    ]
    columns: dict[str, Any] = {
        "done": st.column_config.ProgressColumn(help="steps that are saved", format="percent", width="small"),
        "edits": st.column_config.TextColumn(width="large"),
    }
    frame.show_table(shown, key="forks_table", height=min(38 + 35 * len(shown), 260), **columns)
    frame.downloads("forks", table=frame.table_of_dicts(rows))


def take_forks() -> None:
    frame.select(compare=",".join(st.session_state["compare_choice"]) or None)


def compare_forks() -> None:
    told = {row["id"]: f"{row['id']} · {row['parent']} from {row['from_step']} · {row['edits']}" for row in rows}
    asked = [name for name in (frame.selected("compare") or "").split(",") if name]
    there = [name for name in asked if name in told]
    if st.session_state.get("compare_choice") != there:
        st.session_state["compare_choice"] = there
    st.multiselect(
        "Compare with their parent",
        list(told),
        key="compare_choice",
        on_change=take_forks,
        format_func=lambda name: frame.as_text(told[name])[:90],
        placeholder="one or several forks of one parent",
    )
    if len(there) != len(asked):
        missing = ", ".join(name[:40] for name in asked if name not in told)
        frame.failed(f"no fork is called {missing!r} in {data.workspace().folder}", "No such fork: choose one above.")
        return
    if not there:
        return
    with frame.stated():
        found = forks_data.comparison(version, tuple(there))
    with st.container(horizontal=True, vertical_alignment="center"):
        for name in there:
            frame.link("views/run.py", f"Look at {name}", ":material/show_chart:", run=name)
            st.button(
                f"Compose one like {name}",
                key=f"like {name}",
                on_click=compose_like,
                args=(name,),
                icon=":material/edit:",
            )
    if not found.rows:
        st.text("Nothing can be compared yet: no step of it is saved that its parent's log has too.")
    if found.figure.panels:
        show_figure(found.figure, key=f"comparison {there}", note=False)
    for note in found.notes:
        st.text(note)
    if found.rows:
        with st.expander("Rows"):
            frame.show_table(list(found.rows), key="comparison_table")
    frame.downloads(
        f"compare-{'-'.join(there)}"[:100], table=frame.table_of_dicts(found.rows), figure=found.figure, key="compare"
    )
    frame.reproduce([frame.command("compare", *there), frame.command("forks")], "from forks")


def compose_like(name: str) -> None:
    try:
        like = forks_data.composition_of(name)
    except ForensicsError as error:
        st.session_state["job_problem"] = str(error)
        return
    frame.select(view=COMPOSE, run=like.run, start=like.from_step, num_steps=like.num_steps)
    frame.select(edits="\n".join(like.edits) or None, set="\n".join(like.settings) or None)
    frame.select(fresh="1" if like.fresh_optimizer else None)


# --- one more --------------------------------------------------------------------------------------------------------


def compose() -> bool:
    """Returns whether what runs was shown."""
    with frame.stated():
        chosen = choose_start(run, data.steps_of(run)[1])
    edits, settings = lines_of("edits"), lines_of("set")
    problems = problems_of(edits)
    asked = composed(run, *chosen) if chosen is not None else None
    wanted = st.session_state.get("previewed")
    found, failure = None, None
    if asked is not None and not problems and wanted == asked:
        try:
            with st.spinner("Looking at what it would read …"):
                found = forks_data.preview(asked)
        except ForensicsError as error:
            if error.edit_number is not None:
                problems[error.edit_number] = str(error)
            else:
                failure = str(error)
    show_edits(edits, problems, adding=found is None)
    show_settings(run, settings)
    if asked is None:
        return False
    st.code(forks_data.command(asked), language=None, wrap_lines=True)
    if wanted != asked or problems or failure:
        st.button(
            "Preview and cost",
            type="primary",
            icon=":material/visibility:",
            disabled=bool(problems_of(edits)),
            on_click=remember,
            args=(asked,),
        )
        st.caption("Says what each edit reaches, with its text, and what the fork would cost. Nothing is made by it.")
    if failure:
        frame.failed(failure, "This fork is not possible.")
    if found is not None:
        show_preview(asked, found, version)
    return found is not None


def remember(asked: Composition) -> None:
    st.session_state["previewed"] = asked


if view == COMPOSE:
    if not compose():
        show_running(version)
else:
    list_forks()
    compare_forks()
    show_running(version, watched=forks_data.is_any_being_written([row["id"] for row in rows]))
show_over()
