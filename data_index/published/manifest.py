"""Manifests: a TOML file that says where a run's token files, configuration and checkpoints are, on any server.

    format = "forensics-manifest"
    version = 1
    name = "olmo-2-7b"
    layout = "olmo"                                  # whose reader says what steps read
    config = ["step0-unsharded/config.yaml"]         # what that reader wants, beside this file
    hub = "allenai/OLMo-2-1124-7B"                   # optional: checkpoints that are revisions of a repository
    revisions = '^stage1-step(?P<step>\\d+)-'

    [settings]                                       # what the trainer was told and no file says
    [[files]]
    name = "preprocessed/part-00.npy"                # as the configuration calls it; default: the address
    url = "https://…/part-00.npy"
    num_bytes = 123                                  # optional: the server is asked
    sha256 = "…"                                     # optional
    [[checkpoints]]
    step = 1000
    url = "https://…/step1000-unsharded"
    layout = "olmo"                                  # of the checkpoint; default: the run's
    states = ["weights", "optimizer", "trainer"]

The manifest is kept with the run, sizes filled in. An `add` that was interrupted asks for the sizes it lacked only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from data_index.errors import CorruptFile, NewerWorkspace, UnsafeFile
from data_index.files import read_limited
from data_index.published.record import MAX_STAGED_BYTES, Published
from data_index.published.steps import list_steps, now
from data_index.remote import hub
from data_index.remote.files import RemoteFiles, with_sizes
from data_index.remote.path import RemotePath

MANIFEST_VERSION = 1
MAX_MANIFEST_BYTES = 64 * 2**20
_KEYS = {"format", "version", "name", "layout", "config", "hub", "revisions", "settings", "files", "checkpoints"}


def is_manifest(source: Path | str) -> bool:
    return str(source).endswith(".toml")


def read_manifest(
    path: Path, *, settings: Mapping[str, Any], cache: Path, progress: Callable[[str], None]
) -> Published:
    """What a manifest names, the sizes of its files asked of the servers where it does not state them.

    Raises:
        MissingFile, CorruptFile, UnsafeFile, NewerWorkspace, UnknownLayout
        AccessDenied, Unreachable, Offline: a size, or a repository, could not be asked for.
    """
    content = read_limited(path, MAX_MANIFEST_BYTES)
    try:
        table = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise CorruptFile(f"{path} is not TOML: {error}") from error
    _check_head(path, table)
    try:
        files = _files(table.get("files", []), cache)
        rows = [_checkpoint(row, str(table["layout"]), path) for row in table.get("checkpoints", [])]
        staged = {name: read_limited(_beside(path, name), MAX_STAGED_BYTES) for name in table.get("config", [])}
        told = {**table.get("settings", {}), **settings}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, CorruptFile):
            raise
        raise CorruptFile(f"{path} lacks or misstates {error}") from error
    sized = with_sizes(files, lambda done, total: progress(f"{done:,} of {total:,} sizes are known"))
    if "hub" in table:
        repo_id = str(table["hub"])
        rows += list_steps(repo_id, hub.list_revisions(repo_id), None, table.get("revisions"))
    return Published(
        name=table["name"],
        origin=str(path.absolute()),
        layout=table["layout"],
        checkpoints=sorted(rows, key=lambda row: row["step"]),
        staged={**staged, "manifest.toml": _with_sizes_written(table, sized)},
        data=RemoteFiles(origin=str(path), files=sized) if sized else None,
        settings=told,
        config_format=table["layout"],
    )


def _check_head(path: Path, table: Mapping[str, Any]) -> None:
    if table.get("format") != "forensics-manifest":
        raise CorruptFile(f'{path} does not say format = "forensics-manifest"; a run\'s folder is added by its name')
    version = table.get("version")
    if type(version) is not int:
        raise CorruptFile(f"{path} states no version")
    if version > MANIFEST_VERSION:
        raise NewerWorkspace(f"{path} is version {version}, this toolkit reads up to {MANIFEST_VERSION}: update it")
    if unknown := set(table) - _KEYS:
        raise CorruptFile(f"{path} has a key {sorted(unknown)[0]!r}; a manifest has {', '.join(sorted(_KEYS))}")
    for key in ("name", "layout"):
        if not isinstance(table.get(key), str):
            raise CorruptFile(f"{path} states no {key}")


def _files(entries: list[dict[str, Any]], cache: Path) -> dict[str, RemotePath]:
    found: dict[str, RemotePath] = {}
    for entry in entries:
        url, size = _url(entry), entry.get("num_bytes")
        if size is not None and (type(size) is not int or size < 0):
            raise ValueError(f"num_bytes of {url} ({size!r})")
        name, sha256 = str(entry.get("name", url)), entry.get("sha256")
        if name in found:
            raise ValueError(f"files: there are two of {name}")
        if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", str(sha256)):
            raise ValueError(f"sha256 of {url} ({sha256!r})")
        found[name] = RemotePath(url, cache, num_bytes=size, sha256=None if sha256 is None else sha256.lower())
    return found


def _url(entry: Mapping[str, Any]) -> str:
    url = entry["url"]
    if not isinstance(url, str) or not url.startswith(("https://", "http://")):
        raise ValueError(f"url ({url!r} is no address of http or https)")
    return url


def _checkpoint(entry: Mapping[str, Any], layout: str, path: Path) -> dict[str, Any]:
    step = entry["step"]
    if type(step) is not int or not 0 <= step < 2**62:
        raise ValueError(f"the step of a checkpoint ({step!r})")
    return {
        "step": step,
        "tokens": None,
        "location": _url(entry).rstrip("/"),
        "layout": str(entry.get("layout", layout)),
        "states": [str(state) for state in entry.get("states", ["weights"])],
        "issues": [],
        "revision": None,
        "commit": None,
        "available": None,
        "checked_at": now(),
    }


def _beside(path: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise UnsafeFile(f"{path} names {name} as configuration, outside its folder")
    return path.parent / relative


def _with_sizes_written(table: Mapping[str, Any], sized: Mapping[str, RemotePath]) -> bytes:
    import tomli_w

    entries = table.get("files", [])
    files = [entry | {"num_bytes": sized[str(entry.get("name", entry["url"]))].num_bytes} for entry in entries]
    return tomli_w.dumps({**table, "files": files} if files else dict(table)).encode()
