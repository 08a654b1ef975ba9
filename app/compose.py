"""The form that a fork is written in: where it starts, its edits, its recipe. All of it stands in the link."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import forks_data, frame
from app.edit_form import edit_form
from data_index.errors import ForensicsError
from forensics.fork_list import Composition, Start, parsed_edits


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
        if not found:
            st.text("None is known of this run. Where its publisher has some, it can be added again with them:")
        st.code(frame.command("checkpoints", run) if found else frame.command("catalog"), language=None)
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


def show_edits(edits: list[str], problems: dict[int, str], *, adding: bool) -> None:
    """A field for each edit, with what is wrong with it below, and a form for one more, open where `adding`."""
    for number, edit in enumerate(edits):
        _field("edits", number, edit, edits, f"Edit {number + 1}")
        if number in problems:
            frame.failed(problems[number], f"Edit {number + 1} is not possible:")
    with st.expander("Add an edit", expanded=adding, icon=":material/add:"):
        edit_form(lambda edit: put_lines("edits", [*edits, edit]))


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
        st.session_state["new_setting"] = ""
        put_lines("set", [*kept, f"{name}={value}"])


def composed(run: str, start: int, num_steps: int, fresh: bool) -> Composition:
    """What the link says in all."""
    edits, settings = tuple(lines_of("edits")), tuple(lines_of("set"))
    return Composition(
        run=run, from_step=start, num_steps=num_steps, edits=edits, settings=settings, fresh_optimizer=fresh
    )
