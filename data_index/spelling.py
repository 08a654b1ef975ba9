"""The bytes that token ids stand for, in tokenizers whose tokens are pieces of text laid end to end."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_index.errors import CorruptFile, UnsupportedRecipe

MAX_TOKENS = 2**24
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# What decoders of SentencePiece-like tokenizers do beside turning their stand-in for a space into one; of these only
# `Strip` changes text: it takes one space from the start of all that is decoded at once.
_METASPACE_STEPS = {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """What each token id stands for.

    Attributes:
        pieces: bytes by token id; special tokens stand for none.
        special: the text of special tokens, as it is decoded where they are shown.
    """

    pieces: tuple[bytes, ...]
    special: Mapping[int, bytes]

    def for_text(self, text: bytes) -> tuple[bytes, ...]:
        """The pieces for a search: a special token stands for its text where the searched text names it."""
        named = {token: shown for token, shown in self.special.items() if shown and shown in text}
        return tuple(named.get(token, piece) for token, piece in enumerate(self.pieces)) if named else self.pieces


def spelling_of(tokenizer: Any, name: str) -> Spelling:
    """
    Args:
        name: of the run, for the message.
    Raises:
        UnsupportedRecipe: it is neither byte-level nor SentencePiece-like.
        CorruptFile: it names an absurd token id.
    """
    spell = _speller(_decoder_steps(tokenizer), name)
    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    size = max(ids.values(), default=-1) + 1  # ids may have holes
    if size > MAX_TOKENS:
        raise CorruptFile(f"the tokenizer of {name} names token {size - 1:,}; no vocabulary is that large")
    pieces = [b""] * size
    for text, token in ids.items():
        pieces[token] = spell(text)
    return Spelling(
        pieces=tuple(b"" if token in special else piece for token, piece in enumerate(pieces)),
        special={token: pieces[token] for token in special if token < len(pieces)},
    )


def _decoder_steps(tokenizer: Any) -> list[dict[str, Any]]:
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {"type": None}
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    return steps


def _speller(steps: list[dict[str, Any]], name: str) -> Any:
    """A function from a token's text to bytes, as the decoder turns them."""
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return _spell_byte_level
    space = [step["pattern"].get("String") for step in steps if step["type"] == "Replace" and step["content"] == " "]
    space += [step["replacement"] for step in steps if step["type"] == "Metaspace"]
    if len(space) != 1 or space[0] is None or not kinds <= _METASPACE_STEPS:
        raise UnsupportedRecipe(
            f"the tokenizer of {name} is not byte-level, nor SentencePiece-like (its decoder is "
            f"{', '.join(map(str, sorted(kinds, key=str)))}); text is not searched in it"
        )

    def spell(text: str) -> bytes:
        if "ByteFallback" in kinds and (byte := _BYTE.fullmatch(text)):
            return bytes.fromhex(byte[1])
        return text.replace(space[0], " ").encode()

    return spell


def _spell_byte_level(text: str) -> bytes:
    """Characters stand for bytes, unless one of them stands for none: then for themselves, as in added tokens.

    Source:
        huggingface/tokenizers tokenizers/src/pre_tokenizers/byte_level.rs, decode_chain
    """
    try:
        return bytes(BYTE_OF_CHARACTER[char] for char in text)
    except KeyError:
        return text.encode()


def _byte_level_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-ins: printable bytes are themselves, the rest follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = {char: byte for byte, char in _byte_level_alphabet().items()}
