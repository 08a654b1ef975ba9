"""Small runs with a spike of a known cause, in the native run format; what was planted is returned, not written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_index.batch import read_batch
from data_index.files import sha256_of_file, write_bytes, write_npy
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile
from data_index.run_file import read_run, write_run
from data_index.tokens import TokenReader
from forensics.sample_run import plan_of_segments
from replay.curves import Constant
from replay.determinism import deterministic
from replay.recipe import Recipe
from replay.recording import Recording, SavePolicy
from replay.schedule import Schedule
from replay.train_state import initial_state
from replay.train_step import train_step
from tests.spiked.causes import Cause
from tests.spiked.text import Text

STEPS_AFTER = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of a run; the spike lies at `first_spike` or later. `model`: fields of its config besides."""

    num_steps: int = 120
    first_spike: int = 60
    rows: int = 8
    length: int = 128
    hidden: int = 64
    vocabulary: int = 512
    save_every: int = 12
    max_grad_norm: float | None = 1.0
    learning_rate: float = 3e-3
    eps: float = 1e-8
    model: Mapping[str, Any] = field(default_factory=dict)


BENCHMARK = Sizes()
# Seconds to train and to ask.
SMALL = Sizes(num_steps=64, first_spike=48, hidden=32, learning_rate=1e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """The truth about a run.

    Attributes:
        instances: the bad rows; none: the data are innocent.
        changed: bool of shape [bad rows, length]; which of their tokens were put there.
    """

    folder: Path
    step: int
    instances: tuple[int, ...]
    changed: np.ndarray


def make_spiked_run(folder: Path, text: Text, cause: Cause, seed: int, sizes: Sizes = BENCHMARK) -> Planted:
    """Train a run that spikes at a step which depends on the seed."""
    random = np.random.Generator(np.random.PCG64(seed=seed))
    step = int(random.integers(sizes.first_spike, sizes.num_steps - STEPS_AFTER))
    rows = text.rows(sizes.num_steps * sizes.rows, sizes.length, random)
    planted: tuple[int, ...] = ()
    changed = np.zeros((0, sizes.length), dtype=bool)
    if cause.spoil is not None:
        first = (step - 1) * sizes.rows + int(random.integers(0, sizes.rows - cause.rows + 1))
        planted = tuple(range(first, first + cause.rows))
        ordinary_rows = rows[list(planted)]
        rows[list(planted)] = cause.spoil(ordinary_rows, text, random)
        changed = rows[list(planted)] != ordinary_rows
    # Rows lie in the file in another order than they are read in.
    order = random.permutation(len(rows))
    _write_data(folder, text, rows[np.argsort(order)], order)
    ordinary = _recipe(text, sizes)
    trained = ordinary if cause.recipe is None else cause.recipe(ordinary, step, random)
    write_run(_run(folder, trained if cause.recorded else ordinary, len(rows), text, sizes), folder)
    _train(folder, trained, step, cause, random, seed, sizes)
    instances = tuple(int(order[position]) for position in planted)
    return Planted(folder=folder, step=step, instances=instances, changed=changed)


def _recipe(text: Text, sizes: Sizes) -> Recipe:
    return Recipe(
        model={
            "model_type": "olmo2",
            "vocab_size": sizes.vocabulary,
            "hidden_size": sizes.hidden,
            "intermediate_size": 2 * sizes.hidden,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000},
            "tie_word_embeddings": False,
            "max_position_embeddings": sizes.length,
            "eos_token_id": text.end,
        }
        | dict(sizes.model),
        learning_rate=sizes.learning_rate,
        betas=(0.9, 0.95),
        eps=sizes.eps,
        weight_decay=0.1,
        schedule=Schedule(curve=Constant()),
        max_grad_norm=sizes.max_grad_norm,
    )


def _write_data(folder: Path, text: Text, rows: np.ndarray, order: np.ndarray) -> None:
    write_bytes(folder / "tokens" / "text.bin", rows.astype("<u2").tobytes())
    write_bytes(folder / "tokenizer.json", text.tokenizer.to_str().encode())
    write_npy(folder / "order" / "epoch-1.npy", order.astype(np.uint32))


def _run(folder: Path, recipe: Recipe, num_rows: int, text: Text, sizes: Sizes) -> Run:
    path, order = folder / "tokens" / "text.bin", folder / "order" / "epoch-1.npy"
    file = TokenFile(
        name="text.bin",
        path=path,
        dtype="uint16",
        num_bytes=path.stat().st_size,
        first_instance=0,
        num_instances=num_rows,
        sha256=sha256_of_file(path),
    )
    segment = Segment(
        first_step=1, num_steps=sizes.num_steps, epoch=1, first_position=0, instances_per_batch=sizes.rows
    )
    return Run(
        name=folder.name,
        layout="native",
        source=folder,
        sequence_length=sizes.length,
        files=(file,),
        order=Order(
            rule="file", parameters={"epoch_1": {"path": "order/epoch-1.npy", "sha256": sha256_of_file(order)}}
        ),
        segments=(segment,),
        trust=OrderTrust(level="derived", witness="order files", missing="a record of the batches that were consumed"),
        config_format="native",
        config={"model": dict(recipe.model), "recipe": recipe.to_table()},
        tokenizer=folder / "tokenizer.json",
        tokenizer_sha256=hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        eos_token_id=text.end,
        environment={"num_threads": 1},
    )


def _train(
    folder: Path, recipe: Recipe, spike: int, cause: Cause, random: np.random.Generator, seed: int, sizes: Sizes
) -> None:
    """With checkpoints every so many steps; of a recorded fault only from just before the spike on."""
    run = read_run(folder)
    plan, reader = plan_of_segments(run), TokenReader(run, None)
    recording = Recording(folder=folder, policy=SavePolicy(every=sizes.save_every))
    after_fault = cause.tamper is not None and cause.recorded
    with deterministic(1):
        state = initial_state(recipe, seed=seed, device=torch.device("cpu"))
        for step in range(1, sizes.num_steps + 1):
            if step == spike and cause.tamper is not None:
                cause.tamper(state, random)
                if after_fault:
                    recording.save(state)
            batch = read_batch(plan[step], reader)
            recording.record(train_step(state, batch, recipe), batch)
            if step == sizes.num_steps or (not after_fault and step % sizes.save_every == 0):
                recording.save(state)
