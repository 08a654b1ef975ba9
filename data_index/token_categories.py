"""What each token id of a tokenizer is: a byte, special, part of a character, or text; does it encode to itself?

The published method decodes every id alone and encodes the text again. What comes back decides how the token can be
judged: ids that come back can occur in ordinary text, others cannot, or only inside longer pieces.

Source: Land & Bartolo 2024 (arXiv 2405.05417); cohere-ai/magikarp, magikarp/tokenizer_utils (rules, not code)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_index.errors import CorruptFile, UnsupportedRecipe
from data_index.spelling import BYTE_OF_CHARACTER, MAX_TOKENS

OK, OK_SPECIAL, UNDECODEABLE = "OK", "OK_SPECIAL", "UNDECODEABLE"
UNREACHABLE_SPECIAL = "UNREACHABLE_SPECIAL"
UNREACHABLE_SINGLE_TOKEN, UNREACHABLE_MULTI_TOKEN = "UNREACHABLE_SINGLE_TOKEN", "UNREACHABLE_MULTI_TOKEN"
# Bytes that no UTF-8 text contains: of forms that are too long, and beyond U+10FFFF.
UNUSED_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
# What reports count, each token once: the first that holds.
GROUPS = ("single_byte", "unused_byte", "special", "unreachable", "partial_utf8", "ok", "no_token")

_LEADING_SPACES = (" ", "▁", "_", "Ġ")
_PREFIXES = ("«", "»")
_OTHER_PREFIXES = ("|", "~", "^", "=", ";", ":", "(", ".", ",", "x")  # of vocabularies that spell neither
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPECIAL_PIECE = re.compile(r"[\[<].*[A-Za-z].*[\]>]", re.DOTALL)
_AT_ONCE = 8192  # texts that are encoded together: what the library gives for each is large


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token id.

    Attributes:
        piece: how the vocabulary spells it; None where an id below the largest names no token.
        text: what it decodes to alone; U+FFFD stands for what is no whole character.
        encoding: `OK` … as published: what its text encodes to.
        category: one of GROUPS.
        byte: the byte that it stands for, where it stands for one.
        encoded_again: the ids that its text encodes to, where these are not it alone.
    """

    token_id: int
    piece: str | None
    text: str
    encoding: str
    category: str
    byte: int | None = None
    encoded_again: tuple[int, ...] = ()

    @property
    def byte_type(self) -> str | None:
        """`ascii`, `utf8`, or `unused_utf8`."""
        if self.byte is None:
            return None
        return "ascii" if self.byte < 0x80 else "unused_utf8" if self.byte in UNUSED_UTF8 else "utf8"

    @property
    def written(self) -> str:
        """For people: its text, or its bytes where it is no whole character."""
        if "\ufffd" not in self.text or self.piece is None:
            return self.text
        known = [self.byte] if self.byte is not None else [BYTE_OF_CHARACTER.get(char) for char in self.piece]
        return self.piece if None in known else "".join(f"<0x{byte:02X}>" for byte in known)

    @property
    def encodes_to_itself(self) -> bool:
        return self.encoding in (OK, OK_SPECIAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerAnalysis:
    """All ids of a tokenizer.

    Attributes:
        tokens: by id; ids that the vocabulary leaves out are there with the category `no_token`.
        leading_space: the tokenizer puts a space before a text, so that texts are judged behind a prefix.
        byte_level: pieces are bytes written as printable characters, as GPT-2 does.
    """

    tokens: tuple[Token, ...]
    leading_space: bool
    byte_level: bool

    def written(self, token: int) -> str | None:
        """How a token is shown to people; None: there is none of that id."""
        known = self.tokens[token] if token < len(self.tokens) else None
        return known.written if known is not None and known.piece is not None else None

    def counts(self) -> dict[str, int]:
        """Tokens by category, and by published encoding; `bytes` counts single bytes, used or not."""
        groups = Counter(token.category for token in self.tokens)
        encodings = Counter(token.encoding for token in self.tokens if token.piece is not None)
        bytes_too = {"bytes": groups["single_byte"] + groups["unused_byte"]}
        return bytes_too | {name: groups[name] for name in GROUPS} | dict(sorted(encodings.items()))


def analyse_tokenizer(tokenizer: Any, special_ids: Collection[int] = ()) -> TokenizerAnalysis:
    """
    Args:
        tokenizer: of the library `tokenizers`.
        special_ids: tokens with a role: beginning, end, padding, unknown …; they are `OK_SPECIAL` where they encode to
            themselves.
    Raises:
        UnsupportedRecipe: it does not spell ordinary text.
        CorruptFile: it names an absurd token id.
    """
    pieces = _pieces_by_id(tokenizer)
    frame = _frame_of(tokenizer)
    byte_level = _is_byte_level(tokenizer, pieces)
    ids = [token for token, piece in enumerate(pieces) if piece is not None]
    found: dict[int, Token] = {}
    for start in range(0, len(ids), _AT_ONCE):
        part = ids[start : start + _AT_ONCE]
        texts = frame.decode(part)
        for token, text, again in zip(part, texts, frame.encode(texts), strict=True):
            piece = pieces[token]
            assert piece is not None
            found[token] = _judged(token, piece, text, again, token in special_ids, byte_level)
    nothing = [Token(token_id=n, piece=None, text="", encoding="NONE", category="no_token") for n in range(len(pieces))]
    return TokenizerAnalysis(
        tokens=tuple(found.get(token, nothing[token]) for token in range(len(pieces))),
        leading_space=bool(frame.prefix_ids),
        byte_level=byte_level,
    )


def _judged(token: int, piece: str, text: str, again: Sequence[int], has_role: bool, byte_level: bool) -> Token:
    encoding = _encoding(token, text, again, has_role)
    byte = _byte_of(piece, byte_level)
    return Token(
        token_id=token,
        piece=piece,
        text=text,
        encoding=encoding,
        category=_category(piece, encoding, byte),
        byte=byte,
        encoded_again=() if encoding in (OK, OK_SPECIAL) else tuple(again),
    )


def _encoding(token: int, text: str, again: Sequence[int], has_role: bool) -> str:
    if list(again) == [token]:
        return OK_SPECIAL if has_role else OK
    if len(text) >= 3 and text[0] in "[<" and text[-1] in "]>" and any(map(str.isalpha, text)):
        return UNREACHABLE_SPECIAL
    if "\ufffd" in text:
        return UNDECODEABLE
    return UNREACHABLE_SINGLE_TOKEN if len(again) == 1 else UNREACHABLE_MULTI_TOKEN


def _category(piece: str, encoding: str, byte: int | None) -> str:
    """The first of the groups that holds."""
    if byte is not None:
        return "unused_byte" if byte in UNUSED_UTF8 else "single_byte"
    if len(piece) >= 3 and _SPECIAL_PIECE.fullmatch(piece) and not piece.startswith("<0x"):
        return "special"
    if encoding.startswith("UNREACHABLE"):
        return "unreachable"
    return "partial_utf8" if encoding == UNDECODEABLE else "ok"


def _byte_of(piece: str, byte_level: bool) -> int | None:
    if byte_level:
        return BYTE_OF_CHARACTER.get(piece)
    if match := _BYTE_PIECE.fullmatch(piece):
        return int(match[1], 16)
    return ord(piece) if len(piece) == 1 and piece.isascii() else None


def _pieces_by_id(tokenizer: Any) -> list[str | None]:
    ids: Mapping[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    size = max(ids.values(), default=-1) + 1
    if size > MAX_TOKENS:
        raise CorruptFile(f"the tokenizer names token {size - 1:,}; no vocabulary is that large")
    pieces: list[str | None] = [None] * size
    for piece, token in ids.items():
        pieces[token] = piece
    return pieces


def _is_byte_level(tokenizer: Any, pieces: Sequence[str | None]) -> bool:
    """By its decoder, or as published: more than a tenth of the pieces begin with the stand-in for a space."""
    spaced = sum(piece is not None and piece.startswith("Ġ") for piece in pieces)
    return spaced > 0.1 * len(pieces) or type(tokenizer.decoder).__name__ == "ByteLevel"


# --- to text and back ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Frame:
    """Decodes ids alone and encodes texts; behind a prefix where the tokenizer would else put a space before them."""

    tokenizer: Any
    prefix: str = ""
    prefix_ids: tuple[int, ...] = ()

    def decode(self, ids: Sequence[int]) -> list[str]:
        behind = [[*self.prefix_ids, token] for token in ids]
        texts: list[str] = self.tokenizer.decode_batch(behind, skip_special_tokens=False)
        return [text.removeprefix(self.prefix) for text in texts]

    def encode(self, texts: Sequence[str]) -> Iterator[list[int]]:
        behind = [self.prefix + text for text in texts] if self.prefix else list(texts)
        many = len(self.prefix_ids)
        for encoded in self.tokenizer.encode_batch_fast(behind, add_special_tokens=False):
            ids = encoded.ids
            # A text that melts into the prefix does not come back.
            yield ids[many:] if tuple(ids[:many]) == self.prefix_ids else ids


def _frame_of(tokenizer: Any) -> _Frame:
    """
    Raises:
        UnsupportedRecipe
    """
    ids = tokenizer.encode("test", add_special_tokens=False).ids
    first = str(tokenizer.id_to_token(ids[0])) if ids else ""
    if not first.startswith(_LEADING_SPACES):
        if not first.startswith("t"):
            raise UnsupportedRecipe(
                f"the tokenizer spells 'test' beginning with {first!r}, neither with a 't' nor with a space before it: "
                "what its tokens encode to is not known how to judge"
            )
        return _Frame(tokenizer)
    prefixes = (*_PREFIXES, *_OTHER_PREFIXES)
    spelled = {prefix: tuple(tokenizer.encode(prefix, add_special_tokens=False).ids) for prefix in prefixes}
    fitting = [one for one, ids in spelled.items() if tokenizer.decode(list(ids), skip_special_tokens=False) == one]
    if not fitting:
        raise UnsupportedRecipe(
            f"the tokenizer puts a space before a text, and spells none of {' '.join(prefixes)} so that it comes back: "
            "its tokens cannot be judged behind one of them"
        )
    # One token as published; where neither is one, the ids that the first takes serve as well.
    prefix = next((one for one in fitting if one in _PREFIXES and len(spelled[one]) == 1), fitting[0])
    return _Frame(tokenizer, prefix, spelled[prefix])
