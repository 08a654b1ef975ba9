"""Replay against a bare PyTorch loop doing the same arithmetic, at 20-30M parameters; and reading a batch.

Both take the same steps from the same state, one step each in turn, and must end with equal bits: otherwise the times
would not compare the same work. The replay side reads each batch through the index and writes its metrics down.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data_index.batch import read_batch
from data_index.batch_queries import plan_of, reader_of
from data_index.registration import add
from data_index.workspace import Workspace
from forensics.reproduction import prepare
from forensics.sample_run import SampleSpec, train_sample_run
from replay.determinism import deterministic
from replay.recipe import Recipe
from replay.recording import Recording, SavePolicy, advance
from replay.train_state import TrainState, initial_state, weight_tensors
from replay.train_step import StepResult
from replay.weights import content_hash

PAIRS = 40
CPU = torch.device("cpu")
# 8 x 128 tokens a step over 25M parameters.
MODEL = {
    "model_type": "olmo2",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
}


def small_run(folder: Path) -> Workspace:
    """A one-step sample run, for its data, order and index."""
    spec = SampleSpec(
        name="data",
        num_steps=60,
        steps_per_epoch=60,
        instances_per_batch=8,
        hidden=8,
        inner=8,
        layers=1,
        heads=1,
        save_every=60,
        binary_step=50,
        repetitive_step=40,
        duplicate_steps=(5, 30),
    )
    train_sample_run(folder / "data", spec)
    workspace = Workspace(folder / "workspace")
    add(folder / "data", workspace=workspace)
    return workspace


def bare_steps(state: TrainState, recipe: Recipe, batches: list[np.ndarray]) -> Iterator[float]:
    """The same step, written down without anything around it; yields seconds."""
    parameters = list(state.model.parameters())
    for step, rows in enumerate(batches, 1):
        began = time.perf_counter()
        ids = torch.from_numpy(rows)
        labels = F.pad(ids[:, 1:], (0, 1), value=-100)
        count = (labels != -100).sum()
        logits = state.model(input_ids=ids).logits.float().view(-1, recipe.model["vocab_size"])
        wanted = labels.reshape(-1)
        loss = F.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")
        z = recipe.z_loss * (logits.logsumexp(-1).pow(2) * (wanted != -100)).sum()
        ((loss + z) / count).backward()
        (loss / count).item()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, recipe.max_grad_norm or 1.0, norm)
        for group in state.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_of(step, 0, 0)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        yield time.perf_counter() - began


def timed_steps(results: Iterator[StepResult]) -> Iterator[float]:
    while True:
        began = time.perf_counter()
        if next(results, None) is None:
            return
        yield time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = small_run(folder)
        run = workspace.run("data")
        setup = prepare(workspace, run, "cpu", "recipe")
        recipe = replace(setup.recipe, model=MODEL | {"vocab_size": setup.recipe.model["vocab_size"]})
        plan = plan_of(workspace, run, 0, PAIRS)
        reading = _reading_times(workspace)
        ours, theirs = (initial_state(recipe, seed=1, device=CPU) for _ in range(2))
        reader = reader_of(workspace, run)
        batches = [read_batch(plan[step], reader).token_ids for step in plan.steps]
        # No save in between: both sides take the same steps and nothing else.
        recording = Recording(folder=folder / "replay", policy=SavePolicy(every=10**9, record_batches=False))
        results = advance(
            recording, start=lambda saved: ours, plan=plan, reader=reader_of(workspace, run), recipe=recipe
        )
        with deterministic(1):
            pairs = _interleaved(timed_steps(results), bare_steps(theirs, recipe, batches))
        parameters = sum(p.numel() for p in ours.model.parameters())
        equal = content_hash(weight_tensors(ours)) == content_hash(weight_tensors(theirs))
    _print(pairs, reading, parameters, equal)


def _interleaved(ours: Iterator[float], theirs: Iterator[float]) -> list[tuple[float, float]]:
    """Times of one step each, in turn; who goes first alternates. The last step saves and is left out."""
    pairs = []
    for number in range(PAIRS - 1):
        if number % 2:
            b, a = next(theirs), next(ours)
        else:
            a, b = next(ours), next(theirs)
        pairs.append((a, b))
    next(ours), next(theirs)
    return pairs[2:]


def _reading_times(workspace: Workspace) -> list[float]:
    """Seconds to read and check one batch, from a plan that is in memory."""
    run = workspace.run("data")
    plan, reader = plan_of(workspace, run, 0, PAIRS), reader_of(workspace, run)
    times = []
    for step in plan.steps:
        began = time.perf_counter()
        read_batch(plan[step], reader)
        times.append(time.perf_counter() - began)
    return times


def _print(pairs: list[tuple[float, float]], reading: list[float], parameters: int, equal: bool) -> None:
    ratios = sorted(a / b for a, b in pairs)
    quarter = len(ratios) // 4
    print(f"{parameters / 1e6:.1f}M parameters, {len(pairs)} interleaved pairs, weights equal at the end: {equal}")
    print(
        f"replay {statistics.median(a for a, _ in pairs):.3f} s a step, "
        f"bare {statistics.median(b for _, b in pairs):.3f} s"
    )
    print(
        f"ratio: median {statistics.median(ratios):.3f}, quartiles {ratios[quarter]:.3f} .. {ratios[-quarter - 1]:.3f}"
    )
    print(f"reading a batch: median {statistics.median(reading) * 1e3:.2f} ms, worst {max(reading) * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
