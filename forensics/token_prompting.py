"""The prompts of verification for one tokenizer: how texts become ids, and what stands in the placeholder's places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import UnsupportedRecipe
from data_index.token_categories import TokenizerAnalysis

if TYPE_CHECKING:
    from probes.token_repetition import RepetitionPrompt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompting:
    """
    Attributes:
        prompts: the one that costs least first.
    """

    tokenizer: Any
    placeholder: str
    prompts: tuple[RepetitionPrompt, ...]

    def encodeable(self, tokens: Sequence[int]) -> list[bool]:
        """Whether each token comes out again when the text of some prompt with it is encoded."""
        found = np.zeros(len(tokens), dtype=bool)
        wanted = np.array(tokens, dtype=np.int64)
        for prompt in self.prompts:
            rows = prompt.for_tokens(wanted)
            texts = self.tokenizer.decode_batch(rows.tolist(), skip_special_tokens=False)
            again = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            found |= [token in encoded.ids for token, encoded in zip(tokens, again, strict=True)]
        return [bool(one) for one in found]

    def text_of(self, ids: np.ndarray) -> str:
        text: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return text


def prompting_of(tokenizer: Any, analysis: TokenizerAnalysis) -> Prompting:
    """
    Raises:
        UnsupportedRecipe: no token can stand in the prompts.
    """
    from probes.token_repetition import find_placeholder, repetition_prompts

    def encode(text: str) -> list[int]:
        return as_prompted(tokenizer, text)

    own = [(token.token_id, token.text) for token in analysis.tokens if token.encodes_to_itself]
    try:
        token, placeholder = find_placeholder(own, encode)
    except ValueError as error:
        raise UnsupportedRecipe(f"the prompts of verification cannot be made with this tokenizer: {error}") from error
    prompts = repetition_prompts(encode, placeholder, token)
    return Prompting(
        tokenizer=tokenizer,
        placeholder=placeholder,
        prompts=tuple(sorted(prompts, key=lambda prompt: prompt.num_own)),
    )


def as_prompted(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that is to be gone on with: behind what the tokenizer begins texts with, without what ends them."""
    plain: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    whole: list[int] = tokenizer.encode(text).ids
    for at in range(len(whole) - len(plain) + 1):
        if whole[at : at + len(plain)] == plain:
            return whole[: at + len(plain)]
    return plain
