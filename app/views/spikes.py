"""Spikes: which spikes a run has, and which data made one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import data, frame, spike_data
from app.blame_answer import show_blame, show_columns
from app.charts import show_ribbon
from app.figures import show_figure
from app.jobs_panel import offer
from forensics.figure import Figure
from forensics.ribbon_picture import ribbon_figure
from forensics.spike_answers import KeptBlame, KeptSpikes
from forensics.tables import table_of_any_rows

COLUMNS = ("onset", "peak", "recovery", "kind", "lead_steps", "series", "level", "peak_value", "peak_z", "detail")
frame.begin("Spikes", "Which spikes does the run have, and which data made one?")
run = frame.choose_run()
with frame.stated():
    version = data.version()
    found: KeptSpikes = spike_data.spikes(version, run)
    blamed = spike_data.blamed(version, run)


def chosen_peak() -> int | None:
    """The step that the link names; what is none counts as not given."""
    asked = frame.selected("peak")
    return int(asked) if asked is not None and asked.isascii() and asked.isdigit() and len(asked) < 16 else None


def event_at(step: int | None) -> Mapping[str, Any] | None:
    """The spike that a step belongs to, the one whose peak is nearest first."""
    near = [row for row in found.spikes if step is not None and row["onset"] <= step <= last_of(row)]
    return min(near, key=lambda row: abs(row["peak"] - (step or 0)), default=None)


def last_of(row: Mapping[str, Any]) -> int:
    return max(row["peak"], row["last"] if isinstance(row.get("last"), int) else row["peak"])


def blamed_of(peak: int, event: Mapping[str, Any] | None) -> int:
    """The step under which `blame` kept what it found of the spike: its own peak may be another measure's."""
    if peak in blamed or event is None:
        return peak
    return next((step for step in blamed if event["onset"] <= step <= last_of(event)), peak)


def show_events(figure: Figure | None) -> None:
    """The run's log with its spikes: a click chooses one."""
    clicked: list[Any] = []
    if figure is not None:
        clicked = show_figure(figure, key=f"spikes {run} {found.made_at}", clickable=True)
    elif found.searched:
        ribbon = data.ribbon(data.version(), run, None, None)
        if (drawn := ribbon_figure(ribbon)) is not None:
            event = show_ribbon(drawn, ribbon, key=f"spikes {run}")
            clicked = event["selection"]["points"] if event else []
    points = [point["x"] for point in clicked]
    if frame.just_changed("points", points) and points and (near := event_at(round(points[0]))) is not None:
        frame.select(peak=near["peak"])
        st.rerun()
    rows = [dict(row) for row in (*found.spikes, *found.others, *found.published)]
    frame.downloads(f"spikes-{run}", table=table_of_any_rows(rows), figure=figure)


def show_more() -> None:
    """What the log shows besides spikes, and how others count them."""
    titles = [f"Other events ({len(found.others)})", "Definitions", "Restarts and remarks"]
    others_tab, definitions_tab, remarks_tab = st.tabs(titles)
    with others_tab:
        if found.others:
            show_columns(found.others, "onset", "last", "kind", "series", "detail", key="others")
        else:
            st.text("No step without a number, no new level, no growth of the gradient norm.")
    with definitions_tab:
        if found.definitions:
            columns = ("definition", "series", "flagged", "percent", "events", "by_not_finite")
            show_columns(found.definitions, *columns, key="definitions")
            st.caption("`robust` is the toolkit's own; a count means nothing without its definition.")
        else:
            st.text("The counts by published definitions are kept with the finding:")
            offer("spikes", run)
        if found.published:
            show_columns(found.published, "definition", "onset", "last", "series", "detail", key="published")
    with remarks_tab:
        for message in found.messages:
            st.text(frame.as_text(message))
        if not found.messages:
            st.text("Nothing.")


# --- the run's events ------------------------------------------------------------------------------------------------

if found.missing:
    st.text(f"The finding cannot be shown: {found.missing}")
if not found.searched:
    st.subheader("Spikes were not looked for yet", anchor=False)
    st.text("This finds them in the log of the run, in a second or two, and they appear here:")
    offer("spikes", run)

if found.spikes:
    told = [name for name in COLUMNS if any(row.get(name) not in (None, "", []) for row in found.spikes)]
    shown = [{name: row.get(name) for name in told} for row in found.spikes]
    asked = ["asked" if blamed_of(row["peak"], row) in blamed else "" for row in found.spikes]
    shown = [row | {"blame": word} for row, word in zip(shown, asked, strict=True)]
    picked = frame.choose_row(
        table_of_any_rows(shown),
        key=f"events {run}",
        peak_z=st.column_config.NumberColumn(help="robust standard deviations above what is usual there"),
        lead_steps=st.column_config.NumberColumn(help="steps by which the gradient norm came first"),
        blame=st.column_config.TextColumn(help="whether forensics blame was asked which data made it"),
    )
    if picked is not None:
        frame.select(peak=found.spikes[picked]["peak"])
elif found.searched:
    st.text("No spike: no value stands out of its window.")

if found.searched:
    with st.expander("The log and its spikes", expanded=chosen_peak() is None), frame.stated():
        show_events(found.figure)
    expanded = not found.spikes and bool(found.others)
    with st.expander("Other events, published definitions, restarts", expanded=expanded):
        show_more()


# --- one of them -----------------------------------------------------------------------------------------------------


def show_plan(peak: int) -> None:
    """What it would take, once that is asked."""
    asked = st.session_state.setdefault("planned", set())
    if st.button("What would it take?", icon=":material/timer:"):
        asked.add((run, peak))
    if (run, peak) in asked:
        with frame.stated(), st.spinner("Looking …"):
            plan = spike_data.blame_plan(version, run, peak)
        frame.facts(
            {
                "from checkpoint": plan["checkpoint"],
                "about": f"{plan['seconds']:,.0f} s on this machine",
                "memory": f"{plan['memory_bytes'] / 2**20:,.0f} MiB",
                "to fetch": f"{plan['download']:,} bytes",
                "parameters": f"{plan['parameters']:,}",
            }
        )
        frame.show_table([dict(stage) for stage in plan["stages"]], key="stages")


peak = chosen_peak()
spike = event_at(peak)
asked_of = None if peak is None else blamed_of(peak, spike)
commands = [frame.command("spikes", run)]
if asked_of is not None and peak is not None:
    frame.select(peak=peak)  # it stays chosen on the way to other pages
    commands.append(frame.command("blame", run, asked_of))
    st.divider()
    with frame.stated():
        lowest, highest = data.steps_of(run)
        answer = spike_data.blame(version, run, asked_of)
    if not lowest <= peak <= highest:
        frame.failed(f"{run} took steps {lowest}..{highest}, not {peak}", "No such step: choose a spike above.")
    elif isinstance(answer, KeptBlame):
        show_blame(run, answer)
    else:
        st.subheader(f"Step {peak:,}: which data made it was not asked", anchor=False)
        if answer is not None:
            st.text(frame.as_text(f"What is kept of it cannot be shown: {answer}"))
        if spike is None:
            st.text("No spike was found at this step.")
        st.text("This takes the steps up to it again without its rows, one by one, and the answer appears here:")
        offer("blame", run, peak)
        if not data.shared():
            show_plan(peak)
    with st.container(horizontal=True):
        frame.link("views/step.py", f"Read step {peak:,}", ":material/article:", run=run, step=peak)
        frame.link("views/run.py", "See it on the run", ":material/show_chart:", run=run, step=peak)
elif found.spikes:
    st.caption("Choose a spike, in the picture or the table, to see which data made it.")

frame.reproduce(commands, f"from spikes where run = '{run}' order by onset")
