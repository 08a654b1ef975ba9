"""What all pages share: which run and step is looked at (the link says it), how to get the same in a terminal, files.

Text from data is only ever shown as text: in st.code, st.text and table cells, never as Markdown or HTML.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import streamlit as st

from app import data
from data_index.errors import ForensicsError
from forensics.cli.output import printable
from forensics.figure import Figure, picture
from forensics.tables import shown_columns, table_file, table_of_any_rows
from forensics.tables import table_of_dicts as table_of_dicts

CARRIED = (
    "run",
    "step",
    "peak",
    "kind",
    "what",
    "query",
    "released",
    *("view", "compare", "start", "num_steps", "edits", "set", "fresh"),  # a fork as it is composed
)  # from page to page; the rest of a selection is its page's own
MIME_TYPES = {
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
OF_ONE_RUN = (
    *("step", "first", "last", "row", "peak", "under", "probes"),
    *("start", "num_steps", "edits", "set", "fresh"),
)
KEPT = "kept_"  # before the names of these in the session


def begin(title: str, question: str) -> None:
    """The head of a page; the question that it answers stands under its title."""
    st.title(title, anchor=False)
    st.caption(question)


def selected(name: str) -> str | None:
    """What the link says, else what was chosen on another page."""
    return st.query_params.get(name) or st.session_state.get(KEPT + name)


def select(**chosen: object) -> None:
    """Write into the link; None takes away."""
    for name, value in chosen.items():
        if value is None:
            st.query_params.pop(name, None)
            st.session_state.pop(KEPT + name, None)
        else:
            if name in CARRIED:
                st.session_state[KEPT + name] = str(value)
            if st.query_params.get(name) != str(value):
                st.query_params[name] = str(value)


def selected_all(name: str, usual: Sequence[str] = ()) -> list[str]:
    """All that the link says under one name, each once; `usual` where it does not name it."""
    if name not in st.query_params:
        return list(usual)
    return [value for value in dict.fromkeys(st.query_params.get_all(name)) if value]


def select_all(name: str, values: Sequence[object]) -> None:
    """Write several values under one name into the link; of none, that there is none."""
    wanted = [str(value) for value in values] or [""]
    if st.query_params.get_all(name) != wanted:
        st.query_params[name] = wanted


def choice(name: str, label: str, options: Sequence[str], usual: str | None = None, **more: Any) -> str:
    """One of several that stand beside each other; the link says which. `usual`: what a link without it means."""
    usual = usual or options[0]
    key = f"{name}_choice"
    asked = st.query_params.get(name, usual)
    st.session_state[key] = asked if asked in options else usual

    def take() -> None:
        value = st.session_state[key]
        select(**{name: None if value == usual else value})

    st.segmented_control(label, options, key=key, on_change=take, required=True, **more)
    return str(st.session_state[key])


def one_of(name: str, label: str, options: Sequence[str], **more: Any) -> str:
    """One of a list, the first by default; the link says which. What it says and is no option is passed over."""
    key = f"{name}_choice"
    asked = st.query_params.get(name)
    st.session_state[key] = asked if asked in options else options[0]
    st.selectbox(label, options, key=key, on_change=lambda: select(**{name: st.session_state[key]}), **more)
    return str(st.session_state[key])


def several(name: str, label: str, options: Sequence[str], usual: Sequence[str] = (), **more: Any) -> list[str]:
    """Any of several, from a list; the link says which. What it says and is no option is left out.

    `usual`: what a link without it means.
    """
    key = f"{name}_choice"
    st.session_state[key] = [value for value in selected_all(name, usual) if value in options]

    def take() -> None:
        select_all(name, st.session_state[key])

    st.multiselect(label, options, key=key, on_change=take, **more)
    return list(st.session_state[key])


def choose_run() -> str:
    """The run or fork that is looked at; the page ends here where there is none."""
    names = data.run_names()
    if not names:
        no_runs()
    asked = selected("run") or names[0]
    known = asked in names
    st.session_state["run_choice"] = asked if known else None
    st.sidebar.selectbox("Run or fork", names, index=0 if known else None, key="run_choice", on_change=_take_run)
    if not known:
        failed(
            f"no run or fork is called {asked!r} in {data.workspace().folder}", "No such run: choose one on the left."
        )
        st.stop()
    select(run=asked)
    return asked


def _take_run() -> None:
    if st.session_state["run_choice"] is not None:
        look_at(st.session_state["run_choice"])


def look_at(run: str) -> None:
    """Choose a run; what was chosen of another one means nothing of it."""
    if run != selected("run"):
        select(**dict.fromkeys(OF_ONE_RUN))
    select(run=run)


def choose_step(run: str) -> int:
    """The step that is looked at; the page ends here where the link names none that the run took."""
    first, last = data.steps_of(run)
    if last < first:
        failed(f"no step of {run} is known here; what it has: {command('show', run)}", "There is no step to show.")
        st.stop()
    asked = selected("step") or str(first)
    step = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 16 else None
    known = step is not None and first <= step <= last
    st.session_state["step_choice"] = step if known else first
    st.sidebar.number_input(
        f"Step, {first} to {last}", min_value=first, max_value=last, key="step_choice", on_change=_take_step
    )
    if not known or step is None:
        failed(f"{run} took steps {first}..{last}, not {asked[:40]}", "No such step: choose one on the left.")
        st.stop()
    select(step=step)
    return step


def _take_step() -> None:
    select(step=st.session_state["step_choice"], row=None, under=None)


def no_runs() -> None:
    """Nothing is here yet: what to do."""
    st.subheader("No runs here yet", anchor=False)
    st.text(f"The workspace {data.workspace().folder} holds no run. In a terminal:")
    st.code("forensics demo", language=None)
    st.text("trains a small run with accidents as real ones have them, in about two minutes; or register one of yours:")
    st.code("forensics catalog\nforensics add pythia-160m\nforensics add FOLDER --name NAME", language=None)
    st.text("It appears here once you look again.")
    st.button("Look again", type="primary")
    st.stop()


def failed(message: str, todo: str = "") -> None:
    """An error that is stated: what was asked, what is there, what to do."""
    st.error(todo or "This cannot be shown.", icon=":material/error:")
    st.code(message, language=None, wrap_lines=True)


@contextlib.contextmanager
def stated() -> Iterator[None]:
    """Show an error of ours in place of what it kept from being shown, and end the page."""
    try:
        yield
    except ForensicsError as error:
        failed(str(error))
        st.stop()


def command(*arguments: object) -> str:
    return shlex.join(["forensics", *map(str, arguments)])


def reproduce(commands: Sequence[str], query: str = "") -> None:
    """The box that says how to get what this page shows without it."""
    with st.expander("The same in a terminal", icon=":material/terminal:"):
        st.code("\n".join(commands), language=None, wrap_lines=True)
        if query:
            st.caption("In SQL, which `forensics.sql` takes in Python")
            st.code(query, language="sql", wrap_lines=True)


def downloads(name: str, *, table: Any = None, figure: Figure | None = None, key: str = "") -> None:
    """Buttons for the data and the picture of a view; a file is made once its button is pressed."""
    suffixes = [*([".csv", ".parquet"] if table is not None else []), *([".svg", ".png"] if figure is not None else [])]
    with st.container(horizontal=True):
        for suffix in suffixes:
            content = _content(table, figure, suffix)
            st.download_button(
                suffix.removeprefix(".").upper(),
                content,
                file_name=f"{name}{suffix}",
                mime=MIME_TYPES[suffix],
                key=f"{key or name}{suffix}",
                icon=":material/download:",
                on_click="ignore",
            )


def _content(table: Any, figure: Figure | None, suffix: str) -> Any:
    """A function that makes the file: Streamlit calls it when the button is pressed."""
    if suffix in (".csv", ".parquet"):
        return lambda: table_file(table() if callable(table) else table, suffix)
    assert figure is not None
    return lambda: picture(figure, "svg" if suffix == ".svg" else "png")


def show_table(table: Any, *, key: str, height: int | str = "auto", **columns: Any) -> None:
    """An Arrow table, or rows, as cells of numbers and text."""
    table = table_of_any_rows(table) if isinstance(table, list) else table
    shown = shown_columns(table, data.MOST_ROWS)
    st.dataframe(shown, hide_index=True, key=key, height=height, column_config=columns or None, placeholder="")  # type: ignore[arg-type]
    if table.num_rows > data.MOST_ROWS:
        st.caption(f"the first {data.MOST_ROWS:,} of {table.num_rows:,} rows; a download has all of them")


def choose_row(table: Any, *, key: str, height: Any = "auto", **columns: Any) -> int | None:
    """A table of which one row can be chosen; the row's number when that was just done."""
    shown: Any = shown_columns(table, data.MOST_ROWS)
    event: Any = st.dataframe(
        shown,
        hide_index=True,
        key=key,
        height=height,
        column_config={name: head for name, head in columns.items() if name in shown},
        placeholder="",
        on_select="rerun",
        selection_mode="single-row",
    )
    if table.num_rows > data.MOST_ROWS:
        st.caption(f"the first {data.MOST_ROWS:,} of {table.num_rows:,} rows; a download has all of them")
    rows = event["selection"]["rows"] if event else []
    return int(rows[0]) if just_changed(key, rows) and rows else None


def just_changed(key: str, chosen: object) -> bool:
    """What is chosen stays so in a table or picture; is it chosen since the page was last run?"""
    before = st.session_state.get(f"seen {key}", [])
    st.session_state[f"seen {key}"] = chosen
    return chosen != before


def facts(values: Mapping[str, object]) -> None:
    """Names and values side by side; those that are None are left out."""
    there = {name: value for name, value in values.items() if value is not None}
    with st.container(horizontal=True, gap="medium"):
        for name, value in there.items():
            with st.container(width="content", gap=None):
                st.caption(name)
                st.text(str(value))


def link(page: str, label: str, icon: str, **chosen: object) -> None:
    """A link to another page with a selection."""
    st.page_link(page, label=label, icon=icon, query_params={name: str(value) for name, value in chosen.items()})


def as_text(value: str) -> str:
    """Text from data in one line; what a screen would obey is escaped."""
    return printable(value)
