"""What heads look at and what models write, against loops over whole computations of transformers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from probes.gradient_probes import GradientNoiseProbe, LearningCoefficientProbe
from probes.induction import repeated_rows
from probes.learning_coefficient import LangevinSampling
from probes.model_probes import (
    AttentionProbe,
    ExtractabilityProbe,
    GenerationsProbe,
    InductionHeads,
    InductionLoss,
    wilson_estimate,
)
from probes.probe import Measurement, ModelProbe
from tests.probes.test_attention import seen_weights
from tests.probes.test_generations import generated, taken_whole
from tests.probes.tiny_models import VOCABULARY, tiny_model, without_queries

RNG = np.random.default_rng(0)
IDS = RNG.integers(1, VOCABULARY, (3, 9))
REPEATED = repeated_rows(np.arange(VOCABULARY), num_repeated=6, num_rows=5, seed=0)
PROMPTS = [RNG.integers(1, VOCABULARY, length) for length in (4, 2, 4)]
SAMPLING = LangevinSampling(step_size=1e-5, localization=1.0, num_chains=2, num_burn_in=1, num_draws=2)


def measured(probe: ModelProbe, model: Any) -> dict[str, Measurement]:
    found = list(probe.measure_model(model))
    assert len({one.metric for one in found}) == len(found)
    return {one.metric: one for one in found}


def test_the_induction_loss_is_that_of_whole_computations() -> None:
    model = tiny_model("llama")
    found = measured(InductionLoss(token_ids=REPEATED), model)
    changes = []
    for row in REPEATED.tolist():
        losses = [-math.log(float(taken_whole(model, row[:place])[row[place]])) for place in range(1, 12)]
        changes.append(np.mean(losses[6:]) - np.mean(losses[:5]))  # tokens 7 .. 11 less tokens 1 .. 5, 0-based

    assert list(found) == ["loss change"] and found["loss change"].unit == "nats per token"
    assert found["loss change"].value == pytest.approx(np.mean(changes), rel=1e-4)
    assert found["loss change"].low < found["loss change"].value < found["loss change"].high


def test_every_head_has_its_induction_score_and_the_largest_stands_alone() -> None:
    model = tiny_model("gpt_neox")
    found = measured(InductionHeads(token_ids=REPEATED), model)
    layers = seen_weights(model, REPEATED)
    expected = {
        f"score, layer {layer} head {head}": float(
            np.mean([layers[layer][row, head, i, i - 5] for row in range(5) for i in range(6, 12)])
        )
        for layer in range(2)
        for head in range(4)
    }

    assert {name: one.value for name, one in found.items()} == pytest.approx(
        {"largest score": max(expected.values()), **expected}, rel=1e-4
    )
    assert {one.unit for one in found.values()} == {"share"}


def test_attention_is_measured_of_each_head_and_averaged_over_layers_and_all() -> None:
    """One statistic against transformers' own weights, head by head; means are plain means of heads."""
    model = tiny_model("llama")
    found = measured(AttentionProbe(token_ids=IDS), model)
    layers = seen_weights(model, IDS)
    sinks = [[layers[n][:, head, 1:, 0].mean() for head in range(4)] for n in range(2)]

    assert [found[f"sink mass, layer {n} head {h}"].value for n in range(2) for h in range(4)] == pytest.approx(
        [value for of_layer in sinks for value in of_layer], rel=1e-4
    )
    assert [found[f"sink mass, layer {n}"].value for n in range(2)] == pytest.approx(np.mean(sinks, axis=1), rel=1e-4)
    assert found["sink mass"].value == pytest.approx(np.mean(sinks), rel=1e-4)
    assert len(found) == 4 * (1 + 2 + 8)


def test_heads_without_a_preference_have_the_closed_form_in_all_statistics() -> None:
    """Uniform weights over 2 to 9 seen keys: entropy log n, share 1, sink 1 / n, distance (n - 1) / 2."""
    found = measured(AttentionProbe(token_ids=IDS), without_queries(tiny_model("llama")))
    seen = np.arange(2, 10)
    expected = {
        "entropy": (np.log(seen).mean(), "nats"),
        "entropy share": (1.0, "share"),
        "sink mass": ((1 / seen).mean(), "share"),
        "mean distance": (((seen - 1) / 2).mean(), "tokens"),
    }

    for name, (value, unit) in expected.items():
        for place in ("", ", layer 1", ", layer 0 head 3"):
            assert found[name + place].value == pytest.approx(value, rel=1e-5)
            assert found[name + place].unit == unit


def memorized_rows(model: Any, num_wrong: Sequence[int]) -> np.ndarray:
    """A prompt of 4 and what the model says after it, 6 tokens, the last of which are made wrong."""
    rows = []
    for number, wrong in enumerate(num_wrong):
        prompt = np.random.default_rng(number).integers(1, VOCABULARY, 4)
        said = np.array(generated(model, prompt, max_new_tokens=6, eos_token_id=None))
        said[6 - wrong :] = (said[6 - wrong :] + 1) % VOCABULARY
        rows.append([*prompt, *said])
    return np.array(rows)


IS_READ = np.array([True, True, True, True, False, False, False])


def extractability_of(rows: np.ndarray, is_read: np.ndarray, **settings: Any) -> ExtractabilityProbe:
    return ExtractabilityProbe(token_ids=rows, is_read=is_read, num_prompt_tokens=4, num_continued_tokens=6, **settings)


def test_extractability_is_a_share_of_the_rows_of_each_kind() -> None:
    """By construction: of the read rows two are extracted, of the others none; half of their tokens match and more."""
    model = tiny_model("llama")
    rows = memorized_rows(model, [0, 0, 3, 6, 1, 2, 3])
    found = measured(extractability_of(rows, IS_READ), model)

    values = {name: one.value for name, one in found.items()}
    assert values == pytest.approx(
        {
            "extracted, read": 0.5,
            "matching share, read": (1 + 1 + 0.5 + 0) / 4,
            "extracted, not read yet": 0.0,
            "matching share, not read yet": (5 / 6 + 4 / 6 + 3 / 6) / 3,
        }
    )
    assert {one.unit for one in found.values()} == {"share"}
    # Wilson 1927 by hand: the roots of |p - p0| = z sqrt(p0 (1 - p0) / n); with none of n the upper is z² / (n + z²).
    z = 1.959964
    assert found["extracted, not read yet"].high == pytest.approx(z**2 / (3 + z**2), rel=1e-5)
    half = z * math.sqrt(0.25 / 4 + z**2 / 64) / (1 + z**2 / 4)
    assert (found["extracted, read"].low, found["extracted, read"].high) == pytest.approx((0.5 - half, 0.5 + half))
    assert found["matching share, read"].low < values["matching share, read"] < found["matching share, read"].high


def test_rows_of_one_kind_are_measured_alone_and_clusters_are_drawn_whole() -> None:
    model = tiny_model("llama")
    rows = memorized_rows(model, [0, 0, 6, 6])
    some = np.ones(4, dtype=bool)

    assert list(measured(extractability_of(rows, some), model)) == ["extracted, read", "matching share, read"]
    assert list(measured(extractability_of(rows, ~some), model)) == [
        "extracted, not read yet",
        "matching share, not read yet",
    ]
    clustered = measured(extractability_of(rows, some, clusters=np.array([0, 0, 1, 1])), model)["extracted, read"]
    assert (clustered.low, clustered.value, clustered.high) == (0.0, 0.5, 1.0)


def test_the_end_token_can_be_forbidden_as_in_the_published_evaluation() -> None:
    model = tiny_model("llama")
    rows = memorized_rows(model, [0])
    end = int(rows[0, 6])
    found = measured(extractability_of(rows, np.array([True]), end_token_id=end), model)

    assert found["matching share, read"].value < 1 and found["extracted, read"].value == 0


def test_generations_carry_the_text_and_the_log_probability_of_what_was_written() -> None:
    """Independent value: each token's probability from a whole computation without cache, one after another."""
    model = tiny_model("gpt_neox")
    end = generated(model, PROMPTS[1], max_new_tokens=5, eos_token_id=None)[2]
    probe = GenerationsProbe(
        prompts=PROMPTS, decode=lambda ids: " ".join(map(str, ids)), num_tokens=5, end_token_id=end
    )
    found = measured(probe, model)

    assert list(found) == ["prompt 1", "prompt 2", "prompt 3"]
    for prompt, one in zip(PROMPTS, found.values(), strict=True):
        ids = generated(model, prompt, max_new_tokens=5, eos_token_id=end)
        so_far = [[*prompt.tolist(), *ids[:place]] for place in range(len(ids))]
        logs = [math.log(float(taken_whole(model, before)[token])) for before, token in zip(so_far, ids, strict=True)]
        assert one.text == " ".join(map(str, ids)) and one.unit == "nats per token"
        assert one.value == pytest.approx(np.mean(logs), rel=1e-4)
    assert len((found["prompt 2"].text or "").split()) <= 3


def test_a_model_that_computes_nan_has_no_figures_and_ends_nothing() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(math.nan)
    probes: list[ModelProbe] = [
        InductionLoss(token_ids=REPEATED),
        extractability_of(np.ones((3, 10), dtype=np.int64), IS_READ[2:5]),
        extractability_of(np.ones((3, 10), dtype=np.int64), IS_READ[2:5], clusters=np.arange(3)),
        GenerationsProbe(prompts=PROMPTS, decode=str, num_tokens=2),
        GradientNoiseProbe(token_ids=IDS),
        LearningCoefficientProbe(token_ids=IDS, sampling=SAMPLING, rows_at_once=3),
    ]

    for probe in probes:
        found = measured(probe, model)
        assert found and all(math.isnan(one.value) and one.low is None and not one.text for one in found.values())


def test_the_wilson_interval_of_a_share_that_is_not_known_is_not_known() -> None:
    found = wilson_estimate(np.array([1.0, math.nan]))

    assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    "probe",
    [
        InductionLoss(token_ids=REPEATED),
        InductionHeads(token_ids=REPEATED),
        AttentionProbe(token_ids=IDS),
        extractability_of(np.ones((3, 10), dtype=np.int64), IS_READ[2:5]),
        GenerationsProbe(prompts=PROMPTS, decode=str, num_tokens=3),
        GradientNoiseProbe(token_ids=IDS),
        LearningCoefficientProbe(token_ids=IDS, sampling=SAMPLING, rows_at_once=3),
    ],
    ids=lambda probe: type(probe).__name__,
)
def test_the_model_is_left_exactly_as_it_was(probe: ModelProbe) -> None:
    model = tiny_model("llama", "sdpa")
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    model.model.norm.weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe.measure_model(model)

    assert not any(module.training for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"lm_head.weight"}
    assert torch.equal(model.lm_head.weight.grad, torch.ones_like(model.lm_head.weight))
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"model.norm.weight"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
