"""What a folder says, whatever its containers look like: the measure of "the same result" (design.md, Hashes).

Tensors count by name, dtype, shape and bytes; table rows in key order, joined over the pieces of a kind, which an
interruption may have cut at other steps; trace arrays joined along steps; TOML and JSON by value; index files by the
rows of all their tables and the text of their views; anything else byte for byte.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import h5py
import numpy as np
import pyarrow.parquet

from data_index.files import TEMPORARY_PREFIX, canonical_json, read_json, sha256_of_file
from replay.weights import content_hash, read_safetensors

# Names that say which steps, or which bytes, are inside: such files of one folder are pieces of one table.
PIECE = re.compile(r"(\d+-\d+|[0-9a-f]{16})\Z")
HASHED_FILE = re.compile(r"\b[0-9a-f]{16}(?=\.parquet\Z)")
# Keys of JSON objects that rightly differ from one time to the next.
TIMES = frozenset({"finished"})
# What is said of other files: how far they are, and hashes of bytes that may differ where their content does not.
NO_CONTENT = frozenset({"progress.jsonl", "seal.json"})


def content_hashes(folder: Path, base: Path | None = None) -> dict[str, str]:
    """Hash of each thing in a folder: by path, or by folder and `*` where pieces were joined.

    Lock files, progress.jsonl, seal.json and what dead writers left (`leftovers`) are not content.

    Args:
        base: the folder above all that the files name by absolute path, such as the workspace; default: `folder`.
    """
    grouped: dict[str, list[Path]] = {}
    for path in sorted(content_files(folder)):
        relative = path.relative_to(folder)
        piece = path.suffix in (".parquet", ".h5") and PIECE.match(path.stem)
        name = (relative.parent / f"*{path.suffix}") if piece else relative
        grouped.setdefault(name.as_posix(), []).append(path)
    home = str((base or folder).absolute())
    return {name: HASHES.get(paths[0].suffix, hash_of_bytes)(paths, home) for name, paths in grouped.items()}


def content_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        temporary = any(part.startswith(TEMPORARY_PREFIX) for part in path.relative_to(folder).parts)
        if path.is_file() and not temporary and path.suffix != ".lock" and path.name not in NO_CONTENT:
            yield path


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders that a dead writer left; of nested ones, the outermost."""
    found = sorted(folder.rglob(f"{TEMPORARY_PREFIX}*"))
    return [path for path in found if not any(other in path.parents for other in found)]


def differences(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """What differs, a line each; empty when the content is the same."""
    return [
        f"{name}: {'missing' if name not in actual else 'not expected' if name not in expected else 'differs'}"
        for name in sorted(expected.keys() | actual.keys())
        if expected.get(name) != actual.get(name)
    ]


def hash_of_tensors(paths: Sequence[Path], base: str) -> str:
    (path,) = paths
    return content_hash(read_safetensors(path))


def hash_of_rows(paths: Sequence[Path], base: str) -> str:
    """Every row counts, also one that two pieces hold; the order of rows does not."""
    tables = [pyarrow.parquet.read_table(path, partitioning=None) for path in paths]
    return hash_of_values(
        {
            "columns": sorted({f"{field.name} {field.type}" for table in tables for field in table.schema}),
            "rows": sorted_rows([row for table in tables for row in table.to_pylist()], base),
        }
    )


def hash_of_arrays(paths: Sequence[Path], base: str) -> str:
    pieces: dict[str, list[np.ndarray]] = {}
    for path in sorted(paths, key=first_step):
        with h5py.File(path, "r") as file:
            for name in file:
                pieces.setdefault(name, []).append(file[name][...])
    joined = {name: np.concatenate(arrays) for name, arrays in pieces.items()}
    return hash_of_values(
        {
            name: [str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
            for name, array in joined.items()
        }
    )


def first_step(piece: Path) -> int:
    return int(piece.stem.split("-")[0])


def hash_of_database(paths: Sequence[Path], base: str) -> str:
    (path,) = paths
    with duckdb.connect(str(path), read_only=True) as connection:
        tables = connection.execute("SELECT table_name, sql FROM duckdb_tables() ORDER BY ALL").fetchall()
        views = connection.execute("SELECT sql FROM duckdb_views() WHERE NOT internal ORDER BY ALL").fetchall()
        rows = {
            name: sorted_rows(connection.sql(f'FROM "{name}"').to_arrow_table().to_pylist(), base) for name, _ in tables
        }
    return hash_of_values({"tables": tables, "views": views, "rows": rows})


def hash_of_toml(paths: Sequence[Path], base: str) -> str:
    (path,) = paths
    return hash_of_values(portable(tomllib.loads(path.read_text()), base))


def hash_of_json(paths: Sequence[Path], base: str) -> str:
    (path,) = paths
    return hash_of_values(portable(read_json(path), base))


def hash_of_bytes(paths: Sequence[Path], base: str) -> str:
    (path,) = paths
    return sha256_of_file(path)


HASHES: Mapping[str, Callable[[Sequence[Path], str], str]] = {
    ".safetensors": hash_of_tensors,
    ".parquet": hash_of_rows,
    ".h5": hash_of_arrays,
    ".duckdb": hash_of_database,
    ".toml": hash_of_toml,
    ".json": hash_of_json,
}


def hash_of_values(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sorted_rows(rows: Sequence[Mapping[str, Any]], base: str) -> list[str]:
    """Rows as text that tells every bit of a float, sorted: key order, since no two rows share their key."""
    return sorted(canonical_json(portable(row, base)).decode() for row in rows)


def portable(value: Any, base: str) -> Any:
    """A parsed value without times, with a placeholder for the base folder and for names made from file bytes."""
    if isinstance(value, Mapping):
        return {key: portable(item, base) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list | tuple):
        return [portable(item, base) for item in value]
    return HASHED_FILE.sub("HASH", value.replace(base, "BASE")) if isinstance(value, str) else value
