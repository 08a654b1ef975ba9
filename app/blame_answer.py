"""What `blame` found of a spike: verdict and reason, what the peak comes to without each suspect, their text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from app import frame
from app.figures import show_figure
from app.marked import show_colours, show_losses, show_marked
from forensics.figure import Bars, Figure
from forensics.fork_list import Composition
from forensics.spike_answers import OTHER_KINDS, KeptBlame, fork_of_command, number
from forensics.tables import table_of_any_rows

CANDIDATE = ("rank", "step", "row", "instance", "loss", "loss_z", "share", "grad_norm_share", "grad_norm_z")
MEASURES = {"loss": "loss", "grad_norm": "gradient norm"}
FACTS = {"onset": "onset", "peak": "peak", "from checkpoint": "checkpoint"}
VERDICTS = {"instance": "One row did", "group": "A group of rows did", "batch": "A batch as a whole did"}
ODDS = ("signal", "suspects_with", "suspects", "base_with", "base", "ratio", "low", "high", "p_value", "description")
UPDATES = ("step", "loss", "grad_norm", "learning_rate", "peak_loss_before", "moved", "suspect")
PERCENT = st.column_config.NumberColumn("excess gone", format="percent", help="share of what is above the usual")


def show_blame(run: str, answer: KeptBlame) -> None:
    _show_verdict(answer)
    if (waterfall := _panels_of(answer.finding.figure, bars=True)) is not None:
        show_figure(waterfall, key=f"waterfall {run} {answer.peak}", note=False)
    names = ["Removals", "Text", "Rows and tokens", "Documents", "Content", "Updates", "Fork"]
    removals, text, pictures, documents, content, updates, fork = st.tabs(names)
    with removals:
        _show_candidates(run, answer)
    with text:
        _show_texts(answer)
    with pictures:
        if (rest := _panels_of(answer.finding.figure, bars=False)) is not None:
            show_figure(rest, key=f"rest {run} {answer.peak}", note=False)
    with documents:
        if answer.documents:
            hidden = f"{answer.measure}_if_hidden"
            columns = ("document_id", "source", "num_tokens", hidden, "null_low", "null_high", "restored")
            show_columns(answer.documents, *columns, key="documents", restored=PERCENT)
            st.caption("What the suspect steps read of each document, hidden from the loss.")
        else:
            st.text("No document was hidden: none is known of these rows, or no row was called the cause.")
    with content:
        if answer.odds:
            show_columns(answer.odds, *ODDS, key="odds", p_value=st.column_config.NumberColumn(format="%.2g"))
            st.caption("What the rows in question hold beside the run's other rows, as odds ratios.")
        else:
            st.text("Nothing sets the rows in question apart from the run's other rows, or they were not compared.")
    with updates:
        if answer.steps:
            show_columns(answer.steps, *UPDATES, key="steps")
            st.caption("moved: by how much the update of a step changed the loss of the peak's batch.")
    with fork:
        _show_fork(answer)
    tables = [dict(row) for row in answer.candidates] or [dict(row) for row in answer.steps]
    frame.downloads(answer.finding.name, table=table_of_any_rows(tables), figure=answer.finding.figure)


def show_columns(rows: Sequence[Mapping[str, Any]], *names: str, key: str, **columns: Any) -> None:
    """Some columns of rows that may lack them."""
    told = [{name: row.get(name) for name in names} for row in rows]
    for row in told:
        if isinstance(kind := row.get("kind"), str):
            row["kind"] = OTHER_KINDS.get(kind, kind)
    frame.show_table(told, key=key, **columns)


def _show_verdict(answer: KeptBlame) -> None:
    made = "the data made it" if answer.verdict == "data" else "unexplained"
    st.subheader(f"Step {answer.peak:,}: {made}", anchor=False)
    st.text(frame.as_text(f"{VERDICTS.get(answer.cause or '', 'No data explain it')}: {answer.reason}."))
    if answer.changed:
        st.text(frame.as_text(f"Ask again: {answer.changed}."))
    name, told = MEASURES[answer.measure], dict[str, Any]()
    for label, end in (("usual", "_usual"), ("logged", "_logged"), ("replayed", "")):
        value = number(answer.facts.get(answer.measure + end))
        told[f"{name}, {label}"] = f"{value:.4g}" if value is not None else None
    told |= {label: answer.facts.get(key) for label, key in FACTS.items()}
    frame.facts(told | {"asked at": answer.finding.made.get("at")})


def _panels_of(figure: Figure | None, bars: bool) -> Figure | None:
    """The waterfall, or what else the finding's picture holds."""
    if figure is None:
        return None
    panels = [panel for panel in figure.panels if isinstance(panel, Bars) == bars]
    return replace(figure, panels=panels, shared_x=False) if panels else None


def _show_candidates(run: str, answer: KeptBlame) -> None:
    if answer.removals:
        frame.show_table(list(answer.removals), key="removals", restored=PERCENT)
        st.caption(
            f"What the {MEASURES[answer.measure]} of the peak comes to without it; null_low to null_high: without as "
            "many random rows."
        )
    if answer.candidates:
        rows = [{name: row.get(name) for name in (*CANDIDATE, "documents", "signals")} for row in answer.candidates]
        frame.show_table(rows, key="candidates")
    with st.container(horizontal=True):
        for place, row in enumerate(answer.candidates):
            if isinstance(row.get("step"), int) and isinstance(row.get("row"), int):
                where = {"run": run, "step": row["step"], "row": row["row"]}
                where |= {"under": "traced"} if place < len(answer.finding.texts) else {}
                frame.link("views/step.py", f"Row {row['row']} of step {row['step']:,}", ":material/article:", **where)


def _show_texts(answer: KeptBlame) -> None:
    texts = answer.finding.texts
    if not texts:
        st.text("The finding holds no text.")
        return
    st.text("Each token is coloured by its loss under the weights just before its step. Point at one to read it.")
    show_colours()
    for text in texts:
        with st.container(gap=None):
            st.text(frame.as_text(text.title))
            show_marked(text)
    show_losses({str(place): text for place, text in enumerate(texts, 1)}, key="losses")


def _show_fork(answer: KeptBlame) -> None:
    if not answer.commands:
        st.text("Nothing that a fork could take away was called the cause.")
    for command in answer.commands:
        st.text("The same removal as a fork, to look at what follows it:")
        st.code(frame.as_text(command), language=None, wrap_lines=True)
        if (composed := fork_of_command(command)) is not None:
            frame.link("views/forks.py", "Compose this fork", ":material/alt_route:", **_link_of(composed))
    for note in answer.notes:
        st.text(frame.as_text(note))


def _link_of(fork: Composition) -> dict[str, Any]:
    """What the page of forks shows it by."""
    told = {"run": fork.run, "view": "compose", "start": fork.from_step, "num_steps": fork.num_steps}
    return {**told, "edits": "\n".join(fork.edits)}
