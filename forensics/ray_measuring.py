"""Measure checkpoints in several processes, on one machine or many, through Ray (extra `distributed`).

A task is one checkpoint. Its worker reads the weights from where they are, so that machines of a cluster need them at
the same path, or on a server. Numbers are those of the local sweep, bit for bit on machines of one kind: each worker
computes with the same number of threads.

Source: Ray's task fault tolerance: a task whose worker process dies is run again, `max_retries` times.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from data_index.errors import ForensicsError, InvalidRange, MissingPackage, Unreachable
from forensics.measured_checkpoint import Computing, Measured, Task, measured, read_needed, unmeasured

MAX_RETRIES = 3
# Tasks that are handed to Ray for each worker: one that is worked on, one that is ready.
TASKS_PER_WORKER = 2
CONNECT_SECONDS = 10
_ADDRESS = re.compile(r"(?:ray://)?([^:/]+):(\d{1,5})")  # else it is a word of Ray's, such as auto


def measured_on_ray(
    tasks: Sequence[Task], computing: Computing, *, workers: int | None = None, address: str | None = None
) -> Iterator[Measured]:
    """In the order in which they are done. A checkpoint whose worker dies is tried again on another, three times.

    Args:
        workers: processes at once; None: as many as Ray has room for.
        address: of a running cluster; None: Ray is started here, and ended with the sweep.
    Raises:
        MissingPackage: Ray is not installed.
        Unreachable: there is no cluster at the address.
        InvalidRange: no machine of the cluster has as many threads, or a GPU.
        OutOfMemory: the device of a worker does not hold the model.
    """
    if not tasks:
        return
    with _started(computing, workers, address) as ray:
        # A checkpoint is no work for a machine that has fewer threads: its numbers would differ in their last digits.
        remote = ray.remote(
            num_cpus=computing.threads,
            num_gpus=1 if computing.device.startswith("cuda") else 0,
            max_retries=MAX_RETRIES,
        )(_measured_there)
        _require_machine(ray, computing)
        at_once = TASKS_PER_WORKER * (workers or int(ray.cluster_resources()["CPU"]) // computing.threads)
        waiting = list(reversed(tasks))
        running: dict[Any, Task] = {}
        while waiting or running:
            while waiting and len(running) < at_once:
                task = waiting.pop()
                running[remote.remote(task, computing)] = task
            for finished in ray.wait(list(running), num_returns=1)[0]:
                yield _result(ray, finished, running.pop(finished))


def _require_machine(ray: Any, computing: Computing) -> None:
    """A checkpoint that no machine can take would wait for one for ever.

    Raises:
        InvalidRange
    """
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(one.get("CPU", 0) >= computing.threads for one in there):
        most = max((int(one.get("CPU", 0)) for one in there), default=0)
        raise InvalidRange(f"no machine of the cluster has {computing.threads} threads: take --threads {most} or fewer")
    if computing.device.startswith("cuda") and not any(one.get("GPU", 0) >= 1 for one in there):
        raise InvalidRange("no machine of the cluster has a GPU: take --device cpu")


def _measured_there(task: Task, computing: Computing) -> Measured:
    """In a worker."""
    try:
        tensors, num_bytes = read_needed(task)
    except ForensicsError as error:
        return unmeasured(task.checkpoint.step, task.probes, str(error))
    return measured(task, tensors, num_bytes, computing)


def _result(ray: Any, finished: Any, task: Task) -> Measured:
    try:
        found: Measured = ray.get(finished)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        first = str(error).strip().split("\n")[0]
        return unmeasured(task.checkpoint.step, task.probes, f"its worker died {MAX_RETRIES + 1} times: {first[:200]}")
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, ForensicsError) else error from None
    return found


@contextmanager
def _started(computing: Computing, workers: int | None, address: str | None) -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise MissingPackage(
            "many workers need Ray, which is not installed: pip install 'checkpoint-forensics[distributed]'"
        ) from error
    # A cluster that happens to run here is used by its address alone.
    here = {"num_cpus": workers * computing.threads} if workers is not None and address is None else {}
    try:
        _require_cluster(address)
        ray.init(
            address=address or "local", log_to_driver=False, logging_level="ERROR", configure_logging=False, **here
        )
    except OSError as error:
        raise Unreachable(f"no Ray cluster at {address}: {str(error)[:200]}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_cluster(address: str | None) -> None:
    """Ray itself would try for minutes.

    Raises:
        OSError: nothing answers at HOST:PORT.
    """
    found = _ADDRESS.fullmatch(address or "")
    if found:
        socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
