"""Is this the data the run read? Compare plan and token files with the trainer's own record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, OrderMismatch, StepOutOfRange
from data_index.files import require_file, sha256_of_blocks, sha256_of_file
from data_index.kinds import table_of_rows
from data_index.orders import epoch_order
from data_index.run import OrderTrust, Run
from data_index.tokens import TokenReader, hashed_files
from data_index.workspace import Workspace, learn

# Hashing everything at `add` is worth it below this size; above, blocks are hashed when first read.
HASH_AT_ADD_BYTES = 10 * 10**9


def prove_consumed(run: Run, *records: Iterable[Mapping[str, Any]]) -> Run:
    """Check every batch that the trainer recorded: instances and token ids. Returns the run with its trust.

    Args:
        records: rows of the kind `consumed`, one iterable for each place that the trainer kept them in.
    Raises:
        OrderMismatch: a recorded batch is not what order and token files give; the message says which of the two.
    """
    reader = TokenReader(run, block_hashes=None)
    orders: dict[int, np.ndarray] = {}
    proved, with_tokens = set(), set()
    for step, record in sorted((entry for place in records for entry in _kept(place)), key=lambda entry: entry[0]):
        try:
            segment = run.segment_of_step(step)
        except StepOutOfRange:
            continue
        if segment.epoch not in orders:
            orders[segment.epoch] = epoch_order(run, segment.epoch)
        instances = orders[segment.epoch][segment.positions_of_step(step)]
        if list(record["instances"]) != instances.tolist():
            raise OrderMismatch(
                f"step {step} of {run.name} read instances {list(record['instances'])[:4]}… by the trainer's record, "
                f"{instances[:4].tolist()}… by the order rule {run.order.rule}: the order is wrong"
            )
        proved.add(step)
        if record["input_ids_sha256"]:
            if sha256_of_ids(reader.rows(instances)) != record["input_ids_sha256"]:
                raise OrderMismatch(
                    f"step {step} of {run.name}: the instances are those of the trainer's record, but their token ids "
                    "are not: the token files are wrong"
                )
            with_tokens.add(step)
    return replace(run, trust=_trust(run, proved, with_tokens))


def _kept(records: Iterable[Mapping[str, Any]]) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """The attempt that was kept is the last; which number it has depends on how many were recorded."""
    return {record["step"]: record for record in sorted(records, key=lambda record: record["attempt"])}.items()


def sha256_of_ids(token_ids: np.ndarray) -> str:
    """sha256 of token ids as int64 in C order: what the native format and the fixtures record."""
    return hashlib.sha256(np.ascontiguousarray(token_ids, dtype="<i8").tobytes()).hexdigest()


def _trust(run: Run, proved: set[int], with_tokens: set[int]) -> OrderTrust:
    if not proved:
        return run.trust
    all_steps = [(first, last) for first, last, _ in run.kept_steps()]
    exact = stretches(with_tokens)
    if all(any(start <= first and last <= stop for start, stop in exact) for first, last in joined(all_steps)):
        return OrderTrust(
            level="exact", witness=f"the trainer's record of instances and token ids, {_counted(with_tokens)}"
        )
    if run.trust.level == "unknown" and not with_tokens:
        # The record names instances; what they are made of stays in doubt.
        return run.trust
    said = []
    if with_tokens:
        said.append(f"the trainer's record of instances and token ids, {_counted(with_tokens)}, which are exact")
    if proved - with_tokens:
        said.append(f"the trainer's record of instances, {_counted(proved - with_tokens)}")
    missing = "a record of the token ids that were consumed" + (" in the other steps" if with_tokens else "")
    return OrderTrust(
        level="unknown" if run.trust.level == "unknown" else "derived",
        witness="; ".join([*said, run.trust.witness]),
        missing=missing,
        proved=exact,
    )


def _counted(steps: set[int]) -> str:
    return f"steps {min(steps)}..{max(steps)} ({len(steps)} batches)"


def stretches(steps: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Steps as stretches (first, last) without gaps, rising."""
    return joined([(step, step) for step in sorted(steps)])


def joined(found: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Rising stretches (first, last), those that touch made one."""
    whole: list[tuple[int, int]] = []
    for first, last in found:
        if whole and first == whole[-1][1] + 1:
            whole[-1] = (whole[-1][0], last)
        else:
            whole.append((first, last))
    return tuple(whole)


def remember_first_seen(workspace: Workspace, run: Run, reader: TokenReader) -> str:
    """Record blocks that a reader hashed for the first time; returns a sentence about them, or nothing.

    From then on a change is noticed; before, nothing says that the blocks are those that the run read.
    """
    if not reader.first_seen:
        return ""
    rows = [
        {"file": file, "block": block, "sha256": sha256, "seen": "first read"}
        for (file, block), sha256 in sorted(reader.first_seen.items())
    ]
    learn(workspace.home(run.name), "block_hashes", table_of_rows("block_hashes", rows, run.name), replace_kind=False)
    reader.first_seen.clear()
    return f"{len(rows)} blocks of 4 MiB were hashed for the first time; until now nothing vouched for them"


def hash_token_files(run: Run) -> list[dict[str, Any]]:
    """Block hashes of all that rows are made of on disk, or of nothing when it is too large to read at `add`.

    Files on servers are not read: what is fetched of them is hashed as it comes (`range_cache`).

    Raises:
        CorruptFile: a file is not the one whose hash run.toml states.
    """
    files = [file for file in (*run.files, *run.heldout) if isinstance(file.path, Path)]
    for file in files:
        if (size := require_file(file.path)) != file.num_bytes:
            raise CorruptFile(
                f"{file.path} has {size:,} bytes; the record of {run.name} says {file.num_bytes:,}: restore the file"
            )
    hashed = hashed_files(run)
    if sum(require_file(path) for path in hashed.values()) > HASH_AT_ADD_BYTES:
        return []
    for file in files:
        if file.sha256 is not None and (actual := sha256_of_file(file.on_disk)) != file.sha256:
            raise CorruptFile(
                f"{file.path} is not the token file that run.toml of {run.name} names (sha256 {actual[:12]}… instead "
                f"of {file.sha256[:12]}…): restore the file"
            )
    return block_rows(hashed, "add")


def block_rows(files: Mapping[str, Path], seen: str) -> list[dict[str, Any]]:
    """Rows of the kind `block_hashes`; `seen` says when."""
    return [
        {"file": name, "block": number, "sha256": sha256, "seen": seen}
        for name, path in files.items()
        for number, sha256 in enumerate(sha256_of_blocks(path))
    ]
