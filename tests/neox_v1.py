"""What runs of GPT-NeoX that the tests train themselves have in common: the model, and the learning rate of v1.0.

Nothing of `replay` takes part: the rules are written out here a second time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GPTNeoXForCausalLM


def learning_rate(updates: int, *, steps: int, rate: float, min_rate: float, warmup: float = 0.1) -> float:
    """The rate after so many updates: 0 at the first one, a wave as long as the whole run, cut off at its minimum."""
    warmup = warmup * steps
    count = min(updates, steps - warmup)
    if updates <= warmup:
        return rate * count / warmup
    return max(rate / 2.0 * (math.cos(math.pi * (count - warmup) / steps) + 1), min_rate)


def new_model(
    *, vocabulary: int, length: int, hidden: int, heads: int, end_token: int | None = None
) -> GPTNeoXForCausalLM:
    """Two layers of Pythia's kind, at random."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        max_position_embeddings=length,
        rotary_pct=0.25,
        hidden_act="gelu",
        tie_word_embeddings=False,
        use_parallel_residual=True,
        use_cache=False,
        bos_token_id=end_token,
        eos_token_id=end_token,
    )
    config._attn_implementation = "sdpa"
    return GPTNeoXForCausalLM(config).train()
