"""`pack`: a finding, or a run, as one file that others can verify and open."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.errors import InvalidRange, MissingFile, UnknownRun
from data_index.finding_files import finding_names
from data_index.pack_file import write_pack
from data_index.workspace import Workspace
from forensics.citation import toolkit_version
from forensics.finding import PACKAGES, surroundings
from forensics.finding_contents import contents_of_finding
from forensics.pack_budget import DEFAULT_BUDGET_BYTES, Contents, bytes_of_budget
from forensics.run_contents import contents_of_run

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A pack that was written, or that would be.

    Attributes:
        what: `finding` or `run`.
        path, sha256: None: it was only planned. sha256 is that of the whole file; publish it with the pack.
        parts: rows of part, num_bytes, packed, why: what went in and what did not.
    """

    what: str
    name: str
    num_bytes: int
    parts: tuple[Mapping[str, Any], ...]
    path: Path | None = None
    sha256: str | None = None

    @property
    def left_out(self) -> list[Mapping[str, Any]]:
        return [row for row in self.parts if not row["packed"]]


def pack(
    name: str,
    output: Path | str | None = None,
    *,
    budget: int | str = DEFAULT_BUDGET_BYTES,
    tokens: bool = False,
    plan: bool = False,
    progress: Progress = lambda message: None,
    workspace: Workspace | None = None,
) -> Packed:
    """Write a finding, a run or a fork as one verifiable file; the same content gives the same bytes.

    Args:
        name: of a run or a fork; else of a finding.
        output: FILE.zip; default: named after it, in the current folder.
        budget: bytes, or text as in "2GB", that checkpoints, tables and token files may take.
        tokens: token files too, if they fit.
        plan: write nothing, and say what would go in.
    Raises:
        UnknownRun: nothing is called so.
        InvalidRange, CorruptFile, MissingFile, DiskFull, NotWritable
    """
    workspace = workspace or Workspace()
    path = Path(output) if output is not None else Path(f"{name}.zip")
    if path.suffix != ".zip":
        raise InvalidRange(f"a pack is FILE.zip, not {path.name}")
    allowed = bytes_of_budget(budget) if isinstance(budget, str) else budget
    what = kind_of(workspace, name)
    if what == "finding":
        finding, contents = contents_of_finding(workspace, name, budget=allowed)
        return _written(contents, what, name, finding.command, None if plan else path)
    run = workspace.run(name)
    if plan:
        contents = contents_of_run(workspace, run, budget=allowed, tokens=tokens, making=None, progress=progress)
        return _written(contents, what, name, "", None)
    with tempfile.TemporaryDirectory(prefix=".tmp-pack-", dir=_existing(path.absolute().parent)) as making:
        contents = contents_of_run(
            workspace, run, budget=allowed, tokens=tokens, making=Path(making), progress=progress
        )
        progress("writing")
        return _written(contents, what, name, f"forensics pack {name}", path)


def kind_of(workspace: Workspace, name: str) -> str:
    """`run` or `finding`.

    Raises:
        UnknownRun: nothing is called so; with what there is.
    """
    try:
        workspace.home(name)
        return "run"
    except UnknownRun as error:
        if name in finding_names(workspace):
            return "finding"
        findings = ", ".join(finding_names(workspace)[:6]) or "none yet"
        raise UnknownRun(f"{error}; nor is a finding, of which there are: {findings}") from None


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise MissingFile(f"{folder} is not a folder: make it first, or write the pack elsewhere with -o")
    return folder


def _written(contents: Contents, what: str, name: str, command: str, path: Path | None) -> Packed:
    planned = Packed(what=what, name=name, num_bytes=contents.used, parts=tuple(contents.told))
    if path is None:
        return planned
    # Not when, nor what happens to be loaded: the same content gives the same bytes.
    environment = {name: number for name, number in surroundings().items() if name in ("python", *PACKAGES)}
    told = {
        "what": what,
        "name": name,
        "command": command,
        "toolkit": toolkit_version(),
        "environment": environment,
        "left_out": contents.left_out,
    }
    sha256 = write_pack(path, told, contents.files)
    return Packed(what=what, name=name, num_bytes=path.stat().st_size, parts=planned.parts, path=path, sha256=sha256)
