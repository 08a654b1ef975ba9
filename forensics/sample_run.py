"""The sample run: a small language model trained on this machine, in the native run format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from data_index.batch import IndexedPlan, StepPlan
from data_index.files import (
    atomic_folder,
    exclusive_lock,
    remove_dead_siblings,
)
from data_index.orders import epoch_order
from data_index.run import Run
from data_index.run_file import read_run
from data_index.sources.native import saved_steps
from data_index.tokens import TokenReader
from forensics.reproduction import Progress, saved_checkpoint
from forensics.sample_data import SampleSpec, prepare_sample_data
from replay.determinism import deterministic
from replay.recipe import recipe_of_run
from replay.recording import Recording, SavePolicy, advance
from replay.train_state import TrainState, initial_state, load_state


def train_sample_run(
    folder: Path,
    spec: SampleSpec,
    *,
    progress: Progress = lambda result, last: None,
    say: Callable[[str], None] = lambda message: None,
) -> Run:
    """Make the data and train the run in `folder`; goes on where an interrupted call stopped.

    Raises:
        MissingFile: this Python has no standard-library sources.
        Busy, DiskFull
    """
    with exclusive_lock(folder.with_name(f".{folder.name}.lock"), f"training {folder.name}"):
        if not (folder / "run.toml").exists():
            say("collecting the corpus and training a tokenizer")
            remove_dead_siblings(folder)
            with atomic_folder(folder) as building:
                prepare_sample_data(building, spec)
        run = read_run(folder)
        if max(saved_steps(folder), default=-1) < run.last_step:
            say(f"training {run.last_step} steps")
            _train(run, folder, spec, progress)
    return run


def _train(run: Run, folder: Path, spec: SampleSpec, progress: Progress) -> None:
    recipe = recipe_of_run(run)
    device = torch.device("cpu")

    def begin(saved: int | None) -> TrainState:
        if saved is None:
            return initial_state(recipe, seed=spec.seed, device=device)
        return load_state(saved_checkpoint(folder, run.name, saved, run.tokens_after(saved)), recipe, device=device)

    with deterministic(recipe.num_threads):
        results = advance(
            Recording(folder=folder, policy=SavePolicy(every=spec.save_every)),
            start=begin,
            plan=plan_of_segments(run),
            reader=TokenReader(run, None),
            recipe=recipe,
            save_start=True,
        )
        for result in results:
            progress(result, run.last_step)


def plan_of_segments(run: Run) -> IndexedPlan:
    """The trainer's own plan, straight from the order files."""
    orders = {epoch: epoch_order(run, epoch).astype(np.int64) for epoch in run.epochs}
    return IndexedPlan(
        by_step={
            step: StepPlan(step=step, epoch=s.epoch, instances=orders[s.epoch][s.positions_of_step(step)])
            for s in run.segments
            for step in range(s.first_step, s.last_step + 1)
        }
    )
