"""Replay a stretch of a run from its own checkpoint and grade how faithfully it came out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_index.batch import Batch
from data_index.batch_queries import reader_of
from data_index.errors import InvalidRange
from data_index.files import (
    canonical_json,
    exclusive_lock,
    remove_dead_siblings,
    remove_folder,
    sha256_of_file,
    write_json,
)
from data_index.metric_queries import logged_metrics
from data_index.run import Checkpoint, Run, parse_steps
from data_index.sources.native import metrics_by_step
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace
from forensics.configured import configured_run
from forensics.starting import complete_state, plan_as_taken, require_optimizer, started_at_zero
from replay import fidelity
from replay.determinism import arithmetic_fingerprint, choose_device, deterministic, environment
from replay.device_speed import matmul_flops
from replay.models import require_architecture
from replay.recipe import Recipe, recipe_of_run
from replay.recording import Recording, SavePolicy, advance
from replay.train_state import TrainState, load_state, moment_tensors, weight_tensors
from replay.train_step import StepResult
from replay.weights import read_optimizer, read_weights, trainer_parameter_hash

# Hashing weights after every step is worth it below this size; above, only at the end.
HASH_EVERY_STEP_PARAMETERS = 50_000_000

Progress = Callable[[StepResult, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything a replay or fork needs, before any tensor is loaded."""

    workspace: Workspace
    run: Run
    recipe: Recipe
    device: torch.device
    enforce: bool
    fresh_optimizer: bool = False


def prepare(
    workspace: Workspace, run: Run, device: str, precision: str, enforce: bool = True, approximate: bool = False
) -> Setup:
    """
    Raises:
        UnsupportedRecipe: the run's step cannot be taken; the message names the setting.
    """
    recipe = recipe_of_run(run, approximate=approximate or bool(run.environment.get("approximate")))
    require_architecture(recipe.model)
    if precision == "fp32":
        recipe = replace(recipe, precision="fp32")
    threads = run.environment.get("num_threads")
    if threads is not None:
        recipe = replace(recipe, num_threads=int(threads))
    return Setup(
        workspace=workspace,
        run=run,
        recipe=recipe,
        device=choose_device(device),
        enforce=enforce,
        fresh_optimizer=bool(run.environment.get("fresh_optimizer")),
    )


def replay(
    run: str,
    steps: str,
    *,
    workspace: Workspace | None = None,
    device: str = "auto",
    precision: str = "recipe",
    verify: bool = True,
    enforce_determinism: bool = True,
    approximate: bool = False,
    fresh_optimizer: bool = False,
    progress: Progress = lambda result, last: None,
) -> fidelity.ReplayReport:
    """Take steps A+1 .. B again from checkpoint A, and compare with the log and with checkpoint B.

    An interrupted replay goes on where it was saved when the same call is made again; a finished one starts anew.

    Args:
        steps: "A:B", from checkpoint A to checkpoint B.
        verify: check token files against their hashes while reading.
        approximate: pass over settings of the trainer that define another step; the grade is `unbanded` then.
        fresh_optimizer: where checkpoint A lacks optimizer state, start it at zero. That is what a run begins with, so
            that nothing is lost at checkpoint 0; anywhere else the grade is `unbanded`.
    Raises:
        UnknownRun, StepOutOfRange, MissingCheckpoint, MissingState, CorruptFile, UnsupportedRecipe, OutOfMemory, Busy
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    if ":" not in steps:
        raise InvalidRange(f"replay takes a range from checkpoint to checkpoint, such as 100:160, not {steps!r}")
    if not record.segments and (named := steps.partition(":")[0]).isdecimal():
        # Nor could they be taken if it were known what they read: that is said first.
        require_optimizer(workspace, record, workspace.checkpoint(record, int(named)), fresh_optimizer)
    first, last = parse_steps(steps, record)
    start = workspace.checkpoint(record, first)
    require_optimizer(workspace, record, start, fresh_optimizer)
    record = configured_run(record, first, last, approximate=approximate)
    if fresh_optimizer:
        record = replace(record, environment={**record.environment, "fresh_optimizer": True})
    setup = prepare(workspace, record, device, precision, enforce_determinism, approximate)
    if passed_over := started_at_zero(start, fresh_optimizer):
        approximated = (*setup.recipe.approximated, passed_over)
        setup = replace(setup, recipe=replace(setup.recipe, approximated=approximated))
    folder = replay_folder(setup, first, last, verify)
    with exclusive_lock(folder.with_name(f".{folder.name}.lock"), f"replaying {run} {first}:{last}"):
        remove_dead_siblings(folder)
        return _replay(setup, start, last, folder, verify, progress)


def replay_folder(setup: Setup, first: int, last: int, verify: bool) -> Path:
    """Where this very replay is kept while it runs; anything else under the same name must not be continued."""
    identity = {
        "run": setup.run.name,
        "run_toml": sha256_of_file(setup.workspace.home(setup.run.name) / "run.toml"),
        "steps": [first, last],
        "recipe": setup.recipe.to_table(),
        "device": setup.device.type,
        "verify": verify,
        "deterministic": setup.enforce,
    }
    return setup.workspace.folder / "replays" / hashlib.sha256(canonical_json(identity)).hexdigest()[:12]


def _replay(
    setup: Setup, start: Checkpoint, last: int, folder: Path, verify: bool, progress: Progress
) -> fidelity.ReplayReport:
    run, workspace = setup.run, setup.workspace
    if (folder / "report.json").exists():
        remove_folder(folder)
    logged = logged_metrics(workspace, run, start.step, last)
    reader = reader_of(workspace, run, verify=verify)
    observers = [ParameterHashes(workspace, run, start.step, last, setup.recipe)]
    final: dict[str, TrainState] = {}
    not_known: list[str] = []

    def begin(saved: int | None) -> TrainState:
        place = start if saved is None else saved_checkpoint(folder, run.name, saved, run.tokens_after(saved))
        final["state"] = start_state(setup, place, not_known)
        return final["state"]

    with deterministic(setup.recipe.num_threads, enforce=setup.enforce):
        results = advance(
            Recording(folder=folder, policy=SavePolicy(record_batches=False)),
            start=begin,
            plan=plan_as_taken(workspace, run, start.step, last, setup.recipe),
            reader=reader,
            recipe=setup.recipe,
            observers=observers if observers[0].expected else (),
        )
        for result in results:
            progress(result, last)
        state = final.get("state") or begin(last)
        replayed = metrics_by_step(folder)
        rows = [fidelity.step_row(s, replayed[s], logged.get(s, {})) for s in range(start.step + 1, last + 1)]
        report = _compare(setup, state, start, last, rows)
        report = replace(report, notes=(*report.notes, *not_known))
    if first_seen := remember_first_seen(workspace, run, reader):
        report = replace(report, notes=(*report.notes, f"{first_seen}."))
    # The state goes first: a report says that nothing of the replay is left to go on with.
    remove_folder(folder / "checkpoints")
    write_json(folder / "report.json", asdict(report) | {"finished": time.time()})
    return report


def start_state(setup: Setup, place: Checkpoint, not_known: list[str] | None = None) -> TrainState:
    """The state of a checkpoint, completed from the log where a trainer's checkpoint does not hold all that matters.

    Args:
        not_known: gets a sentence for what neither of them says.
    """
    state = load_state(place, setup.recipe, device=setup.device, fresh_optimizer=setup.fresh_optimizer)
    if place.layout != "native":
        run = setup.workspace.run(place.run)
        notes = complete_state(state, setup.workspace, run, place, setup.recipe)
        if not_known is not None:
            not_known[:] = notes
    return state


def saved_checkpoint(folder: Path, run: str, step: int, tokens: int) -> Checkpoint:
    """A state that a replay or fork saved itself."""
    return Checkpoint(
        run=run,
        step=step,
        tokens=tokens,
        location=folder / "checkpoints" / f"step{step}",
        layout="native",
        states=("weights", "optimizer", "trainer"),
    )


class ParameterHashes:
    """Compares the weights after each step with the trainer's hash of them, where it recorded one."""

    def __init__(self, workspace: Workspace, run: Run, first: int, last: int, recipe: Recipe) -> None:
        rows = workspace.learned(workspace.home(run.name), "parameter_hashes")
        self.expected = {row["step"]: row["sha256"] for row in rows if first < row["step"] <= last}
        self.recipe, self.last = recipe, last

    def before_step(self, state: TrainState, batch: Batch) -> None: ...

    def before_update(self, state: TrainState, batch: Batch) -> None: ...

    def after_step(self, state: TrainState, batch: Batch) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        small = sum(p.numel() for p in state.model.parameters()) < HASH_EVERY_STEP_PARAMETERS
        if batch.step not in self.expected or not (small or batch.step == self.last):
            return {}, {}
        actual = trainer_parameter_hash(weight_tensors(state), self.recipe.parameter_order)
        return {"parameters_equal": float(actual == self.expected[batch.step])}, {}


def _compare(
    setup: Setup, state: TrainState, start: Checkpoint, last: int, rows: list[dict[str, Any]]
) -> fidelity.ReplayReport:
    run = setup.run
    end = next((c for c in setup.workspace.checkpoints(run) if c.step == last), None)
    weights_equal: bool | None = None
    states_equal: bool | None = None
    distance, differences = None, []
    if end is not None and "weights" in end.states:
        theirs = read_weights(end)
        differences = fidelity.compare_tensors(weight_tensors(state), theirs)
        weights_equal, distance = not differences, fidelity.relative_distance(weight_tensors(state), theirs)
        if "optimizer" in end.states:
            moments = {f"{m}.{name}": t for m, group in read_optimizer(end).items() for name, t in group.items()}
            differences = differences + fidelity.compare_tensors(moment_tensors(state), moments)
        states_equal = not differences
    elif rows[-1]["parameters_equal"] is not None:
        weights_equal = bool(rows[-1]["parameters_equal"])
    divergent = [row["step"] for row in rows if fidelity.step_diverges(row)]
    gaps = [abs(r["loss"] - r["loss_logged"]) for r in rows if r["loss_logged"] is not None]
    fingerprint = fingerprint_of(setup)
    recorded = run.environment.get("fingerprint")
    return fidelity.ReplayReport(
        run=run.name,
        first=start.step,
        last=last,
        grade=fidelity.grade(
            rows, weights_equal if states_equal is None else states_equal, approximate=bool(setup.recipe.approximated)
        ),
        fingerprint_matches=None if recorded is None else fingerprint == recorded,
        first_divergent_step=divergent[0] if divergent else None,
        max_abs_loss_difference=max(gaps) if gaps else None,
        weights_equal=weights_equal,
        states_equal=states_equal,
        weight_distance=distance,
        differences=tuple(differences),
        steps=tuple(rows),
        notes=tuple(_notes(setup, rows, end, recorded, fingerprint)),
        environment=environment() | {"fingerprint": fingerprint, "device": str(setup.device)},
    )


def fingerprint_of(setup: Setup) -> str:
    model = setup.recipe.model
    rows = setup.recipe.instances_per_microbatch or setup.run.segments[0].instances_per_batch
    with deterministic(setup.recipe.num_threads, enforce=setup.enforce):
        return arithmetic_fingerprint(
            model, rows, setup.run.sequence_length, setup.device, precision=setup.recipe.precision
        )


def _notes(
    setup: Setup, rows: list[dict[str, Any]], end: Checkpoint | None, recorded: str | None, fingerprint: str
) -> Iterator[str]:
    run = setup.run
    yield from (f"Passed over on request: {what}." for what in setup.recipe.approximated)
    yield from (f"{note}." for note in setup.recipe.unfaithful)
    if recorded is None:
        yield f"{run.name} recorded no arithmetic fingerprint, so equal kernels cannot be told from its files."
    elif recorded != fingerprint:
        yield "This machine computes with other kernels than the run did (fingerprint): expect R1, not R0."
    then, now = run.environment, environment()
    for name in ("torch", "transformers", "cpu_capability"):
        if name in then and then[name] != now[name]:
            yield f"{name} was {then[name]} and is {now[name]}."
    if setup.device.type != "cpu":
        yield f"Replayed on {now['gpu'] or setup.device}."
    if end is None:
        hashed = " and the trainer's hash of the weights" if rows[-1]["parameters_equal"] is not None else ""
        yield f"{run.name} saved no checkpoint at step {rows[-1]['step']}; only the log{hashed} could be compared."
    if all(row["loss_logged"] is None for row in rows):
        yield "No loss is logged for these steps (import it, or give --metrics to add)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a replay or fork would cost; `seconds` from a short measurement of this device's matmul."""

    steps: int
    tokens: int
    parameters: int
    memory_bytes: int
    disk_bytes: int
    seconds: float


def estimate(setup: Setup, num_steps: int, tokens: int, states_kept: int = 1) -> Estimate:
    """A plan's cost: weights, gradients and two moments in fp32, and what one micro-batch saves for its backward pass.

    Saved activations were measured at 82 bytes per token, layer and hidden unit in bf16 and 120 in fp32 (Olmo2 under
    transformers 5.23, SDPA), the loss at 20 bytes per token and vocabulary entry.
    """
    from replay.models import build_model

    config, bf16 = setup.recipe.model, setup.recipe.precision == "bf16"
    model = build_model(config, device=torch.device("meta"))
    parameters = sum(p.numel() for p in model.parameters())
    rows = setup.recipe.instances_per_microbatch or setup.run.segments[0].instances_per_batch
    length, hidden, layers = setup.run.sequence_length, config["hidden_size"], config["num_hidden_layers"]
    per_token = layers * hidden * (82 if bf16 else 120) + config["vocab_size"] * 20
    per_token_flops = 6 * (parameters - config["vocab_size"] * hidden) + 12 * layers * hidden * length
    return Estimate(
        steps=num_steps,
        tokens=tokens,
        parameters=parameters,
        memory_bytes=(18 if bf16 else 16) * parameters + per_token * rows * length,
        disk_bytes=12 * parameters * states_kept,
        seconds=per_token_flops * tokens / _matmul_flops(setup),
    )


def _matmul_flops(setup: Setup) -> float:
    """Of a matmul of the model's width, measured in the recipe's precision."""
    dtype = torch.bfloat16 if setup.recipe.precision == "bf16" else torch.float32
    with deterministic(setup.recipe.num_threads, enforce=setup.enforce):
        return matmul_flops(setup.recipe.model["hidden_size"], device=setup.device, dtype=dtype)
