"""`probe`: any metric through the checkpoints of a run, each checkpoint read once for all probes, everything kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_index.errors import ChangedFile, ForensicsError, MissingFile
from data_index.files import exclusive_lock, read_json_object, require_free_space
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace
from forensics.bound_probe import BoundProbe
from forensics.chosen_checkpoints import checkpoints_with_weights, chosen_checkpoints
from forensics.fetching import bytes_of_tensors, bytes_of_weights, require_allowed
from forensics.kept_measurements import KeptMeasurements, rows_of
from forensics.local_measuring import measured_here
from forensics.measured_checkpoint import Computing, Measured, Task, needed, needs_model, unmeasured
from forensics.probe_catalogue import bound_probes
from forensics.probe_data import ProbeData
from forensics.probe_options import ProbeOptions

COLUMNS = ("step", "tokens", "probe", "metric", "value", "low", "high", "unit")
# Called with how many checkpoints are done, of how many, and the step of the last one.
Progress = Callable[[int, int, int], None]
# How tasks are worked through: forensics/local_measuring.py, forensics/ray_measuring.py.
Measuring = Callable[[Sequence[Task], Computing], Iterator[Measured]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a probe has no number of a checkpoint."""

    step: int
    probe: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """
    Attributes:
        rows: COLUMNS and `text`, of the checkpoints and probes that were asked for: by probe, then by step.
        problems: what was skipped.
        num_measured, num_kept: checkpoints with something to measure, and those of which everything had been kept.
        num_bytes: of tensors that were read now. seconds: that measuring took, reading left out.
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
class Sweep:
    """What was asked for, opened: data are read, weights are not."""

    run: Run
    checkpoints: list[Checkpoint]
    probes: list[BoundProbe]
    computing: Computing
    options: ProbeOptions
    messages: list[str]

    def left(self, kept: KeptMeasurements) -> tuple[list[tuple[Checkpoint, dict[str, Any]]], list[Problem]]:
        """Checkpoints with the probes that are still to be asked about them; and what has no data at one of them."""
        found: list[tuple[Checkpoint, dict[str, Any]]] = []
        problems: list[Problem] = []
        for checkpoint in self.checkpoints:
            asked = {}
            for bound in (one for one in self.probes if kept.answer(checkpoint, one) is None):
                try:
                    probe = bound.at(checkpoint.step)
                except ForensicsError as error:
                    problems.append(Problem(step=checkpoint.step, probe=bound.name, message=str(error)))
                    continue
                if probe is not None:
                    asked[bound.name] = probe
            if asked:
                found.append((checkpoint, asked))
        return found, problems


def probe(
    run: str,
    *names: str,
    checkpoints: str | Sequence[int] = "all",
    options: ProbeOptions | None = None,
    measuring: Measuring = measured_here,
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
        measuring: how the checkpoints are worked through; default: here, one after another.
    Raises:
        UnknownRun, MissingCheckpoint, InvalidRange, MissingFile, CorruptFile, UnknownOrder, UnsupportedRecipe
        FailedFunction, MissingPackage, TooMuchToFetch, AccessDenied, Unreachable, Offline, OutOfMemory, DiskFull
        Busy: another process probes the run.
    """
    workspace, options = workspace or Workspace(), options or ProbeOptions()
    sweep = opened(workspace, run, names, checkpoints, options)
    home, done = workspace.home(run), _Done()
    with exclusive_lock(home / "probes.lock", f"probing {run}"):
        kept = KeptMeasurements(home)
        left, done.problems = sweep.left(kept)
        num_kept = len(sweep.checkpoints) - len({c.step for c, _ in left} | {one.step for one in done.problems})
        sweep.messages.extend(
            f"the view probes shows {name} of these settings from now on; those measured under others are kept, and "
            "shown again when they are asked for"
            for name in kept.of_other_settings(sweep.probes)
        )
        _require_room(workspace, left, options, run)
        try:
            for number, (checkpoint, measured) in enumerate(_measured(sweep, left, measuring, done), 1):
                try:
                    kept.add(checkpoint, [one for one in sweep.probes if one.name in measured.answers], measured)
                except (ChangedFile, MissingFile) as error:
                    measured = unmeasured(checkpoint.step, measured.answers, str(error))
                done.add(measured)
                progress(number, len(left), checkpoint.step)
        finally:
            shown = kept.put_in_force(sweep.probes, checkpoints_with_weights(workspace, sweep.run))
    tokens = {checkpoint.step: checkpoint.tokens for checkpoint in sweep.checkpoints}
    chosen = [(name, {step: of for step, of in series.items() if step in tokens}) for name, series in shown.items()]
    without = {name for name, series in chosen if not any(series.values())} - {one.probe for one in done.problems}
    sweep.messages.extend(_about_nothing(one) for one in sweep.probes if one.name in without)
    return Probed(
        run=run,
        rows=tuple(row for name, series in chosen for row in rows_of(name, series, tokens)),
        problems=tuple(sorted(done.problems, key=lambda problem: problem.step)),
        num_measured=len(left),
        num_kept=num_kept,
        num_bytes=done.num_bytes,
        seconds=done.seconds,
        messages=tuple(sweep.messages),
    )


def _about_nothing(probe: BoundProbe) -> str:
    of_several = ": it compares several, before and after rows were read" if probe.joined is not None else ""
    return f"{probe.name} has no number at these checkpoints{of_several}"


def _require_room(
    workspace: Workspace, left: Sequence[tuple[Checkpoint, Mapping[str, Any]]], options: ProbeOptions, run: str
) -> None:
    """
    Raises:
        TooMuchToFetch
        DiskFull: there is no room for what will lie on disk at once.
    """
    from data_index.remote.hub import cache_folder

    wanted = [bytes_to_fetch(checkpoint, list(asked.values())) for checkpoint, asked in left]
    require_allowed(sum(wanted), options.max_fetch, f"probing {len(left)} checkpoints of {run}")
    if sum(wanted):
        of_hub = any(checkpoint.layout == "hf" for checkpoint, _ in left)
        at_once = sum(sorted(wanted)[-2:]) if options.forget_fetched else sum(wanted)
        require_free_space(cache_folder() if of_hub else workspace.cache, at_once, "what is fetched of the weights")


class _Done:
    """What has come of a sweep so far, besides measurements."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.num_bytes, self.seconds = 0, 0.0

    def add(self, measured: Measured) -> None:
        self.problems += [
            Problem(step=measured.step, probe=name, message=answer.problem)
            for name, answer in measured.answers.items()
            if answer.problem is not None
        ]
        self.num_bytes += measured.num_bytes
        self.seconds += measured.seconds


def _measured(
    sweep: Sweep, left: Sequence[tuple[Checkpoint, Mapping[str, Any]]], measuring: Measuring, done: _Done
) -> Iterator[tuple[Checkpoint, Measured]]:
    """Work through what is left; each checkpoint once, in whichever order it gets done."""
    by_step = {checkpoint.step: checkpoint for checkpoint, _ in left}
    tasks = []
    for checkpoint, asked in left:
        config: Mapping[str, Any] = {}
        of_model = [name for name, probe in asked.items() if needs_model(probe)]
        try:
            config = config_of(sweep.run, checkpoint) if of_model else {}
        except ForensicsError as error:
            done.problems += [Problem(step=checkpoint.step, probe=name, message=str(error)) for name in of_model]
            asked = {name: probe for name, probe in asked.items() if name not in of_model}
        if asked:
            forget = sweep.options.forget_fetched
            tasks.append(Task(checkpoint=checkpoint, config=config, probes=asked, forget_fetched=forget))
    for measured in measuring(tasks, sweep.computing):
        yield by_step[measured.step], measured


def opened(
    workspace: Workspace, run: str, names: Sequence[str], checkpoints: str | Sequence[int], options: ProbeOptions
) -> Sweep:
    """Find the checkpoints, and bind the probes to their data.

    Raises:
        As `probe`.
    """
    from replay.determinism import choose_device

    record = workspace.run(run)
    chosen = chosen_checkpoints(workspace, record, checkpoints)
    computing = Computing(
        device=str(choose_device(options.device)),
        precision=options.precision,
        threads=options.threads or _num_threads(),
    )
    messages: list[str] = []
    bound = bound_probes(names, ProbeData(workspace, record, options), messages.append)
    # Numbers of another precision, or of another kind of device, are others.
    computed = {"precision": computing.precision, "device": computing.device.partition(":")[0]}
    return Sweep(
        run=record,
        checkpoints=chosen,
        probes=[replace(one, settings=dict(one.settings) | computed) for one in bound],
        computing=computing,
        options=options,
        messages=messages,
    )


def _num_threads() -> int:
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


def bytes_to_fetch(checkpoint: Checkpoint, probes: Sequence[Any]) -> int:
    """Of weights on servers that are not here yet; 0 for a checkpoint that will be skipped as it cannot be read."""
    if isinstance(checkpoint.location, Path):
        return 0
    try:
        wanted = needed(checkpoint, probes)
        return bytes_of_weights(checkpoint) if wanted.whole else bytes_of_tensors(checkpoint, wanted.parts)
    except ForensicsError:
        return 0
