"""Step: everything under the key (run, step), and what the step read, as text."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, frame
from app.coloured_rows import Coloured, choose_weights, coloured_rows
from app.marked import show_losses, show_marked

MOST_DOCUMENTS = 24  # that lead on to what else read them
ROWS_A_PAGE = 8
LONG_TEXT = 3_000  # characters; more are shown in a box that scrolls

frame.begin("Step", "What did the model read at this step, and what is known of it?")
run = frame.choose_run()
with frame.stated():
    step = frame.choose_step(run)
    frame.link("views/run.py", "See it on the run", ":material/show_chart:", run=run, step=step)
    version = data.version()
    found = data.everything_at(version, run, step)
    batch = data.batch(version, run, step)
num_rows = batch.num_rows

st.subheader(f"Step {step:,}", anchor=False)
metrics = found["metrics"]
frame.facts(
    {
        "loss": f"{metrics['loss']:.4f}" if metrics.get("loss") is not None else None,
        "gradient norm": f"{metrics['grad_norm']:.4g}" if metrics.get("grad_norm") is not None else None,
        "learning rate": f"{found['learning_rate']:.4g}" if found["learning_rate"] is not None else None,
        "epoch": found["epoch"],
        "attempt": found["attempt"] if found["attempt"] != 1 else None,
        "instances": f"{num_rows:,}",
        "tokens": f"{found['num_tokens']:,}",
        "tokens after": f"{found['tokens_after']:,}",
        "outcome": found["outcome"] if found["outcome"] != "applied" else None,
        "checkpoint before": found["checkpoint_before"],
        "checkpoint after": found["checkpoint_after"],
        "forks through it": ", ".join(found["forks"]) or None,
    }
)
st.text(f"Order: {found['order_trust']}")

names = ["Text", "Rows", "By tag and file", "Between checkpoints", "Read again", "Logged"]
text_tab, rows_tab, groups_tab, stretch_tab, again_tab, logged_tab = st.tabs(names)

with rows_tab:
    frame.show_table(batch, key="batch_table")
with groups_tab:
    for by in ("tag", "file"):
        if groups := found[f"read_by_{by}"]:
            frame.show_table(groups, key=f"by_{by}")
    if not found["read_by_tag"]:
        st.text("No document of this step has a tag. Tags are learned by:")
        st.code(frame.command("tag", run, "--provenance"), language=None)
with again_tab:
    if again := data.other_readings(version, run, step):
        st.text("Other readings of the rows of this step:")
        frame.show_table(again, key="again_table")
    else:
        st.text("No other step read a row of this one.")
    documents = [number for ids in batch.column("document_ids").to_pylist() for number in ids or ()]
    if documents := list(dict.fromkeys(documents)):
        st.text(f"{len(documents):,} documents are in its rows; which steps read any part of one of them:")
        with st.container(horizontal=True):
            for number in documents[:MOST_DOCUMENTS]:
                looks = ("views/search.py", f"Document {number}", ":material/search:")
                frame.link(*looks, run=run, kind="document", what=number)
        if len(documents) > MOST_DOCUMENTS:
            st.caption(f"the first {MOST_DOCUMENTS} of {len(documents):,}; the table of rows names all")
with stretch_tab:
    before, after = found["checkpoint_before"], found["checkpoint_after"]
    if before is None or after is None:
        st.text("This step does not lie between two checkpoints.")
    else:
        st.text(f"What was read from checkpoint {before} to checkpoint {after}, beside the whole run's average.")
        counted = st.session_state.setdefault("counted", set())
        if st.button("Count it by tag", type="primary"):
            counted.add((run, before, after))
        if (run, before, after) in counted:
            with st.spinner("Counting …"):
                frame.show_table(data.stretch_by(version, run, before, after, "tag"), key="stretch_table")
        st.code(frame.command("batch", run, f"{before}:{after}", "--by", "tag"), language=None)
with logged_tab:
    if metrics:
        frame.show_table([{"metric": name, "value": value} for name, value in metrics.items()], key="logged_table")
    else:
        st.text("Nothing is logged of this step.")
        st.code(frame.command("import", run, "LOG"), language=None)


def page_of_rows() -> int:
    """First row of those that are shown; the link says which."""
    asked = st.query_params.get("row") or "0"
    row = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 12 else 0
    return min(row, num_rows - 1) // ROWS_A_PAGE * ROWS_A_PAGE


def turn_to(row: int) -> None:
    frame.select(row=row)


def show_rows(start: int, coloured: Coloured) -> None:
    """The rows as text, those whose losses are known in colours."""
    to_fetch = data.bytes_of_text(version, run, step, start, ROWS_A_PAGE)
    fetched = st.session_state.setdefault("fetched", set())
    if to_fetch and (run, step, start) not in fetched:
        st.text(f"The tokens of these rows lie on a server: {to_fetch:,} bytes would be fetched.")
        if data.shared():
            st.text("Who looks from another machine cannot have them fetched; where the explorer runs, this does it:")
            st.code(frame.command("batch", run, step, "--tokens"), language=None)
            st.stop()
        if not st.button("Fetch and show", type="primary"):
            st.stop()
        fetched.add((run, step, start))
    text = data.text(version, run, step, start, ROWS_A_PAGE)
    if not text.in_words:
        st.text("No tokenizer is known of this run, so token ids stand for its text.")
    marked_rows = {}
    for row in text.rows:
        st.text(f"Row {row.number} · instance {row.instance} · {row.file} at token {row.offset:,}")
        if (marked := coloured.row(row.position, row.instance)) is not None:
            told = [
                f"document {piece.document_id}, tokens {piece.start}–{piece.stop}, {piece.source or 'no source known'}"
                for piece in row.pieces
                if piece.document_id is not None
            ]
            with st.container(gap=None):
                st.text(frame.as_text(" · ".join(told)))
                show_marked(marked)
            marked_rows[f"row {row.number}"] = marked
            continue
        for piece in row.pieces:
            told = [f"document {piece.document_id}" if piece.document_id is not None else "no document known"]
            told += [f"tokens {piece.start}–{piece.stop}", *([piece.source] if piece.source else []), *piece.tags]
            told += [f"{piece.num_hidden} hidden from the loss"] if piece.num_hidden else []
            with st.container(gap=None):
                st.text(" · ".join(map(frame.as_text, told)))
                height: Any = 260 if len(piece.text) > LONG_TEXT else "content"
                st.code(piece.text, language=None, wrap_lines=True, height=height)
    if marked_rows:
        show_losses(marked_rows, key=f"losses {start}")


with text_tab, frame.stated():
    start = page_of_rows()
    stop = min(start + ROWS_A_PAGE, num_rows)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.text(f"Rows {start} to {stop - 1} of {num_rows:,}")
        earlier, later = start - ROWS_A_PAGE, start + ROWS_A_PAGE
        st.button("Earlier rows", disabled=earlier < 0, on_click=turn_to, args=(max(earlier, 0),))
        st.button("Later rows", disabled=later >= num_rows, on_click=turn_to, args=(later,))
        under = choose_weights(run, step)
    coloured = Coloured() if under is None else coloured_rows(run, step, under, batch, range(start, stop))
    show_rows(start, coloured)

frame.downloads(f"{run}-step-{step}", table=batch)
frame.reproduce(
    [
        frame.command("at", run, step),
        frame.command("batch", run, step, "--tokens"),
        frame.command("batch", run, step, "--by", "tag"),
        *([frame.command("batch", run, step, "--losses")] if frame.selected("under") else []),
    ],
    f"from batches where run = '{run}' and step = {step} order by position",
)
