"""Hashes and signatures of the texts that a run read: learned once, in parts that an interruption does not undo."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_index.batch_queries import reader_of
from data_index.errors import CorruptFile
from data_index.files import exclusive_lock
from data_index.kinds import table_of_rows
from data_index.repeated_text import METHOD, NUM_PERMUTATIONS, signature_of
from data_index.run import Run
from data_index.text_queries import TEXTS, distinct_texts, documents_in_force, has_stale_hashes, texts_to_hash
from data_index.text_tokens import TextTokens, parts, text_tokens
from data_index.tokens import TokenReader
from data_index.witness import remember_first_seen, sha256_of_ids
from data_index.workspace import Workspace, learn
from forensics.fetching import require_allowed

KEEP_TOKENS = 2**28  # of texts that are kept together: what an interruption costs
TOLD_EVERY = 1000

# What is done, how many texts are done, of how many, and the seconds it took so far.
Progress = Callable[[str, int, int, float], None]

# Columns by name, as the store answers them.
Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextsRead:
    """The texts that some steps of a run read.

    Attributes:
        of: `documents` or `instances`.
        readings: an Arrow table, as `store.text_readings` answers.
        min_tokens: texts with fewer are passed over.
        max_fetch: bytes of tokens that may be fetched from servers; None: 1 GiB.
    """

    workspace: Workspace
    run: Run
    of: str
    readings: Any
    min_tokens: int
    max_fetch: int | None = None

    @property
    def home(self) -> Path:
        return self.workspace.home(self.run.name)

    @property
    def stored(self) -> tuple[Workspace, Run, str, Any]:
        """As the store asks for it."""
        return self.workspace, self.run, self.of, self.readings


def hash_texts(read: TextsRead, progress: Progress) -> None:
    """Learn the hashes that are missing.

    Raises:
        MissingFile, CorruptFile, TooMuchToFetch, Busy
    """
    if not len(texts_to_hash(*read.stored)["id"]):
        return
    with _writing(read):
        texts, column = texts_to_hash(*read.stored), TEXTS[read.of][0]
        named, kind, stale = {}, f"{column.removesuffix('_id')}_hashes", False
        if read.of == "documents":
            named = {"documents": documents_in_force(read.workspace, read.run)}
            stale = has_stale_hashes(read.workspace, read.run)
        for numbers, tokens in _in_parts(read, texts, "hashed", progress):
            rows = [
                {column: int(texts["id"][n]), "num_tokens": len(token_ids), "sha256": sha256_of_ids(token_ids)} | named
                for n, token_ids in zip(numbers, tokens, strict=True)
            ]
            learn(read.home, kind, table_of_rows(kind, rows, read.run.name), replace_kind=stale)
            stale = False


def sign_texts(read: TextsRead, progress: Progress) -> None:
    """Learn the signatures that are missing, one for each distinct text.

    Raises:
        MissingFile, CorruptFile, TooMuchToFetch, Busy
    """
    if not len(_distinct(read, signed=False)["id"]):
        return
    with _writing(read):
        texts = _distinct(read, signed=False)
        for numbers, tokens in _in_parts(read, texts, "signed", progress):
            rows = [
                {"sha256": texts["sha256"][n], "method": METHOD, "signature": signature_of(token_ids).view(np.int32)}
                for n, token_ids in zip(numbers, tokens, strict=True)
            ]
            learn(read.home, "minhashes", table_of_rows("minhashes", rows, read.run.name), replace_kind=False)


def signed_texts(read: TextsRead) -> tuple[Columns, np.ndarray]:
    """The distinct texts, and their signatures: uint32 of shape [texts, NUM_PERMUTATIONS].

    Raises:
        CorruptFile
    """
    table = distinct_texts(*read.stored, min_tokens=read.min_tokens, method=METHOD, signed=True)
    values = table.column("signature").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if values.shape != (table.num_rows * NUM_PERMUTATIONS,) or values.dtype != np.int32:
        raise CorruptFile(f"minhashes of {read.run.name} are no signatures of {NUM_PERMUTATIONS} numbers")
    return _columns(table), values.view(np.uint32).reshape(-1, NUM_PERMUTATIONS)


def _distinct(read: TextsRead, *, signed: bool) -> Columns:
    return _columns(distinct_texts(*read.stored, min_tokens=read.min_tokens, method=METHOD, signed=signed))


def _columns(table: Any) -> Columns:
    return {
        name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names if name != "signature"
    }


def tokens_of(read: TextsRead, texts: Columns) -> TextTokens:
    return text_tokens(reader_of(read.workspace, read.run), texts)


def _in_parts(
    read: TextsRead, texts: Columns, done: str, progress: Progress
) -> Iterator[tuple[range, Iterator[np.ndarray]]]:
    """Numbers of texts, and the tokens of each; as many together as are to be kept together."""
    reader = reader_of(read.workspace, read.run)
    tokens, total = text_tokens(reader, texts), len(texts["id"])
    require_allowed(bytes_to_fetch(reader, tokens), read.max_fetch, f"{total:,} {read.of} of {read.run.name}")
    began = time.monotonic()

    def told(part: range) -> Iterator[np.ndarray]:
        for number, token_ids in zip(part, tokens.read(part), strict=True):
            yield token_ids
            if (number + 1) % TOLD_EVERY == 0 or number + 1 == total:
                progress(f"{done} {read.of}", number + 1, total, time.monotonic() - began)

    for part in parts(tokens.lengths, KEEP_TOKENS):
        yield part, told(part)
        remember_first_seen(read.workspace, read.run, reader)


def bytes_to_fetch(reader: TokenReader, tokens: TextTokens) -> int:
    """Bytes of texts that are on servers and not kept yet."""
    if all(isinstance(file.path, Path) for file in reader.run.files):
        return 0
    from data_index.remote.ranges import bytes_to_fetch as missing

    numbers = range(len(tokens.lengths))
    return missing(reader.stretches(piece for number in numbers for piece in tokens.pieces(number)))


@contextmanager
def _writing(read: TextsRead) -> Iterator[None]:
    home = read.home
    with exclusive_lock(home.with_name(f".{home.name}.lock"), f"writing {home.name}"):
        yield
