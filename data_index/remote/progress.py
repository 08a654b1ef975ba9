"""Who is told how far a fetch has come: the command line, where there is one."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # bytes fetched, bytes to fetch

listener: Progress | None = None


def tell(done: int, total: int, progress: Progress | None = None) -> None:
    """Tell who asked to be told of this fetch, else who is told of all."""
    told = progress or listener
    if told is not None:
        told(done, total)
