"""Text and token ids: decode instances, encode text, find text in token files however it was tokenized."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, InvalidRange, MissingFile
from data_index.files import require_file, require_sha256
from data_index.run import Run
from data_index.spelling import Spelling, spelling_of
from data_index.text_search import MAX_TEXT_BYTES, TextMatcher
from data_index.token_search import Found, TokenMatcher, search
from data_index.tokens import TokenReader
from data_index.vocabulary import Vocabulary


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
        return plain(Tokenizer.from_file(path))
    except Exception as error:  # the library raises bare Exception
        raise CorruptFile(f"{path} is not a tokenizer: {error}") from error


def plain(tokenizer: Any) -> Any:
    """The tokenizer itself, told to give a text its own ids: some files ask to cut texts, and to fill them up."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


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
        UnsupportedRecipe: the tokenizer is neither byte-level nor SentencePiece-like.
    """
    return list(load_spelling(run).pieces)


def load_spelling(run: Run) -> Spelling:
    """
    Raises:
        MissingFile, CorruptFile, UnsupportedRecipe
    """
    return _spelling_of(load_tokenizer(run), run.name)


@functools.lru_cache(maxsize=4)
def _spelling_of(tokenizer: Any, name: str) -> Spelling:
    return spelling_of(tokenizer, name)


@functools.lru_cache(maxsize=4)
def _vocabulary_of(pieces: tuple[bytes, ...]) -> Vocabulary:
    return Vocabulary(pieces)


def text_matcher(run: Run, text: str) -> TextMatcher:
    """A text as something to search token files for.

    The bytes that the tokens stand for are searched, so every tokenization of the text is found. A special token
    stands for its text where the searched text names it, and for nothing elsewhere: text that runs on from one
    document into the next is found.

    Raises:
        InvalidRange: the text is empty, or too long.
        UnsupportedRecipe, MissingFile, CorruptFile
    """
    # What a terminal passed on undecoded is searched as the bytes it was.
    needle = text.encode(errors="surrogateescape")
    if not 0 < len(needle) <= MAX_TEXT_BYTES:
        raise InvalidRange(
            f"a text to search for has 1 to {MAX_TEXT_BYTES:,} bytes, not {len(needle):,}: search for a part of it"
        )
    return TextMatcher(_vocabulary_of(load_spelling(run).for_text(needle)), needle)


def find_text(run: Run, reader: TokenReader, text: str) -> list[int]:
    """Instances that hold a piece of an occurrence of the text, rising (`text_matcher` says what an occurrence is).

    Raises:
        InvalidRange, UnsupportedRecipe, MissingFile, CorruptFile
    """
    return _instances(search(run, reader, text_matcher(run, text)))


def find_token(run: Run, reader: TokenReader, token: int) -> list[int]:
    """Instances that hold a token id, rising; padding does not count."""
    return _instances(search(run, reader, TokenMatcher(token)))


def _instances(found: Iterable[Found]) -> list[int]:
    holding = [np.unique(part.touched.instance) for part in found]
    return np.unique(np.concatenate(holding)).tolist() if holding else []
