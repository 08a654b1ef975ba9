"""A trainer's own record as JSON lines: metrics, batches as consumed, hashes of the weights.

Each line is an object with `step` and `kind`:

    metrics   any numbers; floats in `hex` (float.hex) win over their decimal form
    batch     `index`: instances in batch order; `input_ids_i64_sha256` of the token ids as int64
    params    `sha256` over the weights, names sorted: name bytes, then fp32 bytes, for each parameter

A line without `kind` is read as metrics; with `indices` (instances in batch order) it is a batch besides. Lines of one
step add up; a name that comes again for the same step is the next attempt.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, UnsafeFile
from data_index.files import open_existing, parse_json
from data_index.kinds import table_of_rows

# The largest lines list the instances of a batch.
MAX_LINE_BYTES = 64 * 2**20

CANONICAL_NAMES = {
    "ce_loss": "loss",
    "lr": "learning_rate",
    "tokens_seen": "tokens",
    "train/CrossEntropyLoss": "loss",
    "train/ZLoss": "z_loss",
    "optim/total_grad_norm": "grad_norm",
    "optim/learning_rate_group0": "learning_rate",
    "throughput/total_tokens": "tokens",
    "train/CE loss": "loss",
    "train/Z loss": "z_loss",
    "optim/total grad norm": "grad_norm",
    "optim/LR (group 0)": "learning_rate",
    "optim/step skipped": "skipped",
    "throughput/total tokens": "tokens",
}


def read_record(path: Path) -> dict[str, Any]:
    """Read a record into Arrow tables by kind: metrics, consumed, parameter_hashes.

    Raises:
        MissingFile, CorruptFile
    """
    metrics: list[dict[str, Any]] = []
    consumed: list[dict[str, Any]] = []
    hashes: list[dict[str, Any]] = []
    attempts: Counter[tuple[Any, ...]] = Counter()
    for number, line in _lines(path):
        try:
            step, kind = int(line["step"]), line.get("kind", "metrics")
            batch = line["index"] if kind == "batch" else line.get("indices")
            if batch is not None:
                attempts[step, "batch"] += 1
                consumed.append(
                    {
                        "step": step,
                        "attempt": attempts[step, "batch"],
                        "instances": [int(i) for i in batch],
                        "input_ids_sha256": line.get("input_ids_i64_sha256"),
                    }
                )
            if kind == "metrics":
                for name, value in _numbers(line):
                    attempts[step, name] += 1
                    metrics.append(_metric(step, attempts[step, name], name, value))
            elif kind == "params":
                attempts[step, "params"] += 1
                hashes.append({"step": step, "attempt": attempts[step, "params"], "sha256": line["sha256"]})
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise CorruptFile(f"{path} line {number} cannot be read: {error!r}") from error
    return _tables(path, metrics=metrics, consumed=consumed, parameter_hashes=hashes)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_existing(path) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise UnsafeFile(f"{path} line {number} has more than {MAX_LINE_BYTES:,} bytes, as no record has")
            if line.strip():
                value = parse_json(line, f"{path} line {number}")
                if not isinstance(value, dict):
                    raise CorruptFile(f"{path} line {number} is not an object")
                yield number, value


def _numbers(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    exact = line.get("hex") or {}
    for name, value in line.items():
        if name not in ("step", "kind", "hex") and isinstance(value, int | float):
            yield name, float.fromhex(exact[name]) if name in exact else float(value)


def _metric(step: int, attempt: int, name: str, value: float) -> dict[str, Any]:
    canonical = CANONICAL_NAMES.get(name, name)
    return {"step": step, "attempt": attempt, "name": canonical, "value": value, "original_name": name}


def _tables(path: Path, **rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {kind: table_of_rows(kind, found, path) for kind, found in rows.items() if found}
