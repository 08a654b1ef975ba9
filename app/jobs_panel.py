"""Commands that run on their own: how one is started, how far it is, what it printed, and how it is ended.

Jobs are asked anew each time: they are small files, and change while one looks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import data, frame
from data_index.errors import ForensicsError
from forensics.background_jobs import Job, cancel_job, command_of, jobs, progress_of_job, start_job

SECONDS_BETWEEN_LOOKS = 2.0
MOST_JOBS = 50
ENDED = {
    "done": "It is done.",
    "failed": "It failed with exit code {code}; what it printed says why.",
    "cancelled": "It was cancelled; the same command goes on from what it saved.",
    "lost": "It vanished without a word: killed, or its machine was restarted. What it saved is whole, and the same "
    "command goes on from there.",
}


def offer(*words: object) -> None:
    """A command that answers what the page asks, to be copied, or started here."""
    arguments = tuple(map(str, words))
    st.code(command_of(arguments), language=None, wrap_lines=True)
    if data.shared():
        return
    before = next((job for job in _all_jobs() if job.arguments == arguments), None)
    if before is not None and before.state == "running":
        st.fragment(_look_again, run_every=SECONDS_BETWEEN_LOOKS)([before.id], data.version(), only=before.id)
        return
    start_button("Start it", arguments)
    if problem := st.session_state.get("job_problem"):
        frame.failed(problem, "This could not be done.")
    if before is not None:
        st.text(ENDED[before.state].format(code=before.exit_code))
        with st.expander("What it printed"):
            st.code(before.log or "It printed nothing.", language=None, wrap_lines=True, height=220)


def start_button(label: str, arguments: Sequence[str], *, fork: str | None = None, **looks: Any) -> None:
    """Nothing is started where others look."""
    assert not data.shared()
    st.button(
        label,
        key=f"start {command_of(arguments)}",
        icon=":material/play_arrow:",
        on_click=_start,
        args=(arguments, fork),
        help="It runs on its own, also when this page or the explorer is closed. The page of forks lists all jobs.",
        **looks,
    )


def _start(arguments: Sequence[str], fork: str | None) -> None:
    st.session_state["job_problem"] = None
    try:
        start_job(arguments, fork=fork, workspace=data.workspace())
    except ForensicsError as error:
        st.session_state["job_problem"] = str(error)


def running_job(arguments: Sequence[str]) -> Job | None:
    """The job that runs this very command."""
    return next((j for j in _all_jobs() if j.state == "running" and j.arguments == tuple(arguments)), None)


def _all_jobs() -> list[Job]:
    return jobs(workspace=data.workspace())


def show_running(at: data.Version, *, watched: bool = False) -> None:
    """What runs now.

    Args:
        at: what the rest of the page shows.
        watched: something besides a job writes what this page shows, so that it looks again as well.
    """
    running = [job.id for job in _all_jobs() if job.state == "running"]
    if problem := st.session_state.get("job_problem"):
        frame.failed(problem, "This could not be done.")
    if running or watched:
        st.fragment(_look_again, run_every=SECONDS_BETWEEN_LOOKS)(running, at)


def _look_again(running: list[str], at: data.Version, only: str | None = None) -> None:
    found = [job for job in _all_jobs() if job.state == "running" and only in (None, job.id)]
    if [job.id for job in found] != running or data.version() != at:
        st.rerun()  # the rest of the page shows what is new
    for job in found:
        if only is None:
            st.code(job.command, language=None, wrap_lines=True)
        _running(job)


def _running(job: Job) -> None:
    with st.container(border=True):
        progress = progress_of_job(job, workspace=data.workspace())
        share = progress.done / progress.total if progress.done is not None and progress.total else 0.0
        st.progress(min(max(share, 0.0), 1.0))
        told = [frame.as_text(progress.text) or "starting …"]
        told += [f"loss {progress.loss:.4f}"] if progress.loss is not None else []
        told += [f"{progress.seconds_left:,.0f} s left"] if progress.seconds_left is not None else []
        told += [f"running for {job.seconds or 0:,.0f} s"]
        with st.container(horizontal=True, vertical_alignment="center"):
            st.text(" · ".join(told))
            if data.shared():
                st.text("Who looks from another machine cannot cancel it.")
            else:
                st.button(
                    "Cancel", key=f"cancel {job.id}", on_click=_cancel, args=(job.id,), icon=":material/stop_circle:"
                )
        with st.expander("What it printed"):
            st.code(job.log or "nothing yet", language=None, wrap_lines=True, height=220)


def _cancel(name: str) -> None:
    assert not data.shared()
    st.session_state["job_problem"] = None
    try:
        with st.spinner("Ending it …"):
            cancel_job(name, workspace=data.workspace())
    except ForensicsError as error:
        st.session_state["job_problem"] = str(error)


def show_over() -> None:
    """Jobs that ended, and what one of them printed."""
    over = [job for job in _all_jobs() if job.state != "running"][:MOST_JOBS]
    if not over:
        return
    st.subheader("Jobs that ended", anchor=False, divider="grey")
    rows = [
        {
            "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started)),
            "state": job.state,
            "seconds": None if job.seconds is None else round(job.seconds, 1),
            "command": frame.as_text(job.command),
        }
        for job in over
    ]
    chosen = st.dataframe(
        rows,
        hide_index=True,
        key="jobs_table",
        on_select="rerun",
        selection_mode="single-row",
        height=min(38 + 35 * len(rows), 220),
        placeholder="",
        column_config={"command": st.column_config.TextColumn(width="large")},
    )
    picked = chosen["selection"]["rows"] if chosen else []
    job = over[picked[0]] if picked else next((j for j in over[:1] if j.state != "done"), None)
    if job is None:
        st.caption("Choose a row to see what it printed.")
        return
    _told(job)


def _told(job: Job) -> None:
    st.text(ENDED[job.state].format(code=job.exit_code))
    if job.fork is not None and job.state == "done":
        frame.link(
            "views/forks.py",
            "Compare it with its parent",
            ":material/compare_arrows:",
            compare=job.fork,
            view="compare",
        )
    st.code(job.log or "It printed nothing.", language=None, wrap_lines=True, height=220)
