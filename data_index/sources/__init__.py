"""Published layouts, one a file. A layout is recognised by looking; `add --layout` forces one.

A layout module has three functions:

    recognises(folder) -> bool
    read(folder, name, data, settings) -> Imported    what the folder says, and what the user says that it does not
    list_checkpoints(run) -> list[Checkpoint]         in step order; reads no tensor
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data_index.errors import UNFORESEEN, CorruptFile, ForensicsError, MissingFile, OutOfMemory, UnknownLayout
from data_index.run import Checkpoint, Run

if TYPE_CHECKING:  # numpy is not for every command
    import numpy as np

    from data_index.pieces import Pieces
    from data_index.remote.files import Data


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imported:
    """A run as its folder describes it.

    Attributes:
        tables: kind of learned file -> Arrow table (documents, masks, metrics, consumed, parameter_hashes).
        verbatim: file name -> bytes kept beside the run, the trainer's own config first of all.
        pieces: how instances are put together, where they are not cut from files.
        lines: file name -> byte offsets of its lines, for files with one instance a line.
        records: tables of the kind `consumed` besides the one in `tables`, which must not contradict the run either.
    """

    run: Run
    tables: Mapping[str, Any] = field(default_factory=dict)
    verbatim: Mapping[str, bytes] = field(default_factory=dict)
    pieces: Pieces | None = None
    lines: Mapping[str, np.ndarray] = field(default_factory=dict)
    records: tuple[Any, ...] = ()


class Layout(Protocol):
    """What a layout module offers."""

    def recognises(self, folder: Path) -> bool: ...

    def read(self, folder: Path, name: str | None, data: Data, settings: Mapping[str, Any]) -> Imported: ...

    def list_checkpoints(self, run: Run) -> list[Checkpoint]: ...


# What makes a folder each layout's, for people whose folder is in none.
LAYOUTS = {
    "native": "run.toml",
    "olmo_core": "step<N>/config.json beside step<N>/model_and_optim/.metadata, or a config.json alone",
    "olmo": "step<N>-unsharded/config.yaml or step<N>/config.yaml with the weights",
    "bloom": "megatron.yml with Megatron-DeepSpeed's arguments",
    "neox": "*.yml of GPT-NeoX (train_iters, data_path or train_data_paths)",
    "amber": "train_<chunk>.jsonl with token_ids and source",
    "hub": "a repository of the hub by its name, ORG/NAME",
    "k2": "numbered .jsonl chunks with token_ids, source and subset_name",
    "records": "a log or evaluations and nothing else: forensics import NAME FILE --new",
}


def layout_named(name: str) -> Layout:
    """
    Raises:
        UnknownLayout
    """
    if name not in LAYOUTS:
        raise UnknownLayout(f"unknown layout {name!r}; this version reads {', '.join(LAYOUTS)}")
    if name in ("amber", "k2"):
        chunks: Layout = getattr(importlib.import_module("data_index.sources.llm360"), name)
        return chunks
    module: Any = importlib.import_module(f"data_index.sources.{name}")
    layout: Layout = module
    return layout


def recognise(folder: Path) -> str:
    """Name the layout of a folder.

    Raises:
        MissingFile: no such folder.
        UnknownLayout: none fits.
    """
    if not folder.is_dir():
        raise MissingFile(f"{folder} is not a folder")
    for name in LAYOUTS:
        if layout_named(name).recognises(folder):
            return name
    known = "; ".join(f"{name}: {what}" for name, what in LAYOUTS.items())
    raise UnknownLayout(f"{folder} is in no layout that this version reads ({known}); force one with --layout")


def read_layout(layout: str, folder: Path, name: str | None, data: Data, settings: Mapping[str, Any]) -> Imported:
    """What a layout's reader says; what it did not foresee in a damaged or hostile folder is stated too."""
    try:
        return layout_named(layout).read(folder, name, data, settings)
    except ForensicsError:
        raise
    except MemoryError as error:
        raise OutOfMemory(f"reading {folder} as {layout} needs more memory than there is: {error}") from error
    except UNFORESEEN as error:
        raise CorruptFile(f"{folder} cannot be read as a run of layout {layout}: {error!r}") from error


def list_checkpoints(run: Run) -> list[Checkpoint]:
    return layout_named(run.layout).list_checkpoints(run)
