"""Text and token ids: decode instances, encode text, find text in token files however it was tokenized."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, MissingFile, UnsupportedRecipe
from data_index.files import require_file, require_sha256
from data_index.run import Run, TokenFile
from data_index.run_check import LINES
from data_index.tokens import TokenReader

SCAN_TOKENS = 4 * 2**20


def load_tokenizer(run: Run) -> Any:
    """
    Raises:
        MissingFile: the run names none.
        CorruptFile: it is none, or not the one that the run was added with.
    """
    if run.tokenizer is None:
        raise MissingFile(f"{run.name} names no tokenizer.json, so its tokens cannot be turned into text")
    require_file(run.tokenizer)
    found = run.tokenizer.stat()
    return _load_tokenizer(str(run.tokenizer), found.st_size, found.st_mtime_ns, run.tokenizer_sha256)


@functools.lru_cache(maxsize=4)
def _load_tokenizer(path: str, size: int, changed_at: int, sha256: str | None) -> Any:
    """One for each content, as far as size and time tell."""
    from tokenizers import Tokenizer

    require_sha256(Path(path), sha256)
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises bare Exception
        raise CorruptFile(f"{path} is not a tokenizer: {error}") from error


def encode(run: Run, text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    ids: list[int] = load_tokenizer(run).encode(text, add_special_tokens=False).ids
    return ids


def decode(run: Run, token_ids: np.ndarray) -> str:
    """The text of token ids, special tokens shown."""
    text: str = load_tokenizer(run).decode([int(token) for token in token_ids], skip_special_tokens=False)
    return text


def token_bytes(run: Run) -> list[bytes]:
    """The bytes that each token id stands for; special tokens stand for none.

    Raises:
        UnsupportedRecipe: the tokenizer is not byte-level.
    """
    tokenizer = load_tokenizer(run)
    alphabet = {char: byte for byte, char in _byte_level_alphabet().items()}
    special = set(tokenizer.get_added_tokens_decoder())
    pieces = []
    for token in range(tokenizer.get_vocab_size(with_added_tokens=True)):
        text = "" if token in special else (tokenizer.id_to_token(token) or "")
        if any(char not in alphabet for char in text):
            raise UnsupportedRecipe(f"the tokenizer of {run.name} is not byte-level; text is not searched in it")
        pieces.append(bytes(alphabet[char] for char in text))
    return pieces


def _byte_level_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-ins: printable bytes are themselves, the rest follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


# Tokens of a file -> the places among them that were searched for, rising.
Search = Callable[[TokenFile, np.ndarray], np.ndarray]


def find_text(run: Run, reader: TokenReader, text: str) -> Iterator[int]:
    """Instances that hold a piece of an occurrence of the text, in file order, each once.

    The bytes that the tokens stand for are searched, so every tokenization of the text is found, also across
    instance borders within a file; rows in lines of JSON, or that run on from file to file, are searched one by one.

    Raises:
        UnsupportedRecipe, MissingFile, CorruptFile
    """
    pieces = token_bytes(run)
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    # What a terminal passed on undecoded is searched as the bytes it was.
    needle = text.encode(errors="surrogateescape")

    def tokens_of_text(file: TokenFile, tokens: np.ndarray) -> np.ndarray:
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(pieces):
            wrong = int(tokens.max()) if int(tokens.max()) >= len(pieces) else int(tokens.min())
            raise CorruptFile(f"{file.path} holds token {wrong}; the tokenizer has {len(pieces)}")
        ends = np.cumsum(lengths[tokens])
        content = b"".join(pieces[token] for token in tokens)
        inside = np.zeros(len(tokens) + 1, dtype=np.int64)
        found = content.find(needle)
        while found >= 0:
            inside[np.searchsorted(ends, found, side="right")] += 1
            inside[np.searchsorted(ends, found + len(needle), side="left") + 1] -= 1
            found = content.find(needle, found + 1)
        return np.flatnonzero(np.cumsum(inside[:-1]))

    if needle:
        # A token has at least a byte, but for special ones, so len(needle) tokens and a few reach back far enough.
        yield from _instances_with(run, reader, tokens_of_text, reach=len(needle) + 64)


def find_token(run: Run, reader: TokenReader, token: int) -> Iterator[int]:
    """Instances that hold a token id, in file order; padding does not count."""
    yield from _instances_with(run, reader, lambda file, tokens: np.flatnonzero(tokens == token), reach=0)


def _instances_with(run: Run, reader: TokenReader, search: Search, *, reach: int) -> Iterator[int]:
    """Instances that hold a token that a search finds, each once, in the order of their numbers.

    Args:
        reach: tokens before a place that a search needs to see.
    """
    length = run.sequence_length
    yield from _instances_in_pieces(run, reader, search, reach)
    for file in run.files:
        used = file.num_instances * length
        if file.dtype == LINES or file.first_token or used * np.dtype(file.dtype).itemsize > file.num_bytes:
            stop = file.first_instance + file.num_instances
            for first in range(file.first_instance, stop, max(SCAN_TOKENS // length, 1)):
                instances = range(first, min(first + max(SCAN_TOKENS // length, 1), stop))
                rows = reader.rows(instances)
                yield from (i for i, row in zip(instances, rows, strict=True) if len(search(file, row)))
            continue
        last = -1
        for places in _search_file(reader, file, used, search, reach):
            rows = np.unique(places // length)
            yield from (file.first_instance + rows[rows > last]).tolist()
            last = max(last, int(rows.max(initial=-1)))


def _search_file(
    reader: TokenReader, file: TokenFile, num_tokens: int, search: Search, reach: int
) -> Iterator[np.ndarray]:
    """Places found in the first tokens of a file, counted from its start; chunk after chunk, which overlap."""
    for start in range(0, num_tokens, SCAN_TOKENS):
        begin = max(start - reach, 0)
        yield begin + search(file, reader.read(file, begin, min(start + SCAN_TOKENS, num_tokens)).astype(np.int64))


def _instances_in_pieces(run: Run, reader: TokenReader, search: Search, reach: int) -> Iterator[int]:
    """The files are searched, not the rows: a document may be in many rows, and run on from one to another."""
    if reader.pieces is None:
        return
    pieces = reader.pieces
    found = np.zeros(len(pieces.file), dtype=bool)
    for number, file in enumerate(run.files):
        here = np.flatnonzero(pieces.file == number)
        if not len(here):
            continue
        num_tokens = file.num_bytes // np.dtype(file.dtype).itemsize
        for places in _search_file(reader, file, num_tokens, search, reach):
            before_stop = np.searchsorted(places, pieces.stop[here])
            found[here] |= before_stop > np.searchsorted(places, pieces.start[here])
    instances = np.searchsorted(pieces.first, np.flatnonzero(found), side="right") - 1
    yield from np.unique(instances).tolist()
