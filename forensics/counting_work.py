"""A count in progress, kept beside its run, so that it goes on exactly where it was interrupted.

    exposures/<key>/state.json           the step that was counted last, and which files belong to it: the commit point
    exposures/<key>/counts-<step>.npy    the counts up to there; gone when all is counted
    exposures/<key>/<hash>.parquet       rows of `exposures`; hidden/<key>/<hash>.parquet: rows of `hidden`

The key is made of all that the counts depend on, so that another question never goes on from these. The rows come in
force when all is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import ForensicsError
from data_index.exposures import COLUMNS
from data_index.files import read_json_object, require_file, write_hashed_parquet, write_json, write_npy
from data_index.workspace import put_in_force

KINDS = ("exposures", "hidden")


class CountingWork:
    """What is kept of one count.

    Attributes:
        step: counted up to here.
        table: the counts there, int64 of shape [columns, ids]; None: nothing is counted.
        summary: a row for each recorded step.
        files: rows that were written, by kind.
    """

    def __init__(self, home: Path, key: str, first: int) -> None:
        """
        Args:
            first: the checkpoint that the count begins at.
        """
        self.home, self.key = home, key
        self.folder = home / "exposures" / key
        self.step, self.done, self.table = first, False, None
        self.summary: list[dict[str, Any]] = []
        self.files: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        self._find()

    def _find(self) -> None:
        """Take up what was kept; what is not whole was not kept."""
        try:
            state = read_json_object(self.folder / "state.json")
            files = {kind: [self.home / name for name in state["files"][kind]] for kind in KINDS}
            for path in (path for paths in files.values() for path in paths):
                require_file(path)
            table = None if state["done"] else np.load(self._counts(state["step"]), allow_pickle=False)
            if table is not None and (table.dtype != np.int64 or table.ndim != 2 or len(table) != len(COLUMNS)):
                return
            self.step, self.done, self.summary = state["step"], state["done"], state["summary"]
        except (ForensicsError, OSError, ValueError, EOFError, LookupError, TypeError):
            return
        self.files, self.table = files, table

    def commit(self, step: int, table: np.ndarray, rows: Mapping[str, Any], summary: Sequence[dict[str, Any]]) -> None:
        """Keep the counts up to a step.

        Args:
            rows: Arrow tables by kind, what was learned since the last commit.
            summary: rows of the steps recorded since then.
        """
        for kind, arrow in rows.items():
            if arrow.num_rows:
                self.files[kind].append(write_hashed_parquet(self.home / kind / self.key, arrow))
        write_npy(self._counts(step), table)
        before, self.step = self.step, step
        self.summary += summary
        self._write()
        if before != step:
            self._counts(before).unlink(missing_ok=True)

    def finish(self, *, in_force: bool) -> None:
        """All is counted; the rows become what is known of the run, where they are about all of it.

        Call it only while holding the lock.
        """
        if in_force:
            put_in_force(self.home, self.files)
        if not self.done:
            self.done = True
            self._write()
        kept = {self.folder / "state.json"}.union(*self.files.values())
        for kind in KINDS:
            for path in (self.home / kind / self.key).glob("*"):
                if path not in kept:  # counts, and what a dead writer left
                    path.unlink()

    def _write(self) -> None:
        files = {kind: [path.relative_to(self.home).as_posix() for path in paths] for kind, paths in self.files.items()}
        state = {"step": self.step, "done": self.done, "files": files, "summary": self.summary}
        write_json(self.folder / "state.json", state)

    def _counts(self, step: int) -> Path:
        return self.folder / f"counts-{step}.npy"
