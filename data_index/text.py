"""Text and token ids: decode instances, encode text, find text in token files however it was tokenized."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, MissingFile, UnsupportedRecipe
from data_index.run import Run
from data_index.tokens import TokenReader

SCAN_TOKENS = 4 * 2**20


def load_tokenizer(run: Run) -> Any:
    """
    Raises:
        MissingFile: the run names none.
        CorruptFile
    """
    if run.tokenizer is None:
        raise MissingFile(f"{run.name} names no tokenizer.json, so its tokens cannot be turned into text")
    return _load_tokenizer(str(run.tokenizer))


@functools.lru_cache(maxsize=4)
def _load_tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

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


def find_text(run: Run, reader: TokenReader, text: str) -> Iterator[int]:
    """Instances that hold a piece of an occurrence of the text, in file order, each once.

    The bytes that the tokens stand for are searched, so every tokenization of the text is found, also across
    instance borders.

    Raises:
        UnsupportedRecipe, MissingFile, CorruptFile
    """
    pieces = token_bytes(run)
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    # What a terminal passed on undecoded is searched as the bytes it was.
    needle, length = text.encode(errors="surrogateescape"), run.sequence_length
    if not needle:
        return
    for file in run.files:
        last = -1
        used = file.num_instances * length
        # A chunk starts early enough to hold an occurrence that began in the one before: a token has at least a byte,
        # but for special ones, so len(needle) tokens and a few reach back far enough.
        for start in range(0, used, SCAN_TOKENS):
            begin = max(start - len(needle) - 64, 0)
            tokens = reader.read(file, begin, min(start + SCAN_TOKENS, used)).astype(np.int64)
            if tokens.size and int(tokens.max()) >= len(pieces):
                raise CorruptFile(f"{file.path} holds token {int(tokens.max())}; the tokenizer has {len(pieces)}")
            ends = np.cumsum(lengths[tokens])
            content = b"".join(pieces[token] for token in tokens)
            found = content.find(needle)
            while found >= 0:
                first = begin + int(np.searchsorted(ends, found, side="right"))
                final = begin + int(np.searchsorted(ends, found + len(needle), side="left"))
                for row in range(first // length, final // length + 1):
                    if row > last:
                        last = row
                        yield file.first_instance + row
                found = content.find(needle, found + 1)


def find_token(run: Run, reader: TokenReader, token: int) -> Iterator[int]:
    """Instances that hold a token id, in file order."""
    length = run.sequence_length
    for file in run.files:
        used = file.num_instances * length
        chunk = max(SCAN_TOKENS // length, 1) * length
        for start in range(0, used, chunk):
            rows = reader.read(file, start, min(start + chunk, used)).reshape(-1, length)
            for row in np.flatnonzero((rows == token).any(axis=1)):
                yield file.first_instance + start // length + int(row)
