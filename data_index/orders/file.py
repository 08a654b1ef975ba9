"""The order is a recorded file per epoch: order/epoch-<e>.npy of the native run format."""

from __future__ import annotations

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
    path = run.source / entry["path"]
    actual = sha256_of_file(path)
    if actual != entry["sha256"]:
        raise CorruptFile(
            f"{path} is not the order that run.toml of {run.name} names (sha256 {actual[:12]}… instead of "
            f"{entry['sha256'][:12]}…): restore the file"
        )
    try:
        order = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CorruptFile(f"{path} is not a whole .npy file: {error}") from error
    if order.ndim != 1 or not np.issubdtype(order.dtype, np.unsignedinteger):
        raise CorruptFile(f"{path} holds {order.dtype} of shape {order.shape}, not a row of unsigned integers")
    if len(order) and int(order.max()) >= run.num_instances:
        raise CorruptFile(f"{path} names instance {int(order.max())}; {run.name} has {run.num_instances} instances")
    return order
