"""Jobs: command lines of ours that run on their own, so that they outlive the page that started them, and the explorer.

    jobs/<id>/job.json       arguments, where they were given, process and when that started; written once
              output.log     what it printed, both streams
              cancel.json    that it was asked to end
              ended.json     its exit code; written by the job itself, last

A job is nothing but its command: cancelled, it leaves what Ctrl-C leaves, and the same command goes on from there.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_index.errors import Busy, CorruptFile, ForensicsError, RefusedJob, UnknownJob
from data_index.files import disk_errors, exclusive_lock, open_log, read_json_object, remove_folder, write_json
from data_index.workspace import Workspace
from forensics.job_log import Progress, last_words, log_text, progress_of_fork
from forensics.processes import end_session, identity_of_process, runs_still
from replay.intervention import shell_word

ALLOWED_VERBS = ("add", "audit", "blame", "compare", "demo", "fork", "probe", "replay", "spikes", "tokens")
INTERRUPTED = 130  # what the command line answers to Ctrl-C
GRACE_SECONDS = 15.0  # for each signal; a step of a large model on a CPU is not interrupted in its middle
COMMAND_MARK = "$ "  # a log begins with its command
State = Literal["running", "done", "failed", "cancelled", "lost"]
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command line, started or over.

    Attributes:
        arguments: after `forensics`.
        state: done: exit code 0. failed: any other. cancelled: by Ctrl-C or `cancel_job`. lost: it vanished without
            a word, killed or with its machine.
        started, ended: seconds since 1970; None: not, or it is not known when.
        fork: the fork that it makes, if any.
    """

    id: str
    folder: Path
    arguments: tuple[str, ...]
    state: State
    pid: int
    started: float
    ended: float | None = None
    exit_code: int | None = None
    fork: str | None = None

    @property
    def command(self) -> str:
        return command_of(self.arguments)

    @property
    def log(self) -> str:
        """What it printed, as text that no screen obeys."""
        return log_text(self.folder / "output.log")

    @property
    def seconds(self) -> float | None:
        end = time.time() if self.state == "running" else self.ended
        return None if end is None else max(end - self.started, 0.0)


def command_of(arguments: Sequence[str]) -> str:
    """As a shell takes it, in characters that a screen shows.

    Source: bash(1), QUOTING: $'…' stands for characters by their codes.
    """
    return " ".join(_shown_word(word) for word in ["forensics", *arguments])


def _shown_word(text: str) -> str:
    if text.isprintable():
        return shell_word(text)
    codes = (f"\\U{ord(c):08x}" if not c.isprintable() else f"\\{c}" if c in "\\'" else c for c in text)
    return f"$'{''.join(codes)}'"


def jobs(*, workspace: Workspace | None = None) -> list[Job]:
    """All jobs of a workspace, the latest first; those whose record is damaged are left out."""
    workspace = workspace or Workspace()
    found = []
    for path in sorted((workspace.folder / "jobs").glob("*/job.json"), reverse=True):
        try:
            found.append(job(path.parent.name, workspace=workspace))
        except ForensicsError:
            continue
    return found


def job(name: str, *, workspace: Workspace | None = None) -> Job:
    """
    Raises:
        UnknownJob, CorruptFile
    """
    workspace = workspace or Workspace()
    folder = workspace.folder / "jobs" / name
    if not _ID.match(name) or not (folder / "job.json").is_file():
        raise UnknownJob(f"{workspace.folder} has no job {name!r}; list them: forensics jobs")
    record = read_json_object(folder / "job.json")
    try:
        pid, identity = int(record["pid"]), str(record["process"])
        state, ended = _state(folder, pid, identity)
        return Job(
            id=name,
            folder=folder,
            arguments=tuple(map(str, record["arguments"])),
            state=state,
            pid=pid,
            started=float(record["started"]),
            ended=ended.get("ended"),
            exit_code=ended.get("exit_code"),
            fork=record.get("fork"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{folder}/job.json lacks or misstates {error}") from error


def _state(folder: Path, pid: int, identity: str) -> tuple[State, dict[str, Any]]:
    # Looked for in this order: it may end in between.
    running = runs_still(pid, identity)
    asked = (folder / "cancel.json").exists()
    if (folder / "ended.json").exists():
        ended = read_json_object(folder / "ended.json")
        code = ended["exit_code"]
        return ("done" if code == 0 else "cancelled" if asked or code == INTERRUPTED else "failed"), ended
    return ("running" if running else "cancelled" if asked else "lost"), {}


def start_job(arguments: Sequence[str], *, fork: str | None = None, workspace: Workspace | None = None) -> Job:
    """Start `forensics ARGUMENTS` on its own, in this process's folder.

    Args:
        arguments: the verb first; never read by a shell.
        fork: id of the fork that it makes or goes on with, so that it can be followed.
    Raises:
        RefusedJob: no verb that runs as a job.
        Busy: the same command runs already.
        DiskFull, NotWritable
    """
    workspace = workspace or Workspace()
    given = [str(argument) for argument in arguments]
    _require_allowed(given)
    workspace.create()
    with exclusive_lock(workspace.folder / "jobs" / ".lock", "starting a job"):
        for other in jobs(workspace=workspace):
            if other.state == "running" and list(other.arguments) == given:
                raise Busy(f"job {other.id} runs this very command already (forensics jobs {other.id} --log)")
        return _start(workspace, given, fork)


def _require_allowed(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] not in ALLOWED_VERBS:
        verb = arguments[0] if arguments else "nothing"
        raise RefusedJob(f"{verb[:40]!r} does not run as a job; these do: {', '.join(ALLOWED_VERBS)}")
    if any("\0" in argument for argument in arguments):
        raise RefusedJob("an argument holds a zero byte, which no command line can")
    if any(a == "--workspace" or a.startswith("--workspace=") for a in arguments):
        raise RefusedJob("a job works in the workspace that it is started in: leave --workspace out")


def _start(workspace: Workspace, arguments: list[str], fork: str | None) -> Job:
    now = time.time()
    name = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)) + f"-{secrets.token_hex(2)}"
    folder = workspace.folder / "jobs" / name
    try:
        process = _spawn(workspace, folder)
        record = {
            "arguments": arguments,
            "command": command_of(arguments),
            "folder": os.getcwd(),
            "started": now,
            "fork": fork,
            "pid": process.pid,
            "process": identity_of_process(process.pid) or "ended at once",
        }
        try:
            write_json(folder / "job.json", record)
        except BaseException:
            process.kill()
            raise
        finally:
            # Somebody has to ask a process how it ended, or it stays; nobody waits for this thread.
            threading.Thread(target=process.wait, daemon=True).start()
    except BaseException:
        if folder.exists():
            remove_folder(folder)
        raise
    return job(name, workspace=workspace)


def _spawn(workspace: Workspace, folder: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "FORENSICS_SHARED"}
    environment |= {"FORENSICS_WORKSPACE": str(workspace.folder), "PYTHONUNBUFFERED": "1"}
    # Not to import what lies in the current folder: -P. A session of its own: closing the explorer's window ends it
    # not, and cancelling reaches all that it starts.
    command = [sys.executable, "-P", "-m", "forensics.job_process", str(folder)]
    with open_log(folder / "output.log") as log, disk_errors(folder):
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def cancel_job(name: str, *, grace_seconds: float = GRACE_SECONDS, workspace: Workspace | None = None) -> Job:
    """End a job as Ctrl-C would; what does not listen is ended more firmly. One that is over stays as it is.

    Raises:
        UnknownJob, CorruptFile, DiskFull, NotWritable
        Busy: it could not be ended.
    """
    workspace = workspace or Workspace()
    there = job(name, workspace=workspace)
    if there.state != "running":
        return there
    write_json(there.folder / "cancel.json", {"asked": time.time()})
    identity = str(read_json_object(there.folder / "job.json")["process"])
    if not end_session(there.pid, identity, grace_seconds=grace_seconds):
        raise Busy(f"job {name} (process {there.pid}) cannot be ended; perhaps it waits for a disk or another user's")
    return job(name, workspace=workspace)


def progress_of_job(there: Job, *, workspace: Workspace | None = None) -> Progress:
    """How far a job is: a fork by its steps, anything else by what it said last."""
    if there.fork is not None:
        try:
            found = progress_of_fork(workspace or Workspace(), there.fork, there.started, there.ended)
        except ForensicsError:
            found = None
        if found is not None:
            return found
    said = last_words(there.folder / "output.log")
    return Progress(text="" if said.startswith(COMMAND_MARK) else said)
