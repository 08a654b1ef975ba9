"""What an audit leaves for the next one: hashes that were seen first, evaluations that were given, its own rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_index.artifacts import Artifact, today
from data_index.evaluations import Evaluation, Evaluations, read_evaluations
from data_index.kinds import KINDS, table_of_rows
from data_index.run import Run
from data_index.workspace import Workspace, learn
from forensics.audit_rows import Row, row

FirstSeen = Mapping[tuple[str, int | None], tuple[str, str]]  # (artifact's name, step) -> (sha256, day)


def first_seen(workspace: Workspace, home: Path) -> FirstSeen:
    """The content that files had when an audit first saw them."""
    rows = workspace.learned(home, "file_hashes")
    return {(found["file"], found["step"]): (found["sha256"], found["seen"]) for found in rows}


def gone_rows(seen: FirstSeen, there: Mapping[int, Sequence[Artifact]]) -> Iterator[Row]:
    """Checkpoints of which an earlier audit saw files, and of which nothing is left."""
    days: dict[int, str] = {}
    for (_, step), (_, day) in seen.items():
        if step is not None and not any(artifact.available for artifact in there.get(step, ())):
            days[step] = min(day, days.get(step, day))
    for step, day in sorted(days.items()):
        yield row(f"checkpoint {step}", "available", "failed", f"was there on {day}, and is gone", step=step)


def kept_evaluations(workspace: Workspace, run: Run, given: Path | str | None) -> Evaluations | None:
    """Evaluations from a folder, which are kept; else those kept; None where there are none.

    Raises:
        MissingFile, CorruptFile: the folder holds none.
    """
    home = workspace.home(run.name)
    if given is None:
        rows = workspace.learned(home, "evaluations")
        return Evaluations(rows=tuple(map(_evaluation, rows))) if rows else None
    read = read_evaluations(Path(given))
    table = [{name: getattr(found, name) for name in KINDS["evaluations"]} for found in read.rows]
    learn(home, "evaluations", table_of_rows("evaluations", table, given))
    return read


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    """A kept row as it was read; its unit follows from its metric."""
    return Evaluation(**{name: value for name, value in row.items() if name != "unit"})


def remember(workspace: Workspace, home: Path, rows: Sequence[Row], hashes: Mapping[str, str]) -> None:
    """Keep the rows, and the hashes of files that were never seen before: a file is compared with what it was first.

    Args:
        hashes: artifact's name -> sha256.
    """
    known = workspace.learned(home, "file_hashes")
    there = {(found["file"], found["step"]) for found in known}
    for found in rows:
        sha256 = hashes.get(found["artifact"]) if found["check"] == "hash" else None
        if sha256 is not None and (found["artifact"], found["step"]) not in there:
            file = {"file": found["artifact"], "step": found["step"], "num_bytes": found["num_bytes"]}
            known.append(file | {"sha256": sha256, "seen": today()})
    if known:
        learn(home, "file_hashes", table_of_rows("file_hashes", known, home.name))
    kept = [{name: found[name] for name in KINDS["audit"]} for found in rows]
    learn(home, "audit", table_of_rows("audit", kept, home.name))
