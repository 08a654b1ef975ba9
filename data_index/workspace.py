"""The workspace: one folder with all registered runs, forks and findings.

    workspace.json                  version of this layout
    runs/<run>/                     run.toml, index.duckdb, config.*, current.json, <kind>/<hash>.parquet
    forks/<id>/                     a native run folder that also holds index.duckdb and current.json
    replays/<id>/                   a replay in progress, and the report of the last finished one
    trained/<run>/                  native run folders that this toolkit trained (the sample run)
    findings/                       answers with their evidence
    verifications/                  what models of no run answered about their tokens (of a run: in its folder)
    jobs/<id>/                      command lines that the explorer started, and what they printed
    cache/                          bytes fetched from servers

The folder of a run or fork is its *home*. current.json names the learned files in force; it is replaced by rename.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, MissingCheckpoint, MissingFile, NewerWorkspace, UnknownRun
from data_index.files import read_json, write_hashed_parquet, write_json
from data_index.run import Checkpoint, Run
from data_index.run_file import MAX_RUN_BYTES, read_run
from data_index.seal import check_named_hash, check_sealed
from data_index.sources import list_checkpoints, native

WORKSPACE_VERSION = 1
# Learned tables up to this size are held against their hash whenever they are opened; it takes 10 ms.
CHECKED_WHEN_OPENED_BYTES = 16 * 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


def default_folder() -> Path:
    chosen = os.environ.get("FORENSICS_WORKSPACE")
    return Path(chosen) if chosen else Path.home() / ".local" / "share" / "forensics"


def valid_name(name: str) -> str:
    """The name itself.

    Raises:
        UnknownRun: it could not be the name of a run (it would escape its folder, or not fit SQL).
    """
    if not _NAME.match(name):
        raise UnknownRun(f"{name!r} cannot name a run: letters, digits, '.', '_' and '-', at most 100")
    return name


class Workspace:
    """The places inside one workspace folder; it holds no open file."""

    def __init__(self, folder: Path | str | None = None) -> None:
        """
        Raises:
            NewerWorkspace: a later toolkit wrote it.
        """
        self.folder = (Path(folder) if folder else default_folder()).absolute()
        marker = self.folder / "workspace.json"
        if marker.exists():
            content = read_json(marker)
            version = content.get("version") if isinstance(content, dict) else None
            if not isinstance(version, int) or isinstance(version, bool):
                raise CorruptFile(f"{marker} states no version")
            if version > WORKSPACE_VERSION:
                raise NewerWorkspace(
                    f"{self.folder} is a workspace of version {version}, this toolkit knows {WORKSPACE_VERSION}: "
                    "update the toolkit, or choose another folder with --workspace"
                )

    def create(self) -> None:
        """Make the folder a workspace; does nothing where it is one."""
        if not (self.folder / "workspace.json").exists():
            write_json(self.folder / "workspace.json", {"version": WORKSPACE_VERSION})

    @property
    def cache(self) -> Path:
        """Where bytes of files on servers are kept."""
        return self.folder / "cache"

    def run_names(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("runs/*/run.toml") if path.parent.name[0] != ".")

    def fork_ids(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("forks/*/run.toml") if path.parent.name[0] != ".")

    def home(self, name: str) -> Path:
        """The folder of a run or fork.

        Raises:
            UnknownRun: with the nearest names there are.
        """
        valid_name(name)
        for kind in ("runs", "forks"):
            if (self.folder / kind / name / "run.toml").is_file():
                return self.folder / kind / name
        names = self.run_names() + self.fork_ids()
        near = difflib.get_close_matches(name, names, n=3) or names[:5]
        there = f"there are: {', '.join(near)}" if near else "there is none yet: forensics demo makes one, add SOURCE"
        raise UnknownRun(f"no run or fork is called {name!r} in {self.folder}; {there} (list all: forensics runs)")

    def run(self, name: str, *, verify: bool = True) -> Run:
        """
        Args:
            verify: compare its record with the hash taken when it was added; an audit goes on without.
        Raises:
            UnknownRun, MissingFile, CorruptFile, NewerWorkspace
        """
        home = self.home(name)
        if verify:
            check_sealed(home, "run.toml", MAX_RUN_BYTES)
        run = read_run(home, self.cache)
        return replace(run, source=home) if home.parent.name == "forks" else run

    def checkpoints(self, run: Run) -> list[Checkpoint]:
        """All checkpoints of a run, in step order; a fork starts at one of its parent's."""
        return self._checkpoints(run, {run.name})

    def _checkpoints(self, run: Run, descendants: set[str]) -> list[Checkpoint]:
        own = list_checkpoints(run) + self._published(run)
        own.sort(key=lambda checkpoint: checkpoint.step)
        if run.parent is None:
            return own
        parent, step = run.parent
        if parent in descendants:
            raise CorruptFile(
                f"{run.name} in {self.folder} descends from itself: its run.toml names {parent} as parent"
            )
        above = self._checkpoints(self.run(parent), descendants | {parent})
        return [c for c in above if c.step == step and c.step not in {o.step for o in own}] + own

    def _published(self, run: Run) -> list[Checkpoint]:
        """Checkpoints on servers, as they were listed when the run was registered."""
        rows = self.learned(self.home(run.name), "checkpoints")
        if not rows:
            return []
        from data_index.remote.hub import url_of
        from data_index.remote.path import RemotePath

        return [
            Checkpoint(
                run=run.name,
                **(
                    row
                    | {"location": RemotePath(url_of(row["location"]), self.cache)}
                    | {name: tuple(row[name] or ()) for name in ("states", "issues")}
                ),
            )
            for row in rows
        ]

    def checkpoint(self, run: Run, step: int) -> Checkpoint:
        """One checkpoint; where it is in several places, the one with most states.

        Raises:
            MissingCheckpoint: with the nearest ones.
        """
        there = self.checkpoints(run)
        if here := [checkpoint for checkpoint in there if checkpoint.step == step]:
            return fullest(here)
        before = [c.step for c in there if c.step < step][-1:]
        after = [c.step for c in there if c.step > step][:1]
        near = " and ".join(map(str, before + after))
        said = f"the nearest {'are' if before and after else 'is'} {near}" if near else "it saved none"
        raise MissingCheckpoint(
            f"{run.name} has no checkpoint at step {step}; {said} (list all: forensics checkpoints {run.name})"
        )

    def learned_files(self, home: Path, kind: str) -> list[Path]:
        """The Parquet files in force for a kind: those that current.json names, then the pieces a fork committed."""
        named = [home / path for path in read_current(home).get(kind, [])]
        for path in named:
            if not path.exists():
                raise MissingFile(f"{path}, named by {home}/current.json, is not there: register the run again")
            check_named_hash(path, CHECKED_WHEN_OPENED_BYTES)
        return named + (native.committed_pieces(home, kind) if home.parent.name == "forks" else [])

    def learned(self, home: Path, kind: str) -> list[dict[str, Any]]:
        """All rows of a kind; small kinds only.

        Raises:
            MissingFile, CorruptFile: a file is not what its name says.
        """
        rows: list[dict[str, Any]] = []
        for path in self.learned_files(home, kind):
            check_named_hash(path)
            table = native.read_table(path)
            rows += table.to_pylist() if table is not None else []
        return rows


def fullest(places: Sequence[Checkpoint]) -> Checkpoint:
    """Of one checkpoint in several places, the one that answers and has most states."""
    return max(places, key=lambda checkpoint: (checkpoint.available is not False, len(checkpoint.states)))


def read_current(home: Path) -> dict[str, list[str]]:
    """
    Raises:
        CorruptFile
    """
    path = home / "current.json"
    current = read_json(path) if path.exists() else {}
    if not isinstance(current, dict):
        raise CorruptFile(f"{path} does not name files by kind; register the run again")
    return current


def learn(home: Path, kind: str, table: Any, *, replace_kind: bool = True, in_place_of: Collection[Path] = ()) -> None:
    """Write a table beside a run and put it in force; readers see the old files or the new ones.

    Args:
        replace_kind: in place of all files of the kind; else only of those in `in_place_of`.
    """
    path = write_hashed_parquet(home / kind, table)
    gone = {path, *in_place_of}
    kept = [] if replace_kind else [home / name for name in read_current(home).get(kind, [])]
    put_in_force(home, {kind: [*(other for other in kept if other not in gone), path]})


def put_in_force(home: Path, files: Mapping[str, Sequence[Path]]) -> None:
    """Let Parquet files be a run's tables of some kinds, all at once; a fork's may be its parent's."""
    named = {kind: [os.path.relpath(path, home) for path in dict.fromkeys(paths)] for kind, paths in files.items()}
    if (current := read_current(home)) | named != current:
        write_json(home / "current.json", current | named)
