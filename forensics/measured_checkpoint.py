"""One checkpoint for several probes: each weight is read once, and no more of them than the probes need.

Probes of tensors are asked first; a model is built only for those that need one, from the same tensors. Probes that
look at the predictions of the same rows share one forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import ChangedModel, ForensicsError, OutOfMemory
from data_index.run import Checkpoint
from forensics.bound_probe import Answer
from forensics.probe_options import PRECISIONS

if TYPE_CHECKING:
    import torch

    from probes.probe import Measurement, Probe
    from replay.weights import StoredPart

# What a probe may raise of a damaged model, or of rows that do not fit it.
OF_A_PROBE = (ForensicsError, FloatingPointError, np.linalg.LinAlgError, ValueError, IndexError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """
    Attributes:
        precision: fp32 or bf16, of the model's weights.
        threads: of a CPU; the last digits of results depend on it.
    """

    device: str
    precision: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A checkpoint and what is to be measured of it.

    Attributes:
        config: of the model, as transformers has it.
        probes: by name.
        forget_fetched: delete what was fetched of its weights for this, once it is read; what was there before stays.
    """

    checkpoint: Checkpoint
    config: Mapping[str, Any]
    probes: Mapping[str, Probe]
    forget_fetched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Needed:
    """The stored tensors that some probes need of a checkpoint; nothing is read yet.

    Attributes:
        whole: all of them are needed.
    """

    parts: Mapping[str, StoredPart]
    whole: bool

    @property
    def num_bytes(self) -> int:
        from replay.weights import bytes_of_parts

        return bytes_of_parts(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """
    Attributes:
        answers: by the probe's name.
        num_bytes: of tensors that were read. seconds: that measuring took, reading left out.
    """

    step: int
    answers: Mapping[str, Answer]
    num_bytes: int = 0
    seconds: float = 0.0


def needed(checkpoint: Checkpoint, probes: Iterable[Probe]) -> Needed:
    """What has to be read for some probes; headers are looked at.

    Raises:
        MissingState, MissingFile, CorruptFile, UnsafeFile, UnsupportedRecipe, AccessDenied, Unreachable, Offline
    """
    from probes.probe import TensorProbe
    from replay.weights import stored_weights

    stored = stored_weights(checkpoint)
    probes = list(probes)
    if any(map(needs_model, probes)):
        return Needed(parts=stored, whole=True)
    shapes = {name: part.shape for name, part in stored.items()}
    names = {name for probe in probes if isinstance(probe, TensorProbe) for name in probe.tensors(shapes)}
    return Needed(parts={name: stored[name] for name in stored if name in names}, whole=len(names) == len(stored))


def needs_model(probe: Probe) -> bool:
    from probes.probe import TensorProbe

    return not isinstance(probe, TensorProbe)


def read_needed(task: Task) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors, and how many bytes of them were read. What lies on servers is fetched.

    Raises:
        MissingState, MissingFile, CorruptFile, UnsafeFile, UnsupportedRecipe, DiskFull
        AccessDenied, Unreachable, Offline
    """
    from replay.weights import fetch_parts, fetch_weights, read_parts, weights_on_servers

    held = {file: file.held() for file in weights_on_servers(task.checkpoint)} if task.forget_fetched else {}
    try:
        wanted = needed(task.checkpoint, task.probes.values())
        if wanted.whole and not isinstance(task.checkpoint.location, Path):
            fetch_weights(task.checkpoint)
            wanted = needed(task.checkpoint, task.probes.values())
        fetch_parts(wanted.parts)
        return read_parts(wanted.parts), wanted.num_bytes
    finally:
        for file, before in held.items():
            file.forget_since(before)


def measured(task: Task, tensors: Mapping[str, torch.Tensor], num_bytes: int, computing: Computing) -> Measured:
    """Ask each probe; one that fails says why, and the others go on.

    Raises:
        OutOfMemory: the device does not hold the model.
    """
    began = time.perf_counter()
    with computing_as(computing):
        answers = dict(_of_tensors(task, tensors, computing))
        left = {name: probe for name, probe in task.probes.items() if name not in answers}
        if left:
            answers |= _of_model(task, tensors, left, computing)
    return Measured(
        step=task.checkpoint.step,
        answers={name: answers[name] for name in task.probes},
        num_bytes=num_bytes,
        seconds=time.perf_counter() - began,
    )


def unmeasured(step: int, probes: Iterable[str], problem: str) -> Measured:
    """Of a checkpoint that cannot be read, or was another one meanwhile."""
    return Measured(step=step, answers={name: Answer(problem=problem) for name in probes})


@contextmanager
def computing_as(computing: Computing) -> Iterator[None]:
    """
    Raises:
        OutOfMemory
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(computing.threads)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{computing.device} does not hold the model in {computing.precision}: take --precision bf16, or --device "
            f"cpu ({str(error)[:200]})"
        ) from error
    finally:
        torch.set_num_threads(before)


def _of_tensors(task: Task, tensors: Mapping[str, torch.Tensor], computing: Computing) -> Iterator[tuple[str, Answer]]:
    from probes.probe import TensorProbe

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, probe in task.probes.items():
        if isinstance(probe, TensorProbe):
            wanted = {one: tensors[one].to(computing.device) for one in probe.tensors(shapes)}
            yield name, _asked(probe.measure_tensors, wanted)


def _of_model(
    task: Task, tensors: Mapping[str, torch.Tensor], probes: Mapping[str, Any], computing: Computing
) -> dict[str, Answer]:
    from probes.probe import PredictionProbe

    predicting = {name: probe for name, probe in probes.items() if isinstance(probe, PredictionProbe)}
    answers: dict[str, Answer] = {}
    try:
        model = _model(task, tensors, computing)
        answers |= _of_predictions(model, predicting)
        for name in [name for name in probes if name not in predicting]:
            try:
                answers[name] = _asked(probes[name].measure_model, model)
            except ChangedModel as error:  # a function of the user's did what none may
                answers[name] = Answer(problem=str(error))
                model = _model(task, read_needed(task)[0], computing)
    except ForensicsError as error:
        return {name: Answer(problem=str(error)) for name in probes} | answers
    return answers


def _model(task: Task, tensors: Mapping[str, torch.Tensor], computing: Computing) -> Any:
    import torch

    from replay.causal_model import model_of_weights

    return model_of_weights(
        tensors,
        task.config,
        str(task.checkpoint.location),
        device=torch.device(computing.device),
        dtype=getattr(torch, PRECISIONS[computing.precision]),
    )


def _of_predictions(model: Any, probes: Mapping[str, Any]) -> dict[str, Answer]:
    from probes.prediction_blocks import one_pass

    answers: dict[str, Answer] = {}
    together: dict[int, list[str]] = {}  # by the identity of the rows
    for name, probe in probes.items():
        together.setdefault(id(probe.rows), []).append(name)
    for names in together.values():
        rows = probes[names[0]].rows
        try:
            statistics = {name: probes[name].statistic() for name in names}
            one_pass(model, rows.token_ids, list(statistics.values()), scored=rows.scored)
        except OF_A_PROBE as error:
            if len(names) == 1:
                answers[names[0]] = Answer(problem=_told(error))
            else:  # one of them must not keep the others from measuring
                for name in names:
                    answers |= _of_predictions(model, {name: probes[name]})
            continue
        answers |= {name: _asked(probes[name].measure_predictions, statistics[name]) for name in names}
    return answers


def _asked(measure: Any, subject: Any) -> Answer:
    """
    Raises:
        ChangedModel
    """
    try:
        found: Sequence[Measurement] = measure(subject)
    except ChangedModel:
        raise
    except OF_A_PROBE as error:
        return Answer(problem=_told(error))
    return Answer(measurements=tuple(found))


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
