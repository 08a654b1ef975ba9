"""What stands where a file is expected, and is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

Change = Callable[[Path], object]


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link_to(target: str) -> Change:
    def change(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return change


def folder_instead(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def hole(path: Path) -> None:
    """Terabytes, none of which are there."""
    with path.open("ab") as file:
        file.truncate(8 * 2**40)


NO_FILES: dict[str, Change] = {
    "a pipe": fifo,
    "a link to zeros": link_to("/dev/zero"),
    "a link to noise": link_to("/dev/urandom"),
    "a link to itself": lambda path: link_to(path.name)(path),
    "a folder": folder_instead,
    "a hole": hole,
}
