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
from data_index.tokens import TokenReader
from data_index.workspace import Workspace, learn

# Hashing everything at `add` is worth it below this size; above, blocks are hashed when first read.
HASH_AT_ADD_BYTES = 10 * 10**9


def prove_consumed(run: Run, records: Iterable[Mapping[str, Any]]) -> Run:
    """Check every batch that the trainer recorded: instances and token ids. Returns the run with its trust.

    Raises:
        OrderMismatch: a recorded batch is not what order and token files give; the message says which of the two.
    """
    reader = TokenReader(run, block_hashes=None)
    orders: dict[int, np.ndarray] = {}
    proved, with_tokens = set(), set()
    # The attempt that was kept is the last; which number it has depends on how many were recorded.
    kept = {record["step"]: record for record in sorted(records, key=lambda record: record["attempt"])}
    for step, record in sorted(kept.items()):
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


def sha256_of_ids(token_ids: np.ndarray) -> str:
    """sha256 of token ids as int64 in C order: what the native format and the fixtures record."""
    return hashlib.sha256(np.ascontiguousarray(token_ids, dtype="<i8").tobytes()).hexdigest()


def _trust(run: Run, proved: set[int], with_tokens: set[int]) -> OrderTrust:
    if not proved:
        return run.trust
    steps = f"steps {min(proved)}..{max(proved)} ({len(proved)} batches)"
    if proved == with_tokens:
        return OrderTrust(level="exact", witness=f"the trainer's record of instances and token ids, {steps}")
    if run.trust.level == "unknown":
        # The record names instances; what they are made of stays in doubt.
        return run.trust
    missing = "a record of the token ids that were consumed"
    before = run.trust.witness
    return OrderTrust(level="derived", witness=f"the trainer's record of instances, {steps}; {before}", missing=missing)


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
    """Block hashes of all token files on disk, or of none when they are too large to read at `add`.

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
    if sum(file.num_bytes for file in files) > HASH_AT_ADD_BYTES:
        return []
    rows = []
    for file in files:
        if file.sha256 is not None and (actual := sha256_of_file(file.on_disk)) != file.sha256:
            raise CorruptFile(
                f"{file.path} is not the token file that run.toml of {run.name} names (sha256 {actual[:12]}… instead "
                f"of {file.sha256[:12]}…): restore the file"
            )
        hashes = sha256_of_blocks(file.on_disk)
        rows += [{"file": file.name, "block": n, "sha256": h, "seen": "add"} for n, h in enumerate(hashes)]
    return rows
