"""The seal of a home: hashes of what was written when a run was added or a fork begun, and is never written again.

    seal.json    path inside the home -> sha256 and bytes, of run.toml, index.duckdb, config.*, pieces, orders …

What is learned later is not in it: those files carry their hash in their names (`write_hashed_parquet`), and
current.json, which names them, is replaced. Token files have hashes by block, the tokenizer has one in run.toml.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, ForensicsError
from data_index.files import read_json, read_limited, require_file, sha256_of_file, write_json

SEAL = "seal.json"
_NOT_SEALED = (SEAL, "current.json")
_NAMED_BY_HASH = re.compile(r"[0-9a-f]{16}\.parquet\Z")


def write_seal(home: Path, *, without: Collection[str] = ()) -> None:
    """Hash every file of a home that is being built; called when all else is written.

    Args:
        without: folders whose files are verified otherwise, and may be taken away.
    """
    every = sorted(path for path in home.rglob("*") if path.is_file())
    files = [path for path in every if path.relative_to(home).parts[0] not in without]
    sealed = {
        path.relative_to(home).as_posix(): {"sha256": sha256_of_file(path), "num_bytes": path.stat().st_size}
        for path in files
        if path.name not in _NOT_SEALED and not _NAMED_BY_HASH.match(path.name)
    }
    write_json(home / SEAL, sealed)


def read_seal(home: Path) -> dict[str, Mapping[str, Any]] | None:
    """Path -> `sha256` and `num_bytes`; None for a home that an earlier version wrote.

    Raises:
        CorruptFile
    """
    path = home / SEAL
    if not path.exists():
        return None
    seal = read_json(path)
    entries = seal.values() if isinstance(seal, dict) else [None]
    if not all(isinstance(entry, dict) and {"sha256", "num_bytes"} <= set(entry) for entry in entries):
        raise CorruptFile(f"{path} is no list of hashes; register {home.name} again")
    return dict(seal)


def check_sealed(home: Path, name: str, max_bytes: int) -> None:
    """Compare a small file with its hash; nothing is known of homes without a seal.

    Raises:
        CorruptFile, MissingFile
    """
    seal = read_seal(home)
    if seal is not None:
        entry = seal.get(name, {})
        _require(home, name, entry.get("sha256"), hashlib.sha256(read_limited(home / name, max_bytes)).hexdigest())


def check_sealed_size(home: Path, name: str) -> None:
    """Compare the size of a file that is too large to hash whenever it is opened.

    Raises:
        CorruptFile, MissingFile
    """
    seal, size = read_seal(home), require_file(home / name)
    if seal is not None and size != (sealed := seal.get(name, {}).get("num_bytes")):
        raise CorruptFile(
            f"{home / name} has {size:,} bytes; when {home.name} was added it had {sealed}: it was truncated or "
            f"replaced; {_AGAIN.format(home.name)}"
        )


def broken_seals(
    home: Path, max_bytes: int | None = None, say: Callable[[str], None] = lambda message: None
) -> Iterator[tuple[str, str]]:
    """What was sealed, and what is named by its hash, but is no longer it: (path inside the home, what is wrong).

    Args:
        max_bytes: of larger files only the size is compared.
    """
    for name, entry in (read_seal(home) or {}).items():
        try:
            check_sealed_size(home, name)
            if max_bytes is None or entry["num_bytes"] <= max_bytes:
                say(f"{name}: hashing {entry['num_bytes']:,} bytes")
                _require(home, name, entry["sha256"], sha256_of_file(home / name))
        except ForensicsError as error:
            yield name, str(error)
    for path in sorted(home.glob("*/*.parquet")):
        try:
            check_named_hash(path, max_bytes)
        except ForensicsError as error:
            yield path.relative_to(home).as_posix(), str(error)


def check_named_hash(path: Path, max_bytes: int | None = None) -> None:
    """Is a file that is named by its hash what its name says?

    Args:
        max_bytes: larger files are let pass, for an audit to look at.
    Raises:
        CorruptFile, MissingFile
    """
    size = require_file(path)
    if not _NAMED_BY_HASH.match(path.name) or (max_bytes is not None and size > max_bytes):
        return
    if (actual := _hash_of(path, size, path.stat().st_mtime_ns))[:16] != path.stem:
        raise CorruptFile(
            f"{path} is named by its content, which has sha256 {actual[:12]}… now: it was changed; restore the file, "
            "or register the run again"
        )


@functools.lru_cache(maxsize=4096)
def _hash_of(path: Path, size: int, changed_at: int) -> str:
    """Once for each content, as far as size and time tell: tables are opened again with every question."""
    return sha256_of_file(path)


_AGAIN = "restore the file, or forensics remove {} and add it again"


def _require(home: Path, name: str, sealed: str | None, actual: str) -> None:
    if sealed is None:
        raise CorruptFile(f"{home / SEAL} does not name {name}: it was damaged; {_AGAIN.format(home.name)}")
    if actual != sealed:
        raise CorruptFile(
            f"{home / name} was changed since {home.name} was added (sha256 {actual[:12]}… instead of {sealed[:12]}…): "
            f"{_AGAIN.format(home.name)}"
        )
