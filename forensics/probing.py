"""`probe`: any metric through the checkpoints of a run, each checkpoint read once for all probes, everything kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_index.errors import ForensicsError, InvalidRange, MissingFile
from data_index.files import exclusive_lock, read_json_object
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace
from forensics.bound_probe import BoundProbe
from forensics.chosen_checkpoints import checkpoints_with_weights, chosen_checkpoints
from forensics.fetching import require_allowed
from forensics.kept_measurements import KeptMeasurements, rows_of
from forensics.local_measuring import measured_here
from forensics.measured_checkpoint import DTYPES, Computing, Measured, Task, needed, needs_model
from forensics.probe_bindings import ProbeOptions
from forensics.probe_catalogue import bound_probes
from forensics.probe_data import ProbeData
from forensics.probe_rows import RowChoice

NUM_TOKENS = 65_536
COLUMNS = ("step", "tokens", "probe", "metric", "value", "low", "high", "unit")
PLAN_COLUMNS = ("step", "probes", "bytes_to_read", "bytes_to_fetch", "tokens", "note")
# (checkpoints done, of how many, the step of the last one, a message or nothing)
Progress = Callable[[int, int, int], None]
Measuring = Callable[[Sequence[Task], Computing], Iterator[Measured]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a checkpoint, or one probe of it, has no number."""

    step: int
    probe: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """
    Attributes:
        rows: COLUMNS and `text`, of the checkpoints and probes that were asked for: by probe, then by step.
        problems: what was skipped.
        num_measured, num_kept: checkpoints with something to measure, and those of which all had been kept.
        num_bytes: of tensors that were read now.
        seconds: that measuring took, reading left out.
    """

    run: str
    rows: tuple[Mapping[str, Any], ...]
    problems: tuple[Problem, ...]
    num_measured: int
    num_kept: int
    num_bytes: int
    seconds: float
    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sweep:
    """What was asked for, opened: data are read, weights are not."""

    workspace: Workspace
    run: Run
    checkpoints: list[Checkpoint]
    probes: list[BoundProbe]
    computing: Computing
    messages: list[str]

    def left(self, kept: KeptMeasurements) -> list[tuple[Checkpoint, dict[str, Any]]]:
        """Checkpoints with the probes that are to be asked about them."""
        found = []
        for checkpoint in self.checkpoints:
            asked = {
                bound.name: probe
                for bound in self.probes
                if kept.answer(checkpoint, bound) is None and (probe := bound.at(checkpoint.step)) is not None
            }
            if asked:
                found.append((checkpoint, asked))
        return found


def probe(
    run: str,
    *names: str,
    checkpoints: str | Sequence[int] = "all",
    num_tokens: int = NUM_TOKENS,
    length: int | None = None,
    seed: int = 0,
    options: ProbeOptions | None = None,
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    measuring: Measuring = measured_here,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
    progress: Progress = lambda done, total, step: None,
) -> Probed:
    """Measure a run's checkpoints.

    Every answer is kept with the run as soon as its checkpoint is done, and stands in the view `probes` at the end, or
    when the sweep is interrupted; the same question goes on from there. A checkpoint that cannot be read, and a probe
    that fails on one, are told and skipped.

    Args:
        run: a run or fork.
        names: of probes (forensics/probe_catalogue.py).
        checkpoints: as `chosen_checkpoints` takes them.
        num_tokens, length, seed: of the rows that are looked at; length None: as the run's.
        threads: of the CPU; None: as torch says.
        measuring: how the tasks are worked through.
        max_fetch: bytes that may be fetched from servers; default: 1 GiB.
    Raises:
        UnknownRun, MissingCheckpoint, InvalidRange, MissingFile, CorruptFile, UnknownOrder, UnsupportedRecipe
        FailedFunction, TooMuchToFetch, AccessDenied, Unreachable, Offline, OutOfMemory, DiskFull
        Busy: another process probes the run.
    """
    workspace = workspace or Workspace()
    choice = RowChoice(num_tokens=num_tokens, length=length, seed=seed, max_fetch=max_fetch)
    sweep = _opened(workspace, run, names, checkpoints, choice, options, device, precision, threads)
    home = workspace.home(run)
    with exclusive_lock(home / "probes.lock", f"probing {run}"):
        kept = KeptMeasurements(home)
        left = sweep.left(kept)
        require_allowed(sum(_bytes_to_fetch(c, list(asked.values())) for c, asked in left), max_fetch, f"probing {run}")
        done = _Done()
        try:
            _measure(sweep, left, kept, measuring, progress, done)
        finally:
            shown = kept.put_in_force(sweep.probes, checkpoints_with_weights(workspace, sweep.run))
    steps = {checkpoint.step for checkpoint in sweep.checkpoints}
    tokens = {checkpoint.step: checkpoint.tokens for checkpoint in sweep.checkpoints}
    rows = [
        row
        for name, series in shown.items()
        for row in rows_of(name, {step: of for step, of in series.items() if step in steps}, tokens)
    ]
    return Probed(
        run=run,
        rows=tuple(rows),
        problems=tuple(done.problems),
        num_measured=len(left),
        num_kept=len(sweep.checkpoints) - len(left),
        num_bytes=done.num_bytes,
        seconds=done.seconds,
        messages=tuple(sweep.messages),
    )


class _Done:
    """What has come of a sweep so far."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.num_bytes, self.seconds = 0, 0.0


def _measure(
    sweep: _Sweep,
    left: Sequence[tuple[Checkpoint, Mapping[str, Any]]],
    kept: KeptMeasurements,
    measuring: Measuring,
    progress: Progress,
    done: _Done,
) -> None:
    bound = {one.name: one for one in sweep.probes}
    by_step = {checkpoint.step: (checkpoint, asked) for checkpoint, asked in left}
    tasks = []
    for checkpoint, asked in left:
        try:
            config = config_of(sweep.run, checkpoint) if any(map(needs_model, asked.values())) else {}
            tasks.append(Task(checkpoint=checkpoint, config=config, probes=asked))
        except ForensicsError as error:
            done.problems += [Problem(step=checkpoint.step, probe=name, message=str(error)) for name in asked]
    for number, measured in enumerate(measuring(tasks, sweep.computing), 1):
        checkpoint, asked = by_step[measured.step]
        kept.add(checkpoint, [bound[name] for name in asked], measured)
        done.problems += [
            Problem(step=measured.step, probe=name, message=answer.problem)
            for name, answer in measured.answers.items()
            if answer.problem is not None
        ]
        done.num_bytes += measured.num_bytes
        done.seconds += measured.seconds
        progress(number, len(tasks), measured.step)


def plan_probe(
    run: str,
    *names: str,
    checkpoints: str | Sequence[int] = "all",
    num_tokens: int = NUM_TOKENS,
    length: int | None = None,
    seed: int = 0,
    options: ProbeOptions | None = None,
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
) -> list[dict[str, Any]]:
    """A row for each checkpoint that has something to be measured, and the sum: headers are read, no tensor.

    The rows that probes look at are read, to know what is kept already.

    Raises:
        As `probe`, but for what weights raise: it stands in the note of its checkpoint.
    """
    workspace = workspace or Workspace()
    choice = RowChoice(num_tokens=num_tokens, length=length, seed=seed, max_fetch=max_fetch)
    sweep = _opened(workspace, run, names, checkpoints, choice, options, device, precision, threads)
    left = sweep.left(KeptMeasurements(workspace.home(run)))
    bound = {one.name: one for one in sweep.probes}
    rows: list[dict[str, Any]] = []
    for checkpoint, asked in left:
        row: dict[str, Any] = {
            "step": checkpoint.step,
            "probes": len(asked),
            "bytes_to_read": None,
            "bytes_to_fetch": None,
            "tokens": sum(bound[name].tokens or 0 for name in asked),
            "note": "",
        }
        try:
            row["bytes_to_read"] = needed(checkpoint, asked.values()).num_bytes
            row["bytes_to_fetch"] = _bytes_to_fetch(checkpoint, list(asked.values()))
        except ForensicsError as error:
            row["note"] = f"will be skipped: {error}"
        rows.append(row)
    total = {name: sum(row[name] or 0 for row in rows) for name in PLAN_COLUMNS[1:-1]}
    largest = max((row["bytes_to_read"] or 0 for row in rows), default=0)
    note = (
        f"{len(sweep.checkpoints) - len(left)} of {len(sweep.checkpoints)} checkpoints are measured already; in memory "
        f"at once: two checkpoints of {largest:,} bytes and a model; tokens through the model, each 2 operations for "
        f"every parameter ({_speed(sweep.computing)})"
    )
    return [*rows, {"step": None} | total | {"note": note}]


def _speed(computing: Computing) -> str:
    import torch

    from replay.device_speed import matmul_flops

    dtype = torch.float32 if computing.precision == "fp32" else torch.bfloat16
    flops = matmul_flops(1024, device=torch.device(computing.device), dtype=dtype)
    return f"{computing.device} does {flops / 1e12:.2g} trillion a second at most"


def _opened(
    workspace: Workspace,
    run: str,
    names: Sequence[str],
    checkpoints: str | Sequence[int],
    choice: RowChoice,
    options: ProbeOptions | None,
    device: str,
    precision: str,
    threads: int | None,
) -> _Sweep:
    from replay.determinism import choose_device

    if precision not in DTYPES:
        raise InvalidRange(f"--precision takes {' or '.join(DTYPES)}, not {precision!r}")
    record = workspace.run(run)
    chosen = chosen_checkpoints(workspace, record, checkpoints)
    computing = Computing(device=str(choose_device(device)), precision=precision, threads=threads or _cores())
    messages: list[str] = []
    bound = bound_probes(names, ProbeData(workspace, record, choice), options or ProbeOptions(), messages.append)
    return _Sweep(
        workspace=workspace,
        run=record,
        checkpoints=chosen,
        probes=[_computed(one, computing) for one in bound],
        computing=computing,
        messages=messages,
    )


def _computed(bound: BoundProbe, computing: Computing) -> BoundProbe:
    """Numbers of another precision, or of another kind of device, are others."""
    added = {"precision": computing.precision, "device": computing.device.partition(":")[0]}
    return replace(bound, settings=dict(bound.settings) | added)


def _cores() -> int:
    import torch

    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else (os.cpu_count() or 1)


def config_of(run: Run, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The model's: the checkpoint's own where it is saved as transformers does, else the run's.

    Raises:
        MissingFile, CorruptFile, UnsupportedRecipe, AccessDenied, Unreachable, Offline
    """
    from replay.recipe import recipe_of_run

    own = checkpoint.location / "config.json"
    if checkpoint.layout == "hf" and own.is_file():
        return read_json_object(own)
    return recipe_of_run(run, approximate=True).model


def _bytes_to_fetch(checkpoint: Checkpoint, probes: Sequence[Any]) -> int:
    """Of weights on servers that are not here yet; nothing for one that cannot be told."""
    if isinstance(checkpoint.location, Path):
        return 0
    from forensics.fetching import bytes_of_weights

    try:
        wanted = needed(checkpoint, probes)
        return bytes_of_weights(checkpoint) if wanted.whole else wanted.num_bytes
    except MissingFile:
        return 0
