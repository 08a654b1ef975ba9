"""Fork a run: take its steps again from a checkpoint with altered data or recipe, as a run of its own.

A fork is a native run folder: its plan is written down (order, segments, masks, inserted rows) and indexed before the
first step is taken, so that it is asked, replayed and forked again like any run. Its id comes from what it is, not from
where it ran; the same call finds it, or goes on with it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_index.batch import StepPlan
from data_index.batch_queries import plan_of, reader_of
from data_index.errors import InvalidEdit, InvalidRange
from data_index.files import (
    atomic_folder,
    canonical_json,
    exclusive_lock,
    read_json,
    remove_dead_siblings,
    sha256_of_file,
    write_json,
    write_npy,
    write_parquet,
    write_toml,
)
from data_index.index import build_index
from data_index.kinds import table_of_rows
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile, parse_steps
from data_index.run_check import LINES
from data_index.run_file import write_run
from data_index.seal import write_seal
from data_index.sources.native import metrics_by_step
from data_index.witness import block_rows, remember_first_seen
from data_index.workspace import Workspace, learn
from forensics.configured import configured_run
from forensics.edits import edited_steps
from forensics.fork_list import described, file_of_edit, parsed_edits
from forensics.given_rows import Inserted
from forensics.reproduction import (
    Progress,
    fingerprint_of,
    prepare,
    saved_checkpoint,
    start_state,
)
from forensics.starting import plan_as_taken, require_optimizer
from forensics.tracing import NormTrace, ParentComparison, layers_of_model
from replay.determinism import deterministic, environment
from replay.intervention import Edit
from replay.models import require_architecture
from replay.recipe import Recipe, apply_overrides, recipe_of_run
from replay.recording import Recording, SavePolicy, advance
from replay.train_state import TrainState
from replay.weights import read_weights

# Held-out tokens looked at for a fork's held-out loss; all of them where there are fewer.
HELDOUT_TOKENS = 32_768
RECIPE_FACTS = ("world_size", "instances_per_epoch", "approximate", "fresh_optimizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkResult:
    """A finished fork. `edits` says what each edit hit; `steps` has a row of metrics for each step."""

    id: str
    parent: str
    from_step: int
    folder: Path
    edits: tuple[str, ...]
    steps: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRequest:
    """A fork as it was asked for: steps first+1 .. last of `parent`, with edits and recipe overrides."""

    parent: Run
    first: int
    last: int
    edits: tuple[Edit, ...]
    overrides: Mapping[str, Any]
    approximate: bool = False
    fresh_optimizer: bool = False
    device: str = "auto"

    def to_table(self) -> dict[str, Any]:
        """fork.toml: what makes a fork this one. Files named by edits count by content."""
        tables = [edit.to_table() for edit in self.edits]
        for edit, table in zip(self.edits, tables, strict=True):
            if (given := file_of_edit(edit)) is not None:
                table["file_sha256"] = sha256_of_file(given)
        return {
            "parent": self.parent.name,
            "from_step": self.first,
            "num_steps": self.last - self.first,
            "edits": tables,
            "recipe": dict(self.overrides),
        } | self.requested()

    def requested(self) -> dict[str, bool]:
        """What the user accepted; kept with the fork, since it computes otherwise by it."""
        asked = {"approximate": self.approximate, "fresh_optimizer": self.fresh_optimizer}
        return {name: True for name, wanted in asked.items() if wanted}

    def recipe(self) -> Recipe:
        return apply_overrides(recipe_of_run(self.parent, approximate=self.approximate), self.overrides)


def fork(
    run: str,
    *,
    from_step: int,
    num_steps: int,
    edits: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    save_every: int | None = None,
    workspace: Workspace | None = None,
    device: str = "auto",
    precision: str = "recipe",
    enforce_determinism: bool = True,
    approximate: bool = False,
    fresh_optimizer: bool = False,
    progress: Progress = lambda result, last: None,
    say: Callable[[str], None] = lambda message: None,
) -> ForkResult:
    """Replay `num_steps` steps from a checkpoint with edits to the data or the recipe.

    Args:
        edits: in the grammar of replay/intervention.py, applied in order; none: the fork equals its parent.
        overrides: recipe fields by dotted name, such as {"recipe.learning_rate": 1e-3}.
        save_every: keep every K-th state; default: what an earlier call said, else the last one only.
        approximate: pass over settings of the trainer that define another step.
        fresh_optimizer: where the checkpoint lacks optimizer state, start it at zero.
    Raises:
        InvalidEdit, InvalidRange, UnknownRun, MissingCheckpoint, MissingState, UnsupportedRecipe, CorruptFile, Busy,
        DiskFull, OutOfMemory
    """
    workspace = workspace or Workspace()
    asked = fork_request(
        workspace,
        run,
        from_step,
        num_steps,
        edits=edits,
        overrides=overrides,
        precision=precision,
        approximate=approximate,
        fresh_optimizer=fresh_optimizer,
        device=device,
    )
    require_architecture(asked.recipe().model)
    folder = workspace.folder / "forks" / fork_id(asked.to_table())
    workspace.create()
    with exclusive_lock(folder.with_name(f".{folder.name}.lock"), f"running fork {folder.name}"):
        if not (folder / "run.toml").exists():
            create_fork(workspace, asked, folder)
        for line in described(folder):
            say(line)
        child = workspace.run(folder.name)
        save_every = _remember_saving(folder, save_every)
        _run_fork(workspace, child, device, enforce_determinism, save_every, progress)
    return result_of(workspace, folder.name)


def fork_request(
    workspace: Workspace,
    run: str,
    from_step: int,
    num_steps: int,
    *,
    edits: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    precision: str = "recipe",
    approximate: bool = False,
    fresh_optimizer: bool = False,
    device: str = "auto",
) -> ForkRequest:
    """What `fork` was asked for, once it is known that it can start there; its arguments are `fork`'s.

    Raises:
        InvalidEdit: an edit cannot be read; the error's `edit_number` says which, from 0.
        InvalidRange, UnknownRun, StepOutOfRange, MissingCheckpoint, MissingState, UnsupportedRecipe
    """
    parent = workspace.run(run)
    if num_steps < 1:
        raise InvalidRange(f"--num-steps {num_steps}: a fork takes at least one step")
    first, last = parse_steps(f"{from_step}:{from_step + num_steps}", parent)
    require_optimizer(workspace, parent, workspace.checkpoint(parent, first), fresh_optimizer)
    return ForkRequest(
        parent=configured_run(parent, first, last, approximate=approximate),
        first=first,
        last=last,
        edits=parsed_edits(edits),
        overrides=dict(overrides or {}) | ({"precision": "fp32"} if precision == "fp32" else {}),
        approximate=approximate,
        fresh_optimizer=fresh_optimizer,
        device=device,
    )


def _remember_saving(folder: Path, save_every: int | None) -> int | None:
    """Which states a fork keeps is the fork's, not the call's: going on without --save-every must delete none."""
    path = folder / "saving.json"
    before = read_json(path)["every"] if path.exists() else None
    every = save_every or before
    if every != before:
        write_json(path, {"every": every})
    return every


def fork_id(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(table)).hexdigest()[:12]


def result_of(workspace: Workspace, fork_name: str) -> ForkResult:
    """What a fork has done so far."""
    child = workspace.run(fork_name)
    if child.parent is None:
        raise InvalidEdit(f"{fork_name} is a run, not a fork")
    metrics = metrics_by_step(child.source)
    return ForkResult(
        id=child.name,
        parent=child.parent[0],
        from_step=child.parent[1],
        folder=child.source,
        edits=tuple(described(child.source)),
        steps=tuple({"step": step} | values for step, values in sorted(metrics.items())),
    )


# --- creating ------------------------------------------------------------------------------------------------------


def create_fork(workspace: Workspace, asked: ForkRequest, folder: Path) -> None:
    """Resolve the edits, write the plan down as a native run folder, and index it; all in one rename."""
    parent, recipe = asked.parent, asked.recipe()
    plan = plan_as_taken(workspace, parent, asked.first, asked.last, recipe)
    edited = edited_steps(workspace, parent, plan, asked.edits, recipe.denominator)
    steps, inserted = edited.steps, edited.inserted
    remove_dead_siblings(folder)
    with atomic_folder(folder) as building:
        write_toml(building / "fork.toml", asked.to_table() | {"described": [hits.said for hits in edited.hits]})
        files = _write_inserted(building, parent, inserted)
        child = _child_run(workspace, asked, building, steps, files)
        write_run(child, building)
        at_home = [replace(f, path=folder / f.on_disk.relative_to(building)) if f in files else f for f in child.files]
        build_index(replace(child, files=tuple(at_home)), building / "index.duckdb")
        current = _shared_tables(workspace, parent, building)
        if masks := _mask_rows(steps):
            write_parquet(building / "masks.parquet", table_of_rows("masks", masks, folder))
            current["masks"] = ["masks.parquet"]
        write_json(building / "current.json", current)
        if files:
            added = block_rows({file.name: file.on_disk for file in files}, "fork")
            learn(building, "block_hashes", table_of_rows("block_hashes", added, folder), replace_kind=False)
        write_seal(building)


def _write_inserted(building: Path, parent: Run, inserted: Inserted) -> tuple[TokenFile, ...]:
    if not inserted.rows:
        return ()
    path = building / "tokens" / "inserted.bin"
    path.parent.mkdir()
    # Lines of JSON have no dtype of their own.
    dtype = "uint32" if parent.files[0].dtype == LINES else parent.files[0].dtype
    path.write_bytes(np.stack(inserted.rows).astype(np.dtype(dtype).newbyteorder("<")).tobytes())
    return (
        TokenFile(
            name="inserted.bin",
            path=path,
            dtype=dtype,
            num_bytes=path.stat().st_size,
            first_instance=inserted.first_instance,
            num_instances=len(inserted.rows),
            sha256=sha256_of_file(path),
        ),
    )


def _child_run(
    workspace: Workspace, asked: ForkRequest, building: Path, steps: Sequence[StepPlan], inserted: tuple[TokenFile, ...]
) -> Run:
    parent, overrides = asked.parent, {k.removeprefix("recipe."): v for k, v in asked.overrides.items()}
    # What the parent's trainer knew and the recipe depends on stays with the child.
    facts = {name: parent.environment[name] for name in RECIPE_FACTS if name in parent.environment}
    child = replace(
        parent,
        name=fork_id(asked.to_table()),
        layout="native",
        source=building,
        files=(*parent.files, *inserted),
        order=_write_orders(building, steps),
        segments=segments_of(steps),
        trust=OrderTrust(level="exact", witness="the plan that the fork was run from"),
        recipe_overrides=dict(parent.recipe_overrides) | overrides,
        parent=(parent.name, asked.first),
        environment=facts | asked.requested(),
        facts={"tokens_before": str(parent.tokens_after(asked.first))},
    )
    setup = prepare(workspace, child, asked.device, "recipe")
    made_with = environment() | {"num_threads": setup.recipe.num_threads, "fingerprint": fingerprint_of(setup)}
    return replace(child, environment=dict(child.environment) | made_with)


def _write_orders(building: Path, steps: Sequence[StepPlan]) -> Order:
    parameters = {}
    for epoch in sorted({plan.epoch for plan in steps}):
        path = building / "order" / f"epoch-{epoch}.npy"
        instances = np.concatenate([plan.instances for plan in steps if plan.epoch == epoch])
        write_npy(path, instances.astype(np.uint64))
        parameters[f"epoch_{epoch}"] = {"path": f"order/epoch-{epoch}.npy", "sha256": sha256_of_file(path)}
    return Order(rule="file", parameters=parameters)


def segments_of(steps: Sequence[StepPlan]) -> tuple[Segment, ...]:
    """Segments for steps laid end to end in their epochs' order files; like steps share one."""
    segments: list[Segment] = []
    for plan in steps:
        rows, last = len(plan.instances), segments[-1] if segments else None
        alike = last and (last.epoch, last.instances_per_batch, last.loss_denominator, last.outcome)
        if last and alike == (plan.epoch, rows, plan.loss_denominator, plan.outcome):
            segments[-1] = replace(last, num_steps=last.num_steps + 1)
            continue
        position = last.first_position + last.num_steps * last.instances_per_batch if last else 0
        segments.append(
            Segment(
                first_step=plan.step,
                num_steps=1,
                epoch=plan.epoch,
                first_position=position if last and last.epoch == plan.epoch else 0,
                instances_per_batch=rows,
                loss_denominator=plan.loss_denominator,
                outcome=plan.outcome,
            )
        )
    return tuple(segments)


def _mask_rows(steps: Sequence[StepPlan]) -> list[dict[str, Any]]:
    rows, by_step = [], {plan.step: plan for plan in steps}
    for segment, step in ((s, step) for s in segments_of(steps) for step in range(s.first_step, s.last_step + 1)):
        plan, start = by_step[step], segment.positions_of_step(step).start
        rows += [
            {
                "step": plan.step,
                "attempt": 1,
                "position": start + row,
                "instance": int(plan.instances[row]),
                "start": begin,
                "stop": stop,
                "reason": "edit",
            }
            for row, begin, stop in plan.masks
        ]
    return rows


def _shared_tables(workspace: Workspace, parent: Run, building: Path) -> dict[str, list[str]]:
    """Documents, tags and block hashes are the parent's: named where they are, not copied."""
    home = workspace.home(parent.name)
    current = {}
    for kind in ("documents", "tags", "block_hashes"):
        current[kind] = [os.path.relpath(path, building) for path in workspace.learned_files(home, kind)]
    return {kind: paths for kind, paths in current.items() if paths}


# --- running -------------------------------------------------------------------------------------------------------


def _run_fork(
    workspace: Workspace, child: Run, device: str, enforce: bool, save_every: int | None, progress: Progress
) -> None:
    setup = prepare(workspace, child, device, "recipe", enforce)
    assert child.parent is not None
    parent = workspace.run(child.parent[0])
    start = workspace.checkpoint(parent, child.parent[1])
    observers: list[Any] = []
    recording = Recording(folder=child.source, policy=SavePolicy(every=save_every))
    reader = reader_of(workspace, child)

    def begin(saved: int | None) -> TrainState:
        tokens = child.tokens_after(saved or start.step)
        place = start if saved is None else saved_checkpoint(child.source, child.name, saved, tokens)
        state = start_state(setup, place)
        layers = layers_of_model(state.model)
        recording.labels["layers"] = list(layers)
        parents = {c.step: c for c in workspace.checkpoints(workspace.run(start.run)) if c.step > start.step}
        observers.append(NormTrace(layers=layers))
        observers.append(
            ParentComparison(
                checkpoints=parents,
                layers=layers,
                start=read_weights(start),
                heldout=heldout_rows(workspace, child),
                last_step=child.last_step,
            )
        )
        return state

    with deterministic(setup.recipe.num_threads, enforce=enforce):
        results = advance(
            recording,
            start=begin,
            plan=plan_of(workspace, child, child.first_step - 1, child.last_step),
            reader=reader,
            recipe=setup.recipe,
            observers=observers,
        )
        for result in results:
            progress(result, child.last_step)
    remember_first_seen(workspace, child, reader)


def heldout_rows(workspace: Workspace, run: Run) -> np.ndarray | None:
    """The first held-out rows of a run, int64 of shape [rows, sequence_length]; None where it has none."""
    reader, length = reader_of(workspace, run), run.sequence_length
    rows: list[np.ndarray] = []
    for file in run.heldout:
        wanted = HELDOUT_TOKENS // length - len(rows)
        tokens = reader.read(file, 0, min(file.num_bytes // np.dtype(file.dtype).itemsize, wanted * length))
        rows += list(tokens[: len(tokens) // length * length].reshape(-1, length).astype(np.int64))
    return np.stack(rows) if rows else None
