"""The form for one edit of a fork: built from fields, or typed."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app import frame
from data_index.errors import ForensicsError
from forensics.fork_list import parsed_edits, written_edit

Take = Callable[[str], None]
# What each operation takes: kinds of selectors, with what they are called here.
ROWS = {"instance": "instances", "document": "documents", "tag": "tag", "where": "SQL condition"}
SELECTORS = {
    "drop": ROWS,
    "mask": {**ROWS, "span": "span of a row"},
    "replace": ROWS,
    "repeat": ROWS,
    "insert": {"instance": "instances", "file": "file of rows"},
    "swap": {"instance": "two instances", "step": "two steps"},
    "shuffle": {"": "all rows of the steps"},
}
MEANING = {
    "drop": "take rows out",
    "mask": "keep tokens in the context, out of the loss",
    "replace": "put other rows in their place",
    "repeat": "read rows several times",
    "insert": "add rows to each step",
    "swap": "exchange two rows, or what two steps read",
    "shuffle": "read the same rows in another order",
}
EXAMPLE = {
    "instance": "12,40",
    "document": "881",
    "tag": "source:code",
    "where": "source LIKE '%.pyc'",
    "span": "12:30-64",
    "file": "rows.jsonl",
    "step": "150",
    "": "",
}
HINT = {
    "where": "over step, epoch, position, instance, file, offset, document_id, source, tags, start, stop",
    "span": "INSTANCE:FIRST-STOP, tokens of the row",
    "step": "the other step",
    "file": 'lines of {"text": …} or {"token_ids": […]}',
}


def edit_form(take: Take) -> None:
    """Fields for one more edit; `take` gets it as `--edit` takes it, once it can be read."""
    what, which, value_place = st.columns([2, 2, 4])
    operation = what.selectbox("What", list(SELECTORS), key="new_operation")
    kinds = SELECTORS[operation]
    kind = which.selectbox("Which", list(kinds), format_func=kinds.__getitem__, key=f"new_kind_{operation}")
    if kind:
        value_place.text_input(
            kinds[kind][0].upper() + kinds[kind][1:], key="new_value", placeholder=EXAMPLE[kind], help=HINT.get(kind)
        )
    steps_place, option_place, add_place = st.columns([2, 4, 2], vertical_alignment="bottom")
    steps_place.text_input("At step, or A:B", key="new_steps", placeholder="all of the fork's")
    with option_place:
        _options(operation)
    add_place.button(
        "Add", key="new_add", on_click=_add_edit, args=(operation, kind, take), icon=":material/add:", width="stretch"
    )
    st.caption(f"{operation}: {MEANING[operation]}.")
    st.text_input(
        "Or as --edit takes it",
        key="new_text",
        placeholder="drop instance:12,40 @154",
        on_change=_add_text,
        args=(take,),
    )
    if problem := st.session_state.get("new_problem"):
        frame.failed(problem, "This edit cannot be added.")


def _options(operation: str) -> None:
    if operation in ("drop", "mask"):
        st.checkbox(
            "Divide the loss by the targets that remain",
            value=True,
            key="new_rescale",
            help="Else by as many as before, so that the other rows weigh what they weighed.",
        )
    elif operation == "replace":
        st.text_input("With", key="new_with", placeholder="instance:12,40 or rows.jsonl")
    elif operation == "repeat":
        st.number_input("Times", min_value=2, value=2, key="new_times")
    elif operation == "shuffle":
        st.number_input("Seed", min_value=0, value=0, key="new_seed")


def _add_edit(operation: str, kind: str, take: Take) -> None:
    value = str(st.session_state.get("new_value") or "").strip()
    options = {
        "rescale": "false" if operation in ("drop", "mask") and not st.session_state.get("new_rescale", True) else "",
        "with": str(st.session_state.get("new_with") or "") if operation == "replace" else "",
        "times": str(st.session_state.get("new_times", 2)) if operation == "repeat" else "",
        "seed": str(st.session_state.get("new_seed", 0)) if operation == "shuffle" else "",
    }
    if kind in ("file", "step"):
        options["with"], selector = value, None
    else:
        selector = (kind, value) if kind else None
    _add(lambda: written_edit(operation, selector, str(st.session_state.get("new_steps") or ""), options), take)


def _add_text(take: Take) -> None:
    text = " ".join(str(st.session_state.get("new_text") or "").splitlines()).strip()
    if text:
        _add(lambda: text if parsed_edits([text]) else "", take)


def _add(write: Callable[[], str], take: Take) -> None:
    try:
        text = write()
    except ForensicsError as error:
        st.session_state["new_problem"] = str(error)
        return
    st.session_state["new_problem"] = None
    for key in ("new_value", "new_steps", "new_text", "new_with"):
        if key in st.session_state:
            st.session_state[key] = ""
    take(text)
