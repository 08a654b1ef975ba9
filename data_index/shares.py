"""The mixture over time: how many instances of each file each stretch of steps read. Counts a whole run's inverse."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data_index.batch_queries import further_positions, mixture_rows, positions_by_instance
from data_index.pieces import read_pieces
from data_index.readings import layers, steps_of_positions, stop_position
from data_index.run import Run, Segment
from data_index.workspace import Workspace

ROWS_COUNTED_BY_SQL = 20_000_000


def mixture(workspace: Workspace, run: Run, first: int, last: int, by: str, every: int) -> Any:
    """Rows of `batch --by --every` for steps first+1 .. last, as `mixture_rows` answers them.

    Files of a great many rows are counted along the instances, which lie file by file.
    """
    num_rows = (run.tokens_after(last) - run.tokens_after(first)) // run.tokens_per_instance
    if by != "file" or num_rows < ROWS_COUNTED_BY_SQL:
        return mixture_rows(workspace, run, first, last, by, every)
    shares = file_shares(workspace, run, every, (first, last))
    tokens = shares.column("instances").to_numpy() * run.sequence_length
    table = shares.append_column("tokens", [tokens]).select(["first_step", "last_step", "file", "tokens", "share"])
    return table.sort_by([("first_step", "ascending"), ("tokens", "descending"), ("file", "ascending")])


def file_shares(workspace: Workspace, run: Run, every: int, steps: tuple[int, int] | None = None) -> Any:
    """How much of each stretch of steps came from each file, as an Arrow table.

    The whole inverse is gone through, whatever the steps: 10^9 instances take some ten seconds.

    Args:
        every: steps of a stretch; the last may be shorter.
        steps: from checkpoint to checkpoint; default: all that the run took.
    Returns:
        Rows of first_step, last_step, file, instances and share (of the stretch's instances), in this order; a file
        that a stretch did not read has no row. An instance counts for the file that it begins in, each time that it
        was read by an attempt that was kept.
    Raises:
        CorruptFile: the index is no index, or its pieces are damaged.
    """
    import pyarrow

    first, last = steps or (run.first_step - 1, run.last_step)
    counts = np.zeros((len(run.files), (last - first - 1) // every + 1), dtype=np.int64)
    kept = [clipped for stretch in run.kept_stretches() if (clipped := _clip(stretch, first, last)) is not None]
    for epoch in run.epochs:
        for layer in layers([segment for segment in kept if segment.epoch == epoch]):
            for begin, positions in positions_by_instance(workspace, run, epoch):
                for number, part in _files_between(run, begin, begin + len(positions)):
                    counts[number] += _count(layer, positions[part], first + 1, every, counts.shape[1])
            instances, positions = further_positions(workspace, run, epoch)
            for number, part in _files_of(run, instances):
                counts[number] += _count(layer, positions[part], first + 1, every, counts.shape[1])
    stretch, file = np.nonzero(counts.T)
    first_step = first + 1 + stretch * every
    return pyarrow.table(
        {
            "first_step": first_step,
            "last_step": np.minimum(first_step + every - 1, last),
            "file": pyarrow.array([file.name for file in run.files], pyarrow.string()).take(pyarrow.array(file)),
            "instances": counts[file, stretch],
            "share": counts[file, stretch] / counts.sum(axis=0)[stretch],
        }
    )


def _clip(segment: Segment, first: int, last: int) -> Segment | None:
    """The part of a segment that steps first+1 .. last are."""
    begin, end = max(segment.first_step, first + 1), min(segment.last_step, last)
    if begin > end:
        return None
    start = segment.positions_of_step(begin).start
    return replace(segment, first_step=begin, num_steps=end - begin + 1, first_position=start)


def _count(
    layer: Sequence[Segment], positions: np.ndarray, first_step: int, every: int, num_stretches: int
) -> np.ndarray:
    """Readings of positions by stretch of `every` steps, int64 of shape [num_stretches]."""
    if len(layer) == 1:
        # Almost every run is one segment: a stretch is so many positions, and no step is worked out.
        (segment,) = layer
        read = positions < stop_position(segment)
        if segment.first_position:
            read &= positions >= segment.first_position
        inside = positions if read.all() else positions[read]
        shift = (segment.first_step - first_step) * segment.instances_per_batch - segment.first_position
        shifted = inside if shift == 0 else inside.astype(np.int64) + shift
        stretch = shifted // shifted.dtype.type(segment.instances_per_batch * every)
    else:
        steps = steps_of_positions(layer, positions)
        stretch = (steps[steps > 0] - first_step) // every
    return np.bincount(stretch.astype(np.int64, copy=False), minlength=num_stretches)


def _files_between(run: Run, first: int, stop: int) -> Iterator[tuple[int, slice | np.ndarray]]:
    """Files (by number) that some instances of first .. stop begin in, and which of them, counted from `first`."""
    in_pieces = run.pieces.num_instances if run.pieces else 0
    number = max(bisect_left(run.files, first, key=lambda file: file.first_instance + file.num_instances), 0)
    while number < len(run.files) and run.files[number].first_instance < stop:
        file = run.files[number]
        begin, end = max(file.first_instance, first), min(file.first_instance + file.num_instances, stop)
        if begin < end:
            yield number, slice(begin - first, end - first)
        number += 1
    if first < in_pieces:
        yield from _files_of(run, np.arange(first, min(stop, in_pieces)))


def _files_of(run: Run, instances: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Files (by number) that instances begin in, and which of them."""
    starts = np.array([file.first_instance for file in run.files])
    numbers = np.searchsorted(starts, instances, side="right") - 1
    if run.pieces is not None:
        pieces = read_pieces(run.pieces)
        (here,) = np.nonzero(instances < pieces.num_instances)
        first = pieces.first[instances[here]]
        begun = pieces.first[instances[here] + 1] > first  # one that is all padding begins in no file
        numbers[here] = np.where(begun, pieces.file[np.minimum(first, len(pieces.file) - 1)], -1)
    for number in np.unique(numbers[numbers >= 0]).tolist():
        yield number, np.flatnonzero(numbers == number)
