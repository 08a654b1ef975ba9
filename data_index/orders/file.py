"""The order is a recorded file per epoch: order/epoch-<e>.npy of the native run format."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_index.errors import CorruptFile, MissingFile
from data_index.files import sha256_of_file
from data_index.run import Run


def epoch_order(run: Run, epoch: int) -> np.ndarray:
    """Instances at every position of the epoch, checked against the hash that the trainer stated.

    Raises:
        MissingFile, CorruptFile
    """
    entry = run.order.parameters.get(f"epoch_{epoch}")
    if entry is None:
        raise MissingFile(f"{run.name} names no order file for epoch {epoch}")
    if not isinstance(entry, Mapping) or not {"path", "sha256"} <= set(entry):
        raise CorruptFile(f"run.toml of {run.name}: order.parameters.epoch_{epoch} has no path and sha256")
    path = run.source / entry["path"]
    actual = sha256_of_file(path)
    if actual != entry["sha256"]:
        raise CorruptFile(
            f"{path} is not the order that run.toml of {run.name} names (sha256 {actual[:12]}… instead of "
            f"{entry['sha256'][:12]}…): restore the file"
        )
    try:
        # Mapped, not read: a header that claims more than the file holds is noticed before anything is allocated.
        order = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates the header, which fails in many ways
        raise CorruptFile(f"{path} is not a whole .npy file: {error}") from error
    if not isinstance(order, np.ndarray):
        raise CorruptFile(f"{path} is not one array")
    if order.ndim != 1 or not np.issubdtype(order.dtype, np.unsignedinteger):
        raise CorruptFile(f"{path} holds {order.dtype} of shape {order.shape}, not a row of unsigned integers")
    if len(order) and int(order.max()) >= run.num_instances:
        raise CorruptFile(f"{path} names instance {int(order.max())}; {run.name} has {run.num_instances} instances")
    return np.array(order)
