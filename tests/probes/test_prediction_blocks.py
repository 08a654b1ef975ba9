"""One forward pass for several statistics, held against probabilities computed at once, in fp64, and looped over."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from probes.calibration import Calibration
from probes.loss import TokenLosses, token_losses
from probes.ngram_agreement import BigramAgreement, BigramCounts, UnigramAgreement
from probes.prediction_blocks import one_pass, prediction_blocks
from replay.models import build_model

SIZES = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": None,
}
ROWS = np.random.default_rng(5).integers(0, 30, (5, 12)).astype(np.uint16)
SCORED = np.random.default_rng(6).random((5, 12)) < 0.6
SCORED[2] = False  # a whole row, which is not even computed on its own
COUNTS = np.random.default_rng(7).integers(0, 9, 30)


def tiny_model(model_type: str, own_attention: bool) -> Any:
    """As a run is replayed, or as transformers loads it."""
    if own_attention:
        model = build_model({"model_type": model_type, **SIZES}, device=torch.device("cpu"), seed=1)
    else:
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from uniform predictions
    return model


@pytest.mark.parametrize("own_attention", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "olmo3"])
def test_one_pass_gives_each_statistic_as_loops_over_all_probabilities_do(model_type: str, own_attention: bool) -> None:
    model = tiny_model(model_type, own_attention)
    bigrams = BigramCounts.of_pairs(ROWS[:3, :-1], ROWS[:3, 1:])
    losses, calibration = TokenLosses.of(ROWS), Calibration()
    unigram, bigram = UnigramAgreement(COUNTS), BigramAgreement(bigrams)
    one_pass(model, ROWS, [losses, calibration, unigram, bigram], scored=SCORED, rows_at_once=2)

    with torch.no_grad():
        q = model(input_ids=torch.from_numpy(ROWS.astype(np.int64))).logits.double().softmax(-1).numpy()
    followers = {
        a: [int(y) for x, y in zip(ROWS[:3, :-1].flat, ROWS[:3, 1:].flat, strict=True) if x == a] for a in ROWS.flat
    }
    of_unigram, of_bigram, squares, right = [], [], [], 0
    for row in range(5):
        for place in range(1, 12):
            if not SCORED[row, place]:
                assert np.isnan(losses.losses[row, place - 1])
                continue
            here, target, after = q[row, place - 1], ROWS[row, place], followers[ROWS[row, place - 1]]
            assert losses.losses[row, place - 1] == pytest.approx(-math.log(here[target]), rel=1e-4, abs=1e-6)
            right += int(here.argmax() == target)
            squares.append(sum((here[y] - (y == target)) ** 2 for y in range(30)))
            shares = COUNTS / COUNTS.sum()
            of_unigram.append(sum(p * math.log(p / here[y]) for y, p in enumerate(shares) if p))
            if after:
                found = {y: after.count(y) / len(after) for y in after}
                of_bigram.append(sum(p * math.log(p / here[y]) for y, p in found.items()))
    assert unigram.agreement.mean_kl == pytest.approx(np.mean(of_unigram), rel=1e-5)
    assert unigram.agreement.num_places == len(of_unigram) == SCORED[:, 1:].sum()
    assert bigram.agreement.mean_kl == pytest.approx(np.mean(of_bigram), rel=1e-5)
    assert (bigram.agreement.num_places, bigram.agreement.num_left_out) == (
        len(of_bigram),
        len(of_unigram) - len(of_bigram),
    )
    assert 0 < bigram.agreement.num_left_out
    reliability = calibration.reliability
    assert reliability.brier_score == pytest.approx(np.mean(squares), rel=1e-5)
    assert np.nansum(reliability.accuracy * reliability.num_targets) == pytest.approx(right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_bit_for_bit_the_cross_entropy_of_the_logits_in_fp32(dtype: torch.dtype) -> None:
    """However many rows and targets are taken at once; logits in bf16 are widened before the softmax."""
    model = tiny_model("llama", own_attention=False).to(dtype)
    ids = torch.from_numpy(ROWS.astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    expected = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")

    assert logits.dtype == dtype
    assert torch.equal(torch.from_numpy(token_losses(model, ROWS, rows_at_once=5)).flatten(), expected)
    blocks = list(prediction_blocks(model, ROWS, rows_at_once=5, targets_at_once=7))
    assert [len(block.targets) for block in blocks] == [7] * 7 + [6]
    found = TokenLosses.of(ROWS)
    for block in reversed(blocks):
        found.add(block)
    assert torch.equal(torch.from_numpy(found.losses).flatten(), expected)


def test_a_pass_leaves_the_model_as_it_was_even_after_an_error() -> None:
    model = tiny_model("llama", own_attention=True)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    token_losses(model, ROWS)
    with pytest.raises(IndexError):
        token_losses(model, ROWS.astype(np.int64) + 30)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()
    model(input_ids=torch.from_numpy(ROWS.astype(np.int64))).logits.sum().backward()  # nothing it kept is in the way


class KeepsWhatItComputes(torch.nn.Module):
    """As models do whose rotary frequencies depend on the length of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(30, 30))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        if input_ids.shape[1] > self.scale:
            self.scale = torch.tensor(float(input_ids.shape[1]))
        return SimpleNamespace(logits=self.table[input_ids] * self.scale)


def test_a_model_that_keeps_what_it_computes_can_be_trained_after_a_pass() -> None:
    model = KeepsWhatItComputes()
    token_losses(model, ROWS)

    model(torch.zeros((1, 3), dtype=torch.int64), use_cache=False).logits.sum().backward()
    assert model.table.grad is not None


@pytest.mark.parametrize("scored", [SCORED[:, 1:], SCORED.astype(np.int64)])
def test_a_mask_of_another_shape_or_type_is_refused(scored: np.ndarray) -> None:
    """Numbers would be taken for places, and a column missing would shift all."""
    with pytest.raises(ValueError, match=r"bool of shape \(5, 12\)"):
        token_losses(tiny_model("llama", own_attention=True), ROWS, scored=scored)
