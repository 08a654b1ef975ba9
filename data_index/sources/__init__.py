"""Published layouts, one a file. A layout is recognised by looking; `add --layout` forces one.

A layout module has three functions:

    recognises(folder) -> bool
    read(folder, name, data) -> Imported          what the folder says; reads no token
    list_checkpoints(run) -> list[Checkpoint]     in step order; reads no tensor
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from data_index.errors import MissingFile, UnknownLayout
from data_index.run import Checkpoint, Run


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imported:
    """A run as its folder describes it.

    Attributes:
        tables: kind of learned file -> Arrow table (documents, masks, metrics, consumed, parameter_hashes).
        verbatim: file name -> bytes kept beside the run, the trainer's own config first of all.
    """

    run: Run
    tables: Mapping[str, Any] = field(default_factory=dict)
    verbatim: Mapping[str, bytes] = field(default_factory=dict)


def layouts() -> dict[str, ModuleType]:
    from data_index.sources import native, olmo_core

    return {"native": native, "olmo_core": olmo_core}


def recognise(folder: Path) -> str:
    """Name the layout of a folder.

    Raises:
        MissingFile: no such folder.
        UnknownLayout: none fits.
    """
    if not folder.is_dir():
        raise MissingFile(f"{folder} is not a folder")
    for name, layout in layouts().items():
        if layout.recognises(folder):
            return name
    raise UnknownLayout(
        f"{folder} is in no layout that this version reads ({', '.join(layouts())}): a native run has a run.toml, an "
        "OLMo-core run has step<N>/config.json beside step<N>/model_and_optim/.metadata"
    )


def layout_module(name: str) -> ModuleType:
    try:
        return layouts()[name]
    except KeyError:
        raise UnknownLayout(f"unknown layout {name!r}; this version reads {', '.join(layouts())}") from None


def list_checkpoints(run: Run) -> list[Checkpoint]:
    found: list[Checkpoint] = layout_module(run.layout).list_checkpoints(run)
    return found
