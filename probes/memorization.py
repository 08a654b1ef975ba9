"""Memorization: does a model go on with the very tokens that it was trained on?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.generations import greedy_continuations


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extractability:
    """One entry a row.

    Attributes:
        matching_shares: share of places at which the continuation has the true token, fp64 of shape [rows]; the
            published memorization score.
        generated: the continuations, int64 of shape [rows, continued tokens].
    """

    matching_shares: np.ndarray
    generated: np.ndarray

    @property
    def extracted(self) -> np.ndarray:
        """Whether every token matches, bool of shape [rows]."""
        return self.matching_shares == 1


def extractability(
    model: Any,
    token_ids: np.ndarray,
    *,
    num_prompt_tokens: int = 32,
    num_continued_tokens: int = 32,
    end_token_id: int | None = None,
    rows_at_once: int = 64,
) -> Extractability:
    """How much of each row a model reproduces: its first tokens are the prompt, the tokens after them the truth.

    The continuation is greedy, each token the most probable one after the prompt and what was generated before it, so
    that one wrong token may lose all that follow. The published evaluation forbids the end token, as it asks for
    continuations of full length: give `end_token_id` to agree with it, None to let it be generated like any other.
    It computes in fp16.

    Args:
        model: a causal language model of transformers; left as it was.
        token_ids: integers of shape [rows, length]; tokens after prompt and continuation are not looked at.
    Raises:
        ValueError: rows are too short.
        FloatingPointError: the model computes NaN.
    Source:
        EleutherAI/pythia predictable-memorization/eval_memorization.py @ 20e6700 (tokens 0-31 and 32-63, mean of
        equality, min_length=64); Biderman et al. 2023 (arXiv 2304.11158)
    """
    needed = num_prompt_tokens + num_continued_tokens
    if min(num_prompt_tokens, num_continued_tokens) < 1 or token_ids.shape[1] < needed:
        raise ValueError(
            f"{num_prompt_tokens} prompt tokens and {num_continued_tokens} to continue with, at least 1 each, do not "
            f"fit rows of {token_ids.shape[1]} tokens"
        )
    generated = greedy_continuations(
        model,
        list(token_ids[:, :num_prompt_tokens]),
        num_continued_tokens,
        forbidden_token_ids=() if end_token_id is None else (end_token_id,),
        rows_at_once=rows_at_once,
    )
    continued = np.array(generated, dtype=np.int64).reshape(len(token_ids), num_continued_tokens)
    true = np.asarray(token_ids[:, num_prompt_tokens:needed], dtype=np.int64)
    return Extractability(matching_shares=(continued == true).mean(axis=1), generated=continued)
