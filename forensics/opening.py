"""`open`: verify a pack of someone else, and put its finding or run into a workspace. Nothing in it is run.

A finding becomes findings/<name>.json, from whose numbers its picture is drawn again; a run is registered under its
name with an index built from the packed record, and the findings about it come along. Pages and pictures of a pack are
for people who look into the zip: they are not unpacked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_index.errors import FindingExists, ForensicsError, RefusedPack
from data_index.files import canonical_json, require_free_space, sha256_of_file, write_bytes
from data_index.finding_files import NAME, VERSION, findings_folder
from data_index.pack_reading import Pack, read_pack
from data_index.packed_run import missing_of, register_packed
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.finding import Finding, parsed_finding
from forensics.plain_values import to_plain

Progress = Callable[[str], None]

_NAMED = r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}"
_OF_FINDINGS = re.compile(
    rf"(?:finding\.json|picture\.png|index\.html|tables/{_NAMED}\.parquet|rows/{_NAMED}\.(?:npy|parquet)"
    rf"|runs/{_NAMED}/(?:run\.toml|inputs\.json))\Z"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a pack was opened to.

    Attributes:
        sha256: of the whole pack, to be compared with what its sender published.
        name: of the run or finding in this workspace; `path`: its folder or file.
        messages: what the pack left out, and what that means here.
    """

    what: str
    name: str
    path: Path
    sha256: str
    toolkit: str
    command: str
    messages: tuple[str, ...]


def open_pack(
    file: Path | str,
    *,
    name: str | None = None,
    progress: Progress = lambda message: None,
    workspace: Workspace | None = None,
) -> Opened:
    """Verify a pack and open it; nothing is written before all of it was verified.

    Args:
        name: to open it under, instead of its own.
        progress: told the pack's hash before anything else.
    Raises:
        MissingFile
        RefusedPack: it was changed, or is not what `pack` writes.
        CorruptFile, OrderMismatch: it contradicts itself.
        RunExists, FindingExists: the name is taken.
        DiskFull, NotWritable
    """
    workspace, path = workspace or Workspace(), Path(file)
    sha256 = sha256_of_file(path)
    progress(f"sha256 {sha256}  (compare it with what the sender published)")
    pack = read_pack(path)
    if pack.sha256 != sha256:
        raise RefusedPack(f"{path} is refused: it changed while it was opened")
    return (
        _open_finding(pack, name, workspace) if pack.what == "finding" else _open_run(pack, name, workspace, progress)
    )


def _opened(pack: Pack, name: str, path: Path, messages: list[str]) -> Opened:
    told = {key: str(pack.told.get(key, ""))[:1000] for key in ("toolkit", "command")}
    return Opened(what=pack.what, name=name, path=path, sha256=pack.sha256, messages=tuple(messages), **told)


# --- a finding -------------------------------------------------------------------------------------------------------


def _open_finding(pack: Pack, name: str | None, workspace: Workspace) -> Opened:
    if strange := [path for path in pack.files if not _OF_FINDINGS.match(path)]:
        raise RefusedPack(f"{pack.path} is refused: it holds {strange[0]}, which no finding is made of")
    finding = _finding_in(pack, "finding.json")
    if finding.name != pack.name:
        raise RefusedPack(f"{pack.path} is refused: it calls itself {pack.name[:80]!r} and holds {finding.name!r}")
    path = _keep(workspace, replace(finding, name=name or finding.name))
    if path is None:
        called = name or finding.name
        raise FindingExists(
            f"another finding is called {called} in {workspace.folder}: open this one under another name with --name"
        )
    return _opened(pack, path.stem, path, _left_out(pack))


def _finding_in(pack: Pack, path: str) -> Finding:
    try:
        return parsed_finding(pack.read(path), f"{path} in {pack.path}")
    except ForensicsError as error:
        raise RefusedPack(f"{pack.path} is refused: {error}") from error


def _keep(workspace: Workspace, finding: Finding) -> Path | None:
    """Its file, once it is there as it is in the pack; None: another one of that name is.

    Raises:
        DiskFull, NotWritable
        RefusedPack: it cannot be called so.
    """
    if not NAME.match(finding.name):
        raise RefusedPack(f"{finding.name[:80]!r} cannot name a finding: letters, digits, '.', '_' and '-'")
    path = findings_folder(workspace) / f"{finding.name}.json"
    content = canonical_json({"version": VERSION, **to_plain(finding)}) + b"\n"
    if path.exists():
        return path if path.read_bytes() == content else None
    workspace.create()
    require_free_space(workspace.folder, len(content), f"the finding {finding.name}")
    write_bytes(path, content)
    return path


# --- a run -----------------------------------------------------------------------------------------------------------


def _open_run(pack: Pack, name: str | None, workspace: Workspace, progress: Progress) -> Opened:
    findings = [_finding_in(pack, path) for path in pack.below("findings")]
    called = name or pack.name
    run = register_packed(pack, called, workspace, progress)
    messages = [missing for missing in [missing_of(run)] if missing]
    messages += _left_out(pack) + _addresses(run)
    for finding in findings:
        if _keep(workspace, _about(finding, pack.name, called)) is None:
            messages.append(f"the finding {finding.name} is not kept: another one of that name is here already")
    return _opened(pack, called, workspace.home(called), messages)


def _about(finding: Finding, packed: str, called: str) -> Finding:
    """The finding, about the run as it is called here; its command is the sender's."""
    runs = tuple(called if run == packed else run for run in finding.runs)
    inputs = {called if run == packed else run: told for run, told in finding.inputs.items()}
    own = finding.name if called == packed else f"{finding.name}-{called}"[:150]
    return replace(finding, name=own, runs=runs, inputs=inputs)


def _addresses(run: Run) -> list[str]:
    """Where what is asked for will be fetched from; opening fetches nothing."""
    hosts = sorted({urlsplit(f.path.url).netloc for f in (*run.files, *run.heldout) if not isinstance(f.path, Path)})
    return [f"its token files are fetched from {', '.join(hosts)} when they are asked for"] if hosts else []


def _left_out(pack: Pack) -> list[str]:
    """What the sender left out, as the manifest tells it."""
    rows = pack.told.get("left_out")
    told = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    return [f"not in the pack: {_text(row, 'part')}: {_text(row, 'why')}" for row in told[:50]]


def _text(row: Mapping[str, Any], name: str) -> str:
    return str(row.get(name, ""))[:300]
