"""Where findings are kept, and what each says of itself: findings/<name>.json in the workspace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, ForensicsError, MissingFile
from data_index.files import parse_json, read_limited
from data_index.workspace import Workspace

VERSION = 1
MAX_BYTES = 256 * 2**20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}\Z")


def findings_folder(workspace: Workspace) -> Path:
    return workspace.folder / "findings"


def finding_names(workspace: Workspace) -> list[str]:
    """The newest first."""
    found = [path for path in findings_folder(workspace).glob("*.json") if NAME.match(path.stem)]
    return [path.stem for path in sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path.name))]


def read_finding_file(workspace: Workspace, name: str) -> tuple[bytes, str]:
    """
    Raises:
        MissingFile: with the names that there are.
    """
    path = findings_folder(workspace) / f"{name}.json"
    if not NAME.match(name) or not path.is_file():
        there = ", ".join(finding_names(workspace)[:8]) or "none yet; forensics blame, compare, trajectory … make them"
        raise MissingFile(f"no finding is called {name[:80]!r} in {workspace.folder}; there are: {there}")
    return read_limited(path, MAX_BYTES), str(path)


def fields_of_finding(content: bytes, source: str) -> dict[str, Any]:
    """
    Raises:
        CorruptFile: it is no finding, or one of a later toolkit.
    """
    value = parse_json(content, source)
    if not isinstance(value, dict) or value.pop("version", None) != VERSION:
        raise CorruptFile(
            f"{source} is no finding of version {VERSION}: make it again with the command that gave it, or update the "
            "toolkit if it came from a later one"
        )
    return value


def finding_rows(workspace: Workspace) -> list[tuple[Any, ...]]:
    """Rows of the view `findings`, the newest first; what is no finding is left out."""
    rows = []
    for name in finding_names(workspace):
        try:
            found = fields_of_finding(*read_finding_file(workspace, name))
        except ForensicsError:
            continue
        runs, made = found.get("runs"), found.get("made")
        told = [found.get(key) if isinstance(found.get(key), str) else None for key in ("verb", "command")]
        at = made.get("at") if isinstance(made, dict) else None
        named = [str(run) for run in runs] if isinstance(runs, list) else []
        rows.append((name, told[0], named, told[1], at if isinstance(at, str) else None))
    return rows
