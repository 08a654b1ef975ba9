"""Tags of documents that were learned, by origin; one origin's tags replace those that it gave before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_index.errors import UNFORESEEN, CorruptFile
from data_index.workspace import Workspace, put_in_force

MAX_TAG_CHARACTERS = 256


def files_by_origin(workspace: Workspace, home: Path) -> dict[str, list[Path]]:
    """The files in force of each origin; a file holds one origin's tags.

    Raises:
        CorruptFile
    """
    found: dict[str, list[Path]] = {}
    for path in workspace.learned_files(home, "tags"):
        if (origin := _origin_of(path)) is not None:
            found.setdefault(origin, []).append(path)
    return found


def _origin_of(path: Path) -> str | None:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            first = next(file.iter_batches(batch_size=1, columns=["origin"]), None)
            return str(first.column(0)[0]) if first is not None and first.num_rows else None
    except (*UNFORESEEN, pyarrow.ArrowException) as error:
        raise CorruptFile(f"{path} is not a whole Parquet file: {error}") from error


def replace_origin(workspace: Workspace, home: Path, origin: str, paths: Sequence[Path]) -> None:
    """Put an origin's tags in force, instead of those that it gave before; no paths take them away."""
    others = [path for name, files in files_by_origin(workspace, home).items() if name != origin for path in files]
    put_in_force(home, {"tags": [*others, *paths]})


def tags_table(document_ids: Sequence[int], tags: Iterable[str], origin: str) -> Any:
    """An Arrow table of the kind `tags`."""
    import pyarrow

    from data_index.kinds import arrow_schema

    columns = [pyarrow.array(document_ids, pyarrow.int64()), pyarrow.array(tags, pyarrow.string())]
    named = pyarrow.repeat(pyarrow.scalar(origin, pyarrow.string()), len(columns[0]))
    return pyarrow.table([*columns, named], schema=arrow_schema("tags"))


def is_tag(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TAG_CHARACTERS
