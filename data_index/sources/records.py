"""Runs of which only numbers are at hand: a log, or evaluations of checkpoints that are elsewhere.

`import --new` makes them. What their steps read is not known, and they have no checkpoint here; a run that has either
is added by `add`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import UnknownLayout
from data_index.run import Checkpoint, Order, OrderTrust, Run

if TYPE_CHECKING:
    from data_index.remote.files import Data
    from data_index.sources import Imported


def recognises(folder: Path) -> bool:
    return False


def read(folder: Path, name: str | None, data: Data, settings: Mapping[str, Any]) -> Imported:
    raise UnknownLayout(
        f"{folder} is a folder; the layout records is that of a run with nothing but a log or evaluations: forensics "
        f"import {name or 'NAME'} {folder} --new"
    )


def list_checkpoints(run: Run) -> list[Checkpoint]:
    """None: whoever has weights adds them."""
    return []


def run_of_records(name: str, source: Path, last_step: int) -> Run:
    """
    Args:
        source: the first of the files.
        last_step: the last one that they tell of.
    """
    missing = "only what was logged or evaluated of it is here"
    return Run(
        name=name,
        layout="records",
        source=source,
        sequence_length=1,
        files=(),
        order=Order(rule="unknown"),
        segments=(),
        trust=OrderTrust(level="unknown", witness="nothing", missing=missing),
        config_format="records",
        config={},
        facts={"last_step": str(last_step)},
    )
