"""Losses of tokens, kept beside the run: one file for each step and checkpoint; together the view `token_losses`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.errors import (
    Busy,
    CorruptFile,
    DiskFull,
    ForensicsError,
    MissingCheckpoint,
    MissingFile,
    NotWritable,
)
from data_index.files import canonical_json, exclusive_lock, sha256_of_file
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace, learn, read_current
from forensics.place_identity import identity_of_place

KIND = "token_losses"
_OF, _STATE, _KEY, _LOSS = b"of", b"state", b"key", b"loss"  # in a file's metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class LossesOf:
    """Of which rows, under which weights."""

    step: int
    attempt: int
    checkpoint: int

    def __str__(self) -> str:
        return f"{self.step}.{self.attempt} at {self.checkpoint}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptLosses:
    """
    Attributes:
        table: of the kind `token_losses`, by position and token.
        key: what the numbers depend on besides the weights: recipe, device, versions.
        loss: of the whole step, as its trainer would log it; None: not all rows are here.
    """

    table: Any
    key: str
    loss: float | None = None


def state_of(workspace: Workspace, run: str, place: Checkpoint) -> str:
    """Changes when the run's record does, or the files of the checkpoint.

    Raises:
        UnknownRun, MissingFile
    """
    record = sha256_of_file(workspace.home(run) / "run.toml")
    identity = [record, identity_of_place(place.location, commit=place.commit)]
    return hashlib.sha256(canonical_json(identity)).hexdigest()[:16]


def read_losses(workspace: Workspace, run: str, of: LossesOf, state: str) -> KeptLosses | None:
    """What is kept, None where nothing is or the weights were others."""
    import pyarrow
    import pyarrow.parquet

    home = workspace.home(run)
    for path in _files(home, of):
        about = pyarrow.parquet.read_schema(path).metadata
        if about.get(_STATE, b"").decode() != state:
            continue
        try:
            table = pyarrow.parquet.read_table(path, partitioning=None)
        except (OSError, pyarrow.ArrowException):  # damaged: it is computed anew
            continue
        loss = about.get(_LOSS, b"").decode()
        table = table.replace_schema_metadata(None)
        return KeptLosses(table=table, key=about.get(_KEY, b"").decode(), loss=float(loss) if loss else None)
    return None


def keep_losses(workspace: Workspace, run: str, of: LossesOf, state: str, found: KeptLosses) -> list[str]:
    """Put them in force in place of what was kept of the same rows and checkpoint.

    Returns:
        Why they could not be kept: the answer does not depend on it.
    """
    home = workspace.home(run)
    loss = "" if found.loss is None else repr(found.loss)
    about: Mapping[bytes, str] = {_OF: str(of), _STATE: state, _KEY: found.key, _LOSS: loss}
    table = found.table.replace_schema_metadata(dict(about))
    try:
        with exclusive_lock(home.with_name(f".{home.name}.lock"), f"keeping losses of tokens of {run}"):
            learn(home, KIND, table, replace_kind=False, in_place_of=_files(home, of))
    except (Busy, DiskFull, NotWritable, CorruptFile, MissingFile) as error:
        return [f"the losses are not kept: {error}"]
    return []


def checkpoint_of_losses(workspace: Workspace, run: Run, step: int, checkpoint: int | None = None) -> Checkpoint:
    """The checkpoint that is named, else the nearest one before the step that holds weights.

    Raises:
        MissingCheckpoint
    """
    if checkpoint is not None:
        return workspace.checkpoint(run, checkpoint)
    there = [c for c in workspace.checkpoints(run) if "weights" in c.states and c.is_available() is not False]
    before = [c.step for c in there if c.step < step]
    if not before:
        near = f"the first is {min(c.step for c in there)} (--checkpoint)" if there else "none has weights here"
        raise MissingCheckpoint(f"no checkpoint of {run.name} before step {step} has weights here; {near}")
    return workspace.checkpoint(run, max(before))


def kept_token_losses(run: str, step: int, checkpoint: int | None = None, *, workspace: Workspace | None = None) -> Any:
    """What is kept of the step's tokens under a checkpoint (default: the nearest one before it); nothing is computed.

    Returns:
        An Arrow table of the kind `token_losses`; None where nothing is kept, or the weights were others.
    Raises:
        UnknownRun, StepOutOfRange, MissingCheckpoint, MissingFile
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    attempt = record.segment_of_step(step).attempt
    place = checkpoint_of_losses(workspace, record, step, checkpoint)
    of = LossesOf(step=step, attempt=attempt, checkpoint=place.step)
    kept = read_losses(workspace, run, of, state_of(workspace, run, place))
    return None if kept is None else kept.table


def _files(home: Path, of: LossesOf) -> list[Path]:
    return [path for path, about in _all_files(home) if about == str(of)]


def _all_files(home: Path) -> list[tuple[Path, str]]:
    """Files in force, and what each says it is of; one that is gone or damaged is left out."""
    import pyarrow
    import pyarrow.parquet

    found = []
    try:
        named = read_current(home).get(KIND, [])
    except ForensicsError:
        return []
    for name in named:
        try:
            about = pyarrow.parquet.read_schema(home / name).metadata or {}
        except (OSError, pyarrow.ArrowException):
            continue
        if _OF in about:
            found.append((home / name, about[_OF].decode()))
    return found
