"""Tables that take long to learn: written piece by piece, found again after an interruption, put in force together.

The pieces lie in the folder of their kind, where no reader looks at them before current.json names them; work.json
beside them says which were written, and for what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_index.errors import ForensicsError
from data_index.files import canonical_json, read_json_object, write_hashed_parquet_parts, write_json
from data_index.kinds import arrow_schema


class PiecewiseTable:
    """The pieces of one kind that one piece of work has written so far.

    Attributes:
        notes: what was noted of each piece, in order; its file is among it, as `parquet`.
    """

    def __init__(self, home: Path, kind: str, work: Mapping[str, Any]) -> None:
        """
        Args:
            work: what the result depends on; pieces of other work are not taken up.
        """
        self._folder = home / kind
        self._kind = kind
        self._work = canonical_json(work).decode()
        kept = _read(self._folder / "work.json")
        notes = kept.get("notes") if kept.get("work") == self._work else None
        self.notes: list[dict[str, Any]] = notes if isinstance(notes, list) and self._there(notes) else []

    def add(self, tables: Iterable[Any], note: Mapping[str, Any]) -> None:
        """Write one more piece; `note` is read once all tables were written."""
        path = write_hashed_parquet_parts(self._folder, arrow_schema(self._kind), tables)
        self.notes.append({**note, "parquet": path.name})
        write_json(self._folder / "work.json", {"work": self._work, "notes": self.notes})

    def paths(self) -> list[Path]:
        return [self._folder / note["parquet"] for note in self.notes]

    def forget(self) -> None:
        """The pieces are in force, or not wanted any more."""
        (self._folder / "work.json").unlink(missing_ok=True)

    def _there(self, notes: list[Any]) -> bool:
        return all(isinstance(note, dict) and (self._folder / str(note.get("parquet"))).is_file() for note in notes)


def _read(path: Path) -> dict[str, Any]:
    """What is not whole or not there was not kept."""
    try:
        return read_json_object(path)
    except ForensicsError:
        return {}
