"""The mixture over time: how many instances of each file each stretch of steps read. Counts a whole run's inverse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from data_index.pieces import read_pieces
from data_index.readings import layers, steps_of_positions
from data_index.run import Run
from data_index.store import positions_in_order_of_instances
from data_index.workspace import Workspace


def file_shares(workspace: Workspace, run: Run, every: int) -> Any:
    """How much of each stretch of steps came from each file, as an Arrow table.

    Args:
        every: steps of a stretch; the first begins with the run's first step, the last may be shorter.
    Returns:
        Rows of first_step, last_step, file, instances and share (of the stretch's instances), in this order; a file
        that a stretch did not read has no row. An instance counts for the file that it begins in, each time that it
        was read by an attempt that was kept.
    Raises:
        CorruptFile: the index is no index, or its pieces are damaged.
    """
    import pyarrow

    counts = np.zeros((len(run.files), (run.last_step - run.first_step) // every + 1), dtype=np.int64)
    kept = run.kept_stretches()
    for epoch in run.epochs:
        for layer in layers([segment for segment in kept if segment.epoch == epoch]):
            for instances, positions in positions_in_order_of_instances(workspace, run, epoch):
                steps = steps_of_positions(layer, positions)
                stretch = np.where(steps > 0, (steps - run.first_step) // every, -1)
                for number, part in _by_file(run, instances):
                    counts[number] += np.bincount(stretch[part] + 1, minlength=counts.shape[1] + 1)[1:]
    stretch, file = np.nonzero(counts.T)
    first_step = run.first_step + stretch * every
    return pyarrow.table(
        {
            "first_step": first_step,
            "last_step": np.minimum(first_step + every - 1, run.last_step),
            "file": pyarrow.array([file.name for file in run.files], pyarrow.string()).take(pyarrow.array(file)),
            "instances": counts[file, stretch],
            "share": counts[file, stretch] / counts.sum(axis=0)[stretch],
        }
    )


def _by_file(run: Run, instances: np.ndarray) -> Iterable[tuple[int, slice | np.ndarray]]:
    """Files (by number), and which of some instances, given in rising order, begin in each."""
    in_pieces = run.pieces.num_instances if run.pieces else 0
    for number, file in enumerate(run.files):
        first, last = np.searchsorted(instances, [file.first_instance, file.first_instance + file.num_instances])
        if last > first:
            yield number, slice(first, last)
    here = instances[: np.searchsorted(instances, in_pieces)]
    if run.pieces and len(here):
        pieces = read_pieces(run.pieces)
        filled = pieces.first[here + 1] > pieces.first[here]  # one that is all padding begins in no file
        file_of = pieces.file[np.minimum(pieces.first[here], len(pieces.file) - 1)]
        for begun in np.unique(file_of[filled]).tolist():
            yield begun, np.flatnonzero(filled & (file_of == begun))
