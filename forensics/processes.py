"""Processes of this machine, told apart from others that got the same number later, and how they are ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

PROC = Path("/proc")
SECONDS_BETWEEN_LOOKS = 0.05
# Ctrl-C; then what cannot be caught up on; then what cannot be refused.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def identity_of_process(pid: int) -> str | None:
    """What no later process of the same number shares: when it started; None where it runs no more.

    A process that has ended and waits to be asked how counts as ended.
    """
    if (PROC / "self" / "stat").exists():
        return _identity_in_proc(pid)
    command = ["ps", "-o", "state=,lstart=", "-p", str(pid)]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split(maxsplit=1)
    return told[1].strip() if len(told) == 2 and not told[0].startswith("Z") else None


def _identity_in_proc(pid: int) -> str | None:
    """Source: proc_pid_stat(5): the name stands in brackets and may hold any; field 3 is the state, 22 the start in
    ticks since the machine came up."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    boot = PROC / "sys" / "kernel" / "random" / "boot_id"
    since = boot.read_text().strip() if boot.exists() else ""
    return None if fields[0] in ("Z", "X") else f"{since} {fields[19]}"


def runs_still(pid: int, identity: str) -> bool:
    return identity_of_process(pid) == identity


def end_session(pid: int, identity: str, *, grace_seconds: float) -> bool:
    """End a process that leads a session of its own, and all of its group: as Ctrl-C does, then ever more firmly.

    Args:
        grace_seconds: how long each signal is given.
    Returns:
        whether it runs no more.
    """
    for number in ENDING:
        if not runs_still(pid, identity):
            return True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        until = time.monotonic() + grace_seconds
        while runs_still(pid, identity):
            if time.monotonic() > until:
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return not runs_still(pid, identity)
