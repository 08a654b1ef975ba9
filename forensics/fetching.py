"""What a question would fetch from servers, before it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data_index.batch_queries import plan_of, reader_of
from data_index.errors import TooMuchToFetch
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace

if TYPE_CHECKING:
    from replay.weights import StoredPart

# What is fetched without being asked: 255 batches of Pythia's, or the weights of a model with 250 million parameters.
MAX_FETCH_BYTES = 2**30


def bytes_of_steps(workspace: Workspace, run: Run, first: int, last: int) -> int:
    """Bytes of token files that steps first+1 .. last read and that are not kept yet."""
    if all(isinstance(file.path, Path) for file in run.files):
        return 0
    plan = plan_of(workspace, run, first, last)
    return bytes_of_instances(workspace, run, (int(i) for step in plan.steps for i in plan[step].instances))


def bytes_of_instances(workspace: Workspace, run: Run, instances: Iterable[int]) -> int:
    from data_index.remote.ranges import bytes_to_fetch

    reader = reader_of(workspace, run)
    pieces = (piece for instance in instances for piece in reader.pieces_of(instance))
    return bytes_to_fetch(reader.stretches(pieces))


def bytes_of_all_tokens(run: Run) -> int:
    """Bytes of all token files on servers that are not kept yet."""
    from data_index.remote.path import RemotePath
    from data_index.remote.ranges import bytes_to_fetch

    return bytes_to_fetch((f.path, 0, f.num_bytes) for f in run.files if isinstance(f.path, RemotePath))


def bytes_of_weights(checkpoint: Checkpoint) -> int:
    """Bytes of a checkpoint's weights that are not on disk yet; its headers are fetched to tell."""
    if isinstance(checkpoint.location, Path):
        return 0
    from replay.weights import stored_weights

    if checkpoint.layout == "hf":
        from replay.weights_hf import weight_files

        return sum(file.size() for file in weight_files(checkpoint.location) if file.copy() is None)
    if checkpoint.layout == "olmo_core":
        from data_index.remote.ranges import bytes_to_fetch
        from replay.stored_remote import dcp_stretches

        return bytes_to_fetch(dcp_stretches(checkpoint.location / "model_and_optim", "model."))
    return bytes_of_tensors(checkpoint, stored_weights(checkpoint))


def bytes_of_tensors(checkpoint: Checkpoint, parts: Mapping[str, StoredPart]) -> int:
    """Bytes of some stored tensors of a checkpoint that are not on disk yet.

    Of tensors that do not lie in one stretch (pickles, distributed checkpoints), what is kept of them is counted too.
    """
    if isinstance(checkpoint.location, Path):
        return 0
    from data_index.remote.ranges import bytes_to_fetch
    from replay.weights import bytes_of_parts, stretches_of_parts, weights_on_servers

    files = weights_on_servers(checkpoint)
    if files and all(file.copy() is not None for file in files):
        return 0
    stretches = stretches_of_parts(parts)
    if stretches or not parts:  # of safetensors, only what is read from a copy on disk has no place on a server
        return bytes_to_fetch(stretches)
    return bytes_of_parts(parts)


def require_allowed(num_bytes: int, limit: int | None, what: str) -> None:
    """
    Raises:
        TooMuchToFetch
    """
    allowed = MAX_FETCH_BYTES if limit is None else limit
    if num_bytes > allowed:
        raise TooMuchToFetch(
            f"{what} would fetch {num_bytes:,} bytes, and {allowed:,} are allowed: ask for less, or allow it with "
            f"--max-fetch {num_bytes}"
        )
