"""What a job printed, as text, and how far it has come."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.errors import MissingFile
from data_index.files import open_existing
from data_index.workspace import Workspace
from forensics.step_text import readable_text

TAIL_BYTES = 256 * 2**10  # of a log are read: what was said last
# Source: ECMA-48, 5.4: what a terminal would obey begins with ESC [ and ends with a letter or one of @[\]^_`{|}~.
CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is: `done` of `total` steps, where it counts them (else None); `text`: its last words."""

    text: str
    done: int | None = None
    total: int | None = None
    loss: float | None = None
    seconds_left: float | None = None


def log_text(path: Path, max_bytes: int = TAIL_BYTES) -> str:
    """The end of a log as text of several lines.

    Of a line that was written over and over, as progress is, its last state; what a screen would obey is escaped.
    """
    tail, cut = _tail(path, max_bytes)
    lines = tail.decode(errors="replace").split("\n")
    shown = [_last_state(CONTROL_SEQUENCE.sub("", line)) for line in (lines[1:] if cut else lines)]
    text = "\n".join(readable_text(line) for line in shown).rstrip("\n")
    return f"… (what was said before lies in {path})\n{text}" if cut else text


def _last_state(line: str) -> str:
    states = [state for state in line.split("\r") if state.strip()]
    return states[-1] if states else ""


def _tail(path: Path, max_bytes: int) -> tuple[bytes, bool]:
    """The last bytes of a file, and whether there are more; nothing of one that is not there."""
    try:
        with open_existing(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - max_bytes, 0))
            return file.read(max_bytes), size > max_bytes
    except MissingFile:
        return b"", False


def last_words(path: Path) -> str:
    """The last line of a log that says something."""
    lines = [line for line in log_text(path, 8192).split("\n") if line.strip()]
    return lines[-1] if lines else ""


def progress_of_fork(
    workspace: Workspace, fork: str, since: float = 0.0, until: float | None = None
) -> Progress | None:
    """How far a fork is, by what it says of each step; None before its first one.

    What it says so is no evidence: a step counts once it is saved.

    Args:
        since, until: seconds since 1970; only steps that were taken in between are looked at: a fork that goes on may
            have to take some of them again.
    """
    home = workspace.folder / "forks" / fork
    last_steps = _last_steps(home / "progress.jsonl")
    said = [row for row in last_steps if since <= row["time"] and (until is None or row["time"] <= until)]
    if not said or not (home / "run.toml").is_file():
        return None
    child = workspace.run(fork)
    first, last, step = child.first_step, child.last_step, int(said[-1]["step"])
    loss = said[-1].get("loss")
    return Progress(
        text=f"step {step:,} of {last:,}",
        done=step - first + 1,
        total=last - first + 1,
        loss=float(loss) if isinstance(loss, int | float) else None,
        seconds_left=_seconds_left(said, last),
    )


def _last_steps(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of progress.jsonl; the very last may be half written."""
    found = []
    for line in _tail(path, 16 * 2**10)[0].split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("time"), int | float):
            found.append(row)
    return found


def _seconds_left(said: list[dict[str, Any]], last: int) -> float | None:
    """By the pace of the last steps in a row."""
    recent = [said[-1]]
    for row in reversed(said[:-1]):
        if row["step"] != recent[0]["step"] - 1 or not 0 <= recent[0]["time"] - row["time"] < 3600:
            break
        recent.insert(0, row)
    steps = recent[-1]["step"] - recent[0]["step"]
    return (last - recent[-1]["step"]) * (recent[-1]["time"] - recent[0]["time"]) / steps if steps else None
