"""One token: what is known of it, its path through training against how often it was read, and where."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, frame, token_data
from app.figures import show_figure
from forensics.step_text import readable_text
from forensics.token_page import numbers_at_checkpoints, shown_tags, token_figure

MOST_TAGS, MOST_DOCUMENTS = 12, 30


def show_token(run: str, asked: str) -> None:
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
        frame.failed(f"a token is named by its id, a number, not {asked[:80]!r}", "No such token.")
        return
    with frame.stated():
        found = token_data.one(data.version(), run, int(asked))
    st.subheader(f"Token {found.token_id:,}", anchor=False, divider="grey")
    st.code(readable_text(found.text) if found.text else "(no text)", language=None, wrap_lines=True)
    last = found.found[-1] if found.found else {}
    read = found.exposures[-1] if found.exposures else {}
    path = found.path[-1] if found.path else {}
    frame.facts(
        {
            "checkpoint": last.get("step"),
            "piece": frame.as_text(found.piece) if found.piece not in (None, found.text) else None,
            "category": last.get("category"),
            "rank": f"{last['rank']:,}" if last.get("rank") else None,
            "indicator": _number(last.get("indicator")),
            "candidate": _yes(last.get("candidate")),
            "known unused": _yes(last.get("in_unused_set")),
            "never updated": _yes(last.get("never_updated")),
            "can be repeated": _told_verdict(last),
            "read as input": f"{read['as_input']:,}" if read else None,
            "read as target": f"{read['as_target']:,}" if read else None,
            "first read at step": read.get("first_step"),
            "untrained at the end": _yes(path.get("untrained")),
        }
    )
    for evidence in last.get("evidence") or ():
        st.text(f"Evidence: {frame.as_text(evidence)}")
    with st.container(horizontal=True):
        frame.link(
            "views/search.py", "Which steps read it?", ":material/search:", run=run, kind="token", what=found.token_id
        )
        if (step := read.get("first_step")) is not None:
            frame.link("views/step.py", f"Read step {step:,}", ":material/article:", run=run, step=step)
    figure = token_figure(found)
    if figure is not None:
        show_figure(figure, key=f"token {run} {found.token_id}")
    _lacking(run, found)
    _read_in(run, found)
    rows = numbers_at_checkpoints(found)
    if rows:
        st.caption("At each checkpoint")
        frame.show_table(rows, key="token_numbers")
    frame.downloads(f"{run}-token-{found.token_id}", table=frame.table_of_dicts(rows) if rows else None, figure=figure)
    frame.reproduce(
        [
            frame.command("tokens", run, "--track", "--format", "json"),
            frame.command("where", run, "--token", found.token_id),
        ],
        f"from tokens where run = '{run}' and token_id = {found.token_id}",
    )


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.5g}"


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _told_verdict(row: dict[str, Any]) -> str | None:
    """What prompting found, where it was asked."""
    if row.get("verified") is None:
        return None
    return f"{'no' if row['verified'] else 'yes'}, highest probability {row['max_probability']:.3g}"


def _lacking(run: str, found: Any) -> None:
    """What is not kept of it, and the command that finds it."""
    commands = []
    if not found.found:
        commands.append(frame.command("tokens", run))
    elif found.found[-1]["verified"] is None and found.found[-1]["candidate"]:
        commands.append(frame.command("tokens", run, "--verify"))
    if not found.exposures:
        commands.append(frame.command("exposures", run))
    if not found.path or not found.traced:
        commands.append(frame.command("tokens", run, "--track"))
    if commands:
        st.text("Not everything is known of it yet. This finds the rest:")
        st.code("\n".join(dict.fromkeys(commands)), language=None)


def _read_in(run: str, found: Any) -> None:
    if found.tags:
        st.caption("Read in documents with these tags, times")
        frame.show_table(list(shown_tags(found, MOST_TAGS)), key="token_tags")
    if found.documents:
        more = f" and {len(found.documents) - MOST_DOCUMENTS:,} more" if len(found.documents) > MOST_DOCUMENTS else ""
        st.text("The first documents it was read in: " + ", ".join(map(str, found.documents[:MOST_DOCUMENTS])) + more)
        frame.link(
            "views/search.py",
            f"Which steps read document {found.documents[0]}?",
            ":material/search:",
            run=run,
            kind="document",
            what=found.documents[0],
        )
