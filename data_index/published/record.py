"""A run that lies on servers, and how it is read: like a folder, once its small files are staged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_index.files import parse_json, write_bytes
from data_index.kinds import table_of_rows
from data_index.remote.files import Data
from data_index.run import Order, OrderTrust, Run
from data_index.sources import Imported, read_layout

Progress = Callable[[str], None]
MAX_STAGED_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """
    Attributes:
        origin: where the run comes from, for people.
        layout: whose reader says what steps read; None: nothing says it, and `missing` says why.
        staged: path -> content of the small files that the reader wants.
        settings: what the trainer was told and no file says.
        checkpoints: rows of the learned kind `checkpoints`, in step order.
        config_format: of whose recipe the run's steps are.
    """

    name: str
    origin: str
    layout: str | None
    checkpoints: list[dict[str, Any]]
    staged: Mapping[str, bytes] = field(default_factory=dict)
    data: Data = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    config_format: str = "hf"
    sequence_length: int = 1


def read_published(published: Published, name: str, home: Path, layout: str | None) -> Imported:
    """Stage the small files in the run's home, and read them as the trainer's folder.

    Raises:
        whatever the layout's reader raises
    """
    folder = home / "source"
    folder.mkdir()
    for path, content in published.staged.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / path, content)
    chosen = layout or published.layout
    if chosen is None:
        imported = Imported(run=_run_without_order(published, name, folder))
    else:
        imported = read_layout(chosen, folder, name, published.data, published.settings)
    run = replace(imported.run, facts={**imported.run.facts, "origin": published.origin})
    rows = [row | {"tokens": _tokens(run, row)} for row in published.checkpoints]
    tables = {**imported.tables, "checkpoints": table_of_rows("checkpoints", rows, published.origin)}
    return replace(imported, run=run, tables=tables)


def _tokens(run: Run, row: Mapping[str, Any]) -> int | None:
    """The order knows better than the catalog, where there is one."""
    return run.tokens_after(row["step"]) if run.segments else row["tokens"]


def _run_without_order(published: Published, name: str, folder: Path) -> Run:
    config = parse_json(published.staged.get("config.json", b"{}"), f"config.json of {published.origin}")
    return Run(
        name=name,
        layout="hub",
        source=folder,
        sequence_length=published.sequence_length,
        files=(),
        order=Order(rule="unknown"),
        segments=(),
        trust=OrderTrust(level="unknown", witness="nothing", missing=published.missing),
        config_format=published.config_format,
        config={**(config if isinstance(config, dict) else {}), **published.settings},
        tokenizer=folder / "tokenizer.json" if "tokenizer.json" in published.staged else None,
        facts={"last_step": str(max((row["step"] for row in published.checkpoints), default=0))},
    )
