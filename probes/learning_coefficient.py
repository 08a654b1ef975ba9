"""Local learning coefficient: how many directions a loss really resists around some weights, by sampling near them.

    lambda = n beta (E[L(w)] - L(w*))        beta = 1 / ln(n)

E is over weights w of density ~ exp(-n beta L(w) - gamma / 2 |w - w*|^2), L being the mean loss over n instances. At a
regular minimum of d parameters lambda is d / 2; where directions are flat to higher order it is less. Samples come from
chains of stochastic-gradient Langevin dynamics that begin at w*; every step takes the gradient on one batch:

    w <- w - epsilon / 2 (n beta grad L(w) + gamma (w - w*)) + sqrt(epsilon) xi,        xi ~ N(0, 1)

The estimate depends on epsilon, gamma, draws and batch: compare it only between equal settings, look at the trace, and
try half and double of epsilon. A finite epsilon widens every direction, by 1 / (1 - epsilon k / 4) for one of curvature
k = n beta h + gamma, and above epsilon k = 4 the chain runs away; gamma damps all directions that are flatter than it.
The noise of batches adds to xi: for a quadratic the variance of each coordinate grows by
1 + epsilon (n beta)^2 v / 4, v being the variance of its gradient between batches, so that small batches make the
estimate too large. Samples that find lower losses than L(w*) make the estimate negative: w* is then no minimum.

Losses cost nothing beyond the gradients. The loss of a step is held against the loss of its own batch at w*, so that
differences between batches are not taken for differences between weights.

Source: Lau, Furman, Wang, Murfet, Wei 2023, arXiv 2308.12108. The steps are those of devinterp 1.3.2 (optim/sgld.py)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from data_index.errors import InvalidRange

Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class LangevinSampling:
    """
    Attributes:
        step_size: epsilon. localization: gamma. Both have to be chosen for the model at hand.
        num_burn_in: steps of each chain before the first that counts.
        num_draws: steps that count, every one of them: leaving some out makes an average no better.
    """

    step_size: float
    localization: float
    num_chains: int = 4
    num_burn_in: int = 100
    num_draws: int = 200
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearningCoefficient:
    """
    Attributes:
        loss: L(w*), nats, mean over the batches.
        inverse_temperature: n beta.
        num_burn_in: steps at the beginning of each trace that do not count.
        excess_losses: fp64 of shape [chains, burn-in and draws], nats: L(w) - L(w*) before every step, both on the
            step's batch; the first is at w* itself. From where a chain's loss was not finite, NaN.
    """

    loss: float
    inverse_temperature: float
    num_burn_in: int
    excess_losses: np.ndarray

    @property
    def by_chain(self) -> np.ndarray:
        """The estimate from each chain alone, fp64 of shape [chains]; NaN for one that ran away."""
        means: np.ndarray = self.excess_losses[:, self.num_burn_in :].mean(axis=1)
        return self.inverse_temperature * means

    @property
    def estimate(self) -> float:
        """The mean of the chains; NaN if one of them ran away."""
        return float(self.by_chain.mean())

    @property
    def standard_error(self) -> float:
        """Of the estimate, from how far the chains are apart; NaN of a single one."""
        chains = self.by_chain
        return float(chains.std(ddof=1)) / math.sqrt(len(chains)) if len(chains) > 1 else math.nan

    @property
    def drift(self) -> float:
        """The estimate from the second half of the draws less that from the first: far above its error, chains still
        move away from w*, and more burn-in is needed.
        """
        draws = self.excess_losses[:, self.num_burn_in :]
        half = draws.shape[1] // 2
        return float(self.inverse_temperature * (draws[:, half:].mean() - draws[:, :half].mean()))


def local_learning_coefficient(
    parameters: Mapping[str, torch.Tensor],
    loss: Callable[[Mapping[str, torch.Tensor], Batch], torch.Tensor],
    batches: Sequence[Batch],
    *,
    num_instances: int,
    sampling: LangevinSampling,
) -> LearningCoefficient:
    """The local learning coefficient of a loss at some weights.

    The tensors handed in are never written to: chains run on copies, of at least fp32, as steps would drown in the
    rounding of bf16. Held at once: w*, w, a gradient. The same seed on the same device gives the same chains.

    Args:
        parameters: w*, by name. What is not named is not sampled: a part of a model has a coefficient of its own.
        loss: mean loss per instance of a batch at such parameters, 0-d; for a language model
            `differentiable_mean_loss(model, batch, parameters)`.
        batches: one of them is drawn at each step, with replacement; a single one gives exact gradients.
        num_instances: n, of which the loss is the mean over all data; if it is a mean over tokens, these are tokens.
    Raises:
        InvalidRange: fewer than 2 instances, no batches, chains or draws, a step size that is not positive.
    """
    refuse_impossible(batches, num_instances, sampling)
    n_beta = num_instances / math.log(num_instances)
    with torch.inference_mode(False):
        start = {name: at_least_fp32(tensor) for name, tensor in parameters.items()}
        with torch.no_grad():
            references = np.array([loss(start, batch).double().item() for batch in batches])
        traces = []
        for chain in range(sampling.num_chains):
            order = np.random.default_rng((sampling.seed, chain)).integers(len(batches), size=num_steps(sampling))
            losses = chain_losses(start, lambda w, at: loss(w, batches[at]), order, n_beta, sampling, chain)
            traces.append(losses - references[order])
    return LearningCoefficient(
        loss=float(references.mean()),
        inverse_temperature=n_beta,
        num_burn_in=sampling.num_burn_in,
        excess_losses=np.stack(traces),
    )


def chain_losses(
    start: Mapping[str, torch.Tensor],
    loss: Callable[[Mapping[str, torch.Tensor], int], torch.Tensor],
    order: np.ndarray,
    n_beta: float,
    sampling: LangevinSampling,
    chain: int,
) -> np.ndarray:
    """The loss before each step of one chain, fp64, nats; NaN from where it was not finite.

    Args:
        order: which batch each step takes; `loss` is handed its number.
    """
    generator = torch.Generator(next(iter(start.values())).device)
    generator.manual_seed(int(np.random.SeedSequence((sampling.seed, chain)).generate_state(1)[0]))
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    losses = np.full(len(order), np.nan)
    for step, batch in enumerate(order.tolist()):
        with torch.enable_grad():
            value = loss(weights, batch)
        if not math.isfinite(value.item()):
            break
        losses[step] = value.double().item()
        gradients = torch.autograd.grad(value, tuple(weights.values()), allow_unused=True, materialize_grads=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            langevin_step(weight, gradient, start[name], n_beta, sampling, generator)
    return losses


@torch.no_grad()
def langevin_step(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    start: torch.Tensor,
    n_beta: float,
    sampling: LangevinSampling,
    generator: torch.Generator,
) -> None:
    """Move one tensor of a chain, in place."""
    force = n_beta * gradient + sampling.localization * (weight - start)
    noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype, device=weight.device)
    weight.add_(force, alpha=-sampling.step_size / 2).add_(noise, alpha=math.sqrt(sampling.step_size))


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it is so already: w* is only read."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def num_steps(sampling: LangevinSampling) -> int:
    return sampling.num_burn_in + sampling.num_draws


def refuse_impossible(batches: Sequence[object], num_instances: int, sampling: LangevinSampling) -> None:
    if num_instances < 2 or not len(batches) or sampling.num_chains < 1 or sampling.num_draws < 1:
        raise InvalidRange(
            f"a local learning coefficient from {num_instances} instances, {len(batches)} batches, "
            f"{sampling.num_chains} chains and {sampling.num_draws} draws: it takes 2 instances and 1 of all else"
        )
    if not 0 < sampling.step_size < math.inf or sampling.localization < 0 or sampling.num_burn_in < 0:
        raise InvalidRange(
            f"step size {sampling.step_size}, localization {sampling.localization}, {sampling.num_burn_in} steps of "
            "burn-in: the first has to be above 0, the others not below it"
        )
