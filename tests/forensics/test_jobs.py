"""Jobs: command lines that run on their own; whatever ends them, their state says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_index.errors import Busy, CorruptFile, DiskFull, RefusedJob, UnknownJob
from data_index.files import read_json, write_json
from data_index.workspace import Workspace
from forensics import background_jobs
from forensics.background_jobs import Job, cancel_job, command_of, job, jobs, progress_of_job, start_job
from forensics.job_log import log_text, progress_of_fork
from forensics.processes import identity_of_process

SECONDS = 60.0
# Stands in for a verb that takes long; it answers Ctrl-C as our command line does.
SLEEPER = """
import sys, time
print("begun", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("caught", flush=True)
    {answer}
"""


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def ended(name: str, workspace: Workspace) -> Job:
    until(lambda: job(name, workspace=workspace).state != "running")
    return job(name, workspace=workspace)


@pytest.fixture
def sleeping(workspace: Workspace) -> Iterator[Callable[..., Job]]:
    """Records a process of ours as a job, without a command line that would have to import everything."""
    processes = []

    def start(answer: str = "sys.exit(130)", name: str = "20260101-000000-0001") -> Job:
        folder = workspace.folder / "jobs" / name
        folder.mkdir(parents=True)
        log = (folder / "output.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-c", SLEEPER.format(answer=answer)], stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        processes.append(process)
        record = {"arguments": ["audit", "tiny"], "started": time.time(), "pid": process.pid, "fork": None}
        write_json(folder / "job.json", record | {"process": identity_of_process(process.pid)})
        until(lambda: (folder / "output.log").read_text() == "begun\n")
        return job(name, workspace=workspace)

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_job_runs_to_its_end_and_keeps_what_it_printed(tiny: Workspace) -> None:
    """The whole way: a session of its own, the workspace that it was started in, both streams, the exit code."""
    started = start_job(["spikes", "tiny"], workspace=tiny)
    found = ended(started.id, tiny)

    assert (found.state, found.exit_code) == ("done", 0), found.log
    assert os.getsid(os.getpid()) != started.pid and found.log.startswith("$ forensics spikes tiny\n")
    assert "no spike: no value" in found.log and (tiny.folder / "findings" / "spikes-tiny.png").exists()
    assert found.seconds is not None and found.seconds > 0
    assert [other.id for other in jobs(workspace=tiny)] == [started.id]


def test_a_job_that_fails_says_what_it_printed(workspace: Workspace) -> None:
    started = start_job(["audit", "$(touch nowhere)"], workspace=workspace)
    assert started.state == "running"
    with pytest.raises(Busy, match=f"job {started.id} runs this very command already"):
        start_job(["audit", "$(touch nowhere)"], workspace=workspace)
    found = ended(started.id, workspace)

    assert (found.state, found.exit_code) == ("failed", 1)
    assert "cannot name a run" in found.log and "cannot name a run" in progress_of_job(found, workspace=workspace).text
    assert not Path("nowhere").exists()


def test_cancelling_does_what_ctrl_c_does_and_then_more(sleeping: Callable[..., Job], workspace: Workspace) -> None:
    listens = sleeping()
    found = cancel_job(listens.id, workspace=workspace)
    assert found.state == "cancelled" and "caught" in found.log
    deaf = sleeping("time.sleep(60)", "20260101-000000-0002")
    found = cancel_job(deaf.id, grace_seconds=0.2, workspace=workspace)

    assert found.state == "cancelled" and "caught" in found.log and identity_of_process(deaf.pid) is None
    assert cancel_job(deaf.id, workspace=workspace) == found  # again changes nothing


def test_a_cancelled_job_of_ours_is_interrupted_and_says_how_it_goes_on(tiny: Workspace) -> None:
    started = start_job(["spikes", "tiny"], workspace=tiny)
    until(lambda: "$ forensics" in started.log)
    found = cancel_job(started.id, workspace=tiny)

    assert found.state == "cancelled" and found.exit_code == 130, found.log
    start_again = start_job(["spikes", "tiny"], workspace=tiny)  # it runs no more, so it may
    assert ended(start_again.id, tiny).state == "done"


def test_a_killed_job_is_lost_and_its_number_is_not_believed(
    sleeping: Callable[..., Job], workspace: Workspace
) -> None:
    killed = sleeping()
    os.kill(killed.pid, signal.SIGKILL)
    assert ended(killed.id, workspace).state == "lost"
    # Another process has its number now: this one.
    path = killed.folder / "job.json"
    write_json(path, read_json(path) | {"pid": os.getpid()})

    assert job(killed.id, workspace=workspace).state == "lost"
    assert cancel_job(killed.id, workspace=workspace).state == "lost"  # and is left alone
    assert identity_of_process(os.getpid()) is not None


def test_a_job_that_ended_is_believed_whoever_has_its_number(workspace: Workspace) -> None:
    folder = workspace.folder / "jobs" / "20260101-000000-0001"
    record = {"arguments": ["audit", "tiny"], "started": 5.0, "pid": os.getpid(), "fork": None}
    write_json(folder / "job.json", record | {"process": identity_of_process(os.getpid())})
    states = {}
    for code in (0, 1, 2, 130):
        write_json(folder / "ended.json", {"exit_code": code, "ended": 8.0})
        states[code] = job(folder.name, workspace=workspace).state

    assert states == {0: "done", 1: "failed", 2: "failed", 130: "cancelled"}
    assert job(folder.name, workspace=workspace).seconds == 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["remove", "tiny", "--yes"], "'remove' does not run as a job; these do: add,"),
        (["sql", "select 1"], "'sql' does not run"),
        ([], "'nothing' does not run"),
        (["audit", "a\0b"], "zero byte"),
        (["audit", "tiny", "--workspace", "/"], "leave --workspace out"),
    ],
)
def test_only_verbs_that_compute_run_as_jobs(workspace: Workspace, arguments: list[str], message: str) -> None:
    with pytest.raises(RefusedJob, match=message):
        start_job(arguments, workspace=workspace)
    assert not (workspace.folder / "jobs").exists()


def test_a_full_disk_starts_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def full(path: Path, value: object) -> None:
        started.append(value["pid"])  # type: ignore[index]
        raise DiskFull("no space")

    workspace.create()
    monkeypatch.setattr(background_jobs, "write_json", full)
    with pytest.raises(DiskFull):
        start_job(["audit", "tiny"], workspace=workspace)

    until(lambda: identity_of_process(started[0]) is None)
    assert [path.name for path in (workspace.folder / "jobs").iterdir()] == [".lock"]


def test_jobs_that_are_not_there_or_damaged_are_said(workspace: Workspace) -> None:
    for name in ("../../etc", "20260101-000000-0001", ""):
        with pytest.raises(UnknownJob, match="forensics jobs"):
            job(name, workspace=workspace)
    write_json(workspace.folder / "jobs" / "20260101-000000-0001" / "job.json", {"arguments": []})
    with pytest.raises(CorruptFile, match="lacks or misstates"):
        job("20260101-000000-0001", workspace=workspace)
    assert jobs(workspace=workspace) == []


def test_a_command_can_be_copied_and_holds_nothing_that_a_screen_obeys() -> None:
    words = ["probe", "a b's", "where:\"x = 'y'\"", "$HOME", "\x1b[31m\u202e'\\\u00a0\n", "é"]
    command = command_of(words)
    said = subprocess.run(
        ["bash", "-c", f"forensics() {{ printf '%s\\0' \"$@\"; }}; {command}"],
        capture_output=True,
        env={"LC_ALL": "C.UTF-8"},
    )

    assert command.isprintable() and said.stdout.decode().split("\0")[:-1] == words


def test_of_a_log_the_last_state_of_each_line_is_shown_as_text(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"1 of 9\r\x1b[K2 of 9\r\x1b[K3 of 9\n\x1b[31mred\x1b[0m <b>\x07\r\n\xffhalf\n")

    assert log_text(log) == "3 of 9\nred <b>\\x07\n\ufffdhalf"
    log.write_text("".join(f"line {n}\n" for n in range(1000)))
    assert log_text(log, 30).endswith("line 998\nline 999") and str(log) in log_text(log, 30)
    assert log_text(tmp_path / "none") == ""


def test_a_fork_is_followed_by_what_it_says_of_each_step(tiny: Workspace) -> None:
    home = tiny.folder / "forks" / "abc"
    assert progress_of_fork(tiny, "abc") is None
    shutil.copytree(tiny.home("tiny"), home)
    rows = [{"step": step, "loss": 6.0 - step, "time": 100.0 + 2 * step} for step in (3, 1, 2, 3)]
    (home / "progress.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    found = progress_of_fork(tiny, "abc")

    assert found is not None and (found.done, found.total, found.loss) == (3, 20, 3.0)
    assert found.seconds_left == pytest.approx(17 * 2)
    assert progress_of_fork(tiny, "abc", since=200.0) is None  # nothing since it was started again
    earlier = progress_of_fork(tiny, "abc", since=100.0, until=103.0)
    assert earlier is not None and earlier.done == 1
