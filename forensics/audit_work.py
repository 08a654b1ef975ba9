"""What an audit has read, kept beside the run, so that it goes on after an interruption and does not read twice.

    audit-work/current.json      when the audit began, whether it is deep, whether it is done
    audit-work/<name>.json       what was found in a checkpoint, with what its files looked like then; .npy: numbers

Work is found again while the files look the same (size and time of change). A deep audit reads everything anew, since
bits may have changed under an unchanged time; only what the same audit read before it was interrupted counts.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import ForensicsError
from data_index.files import read_json_object, require_file, write_json, write_npy

VERSION = 1  # of what is kept; another one is read anew


class AuditWork:
    """The kept work of one run."""

    def __init__(self, home: Path, *, deep: bool) -> None:
        self.folder = home / "audit-work"
        self.deep = deep
        current = _read(self.folder / "current.json")
        unfinished = deep and current.get("deep") is True and current.get("done") is False
        self.since = str(current["since"]) if unfinished and "since" in current else _now()

    def begin(self) -> None:
        self._note(done=False)

    def finish(self) -> None:
        self._note(done=True)

    def find(self, name: str, identity: str) -> dict[str, Any] | None:
        """What was kept under a name, if its files look as they did."""
        kept = _read(self.folder / f"{name}.json")
        if kept.get("version") != VERSION or kept.get("identity") != identity:
            return None
        if self.deep and not (kept.get("deep") is True and str(kept.get("read_at")) >= self.since):
            return None
        found = kept.get("found")
        return found if isinstance(found, dict) else None

    def keep(self, name: str, identity: str, found: dict[str, Any], numbers: np.ndarray | None = None) -> None:
        if numbers is not None:
            write_npy(self.folder / f"{name}.npy", numbers)
        content = {"version": VERSION, "identity": identity, "deep": self.deep, "read_at": _now(), "found": found}
        write_json(self.folder / f"{name}.json", content)  # last: it says that all is there

    def numbers(self, name: str) -> np.ndarray | None:
        path = self.folder / f"{name}.npy"
        try:
            require_file(path)
            kept: np.ndarray = np.load(path, allow_pickle=False)
            return kept
        except (ForensicsError, OSError, ValueError, EOFError):
            return None

    def _note(self, *, done: bool) -> None:
        write_json(self.folder / "current.json", {"since": self.since, "deep": self.deep, "done": done})


def _read(path: Path) -> dict[str, Any]:
    """A kept file; what is not whole or not there was not kept."""
    try:
        return read_json_object(path)
    except ForensicsError:
        return {}


def _now() -> str:
    return datetime.now(UTC).isoformat()
