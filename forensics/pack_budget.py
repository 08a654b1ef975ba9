"""What goes into a pack: what must, and of the rest what fits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_index.errors import InvalidRange
from data_index.pack_file import MAX_FILES, Content, content_bytes

DEFAULT_BUDGET_BYTES = 100 * 10**6
BYTES_PER_FILE = 400  # of a pack, besides a file's content and name: its headers and its line in the manifest
MOST_FILES = MAX_FILES - 100  # that are chosen; the page and the like come besides

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def bytes_of_budget(text: str) -> int:
    """`2GB`, `500 MB`, `1.5GiB`, or a number of bytes.

    Raises:
        InvalidRange
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in _UNITS:
        raise InvalidRange(f"--budget takes bytes as in 500MB, 2GB or 1.5GiB, not {text[:40]!r}")
    return int(float(found[1]) * _UNITS[found[2]])


@dataclass(slots=True, kw_only=True)
class Contents:
    """The files of a pack that is being put together.

    Attributes:
        budget: bytes that the pack may have; what must be in it counts, and goes in though it is more.
        told: what went in and what did not, a row each: part, num_bytes, packed, why.
    """

    budget: int
    files: dict[str, Content] = field(default_factory=dict)
    told: list[dict[str, Any]] = field(default_factory=list)
    used: int = 0

    def put(self, part: str, files: Mapping[str, Content]) -> bool:
        """What every pack of its kind holds, however large; says whether it could be taken."""
        taken = {path.lower() for path in self.files}
        if twice := [path for path in files if path.lower() in taken]:
            self.leave_out(part, _bytes_of(files), f"another file of the pack is called as {twice[0]} on some disks")
            return False
        if len(self.files) + len(files) > MOST_FILES:
            self.leave_out(part, _bytes_of(files), f"a pack holds {MOST_FILES:,} files at most")
            return False
        self.files |= files
        self.used += (size := _bytes_of(files))
        self.told.append({"part": part, "num_bytes": size, "packed": True, "why": ""})
        return True

    def offer(self, part: str, files: Mapping[str, Content]) -> bool:
        """Take files, all or none, if they fit; says which."""
        size = _bytes_of(files)
        if self.fits(size):
            return self.put(part, files)
        self.leave_out(part, size, f"does not fit: {max(self.budget - self.used, 0):,} bytes are left of the budget")
        return False

    def fits(self, num_bytes: int) -> bool:
        return self.used + num_bytes <= self.budget

    def leave_out(self, part: str, num_bytes: int | None, why: str) -> None:
        self.told.append({"part": part, "num_bytes": num_bytes, "packed": False, "why": why})

    def expect(self, part: str, num_bytes: int) -> None:
        """Count something as packed whose files are made only when the pack is."""
        self.told.append({"part": part, "num_bytes": num_bytes, "packed": True, "why": "about this many bytes"})
        self.used += num_bytes

    @property
    def left_out(self) -> list[dict[str, Any]]:
        return [row for row in self.told if not row["packed"]]


def _bytes_of(files: Mapping[str, Content]) -> int:
    return sum(content_bytes(content) + BYTES_PER_FILE + 3 * len(path) for path, content in files.items())
