"""Can a model repeat a token? The published prompts, many tokens at once.

Three prompts ask for a token in different ways. Each is tokenized with a placeholder and then made for a token by
putting its id in the placeholder's places, so that a token whose text would be encoded otherwise can be asked for too.
Three tokens are generated greedily; what counts is the largest probability that the token in question has at any of
the three places, in any prompt.

All rows of one prompt are of one length. What stands before the first place is the same for every token and is
computed once.

Source: Land and Bartolo 2024 (arXiv 2405.05417); cohere-ai/magikarp @ 7a6de2a3 (prompts and rules, not code)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

GENERATED = 3
_MOST_TRIED = 1000
VERIFIED_BELOW = 0.01  # the published 1 % rule, by which tokens are counted
Encode = Callable[[str], Sequence[int]]
Label = Literal["strong_verified", "weak_verified", "encoding_failed", "weak_rejected", "strong_rejected"]

# Name -> (what stands before, what is repeated, how often, what stands after). {0} is the token.
_TEMPLATES: Mapping[str, tuple[str, str, int, str]] = {
    "input_output": (
        "This device repeats its input exactly, as shown in these 100 identical trials.",
        "\nInput: «{0}»\nOutput: «{0}»",
        20,
        "\nInput: «{0}»\nOutput: «",
    ),
    "assistant_explain": (
        "This helpful assistant explains what a phrase means, replying with identical responses to identical questions "
        "for reliability.\nUser: What does 'edslfkj' mean?\nAssistant: 'edslfkj' has no specific meaning I am aware of."
        "\nUser: what does '",
        "",
        0,
        "{0}' mean?\nAssistant: '",
    ),
    "repeats": (
        "Below is the output, as you can see it's just giving the same phrase repeated indefinitely:\n",
        "{0}{0}",
        50,
        "{0}",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RepetitionPrompt:
    """A prompt as token ids.

    Attributes:
        token_ids: int64 of shape [length]; the placeholder's id where the token in question belongs.
        is_place: bool, same shape.
    """

    name: str
    token_ids: np.ndarray
    is_place: np.ndarray

    @property
    def num_shared(self) -> int:
        """Tokens before the first place."""
        return int(np.argmax(self.is_place))

    @property
    def num_own(self) -> int:
        """Tokens that are computed for every token in question, generated ones included."""
        return len(self.token_ids) - self.num_shared + GENERATED - 1

    def for_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Rows of the prompt, one a token: int64 of shape [tokens, length]."""
        return np.where(self.is_place, tokens[:, None], self.token_ids)


def repetition_prompts(encode: Encode, placeholder: str, placeholder_id: int) -> tuple[RepetitionPrompt, ...]:
    """The published prompts in a tokenizer's ids.

    Args:
        encode: text to ids as the model is prompted, a begin token included if it has one.
        placeholder: a text that is one token wherever it stands in the prompts; `placeholder_id`: that token.
    Raises:
        ValueError: it is not.
    """
    found = []
    for name, (before, repeated, count, after) in _TEMPLATES.items():
        text = before + repeated.format(placeholder) * count + after.format(placeholder)
        token_ids = np.array(encode(text), dtype=np.int64)
        is_place = token_ids == placeholder_id
        if int(is_place.sum()) != 2 * count + 1:
            raise ValueError(
                f"{placeholder!r} is {int(is_place.sum())} times one token in the prompt {name}, not {2 * count + 1}"
            )
        found.append(RepetitionPrompt(name=name, token_ids=token_ids, is_place=is_place))
    return tuple(found)


def find_placeholder(candidates: Sequence[tuple[int, str]], encode: Encode) -> tuple[int, str]:
    """The token to put in the prompts: of lower-case letters, as long and with as many different ones as there is one.

    Args:
        candidates: ids that encode to themselves, with their texts.
    Raises:
        ValueError: none is one token in all prompts.
    """
    words = [(token, text) for token, text in candidates if text.isascii() and text.isalpha() and text.islower()]
    words.sort(key=lambda word: (-len(word[1]), -len(set(word[1])), word[0]))
    for token, text in words[:_MOST_TRIED]:
        try:
            repetition_prompts(encode, text, token)
        except ValueError:
            continue
        return token, text
    tried = f"{min(len(words), _MOST_TRIED):,} tokens of lower-case letters"
    raise ValueError(f"none of {tried} is one token wherever it stands in the prompts")


@torch.inference_mode()
def repetition_probabilities(
    model: Any, prompt: RepetitionPrompt, tokens: Sequence[int] | np.ndarray, *, rows_at_once: int = 16
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each batch of tokens: their probabilities where the model goes on, and what it generates instead.

    Where a device's memory does not hold so many rows, half as many are tried.

    Args:
        model: a causal language model of transformers, in evaluation mode.
    Yields:
        (probability of the token in question at each generated place, fp32 [tokens, 3], 0 where the model computes
        NaN; generated ids, int64 [tokens, 3])
    Raises:
        torch.OutOfMemoryError: it does not hold a single row.
    """
    device = next(model.parameters()).device
    wanted = np.asarray(tokens, dtype=np.int64)
    shared = prompt.num_shared
    prefix = torch.from_numpy(prompt.token_ids[None, :shared]).to(device)
    kept = model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values if shared else None
    start = 0
    while start < len(wanted):
        asked = wanted[start : start + rows_at_once]
        try:
            answer = _continued(model, prompt, kept, asked, device)
        except torch.OutOfMemoryError:
            if rows_at_once == 1:
                raise
            rows_at_once //= 2
            continue
        start += len(asked)
        yield answer


def _continued(
    model: Any, prompt: RepetitionPrompt, kept: Any, asked: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Go on from the shared beginning's keys and values, which are copied."""
    cache = deepcopy(kept)
    if cache is not None:
        cache.batch_repeat_interleave(len(asked))
    ids = torch.from_numpy(prompt.for_tokens(asked)[:, prompt.num_shared :]).to(device)
    wanted = torch.from_numpy(asked).to(device)[:, None]
    probabilities, generated = [], []
    for _ in range(GENERATED):
        answer = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = answer.past_key_values
        after = answer.logits[:, -1].float().softmax(dim=-1).nan_to_num()
        probabilities.append(after.gather(1, wanted)[:, 0])
        ids = after.argmax(dim=-1, keepdim=True)
        generated.append(ids[:, 0])
    return torch.stack(probabilities, dim=1).cpu().numpy(), torch.stack(generated, dim=1).cpu().numpy()


def label_of(max_probability: float, *, encodeable: bool) -> Label:
    """The published labels.

    Args:
        encodeable: the token comes out again when the text of some prompt with it is encoded.
    """
    if max_probability > 0.9:
        return "strong_rejected"
    if max_probability > 0.1:
        return "weak_rejected"
    if not encodeable:
        return "encoding_failed"
    return "strong_verified" if max_probability < 0.001 else "weak_verified"


def published_threshold(indicators: np.ndarray, verified: np.ndarray, half_window: int = 12) -> float | None:
    """The indicator down to which published reports list candidates.

    A window of 25 slides along them from the lowest on; where less than two thirds of it are verified, it ends.

    Args:
        indicators: of candidates that are neither bytes nor special, rising. verified: bool, same shape.
    Returns:
        The last indicator before; None: not even at the first.
    """
    last = None
    for at in range(len(indicators)):
        window = verified[max(at - half_window, 0) : at + half_window + 1]
        if 3 * int(window.sum()) < 2 * len(window):
            break
        last = float(indicators[at])
    return last
