"""Models of width 32 in the architectures whose attention differs, with weights wide enough to tell places apart."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from replay.models import build_model

VOCABULARY = 61
WINDOW = 5
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
# Grouped queries; one matrix for query, key and value; norms of queries and keys; a sliding window in the first layer.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "model_type": "llama", "num_key_value_heads": 2},
    "gpt_neox": {**_SIZES, "model_type": "gpt_neox"},
    "olmo2": {**_SIZES, "model_type": "olmo2", "num_key_value_heads": 4},
    "olmo3": {
        **_SIZES,
        "model_type": "olmo3",
        "num_key_value_heads": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def tiny_model(kind: str, implementation: str = "sdpa", *, seed: int = 3) -> Any:
    """In evaluation mode; with "forensics" as a run's replay builds it."""
    if implementation == "forensics":
        return build_model(CONFIGS[kind], device=torch.device("cpu"), seed=seed).eval()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**CONFIGS[kind])
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


def without_queries(model: Any) -> Any:
    """Every query is 0, so that each attends equally to all it sees."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name:
                parameter.zero_()
            elif "query_key_value" in name:  # per head: query, key, value
                heads = model.config.num_attention_heads
                parameter.view(heads, 3, -1, *parameter.shape[1:])[:, 0] = 0
    return model
