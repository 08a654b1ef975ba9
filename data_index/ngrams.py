"""The n-gram index of a run's token files: positions sorted by the tokens that stand there; a cache beside the run.

    ngrams/manifest.json     the token files as they were (size, time, stated hash), and the chunks that are done
    ngrams/<file>-<chunk>.npy    uint32 positions within a chunk of a token file, sorted by the tokens from there on

A file is cut into chunks, and positions are sorted by as many tokens as fit 64 bits, at most 4. A chunk that the
manifest names is whole; what was interrupted goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, ForensicsError
from data_index.files import (
    exclusive_lock,
    read_json_object,
    remove_leftovers,
    require_file,
    require_free_space,
    sha256_of_file,
    write_json,
    write_npy,
)
from data_index.run import Run, TokenFile
from data_index.run_check import LINES
from data_index.tokens import TokenReader

VERSION = 1
CHUNK_TOKENS = 2**25
MOST_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramChunk:
    """Positions of tokens start .. stop of a file, in the order of `depth` tokens from each.

    Attributes:
        largest: the largest token id in it.
        num_bytes, changed_at, sha256: of the .npy file; changed_at in nanoseconds.
    """

    name: str
    start: int
    stop: int
    depth: int
    largest: int
    num_bytes: int
    changed_at: int
    sha256: str


def ngram_folder(home: Path) -> Path:
    return home / "ngrams"


def indexable(run: Run) -> list[TokenFile]:
    """Files that can have an index: those on disk that are arrays of tokens."""
    return [file for file in run.files if isinstance(file.path, Path) and file.dtype != LINES and file.num_bytes]


def identity(file: TokenFile) -> dict[str, Any]:
    """What a token file has to be for its index to hold."""
    found = file.on_disk.stat()
    return {
        "path": str(file.path),
        "dtype": file.dtype,
        "num_bytes": found.st_size,
        "changed_at": found.st_mtime_ns,
        "sha256": file.sha256,
    }


def read_manifest(home: Path) -> dict[str, Any]:
    """Entries by file name; none where there is no index, or one of another version.

    Raises:
        CorruptFile
    """
    path = ngram_folder(home) / "manifest.json"
    if not path.exists():
        return {}
    content = read_json_object(path)
    files = content.get("files")
    if content.get("version") != VERSION or not isinstance(files, dict):
        raise CorruptFile(f"{path} is no n-gram index of version {VERSION}")
    return files


def chunks_of(files: dict[str, Any], file: TokenFile) -> list[NgramChunk]:
    """The chunks of a file that the manifest names, if the file is still the one they were made from.

    Raises:
        CorruptFile: the file changed, or the manifest makes no sense.
    """
    entry = files.get(file.name)
    if entry is None:
        return []
    try:
        chunks = [NgramChunk(**chunk) for chunk in entry["chunks"]]
        wanted = entry["identity"]
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"the n-gram index of {file.name} makes no sense ({error})") from error
    if wanted != identity(file):
        raise CorruptFile(f"{file.path} is not the file that its n-gram index was made from")
    return chunks


def borders(file: TokenFile, chunk_tokens: int) -> list[tuple[int, int]]:
    num_tokens = file.num_bytes // np.dtype(file.dtype).itemsize
    return [(start, min(start + chunk_tokens, num_tokens)) for start in range(0, num_tokens, chunk_tokens)]


def missing_chunks(home: Path, run: Run, chunk_tokens: int = CHUNK_TOKENS) -> list[tuple[TokenFile, int, int]]:
    """(file, start, stop) of what a build has to sort."""
    missing = []
    try:
        files = read_manifest(home)
    except ForensicsError:
        files = {}
    for file in indexable(run):
        try:
            done = {(chunk.start, chunk.stop) for chunk in chunks_of(files, file) if _is_there(home, chunk)}
        except CorruptFile:
            done = set()
        missing += [(file, *border) for border in borders(file, chunk_tokens) if border not in done]
    return missing


def _is_there(home: Path, chunk: NgramChunk) -> bool:
    try:
        open_positions(home, chunk)
    except ForensicsError:
        return False
    return True


def open_positions(home: Path, chunk: NgramChunk) -> np.ndarray:
    """The sorted positions of a chunk, mapped; they are hashed again where the file is not as it was written.

    Raises:
        CorruptFile, MissingFile
    """
    path = ngram_folder(home) / Path(chunk.name).name
    size = require_file(path)
    changed = path.stat().st_mtime_ns != chunk.changed_at
    if size != chunk.num_bytes or (changed and sha256_of_file(path) != chunk.sha256):
        raise CorruptFile(f"{path}, part of the n-gram index, is damaged")
    try:
        positions = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates the header, which fails in many ways
        raise CorruptFile(f"{path}, part of the n-gram index, is damaged: {error}") from error
    if positions.dtype != np.uint32 or positions.shape != (chunk.stop - chunk.start,):
        raise CorruptFile(f"{path}, part of the n-gram index, is damaged")
    return np.asarray(positions)


def build_ngrams(
    home: Path,
    run: Run,
    reader: TokenReader,
    *,
    progress: Callable[[int, int], None] | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> int:
    """Sort what is not sorted yet; returns the number of tokens that were.

    Args:
        progress: called with the tokens done and the tokens to do.
    Raises:
        Busy, DiskFull, MissingFile, CorruptFile
    """
    folder = ngram_folder(home)
    with exclusive_lock(folder / ".lock", f"building the n-gram index of {run.name}"):
        remove_leftovers(folder)
        missing = missing_chunks(home, run, chunk_tokens)
        total = sum(stop - start for _, start, stop in missing)
        require_free_space(folder, 4 * total, f"the n-gram index of {run.name}")
        done = 0
        for file, start, stop in missing:
            number = run.files.index(file)
            chunk = _write_chunk(folder / f"{number}-{start // chunk_tokens}.npy", reader, file, start, stop)
            _record(home, file, chunk)
            done += stop - start
            if progress is not None:
                progress(done, total)
    return total


def _record(home: Path, file: TokenFile, chunk: NgramChunk) -> None:
    try:
        files = read_manifest(home)
    except ForensicsError:
        files = {}
    try:
        kept = [other for other in chunks_of(files, file) if other.name != chunk.name]
    except CorruptFile:
        kept = []
    entry = {"identity": identity(file), "chunks": [asdict(other) for other in [*kept, chunk]]}
    write_json(ngram_folder(home) / "manifest.json", {"version": VERSION, "files": files | {file.name: entry}})


def _write_chunk(path: Path, reader: TokenReader, file: TokenFile, start: int, stop: int) -> NgramChunk:
    num_tokens = file.num_bytes // np.dtype(file.dtype).itemsize
    tokens = np.zeros(stop - start + MOST_DEPTH - 1, dtype=np.uint64)
    known = np.asarray(reader.read(file, start, min(stop + MOST_DEPTH - 1, num_tokens)))
    if known.dtype.kind == "i" and int(known.min(initial=0)) < 0:
        raise CorruptFile(f"{file.path} holds token {int(known.min())}")
    tokens[: len(known)] = known
    bits = max(int(tokens.max(initial=0)).bit_length(), 1)
    depth = min(MOST_DEPTH, 64 // bits)
    write_npy(path, np.argsort(_keys(tokens, stop - start, bits, depth)).astype(np.uint32))
    found = path.stat()
    return NgramChunk(
        name=path.name,
        start=start,
        stop=stop,
        depth=depth,
        largest=int(known.max(initial=0)),
        num_bytes=found.st_size,
        changed_at=found.st_mtime_ns,
        sha256=sha256_of_file(path),
    )


def _keys(tokens: np.ndarray, count: int, bits: int, depth: int) -> np.ndarray:
    """The `depth` tokens from each place on, as one number; behind the end of the file stand zeros."""
    keys = np.zeros(count, dtype=np.uint64)
    for place in range(depth):
        keys <<= np.uint64(bits)
        keys |= tokens[place : place + count]
    return keys
