"""What it costs to ask whose gradient a step followed, against plain passes; and how exact the answers are.

Signed shares of all instances and tokens against one forward pass over the batch; exact gradient norms of all instances
against one forward and backward pass. Both in turn with the plain pass, on one thread, in processor time, which other
work on the machine disturbs less. Exact answers come from a backward pass of each instance alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data_index.batch import Batch
from probes.gradient_shares import SignedShares, signed_shares
from probes.instance_gradients import instance_gradient_norms
from replay.batch_losses import batch_losses, loss_of_rows, row_weights
from replay.curves import Constant
from replay.recipe import Recipe
from replay.schedule import Schedule
from replay.train_state import TrainState, initial_state
from replay.train_step import accumulate_gradients, perturbed, train_step

CPU = torch.device("cpu")
# The sample run's model and batch.
SAMPLE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
LARGER = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    shape: dict[str, int]
    vocabulary: int
    rows: int
    length: int
    times: int
    architecture: str = "olmo2"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        tied = ", tied" if self.settings.get("tie_word_embeddings") else ""
        return (
            f"{self.architecture}{tied}, {self.shape['hidden_size']} x {self.shape['num_hidden_layers']} layers, "
            f"{self.rows} x {self.length} tokens, vocabulary {self.vocabulary:,}"
        )


CASES = [
    Case(shape=SAMPLE, vocabulary=1024, rows=16, length=128, times=15),
    Case(shape=SAMPLE, vocabulary=1024, rows=16, length=128, times=15, architecture="gpt_neox"),
    Case(shape=SAMPLE, vocabulary=32_768, rows=16, length=128, times=7),
    Case(
        shape=SAMPLE,
        vocabulary=32_768,
        rows=16,
        length=128,
        times=7,
        architecture="llama",
        settings={"tie_word_embeddings": True},
    ),
    Case(shape=LARGER, vocabulary=1024, rows=8, length=256, times=5),
    Case(shape=LARGER, vocabulary=32_768, rows=8, length=256, times=3),
]


def recipe_of(case: Case) -> Recipe:
    model = case.shape | case.settings | {"model_type": case.architecture, "vocab_size": case.vocabulary}
    if case.architecture != "gpt_neox":
        model["num_key_value_heads"] = case.shape["num_attention_heads"]
    return Recipe(
        model=model | {"max_position_embeddings": case.length, "eos_token_id": 0},
        learning_rate=1e-3,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
        schedule=Schedule(curve=Constant()),
        max_grad_norm=1.0,
    )


def batch_of(case: Case, step: int) -> Batch:
    """Rows in which common tokens follow common tokens; the first row repeats one token."""
    generator = np.random.default_rng(step)
    ids = np.minimum(generator.zipf(1.3, (case.rows, case.length)) * 7 % case.vocabulary, case.vocabulary - 1)
    ids[0] = 5
    counts = np.ones(ids.shape, dtype=bool)
    return Batch(
        step=step,
        epoch=1,
        instances=np.arange(case.rows),
        token_ids=ids.astype(np.int64),
        counts_as_target=counts,
        counted_by_trainer=counts,
        filtered=np.zeros(case.rows, dtype=bool),
    )


class Passes:
    """The passes that are compared, over one batch at one state."""

    def __init__(self, case: Case) -> None:
        self.recipe = recipe_of(case)
        self.state: TrainState = initial_state(self.recipe, seed=1, device=CPU)
        for step in (1, 2):
            train_step(self.state, batch_of(case, step), self.recipe)
        self.batch = batch_of(case, 3)
        self.plain_step()
        self.gradient = {name: p.grad.clone() for name, p in self.state.model.named_parameters() if p.grad is not None}
        self.state.optimizer.zero_grad(set_to_none=True)

    def forward(self) -> torch.Tensor:
        return batch_losses(self.state.model, self.batch, self.recipe, device=CPU, with_z_loss=True)

    def loss_of(self, rows: slice) -> torch.Tensor:
        return loss_of_rows(self.state.model, self.batch, self.recipe, rows, device=CPU)

    def plain_step(self) -> None:
        self.state.optimizer.zero_grad(set_to_none=True)
        accumulate_gradients(self.state, self.batch, self.recipe)

    def shares(self) -> SignedShares:
        weights = row_weights(self.batch, self.recipe, device=CPU)
        return signed_shares(
            self.forward,
            lambda scale: perturbed(self.state.model, self.gradient, scale),
            weights,
            self.gradient.values(),
        )

    def norms(self) -> torch.Tensor:
        return instance_gradient_norms(self.state.model, lambda: self.loss_of(slice(None)))

    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """<g_i, g> and |g_i| by a backward pass of each instance."""
        products, norms = [], []
        for row in range(len(self.batch.token_ids)):
            self.state.optimizer.zero_grad(set_to_none=True)
            self.loss_of(slice(row, row + 1)).backward()
            parts = [(p.grad.double(), self.gradient[n].double()) for n, p in self.state.model.named_parameters()]
            products.append(sum(float((own * whole).sum()) for own, whole in parts))
            norms.append(sum(float(own.square().sum()) for own, _ in parts) ** 0.5)
        return np.array(products), np.array(norms)


def in_turn(one: Callable[[], object], other: Callable[[], object], times: int) -> tuple[float, float, list[float]]:
    """Median seconds of processor time of both, and the ratios of pairs, rising."""
    pairs = []
    for number in range(times + 1):
        pair = {}
        for run in (one, other) if number % 2 else (other, one):
            began = time.process_time()
            run()
            pair[run] = time.process_time() - began
        pairs.append((pair[one], pair[other]))
    pairs = pairs[1:]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        sorted(a / b for a, b in pairs),
    )


def main() -> None:
    torch.set_num_threads(1)
    for case in CASES:
        passes = Passes(case)
        shares = in_turn(passes.shares, passes.forward, case.times)
        norms = in_turn(passes.norms, passes.plain_step, case.times)
        exact_products, exact_norms = passes.exact()
        found = passes.shares()
        difference = np.abs(passes.norms().numpy() / exact_norms - 1).max()
        exact_shares = exact_products / exact_products.mean()
        print(f"{case.name}: {sum(p.numel() for p in passes.state.model.parameters()) / 1e6:.1f}M parameters")
        _print("shares", "forward", shares)
        print(
            f"  correlation with exact {np.corrcoef(found.instances.numpy(), exact_shares)[0, 1]:.9f}, "
            f"largest difference {np.abs(found.instances.numpy() - exact_shares).max():.1e} of shares up to "
            f"{exact_shares.max():.2f}, mean {found.instances.mean().item():.15f}, agreement {found.agreement:.6f}"
        )
        _print("norms", "forward and backward", norms)
        print(f"  largest relative difference {difference:.1e}")


def _print(name: str, plain: str, measured: tuple[float, float, list[float]]) -> None:
    mine, theirs, ratios = measured
    quarter = len(ratios) // 4
    print(
        f"  {name} {mine * 1e3:.0f} ms, {plain} {theirs * 1e3:.0f} ms: ratio {statistics.median(ratios):.2f} "
        f"({ratios[quarter]:.2f} .. {ratios[-quarter - 1]:.2f})"
    )


if __name__ == "__main__":
    main()
