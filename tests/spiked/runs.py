"""Small runs with a spike of a known cause, in the native run format; what was planted is returned, not written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
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

NUM_STEPS = 120
ROWS = 8
LENGTH = 128
SAVE_EVERY = 12
HIDDEN = 64
VOCABULARY = 512
STEPS_AFTER = 8
FIRST_SPIKE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """The truth about a run: step and instances of the bad rows (none: the data are innocent)."""

    folder: Path
    step: int
    instances: tuple[int, ...]


def make_spiked_run(
    folder: Path, text: Text, cause: Cause, seed: int, model: Mapping[str, Any] | None = None
) -> Planted:
    """Train a run that spikes at a step which depends on the seed.

    Args:
        model: fields of the model config besides, for other architectures.
    """
    random = np.random.Generator(np.random.PCG64(seed=seed))
    step = int(random.integers(FIRST_SPIKE, NUM_STEPS - STEPS_AFTER))
    rows = text.rows(NUM_STEPS * ROWS, LENGTH, random)
    planted: tuple[int, ...] = ()
    if cause.spoil is not None:
        first = (step - 1) * ROWS + int(random.integers(0, ROWS - cause.rows + 1))
        planted = tuple(range(first, first + cause.rows))
        rows[list(planted)] = cause.spoil(rows[list(planted)], text, random)
    # Rows lie in the file in another order than they are read in.
    order = random.permutation(len(rows))
    _write_data(folder, text, rows[np.argsort(order)], order)
    trained = replace(_recipe(text, model or {}), num_threads=1)
    if cause.recipe is not None:
        trained = cause.recipe(trained, step, random)
    told = trained if cause.recorded else _recipe(text, model or {})
    write_run(_run(folder, told, len(rows), text), folder)
    _train(folder, trained, step, cause, random, seed)
    return Planted(folder=folder, step=step, instances=tuple(int(order[position]) for position in planted))


def _recipe(text: Text, model: Mapping[str, Any]) -> Recipe:
    return Recipe(
        model={
            "model_type": "olmo2",
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000},
            "tie_word_embeddings": False,
            "max_position_embeddings": LENGTH,
            "eos_token_id": text.end,
        }
        | dict(model),
        learning_rate=3e-3,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
        schedule=Schedule(curve=Constant()),
        max_grad_norm=1.0,
    )


def _write_data(folder: Path, text: Text, rows: np.ndarray, order: np.ndarray) -> None:
    write_bytes(folder / "tokens" / "text.bin", rows.astype("<u2").tobytes())
    write_bytes(folder / "tokenizer.json", text.tokenizer.to_str().encode())
    write_npy(folder / "order" / "epoch-1.npy", order.astype(np.uint32))


def _run(folder: Path, recipe: Recipe, num_rows: int, text: Text) -> Run:
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
    segment = Segment(first_step=1, num_steps=NUM_STEPS, epoch=1, first_position=0, instances_per_batch=ROWS)
    return Run(
        name=folder.name,
        layout="native",
        source=folder,
        sequence_length=LENGTH,
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


def _train(folder: Path, recipe: Recipe, spike: int, cause: Cause, random: np.random.Generator, seed: int) -> None:
    """With checkpoints every so many steps; of a recorded fault only from just before the spike on."""
    run = read_run(folder)
    plan, reader = plan_of_segments(run), TokenReader(run, None)
    recording = Recording(folder=folder, policy=SavePolicy(every=SAVE_EVERY))
    after_fault = cause.tamper is not None and cause.recorded
    with deterministic(1):
        state = initial_state(recipe, seed=seed, device=torch.device("cpu"))
        for step in range(1, NUM_STEPS + 1):
            if step == spike and cause.tamper is not None:
                cause.tamper(state, random)
                if after_fault:
                    recording.save(state)
            batch = read_batch(plan[step], reader)
            recording.record(train_step(state, batch, recipe), batch)
            if step == NUM_STEPS or (not after_fault and step % SAVE_EVERY == 0):
                recording.save(state)
