"""What rows look like as text: characters that no text has, evenly spread bytes, the scripts of their letters."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Mapping

import numpy as np

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LAYOUT = frozenset("\t\n\r\f")
_NO_TEXT = frozenset({"Cc", "Cn", "Co", "Cs"})  # control, unassigned, private use, surrogate


def odd_character_share(characters: Mapping[str, int]) -> float:
    """Share of characters that text does not hold: control characters that lay nothing out, and what Unicode assigns
    to nothing or to nobody, among them what stands for bytes that are no UTF-8. 0 without characters.

    Args:
        characters: how often each occurs.
    """
    odd = sum(count for character, count in characters.items() if _is_odd(character))
    return odd / max(sum(characters.values()), 1)


@functools.lru_cache(maxsize=2**17)
def _is_odd(character: str) -> bool:
    return character == REPLACEMENT or (character not in LAYOUT and unicodedata.category(character) in _NO_TEXT)


def byte_entropy(content: bytes) -> float:
    """Shannon entropy of the bytes' counts, bits per byte: 8 for evenly spread ones, some 4.5 for English text."""
    counts = np.bincount(np.frombuffer(content, dtype=np.uint8), minlength=1)
    shares = counts[counts > 0] / max(len(content), 1)
    return float(-(shares * np.log2(shares)).sum())


def scripts(characters: Mapping[str, int]) -> Counter[str]:
    """How many letters belong to each script, by the first word of their Unicode names: LATIN, CYRILLIC, CJK …"""
    found: Counter[str] = Counter()
    for character, count in characters.items():
        if script := _script(character):
            found[script] += count
    return found


@functools.lru_cache(maxsize=2**17)
def _script(character: str) -> str | None:
    if not unicodedata.category(character).startswith("L"):
        return None
    return unicodedata.name(character, "UNNAMED").split(" ")[0].split("-")[0]


def script_surprise(own: Mapping[str, int], base: Mapping[str, int]) -> float:
    """Mean -log2 of the share that a letter's script has among the base's letters, one added to each; bits per letter.

    0 for text without letters.
    """
    num_own = sum(own.values())
    total = sum(base.values()) + len(base.keys() | own.keys())
    bits = sum(count * np.log2(total / (base.get(script, 0) + 1)) for script, count in own.items())
    return float(bits / num_own) if num_own else 0.0
