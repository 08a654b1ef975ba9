"""What an audit would read; nothing is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_index.artifacts import Artifact, artifacts_of, identity_of_all, run_artifacts
from data_index.run import Checkpoint
from data_index.workspace import Workspace
from forensics.artifact_checks import can_be_hashed, is_small
from forensics.audit_work import AuditWork
from forensics.fetching import bytes_of_all_tokens
from forensics.weight_samples import MAX_ELEMENTS, STRETCH_ELEMENTS, STRETCHES, name_of_reading

PAGE_BYTES = 4096  # that a disk gives for one element


def plan_audit(run: str, *, deep: bool = False, workspace: Workspace | None = None) -> dict[str, Any]:
    """Count what would be read.

    Returns:
        `run, deep, checkpoints, files, bytes` (all there is), `kept_checkpoints` (of which weights need not be read
        again), `token_bytes, hash_bytes, weight_bytes` (to be read) and `read_bytes`, their sum; `fetch_bytes`: what of
        it has to be fetched from servers.
    Raises:
        UnknownRun, CorruptFile
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    work = AuditWork(workspace.home(run), deep=deep)
    checkpoints = workspace.checkpoints(record)
    own = run_artifacts(workspace, record)
    there = {checkpoint.step: artifacts_of(workspace, record, checkpoint) for checkpoint in checkpoints}
    everything = [*own, *(artifact for files in there.values() for artifact in files)]
    tokens = sum(file.num_bytes for file in (*record.files, *record.heldout)) if deep else 0
    hashed = weights = kept = 0
    read: set[int] = set()
    for checkpoint in checkpoints:
        files = there[checkpoint.step]
        identity = identity_of_all(files)
        if deep or is_small(there):
            hashed += _bytes_to_hash(work, checkpoint, files, deep=deep)
        if work.find(name_of_reading(checkpoint, deep=deep), identity) is not None:
            kept += 1
            read.add(checkpoint.step)
        elif "weights" in checkpoint.states and not (deep or isinstance(checkpoint.location, Path)):
            weights += STRETCHES * STRETCH_ELEMENTS * 4  # and the headers of its files
        elif "weights" in checkpoint.states:
            size = sum(artifact.num_bytes or 0 for artifact in files if artifact.holds_weights)
            # Deep: once to hash, and each neighbour once more to compare elements.
            weights += 3 * size if deep else min(size, MAX_ELEMENTS * PAGE_BYTES)
    return {
        "run": run,
        "deep": deep,
        "checkpoints": len(checkpoints),
        "files": len(everything),
        "bytes": sum(artifact.num_bytes or 0 for artifact in everything),
        "kept_checkpoints": kept,
        "token_bytes": tokens,
        "hash_bytes": hashed,
        "weight_bytes": weights,
        "read_bytes": tokens + hashed + weights,
        "fetch_bytes": (bytes_of_all_tokens(record) if deep else 0)
        + _bytes_to_fetch([there[c.step] for c in checkpoints if c.step not in read], deep),
    }


def _bytes_to_fetch(checkpoints: Sequence[Sequence[Artifact]], deep: bool) -> int:
    """Of checkpoints on servers: deep, the weights that are not on disk, equal ones once; else some stretches."""
    far = [
        [a for a in files if a.holds_weights and not isinstance(a.place, Path) and a.place.copy() is None]
        for files in checkpoints
    ]
    if not deep:
        most = STRETCHES * STRETCH_ELEMENTS * 4
        return sum(min(most, sum(a.num_bytes or 0 for a in files)) for files in far)
    sizes = {a.sha256_stated or str(a.place): a.num_bytes or 0 for files in far for a in files}
    return sum(sizes.values())


def _bytes_to_hash(work: AuditWork, checkpoint: Checkpoint, files: Sequence[Artifact], *, deep: bool) -> int:
    chosen = [artifact for artifact in files if can_be_hashed(artifact, deep=deep)]
    if work.find(f"step{checkpoint.step}-files", identity_of_all(chosen)) is not None:
        return 0
    return sum(artifact.num_bytes or 0 for artifact in chosen)
