import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_index.errors import InvalidRange
from probes.differentiable_loss import differentiable_mean_loss
from probes.learning_coefficient import LangevinSampling, LearningCoefficient, local_learning_coefficient
from replay.models import build_model
from tests.forensics.test_architectures import MODELS

NUM_INSTANCES = 1000
N_BETA = NUM_INSTANCES / math.log(NUM_INSTANCES)
CENTER = {"a": torch.full((40,), 3.0), "b": torch.full((4, 5), -1.0)}
CURVATURES = {"a": torch.linspace(0.5, 2.0, 40), "b": torch.full((4, 5), 0.1)}
SAMPLING = LangevinSampling(step_size=2e-3, localization=5.0, num_chains=8, num_burn_in=100, num_draws=400)
SIGNS = torch.tensor([1.0, -1.0]).repeat(30)
Weights = Mapping[str, torch.Tensor]


def quadratic(weights: Weights, batch: None) -> torch.Tensor:
    parts = [(CURVATURES[name] * (weights[name] - CENTER[name]) ** 2).sum() / 2 for name in weights]
    return 7.0 + torch.stack(parts).sum()


def exact_coefficient(curvatures: torch.Tensor, sampling: LangevinSampling, noise: float = 0.0) -> float:
    """Of a quadratic: each coordinate is a linear recursion u <- a u + s xi from 0; its variance before step t + 1 is
    s^2 (1 - a^2t) / (1 - a^2). `noise`: variance of the gradients of batches around their mean, of each coordinate.
    """
    h = curvatures.double().numpy().ravel()
    a = 1 - sampling.step_size / 2 * (N_BETA * h + sampling.localization)
    square = sampling.step_size + (sampling.step_size / 2 * N_BETA) ** 2 * noise
    steps = np.arange(sampling.num_burn_in, sampling.num_burn_in + sampling.num_draws)[:, None]
    variances = square * (1 - a ** (2 * steps)) / (1 - a**2)
    return float(N_BETA * (h * variances / 2).sum(axis=1).mean())


def assert_within_error(found: LearningCoefficient, exact: float, largest_error: float) -> None:
    assert found.standard_error < largest_error * exact
    assert abs(found.estimate - exact) < 4 * found.standard_error


@pytest.mark.parametrize("num_burn_in", [0, 100])
def test_the_coefficient_of_a_quadratic_is_the_closed_form(num_burn_in: int) -> None:
    """Of the chain as it is, its finite steps and its way from w* included."""
    sampling = replace(SAMPLING, num_burn_in=num_burn_in)
    found = local_learning_coefficient(CENTER, quadratic, [None], num_instances=NUM_INSTANCES, sampling=sampling)
    exact = sum(exact_coefficient(h, sampling) for h in CURVATURES.values())

    assert_within_error(found, exact, largest_error=0.015)
    assert found.loss == 7.0
    assert found.excess_losses.shape == (8, num_burn_in + 400) and not found.excess_losses[:, 0].any()
    assert found.estimate == pytest.approx(N_BETA * found.excess_losses[:, num_burn_in:].mean(), rel=1e-12)


def test_small_steps_and_little_localization_find_half_the_number_of_parameters() -> None:
    """The regular case: d / 2 for whatever curvatures."""
    start, sampling = {"a": CENTER["a"]}, replace(SAMPLING, step_size=1e-3, localization=0.1, num_draws=600)
    found = local_learning_coefficient(start, quadratic, [None], num_instances=NUM_INSTANCES, sampling=sampling)

    assert exact_coefficient(CURVATURES["a"], sampling) == pytest.approx(20, rel=0.06)
    assert found.estimate == pytest.approx(20, rel=0.08)
    assert abs(found.drift) < 8 * found.standard_error


def test_a_quartic_has_a_quarter_for_each_parameter() -> None:
    """A singular minimum: E[n beta w^4] = 1 / 4 under a density ~ exp(-n beta w^4), by parts, not 1 / 2."""
    sampling = LangevinSampling(step_size=5e-4, localization=0.0, num_chains=4, num_burn_in=300, num_draws=500)
    found = local_learning_coefficient(
        {"w": torch.zeros(400)},
        lambda weights, batch: (weights["w"] ** 4).sum(),
        [None],
        num_instances=NUM_INSTANCES,
        sampling=sampling,
    )

    assert found.estimate == pytest.approx(100, rel=0.05)


def test_noise_of_batches_widens_the_samples_as_much_as_it_should_and_does_not_shift_them() -> None:
    """Batches of one centre each, around their mean w*. Their own losses at w* differ far more than the estimate."""
    offsets = 0.1 * np.random.default_rng(3).standard_normal(8)
    centers = [float(offset) for offset in offsets - offsets.mean()]
    start, sampling = {"w": torch.zeros(60)}, replace(SAMPLING, num_draws=800)
    found = local_learning_coefficient(
        start,
        lambda weights, center: ((weights["w"] - center * SIGNS) ** 2).sum() / 2,
        centers,
        num_instances=NUM_INSTANCES,
        sampling=sampling,
    )
    exact = exact_coefficient(torch.ones(60), sampling, noise=float(np.mean(np.square(centers))))

    assert not found.excess_losses[:, 0].any()
    assert exact > 1.05 * exact_coefficient(torch.ones(60), sampling)
    assert_within_error(found, exact, largest_error=0.05)
    assert found.loss == pytest.approx(30 * float(np.mean(np.square(centers))), rel=1e-5)


def test_a_seed_fixes_the_chains_and_each_chain_differs() -> None:
    short = replace(SAMPLING, num_chains=2, num_burn_in=1, num_draws=3)

    def traces(seed: int) -> np.ndarray:
        sampling = replace(short, seed=seed)
        found = local_learning_coefficient(CENTER, quadratic, [None], num_instances=NUM_INSTANCES, sampling=sampling)
        return found.excess_losses

    state = torch.get_rng_state()
    assert np.array_equal(traces(1), traces(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.isclose(traces(1)[:, 1:], traces(2)[:, 1:]).any()
    assert not np.isclose(*traces(1)[:, 1:]).any()


def test_chains_from_bf16_weights_run_in_fp32() -> None:
    """And gradients are taken whatever the caller's mode is."""
    sampling = replace(SAMPLING, num_chains=1, num_burn_in=1, num_draws=20)
    rounded = {name: tensor.bfloat16() for name, tensor in CENTER.items()}  # both numbers can be written in bf16
    plain = local_learning_coefficient(CENTER, quadratic, [None], num_instances=NUM_INSTANCES, sampling=sampling)
    with torch.no_grad():
        found = local_learning_coefficient(rounded, quadratic, [None], num_instances=NUM_INSTANCES, sampling=sampling)

    assert np.array_equal(found.excess_losses, plain.excess_losses)
    assert all(
        tensor.dtype == torch.bfloat16 and torch.equal(tensor, CENTER[n].bfloat16()) for n, tensor in rounded.items()
    )


def test_a_chain_that_runs_away_says_so() -> None:
    """Above epsilon k = 4 every step overshoots."""
    sampling = replace(SAMPLING, step_size=1.0, num_chains=2)
    found = local_learning_coefficient(CENTER, quadratic, [None], num_instances=NUM_INSTANCES, sampling=sampling)

    assert np.isnan(found.by_chain).all() and math.isnan(found.estimate)
    assert np.isfinite(found.excess_losses[:, :5]).all() and np.isnan(found.excess_losses[:, -1]).all()


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("llama", "bfloat16"), ("gpt_neox", "float32"), ("olmo3", "float32")]
)
def test_a_model_keeps_its_bits(architecture: str, dtype: str) -> None:
    model = build_model(MODELS[architecture], device=torch.device("cpu"), seed=1).eval().to(getattr(torch, dtype))
    rows = np.random.default_rng(4).integers(0, 61, size=(4, 12)).astype(np.uint16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = [p.data_ptr() for p in model.parameters()]
    with torch.inference_mode():  # as a caller of other probes may be
        found = local_learning_coefficient(
            dict(model.named_parameters()),
            lambda weights, batch: differentiable_mean_loss(model, batch, weights),
            [rows[:2], rows[2:]],
            num_instances=4,
            sampling=LangevinSampling(step_size=1e-4, localization=1.0, num_chains=2, num_burn_in=1, num_draws=4),
        )

    assert (found.excess_losses[:, 1:] != 0).all() and np.isfinite(found.excess_losses).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == places
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_draws": 0}, "8 chains and 0 draws"),
        ({"step_size": 0.0}, "step size 0.0"),
        ({"localization": -1.0}, "-1.0"),
    ],
)
def test_what_cannot_be_sampled_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidRange, match=message):
        local_learning_coefficient(
            CENTER,
            quadratic,
            [None],
            num_instances=9,
            sampling=replace(SAMPLING, **change),  # type: ignore[arg-type]
        )
