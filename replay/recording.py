"""A run folder being written: pieces and checkpoints, resumable after any interruption.

At each save, in this order: trace/<first>-<last>.h5 (arrays), metrics/ and consumed/<first>-<last>.parquet (rows),
then checkpoints/step<last>/. Each appears by rename; the checkpoint is the commit point. Pieces after the last
checkpoint are dropped on resume. progress.jsonl is for people watching and never evidence.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_index.batch import Batch, Plan, read_batch
from data_index.errors import UNFORESEEN, CorruptFile, UnsafeFile
from data_index.files import (
    atomic_file,
    remove_folder,
    remove_leftovers,
    require_file,
    require_free_space,
    write_parquet,
)
from data_index.kinds import table_of_rows
from data_index.sources.native import all_pieces, checkpoint_folder, saved_steps
from data_index.tokens import TokenReader
from data_index.witness import sha256_of_ids
from replay.recipe import Recipe
from replay.train_state import TrainState, save_state
from replay.train_step import Observer, StepResult, train_step

PIECE_KINDS = ("trace", "metrics", "consumed")
SECONDS_BETWEEN_SAVES = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SavePolicy:
    """When to save, and which saved states to keep.

    Attributes:
        every: save and keep every K-th step; None: save every half minute and keep only the last state.
        record_batches: also write what the model was handed (instances, sha256 of token ids).
    """

    every: int | None = None
    record_batches: bool = True


@dataclass(slots=True, kw_only=True)
class Recording:
    """Writes the results of consecutive steps into a run folder.

    Attributes:
        labels: names along the last axis of the traced arrays, kept in each trace file: {"layers": […]}.
    """

    folder: Path
    policy: SavePolicy
    labels: dict[str, list[str]] = field(default_factory=dict)
    pending: list[tuple[StepResult, dict[str, Any]]] = field(default_factory=list)
    last_save: float = field(default_factory=time.monotonic)

    def resume(self) -> int | None:
        """Drop what a dead writer left unfinished; returns the last saved step, if any. Call it under the lock."""
        remove_leftovers(self.folder)
        steps = saved_steps(self.folder)
        last = steps[-1] if steps else None
        for kind in PIECE_KINDS:
            for (_, stop), path in all_pieces(self.folder, kind):
                if last is None or stop > last:
                    path.unlink()
        self._drop_superseded()
        return last

    def record(self, result: StepResult, batch: Batch) -> None:
        row = {"step": batch.step, "attempt": 1, "instances": batch.instances.tolist()}
        if self.policy.record_batches:
            row["input_ids_sha256"] = sha256_of_ids(batch.token_ids)
        self.pending.append((result, row))
        self._report(result)

    def is_due(self, step: int, last_step: int) -> bool:
        if step == last_step:
            return True
        if self.policy.every is not None:
            return step % self.policy.every == 0
        return time.monotonic() - self.last_save > SECONDS_BETWEEN_SAVES

    def save(self, state: TrainState) -> None:
        """Write the pending pieces, then the checkpoint that commits them.

        Raises:
            DiskFull: nothing that was committed is lost.
        """
        size = 3 * sum(p.numel() * p.element_size() for p in state.model.parameters())
        require_free_space(self.folder, size + 2**20, f"saving step {state.step}")
        if self.pending:
            self._write_pieces()
        save_state(state, checkpoint_folder(self.folder, state.step))
        self.pending.clear()
        self._drop_superseded()
        self.last_save = time.monotonic()

    def _write_pieces(self) -> None:
        results = [result for result, _ in self.pending]
        name = f"{results[0].step:06d}-{results[-1].step:06d}"
        if results[0].arrays:
            write_trace(self.folder / "trace" / f"{name}.h5", results, self.labels)
        rows = [row for result in results for row in metric_rows(result)]
        write_parquet(self.folder / "metrics" / f"{name}.parquet", table_of_rows("metrics", rows, name))
        if self.policy.record_batches:
            consumed = [row for _, row in self.pending]
            write_parquet(self.folder / "consumed" / f"{name}.parquet", table_of_rows("consumed", consumed, name))

    def _drop_superseded(self) -> None:
        if self.policy.every is None:
            for step in saved_steps(self.folder)[:-1]:
                remove_folder(checkpoint_folder(self.folder, step))

    def _report(self, result: StepResult) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"step": result.step, "loss": result.loss, "grad_norm": result.grad_norm, "time": time.time()}
        with (self.folder / "progress.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def metric_rows(result: StepResult) -> Iterator[dict[str, Any]]:
    """One row a number, in the columns of `metrics`."""
    numbers = {
        "loss": result.loss,
        "z_loss": result.z_loss,
        "grad_norm": result.grad_norm,
        "learning_rate": result.learning_rate,
        "tokens": float(result.tokens),
        "num_targets": float(result.num_targets),
        **({"skipped": 1.0} if result.skipped else {}),
        **result.scalars,
    }
    for name, value in numbers.items():
        yield {"step": result.step, "attempt": 1, "name": name, "value": value, "original_name": name}


def write_trace(path: Path, results: Sequence[StepResult], labels: Mapping[str, list[str]]) -> None:
    """Arrays of consecutive steps, stacked along a first axis of steps; labels become attributes of the file."""
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        for name, values in labels.items():
            file.attrs[name] = values
        file["step"] = np.array([result.step for result in results], dtype=np.int64)
        for name in results[0].arrays:
            file[name] = np.stack([result.arrays[name] for result in results])


def read_trace(folder: Path) -> dict[str, np.ndarray]:
    """All committed trace pieces of a run folder, joined along steps.

    Raises:
        CorruptFile: a piece is damaged.
        UnsafeFile: it holds anything but plain arrays: links, arrays kept in other files, packed ones, objects.
    """
    last = max(saved_steps(folder), default=-1)
    pieces: dict[str, list[np.ndarray]] = {}
    for (_, stop), path in all_pieces(folder, "trace"):
        if stop > last:
            continue
        size = require_file(path)
        try:
            with h5py.File(path, "r") as file:
                for name in file:
                    pieces.setdefault(name, []).append(_plain_array(file, name, f"{path}: {name}", size))
        except UnsafeFile:
            raise
        except (*UNFORESEEN, RuntimeError) as error:
            raise CorruptFile(f"{path} is not a whole trace: {error}") from error
    try:
        return {name: np.concatenate(arrays) for name, arrays in pieces.items()}
    except ValueError as error:
        raise CorruptFile(f"the pieces of {folder}/trace do not fit together: {error}") from error


def _plain_array(file: Any, name: str, source: str, num_bytes: int) -> np.ndarray:
    """An array as `write_trace` writes it: numbers that lie in one stretch of the file itself, all of them there."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise UnsafeFile(f"{source} is a link, which may lead out of the file")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or not array.shape or array.dtype.kind not in "iuf":
        raise UnsafeFile(f"{source} is no array of numbers")
    created = array.id.get_create_plist()
    if created.get_layout() != h5py.h5d.CONTIGUOUS or created.get_nfilters() or array.external or array.is_virtual:
        raise UnsafeFile(f"{source} is kept in other files, packed or in parts, as no trace is")
    if array.id.get_storage_size() != array.nbytes or array.nbytes > num_bytes:
        raise UnsafeFile(f"{source} claims {array.nbytes:,} bytes, which are not there")
    return np.asarray(array[...])


def advance(
    recording: Recording,
    *,
    start: Callable[[int | None], TrainState],
    plan: Plan,
    reader: TokenReader,
    recipe: Recipe,
    observers: Sequence[Observer] = (),
    save_start: bool = False,
) -> Iterator[StepResult]:
    """Take the steps of a plan from where the folder stands; save on the way; yield each result.

    Args:
        start: gives the state at a saved step of this folder, or, for None, the state before the plan's first step.
        save_start: save the starting state too (checkpoint 0 of a run).
    """
    saved = recording.resume()
    last_step = plan.steps.stop - 1
    if saved is not None and saved >= last_step:
        return
    state = start(saved)
    if saved is None and save_start:
        recording.save(state)
    for step in range(state.step + 1, last_step + 1):
        batch = read_batch(plan[step], reader)
        result = train_step(state, batch, recipe, observers)
        recording.record(result, batch)
        if recording.is_due(step, last_step):
            recording.save(state)
        yield result
