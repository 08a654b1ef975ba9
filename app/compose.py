"""The form that a fork is written in: where it starts, its edits, its recipe. All of it stands in the link."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import forks_data, frame
from data_index.errors import ForensicsError
from forensics.fork_list import Composition, Start, parsed_edits, written_edit

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


def is_number(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) < 16


def lines_of(name: str) -> list[str]:
    return [line for line in (frame.selected(name) or "").splitlines() if line.strip()]


def put_lines(name: str, lines: list[str]) -> None:
    frame.select(**{name: "\n".join(line for line in lines if line.strip()) or None})


def show_value(key: str, value: Any) -> None:
    """Let a field show what the link says, and leave alone what is being typed where that is the same."""
    if st.session_state.get(key) != value:
        st.session_state[key] = value


# --- where it starts, and how far it goes ----------------------------------------------------------------------------


def choose_start(run: str, last_step: int) -> tuple[int, int, bool] | None:
    """Checkpoint, number of steps, and whether the optimizer starts at zero; None: the link says what cannot be."""
    fresh = frame.selected("fresh") == "1"
    found = forks_data.starts(forks_data.version_of(run), run, fresh)
    usable = [start.step for start in found if not start.obstacle]
    where, length, other = st.columns([2, 2, 3], vertical_alignment="bottom")
    if any(not start.has_optimizer for start in found):
        show_value("compose_fresh", fresh)
        other.checkbox(
            "Let the optimizer start at zero",
            key="compose_fresh",
            on_change=_take_fresh,
            help="Where a checkpoint lacks what the optimizer remembers. Its steps then differ from the parent's.",
        )
    if not usable:
        st.subheader("No checkpoint to start at", anchor=False)
        _obstacles(found)
        st.code(frame.command("checkpoints", run), language=None)
        return None
    asked = frame.selected("start") or str(usable[-1] if len(usable) == 1 else usable[len(usable) // 2])
    start = int(asked) if is_number(asked) else None
    known = start in usable
    show_value("compose_start", start if known else None)
    where.selectbox(
        "Start at checkpoint", usable, index=None, key="compose_start", on_change=_take_start, placeholder="choose one"
    )
    most = last_step - start if known and start is not None else 1
    steps = frame.selected("num_steps") or str(min(20, most))
    fits = is_number(steps) and 1 <= int(steps) <= most
    show_value("compose_steps", int(steps) if fits else min(20, most))
    length.number_input(
        f"Steps to take, at most {most:,}", min_value=1, max_value=most, key="compose_steps", on_change=_take_steps
    )
    _obstacles(found)
    if start is None or not known:
        frame.failed(f"a fork of {run} cannot start at {asked[:40]!r}", "No such start: choose a checkpoint above.")
        return None
    if not fits:
        frame.failed(
            f"{run} is known up to step {last_step}: from checkpoint {start} a fork takes 1 to {most} steps, not "
            f"{steps[:40]}",
            "So many steps cannot be taken: choose a number above.",
        )
        return None
    return start, int(steps), fresh


def _take_start() -> None:
    if st.session_state["compose_start"] is not None:
        frame.select(start=st.session_state["compose_start"], num_steps=None)


def _take_steps() -> None:
    frame.select(num_steps=st.session_state["compose_steps"])


def _take_fresh() -> None:
    frame.select(fresh="1" if st.session_state["compose_fresh"] else None)


def _obstacles(found: list[Start]) -> None:
    rows = [{"checkpoint": start.step, "why not": start.obstacle} for start in found if start.obstacle]
    if rows:
        with st.expander(f"{len(rows)} of {len(found)} checkpoints cannot be started at"):
            frame.show_table(rows, key="obstacles_table")


# --- edits -----------------------------------------------------------------------------------------------------------


def problems_of(edits: list[str]) -> dict[int, str]:
    """What cannot be read of each edit, by its number."""
    found = {}
    for number, edit in enumerate(edits):
        try:
            parsed_edits([edit])
        except ForensicsError as error:
            found[number] = str(error)
    return found


def show_edits(edits: list[str], problems: dict[int, str]) -> None:
    """A field for each edit, with what is wrong with it below, and a form for one more."""
    for number, edit in enumerate(edits):
        _field("edits", number, edit, edits, f"Edit {number + 1}")
        if number in problems:
            frame.failed(problems[number], f"Edit {number + 1} is not possible:")
    with st.expander("Add an edit", expanded=not edits, icon=":material/add:"):
        _edit_form(edits)


def _field(name: str, number: int, text: str, all_lines: list[str], label: str) -> None:
    key = f"compose_{name}_{number}"
    show_value(key, text)

    def take() -> None:
        changed = " ".join(st.session_state[key].splitlines())
        put_lines(name, [*all_lines[:number], changed, *all_lines[number + 1 :]])

    def remove() -> None:
        put_lines(name, [*all_lines[:number], *all_lines[number + 1 :]])

    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(label, key=key, on_change=take)
        st.button("Remove", key=f"{key}_remove", on_click=remove, icon=":material/close:")


def _edit_form(edits: list[str]) -> None:
    what, which, value_place = st.columns([2, 2, 4])
    operation = what.selectbox("What", list(SELECTORS), key="new_operation")
    kinds = SELECTORS[operation]
    kind = which.selectbox("Which", list(kinds), format_func=kinds.__getitem__, key=f"new_kind_{operation}")
    if kind:
        value_place.text_input(
            kinds[kind].capitalize(), key="new_value", placeholder=EXAMPLE[kind], help=HINT.get(kind)
        )
    steps_place, option_place, add_place = st.columns([2, 4, 2], vertical_alignment="bottom")
    steps_place.text_input("At step, or A:B", key="new_steps", placeholder="all of the fork's")
    with option_place:
        _options(operation)
    add_place.button(
        "Add", key="new_add", on_click=_add_edit, args=(operation, kind, edits), icon=":material/add:", width="stretch"
    )
    st.caption(f"{operation}: {MEANING[operation]}.")
    st.text_input(
        "Or as --edit takes it",
        key="new_text",
        placeholder="drop instance:12,40 @154",
        on_change=_add_text,
        args=(edits,),
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


def _add_edit(operation: str, kind: str, edits: list[str]) -> None:
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
    _add(lambda: written_edit(operation, selector, str(st.session_state.get("new_steps") or ""), options), edits)


def _add_text(edits: list[str]) -> None:
    text = " ".join(str(st.session_state.get("new_text") or "").splitlines()).strip()
    if text:
        _add(lambda: parsed_edits([text]) and text, edits)


def _add(write: Any, edits: list[str]) -> None:
    try:
        text = write()
    except ForensicsError as error:
        st.session_state["new_problem"] = str(error)
        return
    st.session_state["new_problem"] = None
    for key in ("new_value", "new_steps", "new_text", "new_with"):
        st.session_state.pop(key, None)
    put_lines("edits", [*edits, text])


# --- the recipe ------------------------------------------------------------------------------------------------------


def show_settings(run: str, settings: list[str]) -> None:
    for number, setting in enumerate(settings):
        _field("set", number, setting, settings, "Recipe")
    try:
        fields = forks_data.recipe_fields(forks_data.version_of(run), run)
    except ForensicsError:  # the preview says what is wrong with it
        fields = {}
    with st.expander("Change the recipe", icon=":material/tune:"):
        name_place, value_place, add_place = st.columns([4, 3, 2], vertical_alignment="bottom")
        name = name_place.selectbox(
            "Field",
            list(fields),
            index=None,
            key="new_field",
            placeholder="such as recipe.learning_rate",
            format_func=lambda field: f"{field} = {frame.as_text(str(fields.get(field)))[:40]}",
        )
        value_place.text_input("Value", key="new_setting", placeholder="as in TOML: 1e-3, true, [0.9, 0.95]")
        add_place.button(
            "Set",
            on_click=_add_setting,
            args=(name, settings),
            disabled=name is None,
            icon=":material/add:",
            width="stretch",
        )


def _add_setting(name: str | None, settings: list[str]) -> None:
    value = " ".join(str(st.session_state.get("new_setting") or "").splitlines()).strip()
    if name and value:
        kept = [setting for setting in settings if setting.partition("=")[0] != name]
        st.session_state.pop("new_setting", None)
        put_lines("set", [*kept, f"{name}={value}"])


def composed(run: str, start: int, num_steps: int, fresh: bool) -> Composition:
    """What the link says in all."""
    edits, settings = tuple(lines_of("edits")), tuple(lines_of("set"))
    return Composition(
        run=run, from_step=start, num_steps=num_steps, edits=edits, settings=settings, fresh_optimizer=fresh
    )
