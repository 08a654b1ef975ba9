"""Work side by side in threads that nobody waits for: a stalled server must not keep who interrupts it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from data_index.remote.connection import PARALLEL_REQUESTS

T = TypeVar("T")
R = TypeVar("R")
GRACE_SECONDS = 1.0


def side_by_side(work: Callable[[T, threading.Event], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
    """Results as they come. Once the caller stops looking, or a work fails, no other is begun, and none is waited for.

    Args:
        work: is told by its second argument that nobody wants its result any more.
    """
    todo, stop, lock = iter(items), threading.Event(), threading.Lock()
    done: queue.SimpleQueue[tuple[T, R] | BaseException] = queue.SimpleQueue()

    def run() -> None:
        while not stop.is_set():
            with lock:
                try:
                    item = next(todo)
                except StopIteration:
                    return
            try:
                done.put((item, work(item, stop)))
            except BaseException as error:
                done.put(error)

    # Daemons: an interpreter that ends does not wait for them. What they keep, they keep as if killed.
    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(PARALLEL_REQUESTS, len(items)))]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        end = time.monotonic() + GRACE_SECONDS  # what is about to come is kept
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0.0))
