import weakref
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXForCausalLM

from probes.attention_heads import HeadAttention, head_attention
from probes.attention_weights import observe_attention
from probes.induction import induction_loss_changes, induction_scores, repeated_rows
from tests.probes.tiny_models import CONFIGS, VOCABULARY, WINDOW, tiny_model, without_queries

KINDS = sorted(CONFIGS)
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (3, 12))


def seen_weights(model: Any, ids: np.ndarray) -> list[np.ndarray]:
    """Of a copy with the same weights that computes eagerly and returns all layers at once, as transformers offers."""
    config = AutoConfig.for_model(**CONFIGS[model.config.model_type])
    copy = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        attentions = copy(input_ids=torch.from_numpy(ids), output_attentions=True).attentions
    return [layer.double().numpy() for layer in attentions]


def window_of(kind: str, layer: int, length: int) -> int:
    return WINDOW if kind == "olmo3" and layer == 0 else length


@pytest.mark.parametrize("implementation", ["sdpa", "forensics"])
@pytest.mark.parametrize("kind", KINDS)
def test_head_statistics_equal_loops_over_every_query(kind: str, implementation: str) -> None:
    """Independent value: transformers' own output_attentions, and means written as loops over queries."""
    model = tiny_model(kind, implementation)
    found = head_attention(model, IDS, rows_at_once=2)
    layers = seen_weights(model, IDS)

    assert found.entropy_nats.shape == (2, 4)
    for layer, weights in enumerate(layers):
        for head in range(4):
            entropies, shares, sinks, distances = [], [], [], []
            for row in range(3):
                for query in range(1, 12):
                    start = max(0, query - window_of(kind, layer, 12) + 1)
                    p = weights[row, head, query, start : query + 1]
                    entropies.append(-sum(x * np.log(x) for x in p if x > 0))
                    shares.append(entropies[-1] / np.log(len(p)))
                    sinks += [p[0]] if start == 0 else []
                    distances.append(sum(x * (query - start - key) for key, x in enumerate(p)))
            expected = [np.mean(entropies), np.mean(shares), np.mean(sinks), np.mean(distances)]
            got = [getattr(found, name)[layer, head] for name in HeadAttention.__slots__]
            assert got == pytest.approx(expected, rel=1e-4)  # fp32, summed in another order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_without_preference_has_the_closed_form(kind: str, dtype: torch.dtype) -> None:
    """Uniform weights over n seen keys: entropy log n, share 1, sink 1/n, distance (n - 1) / 2."""
    model = without_queries(tiny_model(kind, "forensics")).to(dtype)
    found = head_attention(model, IDS)
    # bf16 rounds each weight to 8 bits.
    close = 2**-8 if dtype == torch.bfloat16 else 1e-6
    for layer in range(2):
        window = window_of(kind, layer, 12)
        seen = np.minimum(np.arange(2, 13), window)

        assert found.entropy_nats[layer] == pytest.approx(np.log(seen).mean(), rel=close)
        assert found.entropy_share[layer] == pytest.approx(1, rel=close)
        assert found.sink_mass[layer] == pytest.approx((1 / np.arange(2, window + 1)).mean(), rel=close)
        assert found.mean_distance_tokens[layer] == pytest.approx(((seen - 1) / 2).mean(), rel=close)


def fixed_distance_model(distance: int) -> GPTNeoXForCausalLM:
    """Queries and keys are one vector whatever the token, the queries' turned as if they stood `distance` before."""
    config = {**CONFIGS["gpt_neox"], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config | {"partial_rotary_factor": 1.0, "rotary_pct": 1.0}), attn_implementation="sdpa"
    )
    angles = -distance / 1e4 ** (np.arange(0, 8, 2) / 8)
    turned = torch.tensor(np.concatenate([np.cos(angles), np.sin(angles)]) * 1e4, dtype=torch.float32)
    with torch.no_grad():
        for block in model.gpt_neox.layers:
            joined = block.attention.query_key_value
            joined.weight.zero_()
            bias = joined.bias.view(4, 3, 8)
            bias[:, 0] = turned
            bias[:, 1] = torch.tensor([1.0] * 4 + [0.0] * 4)
    return model.eval()


def test_a_planted_induction_head_scores_one_and_one_beside_it_nothing() -> None:
    """Heads that look back 6 places whatever they read: 6 = R - 1 for R = 7, and not for R = 8."""
    model = fixed_distance_model(6)
    for num_repeated, score in ((7, 1.0), (8, 0.0)):
        rows = repeated_rows(np.arange(VOCABULARY), num_repeated=num_repeated, num_rows=3, seed=1)

        assert induction_scores(model, rows) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_induction_scores_equal_single_weights_summed(kind: str) -> None:
    """Independent value: transformers' own output_attentions, indexed one query at a time as the definition says."""
    model = tiny_model(kind, "forensics")
    rows = repeated_rows(np.arange(1, VOCABULARY), num_repeated=6, num_rows=3, seed=2)
    found = induction_scores(model, rows, rows_at_once=2)
    for layer, weights in enumerate(seen_weights(model, rows)):
        for head in range(4):
            expected = np.mean([weights[row, head, i, i - 6 + 1] for row in range(3) for i in range(6, 12)])
            assert found[layer, head] == pytest.approx(expected, rel=1e-4, abs=1e-7)  # fp32 in another order
    uniform = induction_scores(without_queries(model), rows)
    assert uniform[1] == pytest.approx(np.mean([1 / (i + 1) for i in range(6, 12)]), rel=1e-6)


def test_repeated_rows_are_two_copies_of_different_tokens() -> None:
    rows = repeated_rows(np.arange(10, 20), num_repeated=8, num_rows=5, seed=4)

    assert rows.shape == (5, 16)
    for row in rows:
        assert row[:8].tolist() == row[8:].tolist()
        assert len(set(row[:8].tolist())) == 8 and set(row.tolist()) <= set(range(10, 20))
    assert np.array_equal(rows, repeated_rows(np.arange(10, 20), num_repeated=8, num_rows=5, seed=4))
    assert not np.array_equal(rows, repeated_rows(np.arange(10, 20), num_repeated=8, num_rows=5, seed=5))
    with pytest.raises(ValueError, match="cannot choose 11 different tokens"):
        repeated_rows(np.arange(10), num_repeated=11, num_rows=1, seed=0)
    with pytest.raises(ValueError, match="not tokens repeated once"):
        induction_scores(tiny_model("llama"), IDS)


class Copier(torch.nn.Module):
    """Predicts what came after the same token before with 9/10, the rest and everything unseen equally."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        chances = torch.full((*input_ids.shape, 10), 0.1)
        for row, ids in enumerate(input_ids.tolist()):
            for place, token in enumerate(ids):
                if token in ids[:place]:
                    chances[row, place] = 0.1 / 9
                    chances[row, place, ids[ids.index(token) + 1]] = 0.9
        return type("Answer", (), {"logits": chances.log()})()


def test_the_loss_change_of_a_copier_is_the_log_ratio_of_its_chances() -> None:
    """Closed form: every token but a copy's first has chance 1/10 in the first copy and 9/10 in the second."""
    rows = repeated_rows(np.arange(10), num_repeated=7, num_rows=4, seed=0)

    assert induction_loss_changes(Copier(), rows) == pytest.approx(np.full(4, -np.log(9)), rel=1e-6)


def test_loss_changes_compare_the_same_tokens_in_both_copies() -> None:
    """Independent value: chances of single tokens, without a copy's first, in fp64."""
    model = tiny_model("llama")
    rows = repeated_rows(np.arange(VOCABULARY), num_repeated=5, num_rows=3, seed=0)
    with torch.no_grad():
        chances = model(input_ids=torch.from_numpy(rows)).logits.double().softmax(-1).numpy()
    for row, found in enumerate(induction_loss_changes(model, rows, rows_at_once=2)):
        losses = {place: -np.log(chances[row, place - 1, rows[row, place]]) for place in range(1, 10)}
        expected = np.mean([losses[place + 5] - losses[place] for place in range(1, 5)])
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)  # fp32 against fp64


def state_of(model: Any) -> list[Any]:
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return [model.config.to_dict(), model.config._attn_implementation, [m.training for m in model.modules()], hooks]


@pytest.mark.parametrize("implementation", ["sdpa", "forensics", "eager"])
def test_the_model_is_left_as_it_was_even_after_an_error(implementation: str) -> None:
    model = tiny_model("olmo3", implementation)
    model.model.layers[1].train()
    before, logits = state_of(model), model(input_ids=torch.from_numpy(IDS)).logits

    def failing(layer: int, weights: torch.Tensor, visible: torch.Tensor) -> None:
        assert model.config._attn_implementation == "eager" and not model.model.layers[1].training
        if layer == 1:
            raise RuntimeError("the observer fails")

    with pytest.raises(RuntimeError, match="the observer fails"):
        observe_attention(model, IDS, failing)
    assert state_of(model) == before
    head_attention(model, IDS)
    assert state_of(model) == before
    assert torch.equal(model(input_ids=torch.from_numpy(IDS)).logits, logits)


def test_one_layer_is_held_at_a_time() -> None:
    """The point of looking through hooks: all layers of a long row would not fit in memory."""
    held: list[weakref.ref[torch.Tensor]] = []

    def observer(layer: int, weights: torch.Tensor, visible: torch.Tensor) -> None:
        assert [earlier() for earlier in held] == [None] * len(held)
        held.append(weakref.ref(weights))

    observe_attention(tiny_model("llama"), IDS, observer, rows_at_once=2)
    assert len(held) == 4


def test_a_model_without_attention_says_so() -> None:
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).eval()
    with pytest.raises(ValueError, match="MambaForCausalLM forms no attention weights"):
        head_attention(model, IDS % 20)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        head_attention(model, IDS[:, :1])
