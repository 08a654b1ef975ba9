"""Forks: what a run would have become had it read something else: compose one, start it, compare it with its parent."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, forks_data, frame
from app.charts import canvas_of, is_dark
from app.compose import choose_start, composed, lines_of, problems_of, show_edits, show_settings
from app.jobs_panel import show_jobs
from data_index.errors import ForensicsError
from forensics.fork_list import Composition

COMPARE, COMPOSE = "compare", "compose"
VIEWS = {COMPARE: "Forks and how they differ", COMPOSE: "Compose a fork"}
SHOWN_ROWS = 8

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
    show_comparison(found, [row for row in rows if row["id"] in there])
    for note in found.notes:
        st.text(note)
    if found.rows:
        with st.expander("Rows"):
            frame.show_table(list(found.rows), key="comparison_table")
    frame.downloads(
        f"compare-{'-'.join(there)}"[:100], table=frame.table_of_dicts(found.rows), figure=found.figure, key="compare"
    )
    frame.reproduce([frame.command("compare", *there), frame.command("forks")], "from forks")


def show_comparison(found: Any, chosen: list[dict[str, Any]]) -> None:
    first = min(row["from_step"] for row in chosen)
    last = max(row["from_step"] + row["num_steps"] for row in chosen)
    figure = found.figure
    if figure.panels:
        st.plotly_chart(
            canvas_of(
                figure, dark=is_dark(), marking=False, x_range=(first, last), height=60 + 200 * len(figure.panels)
            ),
            key="comparison",
            config={"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"]},
            theme=None,
            alt=f"{figure.title}. {figure.note}",
        )


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


def compose() -> None:
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
                found = forks_data.preview(forks_data.version_of(run), asked)
        except ForensicsError as error:
            if error.edit_number is not None:
                problems[error.edit_number] = str(error)
            else:
                failure = str(error)
    show_edits(edits, problems)
    show_settings(run, settings)
    if asked is None:
        return
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
        show_preview(asked, found)


def remember(asked: Composition) -> None:
    st.session_state["previewed"] = asked


def show_preview(asked: Composition, found: Any) -> None:
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
            "to fetch": size(found.download) if found.download else "nothing",
            "time, about": duration(cost.seconds),
        }
    )
    for note in found.notes:
        st.text(note)
    start_it(asked, found.id)
    for number, edit in enumerate(found.edits, 1):
        st.text(f"Edit {number}: {edit.said}")
        counts = ("rows", edit.num_rows), ("instances", edit.num_instances), ("tokens", edit.num_tokens)
        frame.facts({name: f"{count:,}" for name, count in (*counts, ("steps", edit.num_steps))})
        table = [
            dict(row) | {name: ", ".join(map(str, row[name])) for name in ("documents", "sources")} for row in edit.rows
        ]
        frame.show_table(table, key=f"reached {number}", height=min(38 + 35 * len(table), 38 + 35 * SHOWN_ROWS))
        if edit.num_rows > len(table):
            st.caption(f"the first {len(table):,} of {edit.num_rows:,} rows")
        if table and table[0]["text"] is not None:
            text = table[0]["text"]
            st.code(text, language=None, wrap_lines=True, height=160 if text.count("\n") > 6 else "content")
        elif table:
            st.text("The tokens of these rows lie on a server, and nothing is fetched for a preview.")
    if found.recipe:
        changes = [{"field": field, "before": str(old), "after": str(new)} for field, old, new in found.recipe]
        frame.show_table(changes, key="recipe_table")


def start_it(asked: Composition, fork: str) -> None:
    done = forks_data.steps_done(fork)
    if done == asked.num_steps:
        st.text("This fork is there already.")
        frame.link(
            "views/forks.py", "Compare it with its parent", ":material/compare_arrows:", compare=fork, view=COMPARE
        )
        return
    if done is not None:
        st.text(f"This fork has taken {done:,} of its {asked.num_steps:,} steps, and would go on from there.")
    if data.shared():
        st.text("The explorer is shared read-only, so that nothing is started here. On its machine this does it:")
        st.code(forks_data.command(asked), language=None, wrap_lines=True)
        return
    if (job := forks_data.running_job(asked)) is not None:
        st.text(f"It runs as job {job.id}; see below.")
        return
    st.button(
        "Start" if done is None else "Go on",
        type="primary",
        icon=":material/play_arrow:",
        on_click=start,
        args=(asked, fork),
        help="It runs on its own, also when this page or the explorer is closed.",
    )


def start(asked: Composition, fork: str) -> None:
    st.session_state["job_problem"] = None
    try:
        forks_data.start(asked, fork)
    except ForensicsError as error:
        st.session_state["job_problem"] = str(error)


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


if view == COMPOSE:
    compose()
else:
    list_forks()
    compare_forks()
show_jobs(watched=view == COMPARE and forks_data.is_any_being_written([row["id"] for row in rows]))
