"""Gradient noise and the learning coefficient of a tiny model against gradients row by row and a chain by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_index.errors import InvalidRange
from probes.gradient_probes import GradientNoiseProbe, LearningCoefficientProbe
from probes.learning_coefficient import LangevinSampling
from probes.probe import Measurement, ModelProbe
from tests.probes.tiny_models import VOCABULARY, tiny_model

IDS = np.random.default_rng(0).integers(1, VOCABULARY, (6, 9))
SAMPLING = LangevinSampling(step_size=1e-5, localization=2.0, num_chains=3, num_burn_in=1, num_draws=4, seed=5)


def measured(probe: ModelProbe, model: Any) -> dict[str, Measurement]:
    return {one.metric: one for one in probe.measure_model(model)}


def loss_of(model: Any, ids: np.ndarray) -> torch.Tensor:
    """transformers' own loss of rows."""
    tokens = torch.from_numpy(ids)
    loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


def row_gradient(model: Any, ids: np.ndarray) -> np.ndarray:
    parts = torch.autograd.grad(loss_of(model, ids), list(model.parameters()))
    return torch.cat([part.flatten() for part in parts]).double().numpy()


def test_the_noise_of_a_model_is_that_of_the_gradients_of_its_rows() -> None:
    """Closed forms: the unbiased sample variance S of the rows' gradients, and |mean|^2 - S / n."""
    model = tiny_model("llama")
    rows = IDS[[0, 0, 1, 0, 2, 0]]  # alike enough that the gradient is told from 0
    gradients = np.stack([row_gradient(model, rows[row : row + 1]) for row in range(6)])
    variance = gradients.var(axis=0, ddof=1).sum()
    square = (gradients.mean(axis=0) ** 2).sum() - variance / 6
    found = measured(GradientNoiseProbe(token_ids=rows), model)

    assert {name: one.unit for name, one in found.items()} == {
        "noise scale": "instances",
        "squared gradient": "nats per token, squared",
        "variance": "nats per token, squared",
    }
    assert found["variance"].value == pytest.approx(variance, rel=1e-4)
    assert found["squared gradient"].value == pytest.approx(square, rel=1e-3)
    assert found["noise scale"].value == pytest.approx(variance / square, rel=1e-3)


def test_larger_small_batches_are_those_asked_for() -> None:
    """Of pairs of rows, the variance of an instance is twice that of the pairs' gradients."""
    model = tiny_model("llama")
    gradients = np.stack([row_gradient(model, IDS[start : start + 2]) for start in (0, 2, 4)])
    found = measured(GradientNoiseProbe(token_ids=IDS, rows_at_once=2), model)

    assert found["variance"].value == pytest.approx(2 * gradients.var(axis=0, ddof=1).sum(), rel=1e-4)


def chain_by_hand(chain: int, sampling: LangevinSampling) -> list[float]:
    """n beta times the excess loss before each step, on batches of two rows and a model of its own, written plainly."""
    n_beta = 48 / math.log(48)  # 6 rows of 8 predicted tokens
    model, start = tiny_model("llama"), tiny_model("llama")
    batches = [IDS[0:2], IDS[2:4], IDS[4:6]]
    order = np.random.default_rng((sampling.seed, chain)).integers(3, size=5)
    noise = torch.Generator().manual_seed(int(np.random.SeedSequence((sampling.seed, chain)).generate_state(1)[0]))
    found = []
    for batch in order:
        loss = loss_of(model, batches[batch])
        found.append(n_beta * (loss.item() - loss_of(start, batches[batch]).item()))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for w, center, gradient in zip(model.parameters(), start.parameters(), gradients, strict=True):
                xi = torch.randn(w.shape, generator=noise)
                pull = n_beta * gradient + sampling.localization * (w - center)
                w -= sampling.step_size / 2 * pull - math.sqrt(sampling.step_size) * xi
    return found


def test_the_learning_coefficient_is_that_of_chains_by_hand() -> None:
    found = measured(LearningCoefficientProbe(token_ids=IDS, sampling=SAMPLING, rows_at_once=2), tiny_model("llama"))
    chains = np.array([chain_by_hand(chain, SAMPLING) for chain in range(3)])[:, 1:]
    estimate, error = chains.mean(), chains.mean(axis=1).std(ddof=1) / math.sqrt(3)
    one = found["estimate"]

    assert {name: one.unit for name, one in found.items()} == {"estimate": "1", "drift": "1", "loss": "nats per token"}
    assert one.value == pytest.approx(estimate, rel=1e-3)
    assert (one.low, one.high) == pytest.approx((estimate - 1.96 * error, estimate + 1.96 * error), rel=1e-3)
    assert found["drift"].value == pytest.approx(chains[:, 2:].mean() - chains[:, :2].mean(), rel=1e-3)
    assert found["loss"].value == pytest.approx(loss_of(tiny_model("llama"), IDS).item(), rel=1e-5)


def test_a_single_chain_has_no_interval_and_uneven_batches_are_refused() -> None:
    single = replace(SAMPLING, num_chains=1)
    found = measured(LearningCoefficientProbe(token_ids=IDS, sampling=single, rows_at_once=6), tiny_model("llama"))

    assert found["estimate"].low is None and math.isfinite(found["estimate"].value)
    with pytest.raises(InvalidRange, match="6 rows cannot be cut into batches of 4"):
        LearningCoefficientProbe(token_ids=IDS, sampling=SAMPLING, rows_at_once=4).measure_model(tiny_model("llama"))
