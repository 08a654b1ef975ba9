import torch

from replay.models import build_model

CONFIG = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "initializer_range": 0.4,
    "eos_token_id": 0,
}


def test_a_single_token_after_a_cache_sees_all_that_came_before() -> None:
    """transformers hands over no mask there, and torch's causal rule would let the token see the first key only."""
    model = build_model(CONFIG, device=torch.device("cpu"), seed=1)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        whole = model(input_ids=ids).logits[:, -1]
        cache = model(input_ids=ids[:, :9], use_cache=True).past_key_values
        alone = model(input_ids=ids[:, 9:], past_key_values=cache, use_cache=True).logits[:, -1]

    assert torch.allclose(alone, whole, atol=1e-5)  # fp32, sums in another order
