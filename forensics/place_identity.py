"""What tells weights from other weights without reading them: where they are, how large, and how old."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from data_index.errors import MissingFile
from data_index.files import canonical_json

if TYPE_CHECKING:
    from data_index.remote.path import Place


def identity_of_place(place: Place, *, commit: str | None = None) -> str:
    """Changes when a file does: the first 16 hex digits of a sha256.

    Args:
        commit: that a place on a server is at, where its address does not hold it.
    Raises:
        MissingFile
    """
    if not isinstance(place, Path):
        return _hash([str(place), commit])
    try:
        files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        states = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise MissingFile(f"{place} cannot be looked at: {error}") from error
    return _hash(states)


def _hash(parts: object) -> str:
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:16]
