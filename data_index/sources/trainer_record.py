"""A trainer's own record as JSON lines: metrics, batches as consumed, hashes of the weights.

Each line is an object with `step` and `kind`:

    metrics   any numbers; floats in `hex` (float.hex) win over their decimal form
    batch     `index`: instances in batch order; `input_ids_i64_sha256` of the token ids as int64
    params    `sha256` over the weights, names sorted: name bytes, then fp32 bytes, for each parameter

A line without `kind` is read as metrics; with `indices` (instances in batch order) it is a batch besides. Lines of one
step add up; a name that comes again for the same step is the next attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile
from data_index.kinds import table_of_rows
from data_index.logs.json_lines import lines_of, parsed
from data_index.metric_names import canonical_names


def read_record(path: Path) -> dict[str, Any]:
    """Read a record into Arrow tables by kind: metrics, consumed, parameter_hashes.

    Raises:
        MissingFile, CorruptFile
    """
    metrics: list[dict[str, Any]] = []
    consumed: list[dict[str, Any]] = []
    hashes: list[dict[str, Any]] = []
    attempts: Counter[tuple[Any, ...]] = Counter()
    for number, content in lines_of(path):
        line = parsed(content, f"{path} line {number}")
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
                    row = {"step": step, "attempt": attempts[step, name], "value": value, "original_name": name}
                    metrics.append(row)
            elif kind == "params":
                attempts[step, "params"] += 1
                hashes.append({"step": step, "attempt": attempts[step, "params"], "sha256": line["sha256"]})
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise CorruptFile(f"{path} line {number} cannot be read: {error!r}") from error
    names = canonical_names(row["original_name"] for row in metrics)
    metrics = [row | {"name": names[row["original_name"]]} for row in metrics]
    return _tables(path, metrics=metrics, consumed=consumed, parameter_hashes=hashes)


def _numbers(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    exact = line.get("hex") or {}
    for name, value in line.items():
        if name not in ("step", "kind", "hex") and isinstance(value, int | float):
            yield name, float.fromhex(exact[name]) if name in exact else float(value)


def _tables(path: Path, **rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {kind: table_of_rows(kind, found, path) for kind, found in rows.items() if found}
