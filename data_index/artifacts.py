"""The files that a run is made of: where each is, how large, and what its publisher says of its content.

Everything that looks at files of a checkpoint is here, so that checkpoints on servers fit in beside those on disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_index.errors import ForensicsError
from data_index.files import TEMPORARY_PREFIX, require_file, sha256_of_file
from data_index.remote import hub, hub_files
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace

if TYPE_CHECKING:
    from data_index.remote.path import Place, RemotePath

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# Where the hub's client notes what it downloaded into a folder: the second line is the sha256 of large files.
_HUB_NOTES = Path(".cache") / "huggingface"
_WEIGHTS = re.compile(
    r"(model|pytorch_model|layer_\d+|mp_rank_\d+)[^/]*\.(safetensors|bin|pt)\Z|\.distcp\Z|/rank\d+\.pt\Z"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file of a run, as it was found.

    Attributes:
        name: for people: `text-0.bin`, `checkpoint 10/model.safetensors`.
        step: of the checkpoint that it belongs to.
        sha256_stated: what the publisher says of the whole file.
        available: was it there, as a file that can be read?
        error: why not.
        checked_at: the day it was looked for, ISO 8601.
    """

    name: str
    step: int | None
    place: Place
    num_bytes: int | None
    sha256_stated: str | None
    available: bool
    error: str | None
    checked_at: str

    @property
    def file(self) -> str:
        """Its name inside its checkpoint; of others, the whole name."""
        return self.name.partition("/")[2] if self.step is not None else self.name

    @property
    def holds_weights(self) -> bool:
        """By its name: no config, tokenizer or optimizer state."""
        return self.step is not None and _WEIGHTS.search(f"/{self.file}".rpartition("/")[2]) is not None


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def revisions_now(checkpoints: Sequence[Checkpoint]) -> dict[str, dict[str, str] | ForensicsError]:
    """The revisions that the hub has now, with their commits, of every repository that checkpoints lie in.

    One request a repository; where it fails, the error.
    """
    found: dict[str, dict[str, str] | ForensicsError] = {}
    for checkpoint in checkpoints:
        address = hub.address_of(f"{checkpoint.location}/.") if checkpoint.revision else None
        if address is not None and address.repo_id not in found:
            try:
                found[address.repo_id] = hub.list_revisions(address.repo_id, address.repo_type)
            except ForensicsError as error:
                found[address.repo_id] = error
    return found


def artifacts_of(workspace: Workspace, run: Run, checkpoint: Checkpoint) -> list[Artifact]:
    """Every file of a checkpoint, by name; the folder itself, not available, where it is not there.

    What the hub has is told from the list of a commit's files, which never changes; whether it is still there is for
    `revisions_now`.
    """
    name = f"checkpoint {checkpoint.step}"
    if not isinstance(checkpoint.location, Path):
        return _served(name, checkpoint, checkpoint.location)
    folder = checkpoint.location
    found = [
        _local(f"{name}/{path.relative_to(folder).as_posix()}", path, checkpoint.step, _hub_note(folder, path))
        for path in _files_below(folder)
    ]
    return found or [_local(f"{name}/", folder, checkpoint.step)]


def run_artifacts(workspace: Workspace, run: Run) -> list[Artifact]:
    """Files of the run itself: token files, label masks, tokenizer, order files, index."""
    found: list[Artifact] = []
    for file in (*run.files, *run.heldout):
        if isinstance(file.path, Path):
            found.append(_local(file.name, file.path, stated=file.sha256))
        else:
            found.append(_remote(file.name, file.path, file.sha256))
        if file.label_mask is not None:
            found.append(_local(f"{file.name} label mask", file.label_mask))
    for name, entry in run.order.parameters.items():
        if isinstance(entry, dict) and isinstance(entry.get("path"), str):
            found.append(_local(f"order {name}", run.source / entry["path"], stated=entry.get("sha256")))
    if isinstance(run.tokenizer, Path):
        found.append(_local("tokenizer", run.tokenizer, stated=run.tokenizer_sha256))
    for path in _records_of(run):
        found.append(_local(path.relative_to(run.source).as_posix(), path))
    return [*found, _local("index.duckdb", workspace.home(run.name) / "index.duckdb")]


# What trainers write of a run besides checkpoints and tokens: its order, its log, its configuration, its documents.
_RECORDS = (
    *("metrics.jsonl", "metrics/*.parquet", "documents.parquet", "consumed/*.parquet", "run.toml"),
    *("global_indices*.npy", "*/global_indices*.npy", "train_data/*.npy", "*/train_data/*.npy"),
    *("data-indices/*", "*/data-indices/*", "*.yml", "*.yaml", "configs/*.y*ml", "data_paths.txt"),
)


def _records_of(run: Run) -> list[Path]:
    found = {path for pattern in _RECORDS for path in run.source.glob(pattern) if path.is_file()}
    return sorted(found - {file.path for file in run.files if isinstance(file.path, Path)})


def content_of(artifact: Artifact) -> str:
    """sha256 of the file; all of it is read.

    Raises:
        MissingFile, UnsafeFile, and what servers answer
    """
    path = artifact.place if isinstance(artifact.place, Path) else artifact.place.download()
    return sha256_of_file(path)


def identity_of(artifact: Artifact) -> str:
    """What changes when the file does, as far as that is seen without reading it."""
    if isinstance(artifact.place, Path):
        try:
            found = artifact.place.stat()
        except OSError:
            return "absent"
        return f"{found.st_size}:{found.st_mtime_ns}"
    return f"{artifact.num_bytes}:{artifact.sha256_stated or artifact.place}"


def identity_of_all(artifacts: Iterable[Artifact]) -> str:
    return " ".join(f"{artifact.name}={identity_of(artifact)}" for artifact in artifacts)


def _local(name: str, path: Path, step: int | None = None, stated: str | None = None) -> Artifact:
    known = stated if isinstance(stated, str) and _SHA256.match(stated) else None
    return _looked_for(name, path, partial(require_file, path), step, known)


# What a checkpoint of each trainer has at the least; a server without a listing is asked for these.
_EXPECTED = {
    "olmo": ("config.yaml", "model.pt", "optim.pt", "train.pt"),
    "olmo_core": ("config.json", ".metadata.json", "model_and_optim/.metadata", "train/rank0.pt"),
}


def _served(name: str, checkpoint: Checkpoint, folder: RemotePath) -> list[Artifact]:
    """Files of a checkpoint on a server: as the hub lists them, elsewhere those that there must be."""
    if hub.address_of(f"{folder}/.") is None:
        return [
            _remote(f"{name}/{file}", folder / file, None, checkpoint.step)
            for file in _EXPECTED.get(checkpoint.layout, ("config.json",))
        ]
    try:
        files = hub_files.files_at(folder.url, folder.cache).values()
    except ForensicsError as reason:
        return [replace(_remote(f"{name}/", folder, None, checkpoint.step), error=str(reason))]
    return [
        _remote(
            f"{name}/{file.path}",
            replace(folder / file.path, num_bytes=file.num_bytes, sha256=file.sha256),
            file.sha256,
            checkpoint.step,
        )
        for file in sorted(files, key=lambda file: file.path)
    ]


def _remote(name: str, place: RemotePath, stated: str | None, step: int | None = None) -> Artifact:
    # A listing of the hub has just said so; other servers are asked, whatever a manifest states.
    ask = place.size if hub.address_of(place.url) else lambda: place.check().num_bytes
    return _looked_for(name, place, ask, step, stated)


def _looked_for(name: str, place: Place, ask: Callable[[], int], step: int | None, stated: str | None) -> Artifact:
    num_bytes, error = None, None
    try:
        num_bytes = ask()
    except ForensicsError as reason:
        error = str(reason)
    return Artifact(
        name=name,
        step=step,
        place=place,
        num_bytes=num_bytes,
        sha256_stated=stated,
        available=error is None,
        error=error,
        checked_at=today(),
    )


def _files_below(folder: Path) -> Iterator[Path]:
    """What is in a folder and its folders, links to folders not followed; what people and clients put there is not."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith((TEMPORARY_PREFIX, ".git")))


def _hub_note(folder: Path, path: Path) -> str | None:
    """The sha256 that the hub stated of a file, where its client left it: in a note, or as the name it links to."""
    if path.is_symlink() and _SHA256.match(target := os.path.basename(os.readlink(path))):
        return target
    note = folder / _HUB_NOTES / "download" / f"{path.relative_to(folder).as_posix()}.metadata"
    try:
        lines = note.read_text().splitlines()[:2] if 0 < require_file(note) < 4096 else []
    except (ForensicsError, OSError, ValueError):
        return None
    stated = lines[1].strip().strip('"') if len(lines) == 2 else ""
    return stated if _SHA256.match(stated) else None
