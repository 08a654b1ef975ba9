"""What a model writes after prompts, as token ids.

Prompts of one length are computed together, so that none is padded; what follows a prompt does not depend on the
others beyond the rounding of batched products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probes.evaluation_mode import evaluation_mode

# (logits, fp32 [rows, vocabulary]; places of the rows' prompts in the list; 0-based number of the token) -> ids [rows]
Choice = Callable[[torch.Tensor, np.ndarray, int], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    num_tokens: int
    end_token_id: int | None
    forbidden_token_ids: Sequence[int]


def greedy_continuations(
    model: Any,
    prompts: Sequence[np.ndarray],
    num_tokens: int,
    *,
    end_token_id: int | None = None,
    forbidden_token_ids: Sequence[int] = (),
    rows_at_once: int = 16,
) -> list[np.ndarray]:
    """After each prompt, the most probable token, again and again.

    Args:
        model: a causal language model of transformers; left as it was.
        prompts: integers, one array a prompt, at least one token in each.
        end_token_id: a continuation ends with it; None: all have `num_tokens` tokens.
        forbidden_token_ids: never generated.
    Returns:
        int64 arrays of up to `num_tokens` ids, in the prompts' order.
    Raises:
        ValueError: a prompt is empty.
        FloatingPointError: the model computes NaN.
    """

    def most_probable(logits: torch.Tensor, places: np.ndarray, number: int) -> torch.Tensor:
        return logits.argmax(dim=-1)

    limits = _Limits(num_tokens=num_tokens, end_token_id=end_token_id, forbidden_token_ids=forbidden_token_ids)
    return _continuations(model, prompts, limits, most_probable, rows_at_once)


def sampled_continuations(
    model: Any,
    prompts: Sequence[np.ndarray],
    num_tokens: int,
    *,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    end_token_id: int | None = None,
    forbidden_token_ids: Sequence[int] = (),
    rows_at_once: int = 16,
) -> list[np.ndarray]:
    """After each prompt, tokens drawn from the model's probabilities.

    The draws depend on the seed, the prompt's place in the list and the token's number alone, not on the batches or
    the device; for several samples of a prompt, list it several times.

    Args:
        temperature: logits are divided by it; above 0.
        top_p: only the fewest most probable tokens whose probabilities reach this sum are drawn from.
            Otherwise as for `greedy_continuations`.
    Raises:
        ValueError: a prompt is empty; temperature or top_p is out of range.
        FloatingPointError: the model computes NaN.
    """
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be above 0 and top_p in (0, 1], not {temperature} and {top_p}")
    uniform = np.array([np.random.default_rng([seed, place]).random(num_tokens) for place in range(len(prompts))])

    def drawn(logits: torch.Tensor, places: np.ndarray, number: int) -> torch.Tensor:
        draws = torch.from_numpy(uniform[places, number]).to(logits.device)
        return drawn_tokens((logits.double() / temperature).softmax(dim=-1), draws, top_p)

    limits = _Limits(num_tokens=num_tokens, end_token_id=end_token_id, forbidden_token_ids=forbidden_token_ids)
    return _continuations(model, prompts, limits, drawn, rows_at_once)


def drawn_tokens(probabilities: torch.Tensor, draws: torch.Tensor, top_p: float = 1.0) -> torch.Tensor:
    """The token at which the summed probabilities, in the order of ids, pass the draw: ids of shape [rows].

    Args:
        probabilities: fp64 [rows, vocabulary]. draws: fp64 [rows], in [0, 1).
        top_p: tokens beyond the fewest most probable ones that reach this sum count as impossible.
    """
    if top_p < 1:
        falling, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = falling.cumsum(dim=-1) - falling
        kept = torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, order, before < top_p)
        probabilities = probabilities * kept
    summed = probabilities.cumsum(dim=-1)
    found = torch.searchsorted(summed, draws[:, None] * summed[:, -1:], right=True)[:, 0]
    return found.clamp(max=probabilities.shape[1] - 1)


def _continuations(
    model: Any, prompts: Sequence[np.ndarray], limits: _Limits, choice: Choice, rows_at_once: int
) -> list[np.ndarray]:
    found: dict[int, np.ndarray] = {}
    with torch.inference_mode(), evaluation_mode(model):
        for places in _batches(prompts, rows_at_once):
            ids = np.stack([np.asarray(prompts[place], dtype=np.int64) for place in places])
            rows = _continued(model, ids, limits, choice, places)
            found.update(zip(places.tolist(), rows, strict=True))
    return [found[place] for place in range(len(prompts))]


def _batches(prompts: Sequence[np.ndarray], rows_at_once: int) -> Iterator[np.ndarray]:
    """Places of up to so many prompts of one length."""
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        if not length:
            raise ValueError(f"prompt {places[0] + 1} of {len(prompts)} is empty: there is nothing to go on from")
        for start in range(0, len(places), rows_at_once):
            yield places[start : start + rows_at_once]


def _continued(
    model: Any, prompts: np.ndarray, limits: _Limits, choice: Choice, places: np.ndarray
) -> list[np.ndarray]:
    """One array a row, each up to and with its first end token."""
    ids = torch.from_numpy(prompts).to(next(model.parameters()).device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    cache, given = None, ids
    for number in range(limits.num_tokens):
        answer = model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = answer.past_key_values
        logits = answer.logits[:, -1].float()
        if bool(logits.isnan().any()):
            raise FloatingPointError(f"the model computes NaN after {ids.shape[1]} tokens: its weights are broken")
        logits[:, list(limits.forbidden_token_ids)] = -torch.inf
        chosen = choice(logits, places, number)[:, None]
        ids = torch.cat([ids, chosen], dim=1)
        # Some models keep no keys and values: they are given everything again.
        given = ids if cache is None else chosen
        ended |= chosen[:, 0] == limits.end_token_id
        if bool(ended.all()):
            break
    return [_until_end(row, limits.end_token_id) for row in ids[:, prompts.shape[1] :].cpu().numpy()]


def _until_end(row: np.ndarray, end_token_id: int | None) -> np.ndarray:
    is_end = row == end_token_id
    return row[: int(is_end.argmax()) + 1] if is_end.any() else row
