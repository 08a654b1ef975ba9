"""Tokens: how little each was trained, whether the model can repeat it, its path through training, and one by one."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, frame, token_data
from app.figures import clicked_values, show_figure
from app.jobs_panel import offer
from app.one_token import show_token
from data_index.token_queries import FILTERS
from forensics.token_path_picture import figure_of
from forensics.token_scatter import AS_TARGET, INDICATOR, RANK, scatter_figure

SCATTER, TABLE, PATHS = "Scatter", "Table", "Paths"
EVERY = "every token"
HEADS: dict[str, Any] = {
    "rank": st.column_config.NumberColumn(help="1: trained least; of tokens that encode to themselves", width="small"),
    "token_id": st.column_config.NumberColumn("token", width="small"),
    "max_probability": st.column_config.NumberColumn(
        "probability", help="the highest that a prompt gave it", format="%.3g"
    ),
    "verified": st.column_config.CheckboxColumn(help="the model cannot repeat it: below 1 %", width="small"),
    "indicator": st.column_config.NumberColumn(format="%.5g"),
    "text": st.column_config.TextColumn(width="medium"),
    "in_unused_set": st.column_config.CheckboxColumn("known unused", width="small"),
    "never_updated": st.column_config.CheckboxColumn("never updated", width="small"),
    "candidate": st.column_config.CheckboxColumn(width="small"),
    "finding": st.column_config.TextColumn(width="medium"),
}

frame.begin("Tokens", "Which tokens did it hardly learn, and how did each get there?")
run = frame.choose_run()
version = data.version()


def choose_checkpoint(kept: list[dict[str, Any]]) -> dict[str, Any]:
    """One of those whose tokens are kept, the last one by default; the link says which."""
    steps = [row["step"] for row in kept]
    asked = st.query_params.get("checkpoint")
    chosen = next((row for row in kept if str(row["step"]) == asked), kept[-1])
    if asked is not None and str(chosen["step"]) != asked:
        wanted = asked[:20] if asked.isascii() and asked.isdigit() else "STEP"
        frame.failed(
            f"no tokens of checkpoint {asked[:80]} of {run} are kept, those of {', '.join(map(str, steps))} are; "
            + frame.command("tokens", run, "--checkpoint", wanted),
            "No tokens of this checkpoint are kept:",
        )
    st.session_state["checkpoint_choice"] = chosen["step"]

    def take() -> None:
        frame.select(checkpoint=st.session_state["checkpoint_choice"])

    st.sidebar.selectbox("Checkpoint", steps, key="checkpoint_choice", on_change=take)
    return chosen


def open_token(number: object) -> None:
    frame.select(token=number)


# --- all of them -----------------------------------------------------------------------------------------------------


def show_scatter(about: dict[str, Any]) -> None:
    step = about["step"]
    with frame.stated():
        names = token_data.axes(version, run, step)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        usual = AS_TARGET if AS_TARGET in names else RANK
        x = axis("x", "Along", names, usual)
        y = axis("y", "Against", names, INDICATOR)
        st.text_input("Open a token by its id", key="token_asked", on_change=take_number, width=180)
    with frame.stated():
        found = token_data.scatter(version, run, step, x, y)
    if not found.points:
        st.text("No token has both numbers.")
        return
    figure = scatter_figure(found)
    if clicked := clicked_values(show_figure(figure, key=f"tokens {run} {step} {x} {y}", clickable=True)):
        open_token(int(clicked[0]))
        st.rerun()
    st.caption("A click on a point opens its token.")
    rows = [
        {"kind": kind, "token_id": token, "text": text, x: one, y if y != x else f"{y} again": two}
        for kind, points in found.points.items()
        for token, text, one, two in points
    ]
    frame.downloads(f"{run}-tokens-{step}", table=frame.table_of_dicts(rows), figure=figure)
    frame.reproduce(
        [frame.command("tokens", run, "--checkpoint", step)],
        f"select token_id, text, category, indicator, rank from tokens where run = '{run}' and step = {step} "
        "order by rank",
    )


def take_number() -> None:
    if value := str(st.session_state["token_asked"]).strip():
        open_token(value)


def axis(name: str, label: str, names: list[str], usual: str) -> str:
    """What tokens are drawn against; the link says it."""
    asked = st.query_params.get(name, usual)
    key = f"{name}_axis"
    st.session_state[key] = asked if asked in names else usual
    if asked not in names:
        frame.failed(
            f"{asked[:80]!r} is not kept of the tokens of {run}; there are {', '.join(names)}", "No such axis:"
        )
    st.selectbox(label, names, key=key, on_change=lambda: frame.select(**{name: st.session_state[key]}))
    return str(st.session_state[key])


def show_rows(about: dict[str, Any]) -> None:
    step = about["step"]
    with frame.stated():
        there = token_data.categories(version, run, step)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = frame.several(
            "category",
            "Category",
            list(there),
            placeholder="all",
            format_func=lambda name: f"{frame.as_text(name)} ({there[name]:,})",
        )
        st.session_state["only_choice"] = st.query_params.get("only", EVERY)
        if st.session_state["only_choice"] not in (EVERY, *FILTERS):
            st.session_state["only_choice"] = EVERY
        only = st.selectbox("Only", [EVERY, *FILTERS], key="only_choice", on_change=take_only)
        st.session_state["find_choice"] = st.query_params.get("find", "")
        text = st.text_input("Find in the text, or an id", key="find_choice", on_change=take_text)
    with frame.stated():
        table = token_data.table(version, run, step, tuple(chosen), "" if only == EVERY else only, text)
    if not table.num_rows:
        st.text("No token is like that.")
        return
    st.caption(f"{table.num_rows:,} tokens; choose a row to open one")
    picked = frame.choose_row(table, key=f"tokens_table {run} {step}", height=430, **HEADS)
    if picked is not None:
        open_token(table.column("token_id")[picked].as_py())
        st.rerun()
    if not about["num_prompted"]:
        st.text("The model was not prompted with its candidates yet. This asks it whether it can repeat them:")
        offer("tokens", run, "--verify")
    frame.downloads(f"{run}-tokens-{step}", table=table)
    frame.reproduce(
        [frame.command("tokens", run, "--checkpoint", step, *(["--verify"] if about["num_prompted"] else []))],
        f"from tokens where run = '{run}' and step = {step} order by rank",
    )


def take_only() -> None:
    frame.select(only=None if st.session_state["only_choice"] == EVERY else st.session_state["only_choice"])


def take_text() -> None:
    frame.select(find=st.session_state["find_choice"] or None)


def show_paths() -> None:
    with frame.stated():
        found = token_data.paths(version, run) if token_data.has_paths(version, run) else None
    if found is None:
        st.subheader("No paths are kept yet", anchor=False)
        st.text("This reads one matrix of each checkpoint, and counts how often each token had been read:")
        offer("tokens", run, "--track")
        return
    for message in found.messages:
        st.text(frame.as_text(message))
    figure = figure_of(found)
    show_figure(figure, key=f"paths {run}")
    rows = [row for row in found.rows if row["finding"]]
    table = frame.table_of_dicts(rows) if rows else None
    if table is not None:
        st.caption(f"{len(rows):,} tokens with a finding; choose a row to open one")
        picked = frame.choose_row(table, key=f"paths_table {run}", height=360, **HEADS)
        if picked is not None:
            open_token(rows[picked]["token_id"])
            st.rerun()
    frame.downloads(f"{run}-token-paths", table=table, figure=figure)
    frame.reproduce(
        [frame.command("tokens", run, "--track"), frame.command("exposures", run)],
        f"select step, count(*) from token_paths where run = '{run}' and untrained group by step order by step",
    )


def nothing_yet() -> None:
    st.subheader("No tokens are kept yet", anchor=False)
    st.text("This ranks them by how little they were trained, from the embeddings alone, and keeps what it finds:")
    offer("tokens", run)
    st.text("These prompt the model with them, follow each through training, and count how often it was read:")
    more = [("tokens", run, "--verify"), ("tokens", run, "--track"), ("exposures", run)]
    st.code("\n".join(frame.command(*words) for words in more), language=None)


with frame.stated():
    kept = token_data.checkpoints(version, run)
    tracked = token_data.has_paths(version, run)
asked = st.query_params.get("token")
if asked is not None:
    st.button("All tokens", icon=":material/arrow_back:", on_click=open_token, args=(None,))
    show_token(run, asked)
elif not kept and not tracked:
    nothing_yet()
else:
    about = choose_checkpoint(kept) if kept else None
    views = [SCATTER, TABLE, PATHS] if kept else [PATHS, SCATTER, TABLE]  # the first is shown at first
    view = frame.choice("show", "Show", views, label_visibility="collapsed")
    if about is not None:
        frame.facts(
            {
                "checkpoint": about["step"],
                "indicator": about["indicator_name"],
                "tokens": f"{about['num_texts']:,}",
                "candidates": f"{about['num_candidates']:,}",
                "cannot be repeated": f"{about['num_verified']:,} of {about['num_prompted']:,}"
                if about["num_prompted"]
                else None,
            }
        )
    if view == PATHS:
        show_paths()
    elif about is None:
        nothing_yet()
    elif view == TABLE:
        show_rows(about)
    else:
        show_scatter(about)
