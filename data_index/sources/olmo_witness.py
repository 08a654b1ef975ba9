"""What the legacy OLMo trainer left behind of its data order: per-rank indices, the order file.

Source: Python package ai2-olmo 0.6.0 (olmo/train.py, olmo/data/iterable_dataset.py).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, OrderMismatch, UnsafeFile
from data_index.files import require_file
from data_index.kinds import table_of_rows
from data_index.orders.olmo import global_indices
from data_index.run import Order, OrderTrust, Segment

# Numbers pack to a third or so; what unpacks to far more is no list of them.
MIN_UNPACKED_BYTES, UNPACKED_RATIO = 2**20, 100


def len_of_order(num_instances: int, order: Order) -> int:
    """Positions of an epoch."""
    world_size, drop_last = order.parameters["world_size"], order.parameters["drop_last"]
    whole = num_instances // world_size if drop_last else -(-num_instances // world_size)
    return int(whole * world_size)


def per_rank_indices(folder: Path, folders: Mapping[int, Path]) -> Any:
    """data-indices/rank<r>.tsv.gz as a table of consumed batches; None where it was not published.

    Rank r of W reads every W-th instance of a global batch, from the r-th on.
    """
    homes = [path for path in (folder, *{p.parent for p in folders.values()}) if (path / "data-indices").is_dir()]
    if not homes:
        return None
    files = sorted((homes[0] / "data-indices").glob("rank*.tsv.gz"))
    by_rank = [list(_lines_of(path)) for path in files]
    if not by_rank or len({len(lines) for lines in by_rank}) != 1:
        raise CorruptFile(f"{homes[0]}/data-indices: the ranks have {[len(r) for r in by_rank]} lines")
    times: dict[int, int] = {}
    rows = []
    for lines in zip(*by_rank, strict=True):
        steps, parts = {step for step, _ in lines}, [part for _, part in lines]
        if len(steps) != 1 or len({len(part) for part in parts}) != 1:
            raise CorruptFile(f"{homes[0]}/data-indices: the ranks do not agree at step {min(steps)}")
        step = steps.pop()
        times[step] = times.get(step, 0) + 1
        instances = np.array(parts, dtype=np.int64).T.reshape(-1)
        rows.append({"step": step, "attempt": times[step], "instances": instances.tolist(), "input_ids_sha256": None})
    return table_of_rows("consumed", rows, homes[0])


def _lines_of(path: Path) -> Iterator[tuple[int, list[int]]]:
    left = max(MIN_UNPACKED_BYTES, UNPACKED_RATIO * require_file(path))
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(left + 1):
                left -= len(line)
                if left < 0:
                    raise UnsafeFile(f"{path} unpacks to more than numbers can: nothing more of it was read")
                numbers = [int(number) for number in line.split(b"\t")]
                if not all(0 <= number < 2**63 for number in numbers):
                    raise ValueError("a number that counts nothing")
                yield numbers[0], numbers[1:]
    except UnsafeFile:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CorruptFile(f"{path} is not a whole list of indices: {error}") from error


def prove_order(
    folder: Path,
    folders: Mapping[int, Path],
    known_positions: int,
    order: Order,
    segments: tuple[Segment, ...],
    num_instances: int,
    notes: list[str],
) -> OrderTrust:
    """Compare with the order file that the trainer left; the loader's positions have been joined already.

    Args:
        known_positions: checkpoints whose trainer state was there.
        notes: jumps of the data loader that no config explains.
    Raises:
        OrderMismatch: the message says which side is wrong.
    """
    witnesses = []
    if known_positions:
        witnesses.append(f"the data loader's position in {known_positions} of {len(folders)} checkpoints")
    for home in dict.fromkeys([folder, *(path.parent for path in folders.values())]):
        path = home / "train_data" / "global_indices.npy"
        if path.is_file():
            witnesses.append(check_global_indices(path, order, segments, num_instances))
    missing = "a record of the token ids that were consumed"
    return OrderTrust(
        level="derived",
        witness="; ".join(witnesses) or "rule and file sizes only",
        missing="; ".join([missing, *notes]),
    )


def check_global_indices(path: Path, order: Order, segments: tuple[Segment, ...], num_instances: int) -> str:
    """Is this the order of one of the run's epochs? The trainer overwrites the file at each epoch.

    Raises:
        OrderMismatch
    """
    expected = len_of_order(num_instances, order)
    recorded = np.fromfile(path, dtype="<u4", count=expected + 1) if require_file(path) else np.empty(0, "<u4")
    if len(recorded) != expected or (len(recorded) and int(recorded.max()) >= num_instances):
        raise OrderMismatch(
            f"{path}, the trainer's own order, names {len(recorded):,} instances up to "
            f"{int(recorded.max(initial=0)):,}; the token files hold {num_instances:,}: files are missing, or the "
            "order is another run's"
        )
    epochs = sorted({segment.epoch for segment in segments})
    for epoch in [*epochs, *(e for e in range(1, 11) if e not in epochs)]:
        if np.array_equal(recorded, global_indices(num_instances, epoch=epoch - 1, **order.parameters)):
            return f"global_indices.npy is the order of epoch {epoch}"
    raise OrderMismatch(
        f"{path}, the trainer's own order, is not what the rule gives with seed {order.parameters['seed']} for any "
        "epoch: config.yaml is not the config of this run, or the trainer was another version"
    )
