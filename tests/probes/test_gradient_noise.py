import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_index.errors import InvalidRange
from probes.gradient_noise import gradient_noise, noise_from_instances, noise_from_two_sizes
from probes.instance_gradients import instance_gradient_norms
from replay.models import build_model
from tests.forensics.test_architectures import MODELS

TOKENS = np.random.default_rng(1).integers(0, 61, size=(6, 12)).astype(np.uint16)


def test_both_estimates_have_no_bias_over_all_batches_of_a_population() -> None:
    """Every pair of batches of 2 and of 3 instances, drawn with replacement from 3, each as likely as the others."""
    population = np.array([[1.0, 2.0], [-1.0, 0.5], [3.0, -2.0]])
    mean = population.mean(axis=0)
    variance = ((population - mean) ** 2).sum(axis=1).mean()
    small, big = (
        np.array([(population[list(drawn)].mean(axis=0) ** 2).sum() for drawn in itertools.product(range(3), repeat=n)])
        for n in (2, 3)
    )
    noise = noise_from_two_sizes(small, big, small_instances=2, big_instances=3)

    assert noise.squared_gradient == pytest.approx((mean**2).sum(), rel=1e-12)
    assert noise.variance == pytest.approx(variance, rel=1e-12)
    assert noise.noise_scale == pytest.approx(variance / (mean**2).sum(), rel=1e-12)


def linear_regression_gradients(random: np.random.Generator, count: int, off: np.ndarray, sd: float) -> np.ndarray:
    """Of (x w - y)^2 / 2 at w = true + off, for normal x and y = x true + sd * noise: x (x off - sd * noise)."""
    x = random.standard_normal((count, len(off)))
    return np.asarray(x * (x @ off - sd * random.standard_normal(count))[:, None])


def test_the_noise_scale_of_a_linear_regression_is_the_closed_form() -> None:
    """G = off, and by Isserlis E|g|^2 = (d + 2) |off|^2 + d sd^2, so that S = (d + 1) |off|^2 + d sd^2."""
    random, off, sd = np.random.default_rng(2), np.array([0.5, -0.3, 0.2, 0.0, 0.1]), 0.7
    square = off @ off
    variance = (len(off) + 1) * square + len(off) * sd**2
    found = []
    for _ in range(2000):
        gradients = linear_regression_gradients(random, 32, off, sd)
        found.append(noise_from_instances(np.linalg.norm(gradients, axis=1), float(np.linalg.norm(gradients.mean(0)))))
    for true, estimates in (
        (square, np.array([noise.squared_gradient for noise in found])),
        (variance, np.array([noise.variance for noise in found])),
    ):
        assert abs(estimates.mean() - true) < 4 * estimates.std() / math.sqrt(len(found))
        assert estimates.std() / math.sqrt(len(found)) < 0.02 * true
    pooled = np.mean([n.variance for n in found]) / np.mean([n.squared_gradient for n in found])
    assert pooled == pytest.approx(variance / square, rel=0.05)


def test_with_single_instances_the_variance_is_that_of_the_sample() -> None:
    gradients = linear_regression_gradients(np.random.default_rng(3), 9, np.array([0.4, 0.1]), 0.5)
    noise = noise_from_instances(np.linalg.norm(gradients, axis=1), float(np.linalg.norm(gradients.mean(axis=0))))

    assert noise.variance == pytest.approx(gradients.var(axis=0, ddof=1).sum(), rel=1e-12)
    assert noise.num_instances == 9


def model_of(architecture: str) -> torch.nn.Module:
    model = build_model(MODELS[architecture], device=torch.device("cpu"), seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # far enough from 0 that gradients differ
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "olmo3"])
def test_the_noise_of_a_model_is_that_of_each_instances_gradient(architecture: str) -> None:
    """Against the sample covariance of the gradients as vectors, and against the norms from one pass of all rows."""
    model = model_of(architecture)
    ids = torch.from_numpy(TOKENS.astype(np.int64))

    def row_losses() -> torch.Tensor:
        logits = model(input_ids=ids).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(dim=1)

    vectors = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(x, model.parameters(), retain_graph=True)])
            for x in row_losses()
        ]
    ).double()
    mean, variance = vectors.mean(dim=0), float(vectors.var(dim=0).sum())
    norms = instance_gradient_norms(model, lambda: row_losses().sum()).numpy()

    for noise in (gradient_noise(model, TOKENS), noise_from_instances(norms, float(mean.norm()))):
        assert noise.variance == pytest.approx(variance, rel=1e-5)
        assert noise.squared_gradient == pytest.approx(float(mean @ mean) - variance / 6, rel=1e-4)
    pairs = vectors.view(3, 2, -1).mean(dim=1)
    assert gradient_noise(model, TOKENS, rows_at_once=2).variance == pytest.approx(
        2 * float(pairs.var(dim=0).sum()), rel=1e-5
    )


def test_a_bf16_model_is_measured_and_left_as_it_was() -> None:
    exact = gradient_noise(model_of("llama"), TOKENS, rows_at_once=2)
    model = model_of("llama").bfloat16()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():  # as a caller of other probes may be
        noise = gradient_noise(model, TOKENS, rows_at_once=2)

    # bf16 keeps 3 digits of each number.
    assert noise.variance == pytest.approx(exact.variance, rel=0.02)
    assert noise.squared_gradient == pytest.approx(exact.squared_gradient, rel=0.02)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and bool((first.grad == 1).all())


def test_equal_rows_have_no_noise() -> None:
    """In bf16 too, where a sum of so many gradients would lose what is rounded off."""
    noise = gradient_noise(model_of("llama").bfloat16(), np.repeat(TOKENS[:1], 30, axis=0))

    assert abs(noise.noise_scale) < 1e-4


def test_a_gradient_that_is_not_told_from_0_has_no_scale() -> None:
    noise = noise_from_instances(np.array([1.0, 1.0]), 0.0)

    assert (noise.squared_gradient, noise.variance) == (-1.0, 2.0)
    assert math.isnan(noise.noise_scale)


def test_one_size_is_refused() -> None:
    with pytest.raises(InvalidRange, match="two sizes, got 4 and 4 instances"):
        noise_from_two_sizes(np.ones(1), np.ones(1), small_instances=4, big_instances=4)
    with pytest.raises(InvalidRange, match="6 rows cannot be cut into two or more small batches of 4"):
        gradient_noise(model_of("llama"), TOKENS, rows_at_once=4)
