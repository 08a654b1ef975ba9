import numpy as np
import pytest
import torch

from probes.loss import mean_loss, token_losses
from replay.models import build_model

CONFIG = {
    "model_type": "olmo2",
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 10,
    "eos_token_id": 0,
}


def test_losses_are_minus_the_log_probability_of_each_next_token() -> None:
    model = build_model(CONFIG, device=torch.device("cpu"), seed=3)
    ids = np.random.default_rng(0).integers(0, 40, (5, 10))
    losses = token_losses(model, ids, rows_at_once=2)
    with torch.no_grad():
        probabilities = model(input_ids=torch.from_numpy(ids)).logits.double().softmax(-1).numpy()

    assert losses.shape == (5, 9)
    for row in range(5):
        for place in range(9):
            expected = -np.log(probabilities[row, place, ids[row, place + 1]])
            assert losses[row, place] == pytest.approx(expected, rel=1e-4)  # fp32 against fp64
    assert mean_loss(model, ids) == pytest.approx(float(losses.mean()), rel=1e-6)
