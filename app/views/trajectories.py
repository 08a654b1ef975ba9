"""Trajectories: probes over the checkpoints of runs, measured here and published, and two checkpoints side by side."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, frame, trajectory_data
from app.figures import clicked_place, show_figure
from app.jobs_panel import offer
from app.kept_comparisons import show_comparisons
from data_index.errors import ForensicsError, MissingMetric
from forensics.side_by_side_picture import figure_of_sides
from forensics.trajectory_picture import figure_of

OVER, SIDES, MISSING = "Over checkpoints", "Two side by side", "Not measured yet"
BOTH, MEASURED, PUBLISHED = "both", "measured", "published"
USUAL_PROBES = ("loss", "bits-per-byte", "norms")  # the first of these that is there is shown at first
MOST_GAPS = 200  # of a list

frame.begin("Trajectories", "How does what was measured change over training, here, and as others published it?")
names = data.run_names()
if not names:
    frame.no_runs()
version = data.version()


def choose_runs() -> list[str]:
    """Runs of the link, the first of them the one that other pages look at; the page ends where one is not here."""
    asked = frame.selected_all("runs", [frame.selected("run") or names[0]])
    unknown = [name for name in asked if name not in names]
    with st.sidebar:
        runs = frame.several("runs", "Runs and forks", names, [name for name in asked if name in names])
    if unknown:
        message = f"no run or fork is called {unknown[0]!r} in {data.workspace().folder}"
        frame.failed(message, "No such run: choose others on the left.")
        st.stop()
    if not runs:
        st.text("Choose a run on the left.")
        st.stop()
    frame.select(run=runs[0])
    return runs


def nothing_yet(runs: list[str]) -> None:
    """No run has a number: what measures one, and what takes in published ones."""
    st.subheader("Nothing is measured yet", anchor=False)
    st.text("These measure it, and take in what its publisher evaluated:")
    told = [frame.command("probe", runs[0], "loss", "norms"), frame.command("import", runs[0], "EVALUATIONS")]
    st.code("\n".join(told), language=None)


runs = choose_runs()
with frame.stated():
    there = {run: trajectory_data.probe_names(version, run) for run in runs}
known = list(dict.fromkeys(name for of_run in there.values() for name in of_run))
view = frame.choice("show", "Show", [OVER, SIDES, MISSING], label_visibility="collapsed")


def wrong_names(kind: str, options: list[str]) -> None:
    """Names of the link that are none: said, and passed over."""
    for name in frame.selected_all(kind):
        if name not in options:
            frame.failed(
                f"{name!r} is not among the {kind} of {', '.join(runs)}", f"Not among the {kind} that are kept:"
            )


def over_checkpoints() -> None:
    usual = next((name for name in USUAL_PROBES if name in known), known[0])
    wrong_names("probes", known)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        probes = frame.several("probes", "Probes", known, [usual], format_func=frame.as_text)
        x = frame.choice("x", "Against", ["steps", "tokens", "log-steps"], width="content")
        source = frame.choice("source", "From", [BOTH, MEASURED, PUBLISHED], width="content")
    if not probes:
        st.text("Choose a probe.")
        return
    with frame.stated():
        whole = trajectory_data.trajectories(version, tuple(runs), tuple(probes), (), source)
        options = list(dict.fromkeys(curve.metric for curve in whole.curves))
        wrong_names("metrics", options)
        shown = [curve.metric for curve in whole.shown_curves]
        metrics = frame.several(
            "metrics",
            f"Metrics, {len(set(shown))} of {len(options)} shown" if len(set(shown)) < len(options) else "Metrics",
            options,
            placeholder="the first ones" if whole.left_out else "all of them",
            format_func=frame.as_text,
        )
        asked: Any = (tuple(runs), tuple(probes), tuple(metrics), source)
        found = trajectory_data.trajectories(version, *asked) if metrics else whole
    draw(found, x)
    more_about(found, asked)
    name = "-".join(["trajectory", *runs])
    with frame.stated():
        figure = picture_of(found, x)
    frame.downloads(name, table=found.table, figure=figure)
    only = {BOTH: [], MEASURED: ["--measured-only"], PUBLISHED: ["--published-only"]}[source]
    chosen = [part for metric in metrics for part in ("--metric", metric)]
    against = [] if x == "steps" else ["--x", x]
    frame.reproduce(
        [frame.command("trajectory", ",".join(runs), *probes, *chosen, *against, *only)],
        f"select run, step, tokens, probe, metric, value, low, high, unit, source from probes where run in "
        f"({quoted(runs)}) and probe in ({quoted(probes)}) order by run, probe, metric, step",
    )


def quoted(values: list[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def picture_of(found: Any, x: Any) -> Any:
    """None where the axis is that of tokens, and none are known."""
    try:
        return figure_of(found, x)
    except MissingMetric:
        return None


def draw(found: Any, x: Any) -> None:
    try:
        figure = figure_of(found, x)
    except ForensicsError as error:
        frame.failed(str(error), "There is no such axis: choose steps.")
        return
    place = clicked_place(show_figure(figure, key=f"trajectory {runs} {x}", clickable=True))
    if place is None:
        return
    run, step = place
    with st.container(horizontal=True):
        st.text(f"Checkpoint {step:,} of {run}:")
        frame.link("views/run.py", "See it on the run", ":material/show_chart:", run=run, step=step)
        if step >= 1:
            frame.link("views/step.py", f"Read step {step:,}", ":material/article:", run=run, step=step)
        frame.link("views/tokens.py", "Its tokens", ":material/abc:", run=run, checkpoint=step)


def more_about(found: Any, asked: Any) -> None:
    """What is not there, where curves break and cross, and the numbers."""
    for message in found.messages:
        if message not in found.left_out:
            st.text(frame.as_text(message))
    asking = frame.several(
        "more", "Also", ["breaks", "crossings", "gaps", "numbers"], placeholder="breaks, crossings …"
    )
    if "breaks" in asking:
        st.subheader("Breaks", anchor=False, divider="grey")
        st.caption("Where the slope over the logarithm of the step changes, with the 95 % interval of the change.")
        table(trajectory_data.changes(version, found, asked, "breaks"), "breaks", "No curve breaks.")
    if "crossings" in asking:
        st.subheader("Crossings", anchor=False, divider="grey")
        st.caption("Where the curves of each two runs cross for the last time, and whether that is sure.")
        empty = "No two runs have a metric in common." if len(runs) > 1 else "Curves cross where there are two runs."
        table(trajectory_data.changes(version, found, asked, "crossings"), "crossings", empty)
    if "gaps" in asking:
        st.subheader("Gaps", anchor=False, divider="grey")
        gaps = [dict(row) for row in found.gaps]
        table(gaps[:MOST_GAPS], "gaps", "Every checkpoint has every value.")
        if len(gaps) > MOST_GAPS:
            st.caption(f"the first {MOST_GAPS} of {len(gaps):,}")
    if "numbers" in asking:
        st.subheader("Numbers", anchor=False, divider="grey")
        frame.show_table(found.table(), key="numbers_table", height=360)


def table(rows: list[dict[str, Any]], key: str, empty: str) -> None:
    if rows:
        frame.show_table(rows, key=f"{key}_table")
        frame.downloads(f"{key}-{'-'.join(runs)}", table=frame.table_of_dicts(rows))
    else:
        st.text(empty)


# --- two checkpoints -------------------------------------------------------------------------------------------------


def side_by_side() -> None:
    show_comparisons(runs[0])
    if not known:
        nothing_yet(runs)
        return
    places = [f"{run}@{step}" for run in names for step in steps_of(run)]
    mine = [place for place in places if place.rpartition("@")[0] == runs[0]]
    others = [place for place in places if len(runs) > 1 and place.rpartition("@")[0] == runs[1]]
    if not mine:
        st.text(f"Nothing was measured here of {runs[0]}.")
        st.code(frame.command("probe", runs[0], "loss", "norms", "--against", "OTHER"), language=None)
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        one = place_of("one", "This checkpoint", places, mine[-1] if others else mine[0])
        other = place_of("other", "beside this one", places, others[-1] if others else mine[-1])
    with frame.stated():
        probes = sorted({row["probe"] for row in trajectory_data.sides(version, one, other, ()).rows})
    chosen = frame.several("probes", "Probes", probes, [name for name in USUAL_PROBES if name in probes])
    with frame.stated():
        found = trajectory_data.sides(version, one, other, tuple(chosen))
    for message in found.messages:
        st.text(frame.as_text(message))
    command = frame.command(
        "probe", one[0], *(chosen or ["loss", "norms"]), "--checkpoints", one[1], "--against", f"{other[0]}@{other[1]}"
    )
    if not found.rows:
        st.subheader("No number is kept of both", anchor=False)
        st.text("This measures both on the same rows (it also takes a model's folder, or owner/name of the hub):")
        st.code(command, language=None, wrap_lines=True)
        return
    figure = None
    try:
        figure = figure_of_sides(found)
        show_figure(figure, key=f"sides {one} {other}")
    except MissingMetric as error:
        st.text(frame.as_text(str(error)))
    said = [name for name in found.rows[0] if any(row[name] is not None for row in found.rows)]
    rows = frame.table_of_dicts([{name: row[name] for name in said} for row in found.rows])
    frame.show_table(rows, key="sides_table", height=300)
    frame.downloads(f"{one[0]}-{one[1]}-{other[0]}-{other[1]}", table=rows, figure=figure)
    frame.reproduce([command])


def steps_of(run: str) -> list[int]:
    """None of a run that cannot be read: the page of runs says why."""
    try:
        return trajectory_data.measured_steps(version, run)
    except ForensicsError:
        return []


def place_of(name: str, label: str, places: list[str], usual: str) -> tuple[str, int]:
    """A run and one of its checkpoints; the link says which."""
    asked = st.query_params.get(name)
    if asked is not None and asked not in places:
        frame.failed(f"nothing was measured here of {asked[:80]!r}", "No number is kept of this checkpoint:")
    key = f"{name}_choice"
    st.session_state[key] = asked if asked in places else usual
    st.selectbox(label, places, key=key, on_change=lambda: frame.select(**{name: st.session_state[key]}))
    run, _, step = str(st.session_state[key]).rpartition("@")
    return run, int(step)


# --- what is not measured --------------------------------------------------------------------------------------------


def not_measured() -> None:
    for run in runs:
        st.subheader(run, anchor=False, divider="grey")
        with frame.stated():
            kept, missing = trajectory_data.summaries(version, run), trajectory_data.unmeasured(version, run)
        if missing:
            frame.show_table(missing, key=f"missing {run}", command=st.column_config.TextColumn(width="large"))
            told = [row["probe"] for row in missing]
            st.code(frame.command("probe", run, *told, "--plan"), language=None, wrap_lines=True)
            chosen = st.multiselect("Measure", told, key=f"measure {run}", placeholder="choose probes to measure here")
            if chosen:
                offer("probe", run, *chosen)
        else:
            st.text("Every probe that has a name was measured.")
        st.caption("What is kept")
        frame.show_table(kept, key=f"kept {run}")
    st.caption("Benchmarks, and functions of your own:")
    st.code(
        frame.command("probe", runs[0], "task:NAME") + "\n" + frame.command("probe", runs[0], "module:function"),
        language=None,
    )
    frame.reproduce([frame.command("probes"), *(frame.command("probes", run) for run in runs)])


if view == MISSING:
    not_measured()
elif view == SIDES:
    side_by_side()
elif not known:
    nothing_yet(runs)
else:
    over_checkpoints()
