"""Repositories of the hub whose data are not known: checkpoints, and nothing that says what they read.

Where the data are known, a run from the hub has the layout of its trainer; see `data_index.published`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import UnknownLayout
from data_index.run import Checkpoint, Run

if TYPE_CHECKING:
    from data_index.remote.files import Data
    from data_index.sources import Imported


def recognises(folder: Path) -> bool:
    return False


def read(folder: Path, name: str | None, data: Data, settings: Mapping[str, Any]) -> Imported:
    raise UnknownLayout(f"{folder} is a folder; the layout hub is that of a repository, given by its name: ORG/NAME")


def list_checkpoints(run: Run) -> list[Checkpoint]:
    """None of its own: what was listed is kept in the workspace."""
    return []
