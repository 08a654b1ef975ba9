"""Ordinary rows: pieces of the standard library's sources, mixed so that one row is much like another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from forensics import corpus

END_TOKEN = "<|endoftext|>"
PIECE_CHARACTERS = 120
CHARACTERS = 1_500_000


@dataclass(frozen=True, kw_only=True)
class Text:
    """A corpus, its tokenizer, and its pieces as tokens."""

    tokenizer: Any
    pieces: list[list[int]]

    @classmethod
    def collect(cls, folder: Path, vocabulary: int, characters: int = CHARACTERS) -> Text:
        """Made once in a folder, found there later."""
        from tokenizers import Tokenizer

        documents = list(corpus.take(corpus.library_sources(), characters, 6000))
        texts = [
            d.text[at : at + PIECE_CHARACTERS] for d in documents for at in range(0, len(d.text), PIECE_CHARACTERS)
        ]
        path = folder / "tokenizer.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            trained_tokenizer(texts, vocabulary).save(str(path))
        tokenizer = Tokenizer.from_file(str(path))
        return cls(tokenizer=tokenizer, pieces=[found.ids for found in tokenizer.encode_batch(texts)])

    @cached_property
    def end(self) -> int:
        found: int = self.tokenizer.token_to_id(END_TOKEN)
        return found

    @cached_property
    def rare(self) -> np.ndarray:
        """Tokens that the corpus hardly has: the rarest tenth of the vocabulary."""
        counts = np.bincount(np.concatenate([*self.pieces, [self.tokenizer.get_vocab_size() - 1]]))
        return np.argsort(counts, kind="stable")[: len(counts) // 10]

    def rows(self, num: int, length: int, random: np.random.Generator) -> np.ndarray:
        """Rows of pieces drawn at random, an end token after each; int64 of shape [num, length]."""
        found: list[int] = []
        while len(found) < num * length:
            for number in random.integers(0, len(self.pieces), size=256):
                found += [*self.pieces[number], self.end]
        return np.array(found[: num * length], dtype=np.int64).reshape(num, length)

    def encode(self, text: str, length: int) -> np.ndarray:
        """The first tokens of a text, which must have so many."""
        ids = self.tokenizer.encode(text).ids[:length]
        assert len(ids) == length, f"{len(ids)} tokens where {length} are wanted"
        return np.array(ids, dtype=np.int64)

    def decode(self, token_ids: np.ndarray) -> str:
        text: str = self.tokenizer.decode(token_ids.tolist())
        return text


def trained_tokenizer(texts: list[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
