"""Measure checkpoints in this process, one after another; the next one is read while one is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from data_index.errors import ForensicsError
from forensics.measured_checkpoint import Computing, Measured, Task, measured, read_needed, unmeasured

if TYPE_CHECKING:
    import torch

Tensors = tuple[dict[str, "torch.Tensor"], int]


def measured_here(tasks: Sequence[Task], computing: Computing) -> Iterator[Measured]:
    """In the order of the tasks; a checkpoint that cannot be read says why. Two are in memory.

    Raises:
        OutOfMemory
    """
    with ThreadPoolExecutor(1) as reader:
        ahead: Future[Tensors] | None = None
        for number, task in enumerate(tasks):
            reading = ahead if ahead is not None else reader.submit(read_needed, task)
            tensors, num_bytes, problem = _result(reading)
            # Its result would otherwise hold the tensors of the one before for as long as this one is measured.
            del reading
            ahead = reader.submit(read_needed, tasks[number + 1]) if number + 1 < len(tasks) else None
            yield (
                measured(task, tensors, num_bytes, computing)
                if problem is None
                else unmeasured(task.checkpoint.step, task.probes, problem)
            )


def _result(reading: Future[Tensors]) -> tuple[dict[str, torch.Tensor], int, str | None]:
    """What was read, or why it was not."""
    try:
        return *reading.result(), None
    except ForensicsError as error:
        return {}, 0, str(error)
