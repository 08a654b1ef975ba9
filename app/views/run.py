"""Run: what was logged over all steps, without losing a peak, and what happened at which step."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, frame, trajectory_data
from app.charts import clicked_step, show_ribbon
from app.jobs_panel import offer
from forensics.ribbon_picture import ribbon_figure
from forensics.ribbon_probes import label_of, usual_pairs

CHOOSE, CLOSER = "Click chooses a step", "Drag looks closer"

frame.begin("Run", "What did it log, and what happened at which step?")
run = frame.choose_run()


def number(name: str) -> int | None:
    """A step of the link; what is none counts as not given."""
    asked = frame.selected(name)
    return int(asked) if asked is not None and asked.isascii() and asked.isdigit() and len(asked) < 16 else None


def take_stretch() -> None:
    frame.select(first=st.session_state["first_choice"], last=st.session_state["last_choice"])


first, last = number("first"), number("last")
with frame.stated():
    lowest, highest = data.steps_of(run)
    found = data.ribbon(data.version(), run, first, last)
    pairs = {label_of(pair): pair for pair in trajectory_data.probe_pairs(data.version(), run)}
whole = first is None and last is None
if not whole:
    frame.select(first=found.first, last=found.last)

st.session_state["first_choice"], st.session_state["last_choice"] = found.first, found.last
with st.sidebar.container(horizontal=True):
    before, after = (lowest - 1, found.last - 1), (found.first + 1, highest)
    for label, key, (low, high) in (
        ("From checkpoint", "first_choice", before),
        ("to checkpoint", "last_choice", after),
    ):
        st.number_input(label, min_value=low, max_value=high, key=key, on_change=take_stretch)
with st.sidebar:
    usual = [label_of(pair) for pair in usual_pairs(list(pairs.values()))]
    chosen = frame.several("probes", "Probes below it", list(pairs), usual, format_func=frame.as_text) if pairs else []
with frame.stated():
    asked = tuple(pairs[label] for label in chosen)
    probes = trajectory_data.panels(data.version(), run, asked, found.first, found.last)
figure = ribbon_figure(found, probes)

with st.container(horizontal=True, vertical_alignment="center"):
    st.text(f"Steps {found.first + 1:,} to {found.last:,}")
    if st.button("Whole run", disabled=whole, icon=":material/zoom_out_map:"):
        frame.select(first=None, last=None)
        st.rerun()
    # Streamlit lets a chart take clicks or marked stretches, not both at once.
    mouse = st.segmented_control(
        "Mouse", [CHOOSE, CLOSER], default=CHOOSE, required=True, key="mouse", label_visibility="collapsed"
    )


def take(event: Any) -> bool:
    """Follow a click to its step, a stretch that was marked to its steps."""
    boxes = event["selection"]["box"] if event else []
    if boxes:
        low, high = sorted(boxes[0]["x"][:2])
        start, stop = max(found.first, int(low)), min(found.last, int(high) + 1)
        if stop > start and (start, stop) != (found.first, found.last):
            frame.select(first=start, last=stop)
            return True
        return False
    step = clicked_step(event, found)
    if step is not None and str(step) != frame.selected("step"):
        frame.select(step=step)
        return True
    return False


if figure is not None:
    key = f"ribbon {run} {found.first} {found.last} {mouse}"
    if take(show_ribbon(figure, found, key=key, marking=mouse == CLOSER)):
        st.rerun()

step = number("step")
with st.container(horizontal=True, vertical_alignment="center"):
    if step is not None:
        frame.link("views/step.py", f"Read step {step:,}", ":material/article:", run=run, step=step)
    for row in found.spikes[:6]:
        frame.link("views/step.py", f"Spike at {row['peak']:,}", ":material/bolt:", run=run, step=row["peak"])

if not found.lines:
    st.subheader("Nothing is logged of these steps", anchor=False)
    st.text("Logs of W&B, TensorBoard, JSON lines, CSV and others can be put beside the run:")
    st.code(frame.command("import", run, "LOG"), language=None)
if found.lines and not found.searched:
    st.text("Spikes were not looked for yet; this finds them, and they appear here:")
    offer("spikes", run)

if found.spikes:
    st.subheader("Spikes", anchor=False, divider="grey")
    columns = ("onset", "peak", "recovery", "kind", "lead_steps", "series", "peak_value", "peak_z")
    frame.show_table([{name: row[name] for name in columns} for row in found.spikes], key="spikes_table")

frame.downloads(
    f"{run}-{found.first}-{found.last}",
    table=lambda: data.logged_values(data.version(), run, found.query()),
    figure=figure,
)
measured = [frame.command("trajectory", run, *dict.fromkeys(pairs[label][0] for label in chosen))] if chosen else []
frame.reproduce(
    [frame.command("sql", found.query()), frame.command("checkpoints", run), *measured],
    found.query(),
)
