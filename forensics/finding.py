"""A finding: an answer with its picture, the texts it rests on, the command that gives it, and what it was made from.

    findings/<name>.json    all of it      findings/<name>.png, <name>.html    the picture, to look at

Verbs keep one for each question that they answer; the same question again replaces it. The explorer shows findings, and
`pack` sends them to others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile
from data_index.files import canonical_json, sha256_of_file, write_bytes
from data_index.finding_files import NAME, VERSION, fields_of_finding, findings_folder, read_finding_file
from data_index.workspace import Workspace, read_current
from forensics.figure import Figure
from forensics.marked_text import MarkedText
from forensics.plain_values import from_plain, to_plain

# What numbers may depend on; their versions are asked of the installation, so that nothing is imported for it.
PACKAGES = ("checkpoint-forensics", "torch", "transformers", "numpy", "duckdb", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finding:
    """
    Attributes:
        name: of its files; letters, digits, '.', '_' and '-'.
        command: gives it again.
        runs: that it is about, runs and forks.
        answer: as `--format json` prints it; rows stand under `rows`.
        texts: rows of data with the loss of each token.
        inputs: of each run: `run_toml`, the sha256 of its record, `order`, why its order is to be believed, and
            `tables`, the learned files in force, whose names are hashes of their contents.
        made: when, with which versions, on what.
    """

    name: str
    verb: str
    command: str
    runs: tuple[str, ...]
    answer: Mapping[str, Any]
    figure: Figure | None = None
    texts: tuple[MarkedText, ...] = ()
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)


def finding_name(*parts: object) -> str:
    """A name made of words and numbers, as far as a file's name can hold them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(map(str, parts)))[:120]


def keep_finding(workspace: Workspace, finding: Finding) -> Path:
    """Write it down with what it was made from; returns its file.

    Raises:
        DiskFull, NotWritable, UnknownRun, CorruptFile
    """
    inputs = {run: _inputs(workspace, run) for run in finding.runs}
    whole = replace(finding, inputs=inputs, made=surroundings())
    path = findings_folder(workspace) / f"{finding.name}.json"
    write_bytes(path, canonical_json({"version": VERSION, **to_plain(whole)}) + b"\n")
    return path


def surroundings() -> dict[str, Any]:
    """When and with what something is computed."""
    found: dict[str, Any] = {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a machine that replays only has no need of all
            continue
    if "torch" in sys.modules:
        import torch

        found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return found


def _inputs(workspace: Workspace, run: str) -> dict[str, Any]:
    home = workspace.home(run)
    return {
        "run_toml": sha256_of_file(home / "run.toml"),
        "order": str(workspace.run(run).trust),
        "tables": {kind: list(paths) for kind, paths in read_current(home).items()},
    }


def read_finding(workspace: Workspace, name: str) -> Finding:
    """
    Raises:
        MissingFile: with the names that there are.
        CorruptFile: it is no finding, or one of a later toolkit.
    """
    return parsed_finding(*read_finding_file(workspace, name))


def parsed_finding(content: bytes, source: str) -> Finding:
    """A finding from the bytes of its file.

    Raises:
        CorruptFile
    """
    found: Finding = from_plain(fields_of_finding(content, source), Finding, source)
    if not NAME.match(found.name):
        raise CorruptFile(f"{source} calls itself {found.name[:60]!r}, which cannot name a file")
    return found


def rows_of(answer: Mapping[str, Any]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The tables inside an answer, by name."""
    return {
        name: rows
        for name, rows in answer.items()
        if isinstance(rows, list | tuple) and rows and all(isinstance(row, Mapping) for row in rows)
    }
