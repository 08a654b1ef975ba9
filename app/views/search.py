"""Search: which steps read a text, a document, an instance or a token."""

from __future__ import annotations

import streamlit as st

from app import data, frame
from app.charts import clicked_step, show_ribbon
from forensics.ribbon import with_marks
from forensics.ribbon_picture import ribbon_figure

KINDS = {"text": "a text", "document": "a document id", "instance": "an instance", "token": "a token id"}
MOST_INSTANCES = 1_000  # in which a text or token is found before the search stops

frame.begin("Search", "Which steps read this?")
run = frame.choose_run()


def take() -> None:
    frame.select(kind=st.session_state["kind_choice"], what=st.session_state["what_choice"] or None)
    st.session_state["searched"] = True


kind, what = frame.selected("kind") or "text", frame.selected("what")
kind = kind if kind in KINDS else "text"
st.session_state["kind_choice"], st.session_state["what_choice"] = kind, what or ""
with st.form("search", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
    st.selectbox("Kind", list(KINDS), format_func=KINDS.__getitem__, key="kind_choice", width=180)
    st.text_input("What", key="what_choice", placeholder="import sys")
    st.form_submit_button("Search", type="primary", icon=":material/search:", on_click=take)

if what is None:
    st.caption("A text is found however it was split into tokens. It takes long where there are many tokens:")
    st.code(f"{frame.command('where', run, '--text', 'TEXT', '--plan')}\n{frame.command('ngrams', run)}", language=None)
    st.stop()
if kind != "text" and not (what.isascii() and what.isdigit() and len(what) < 16):
    frame.failed(f"{KINDS[kind]} is a number, not {what[:80]!r}", "Ask for a number.")
    st.stop()
if kind in ("text", "token") and not st.session_state.get("searched"):
    # A link is opened without knowing what it costs.
    st.text("The tokens of the run are searched once you press Search.")
    st.stop()

with frame.stated():
    version = data.version()
    with st.spinner("Searching …"):
        table, notes = data.readings(version, run, kind, what, MOST_INSTANCES)
    found = with_marks(data.ribbon(version, run, None, None), table.column("step").drop_null().to_pylist())
for note in notes:
    st.text(frame.as_text(note))
if not table.num_rows:
    st.subheader("No step read it", anchor=False)
else:
    st.text(f"{table.num_rows:,} readings")
    figure = ribbon_figure(found)
    if figure is not None and (step := clicked_step(show_ribbon(figure, found, key=f"search {run}"), found)):
        frame.link("views/step.py", f"Read step {step:,}", ":material/article:", run=run, step=step)
    frame.show_table(table, key="readings_table")
    frame.downloads(f"{run}-{kind}", table=table, figure=figure)
limit = ["--limit", MOST_INSTANCES] if kind in ("text", "token") else []
frame.reproduce([frame.command("where", run, f"--{kind}", what, *limit)])
