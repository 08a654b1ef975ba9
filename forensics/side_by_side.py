"""`probe --against`: the same probes, on the same rows, of two models: two checkpoints, a fork and its parent, a base
model and one that was tuned from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import ForensicsError, InvalidRange
from data_index.files import read_json_object
from data_index.run import Checkpoint, Run
from data_index.text import load_tokenizer
from data_index.workspace import Workspace
from forensics.chosen_checkpoints import checkpoints_with_weights
from forensics.fetching import require_allowed
from forensics.measured_checkpoint import Computing, Measured, Task, measured, read_needed
from forensics.probe_options import PRECISIONS, ProbeOptions
from forensics.prompted_model import bytes_to_fetch
from forensics.token_source import TokenSource, token_source

if TYPE_CHECKING:
    from probes.probe import Measurement, Probe

COLUMNS = ("probe", "metric", "value", "low", "high", "other", "other_low", "other_high", "difference", "unit")


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """
    Attributes:
        one, other: labels.
        rows: COLUMNS, `text` and `other_text`; a number that one of them does not have is None. `difference` is other
            less value.
        messages: what is to be said of the rows. problems: probes that failed on one of them.
    """

    one: str
    other: str
    rows: tuple[Mapping[str, Any], ...]
    messages: tuple[str, ...]
    problems: tuple[str, ...]


def side_by_side(
    run: str,
    *names: str,
    against: str,
    checkpoint: int | None = None,
    options: ProbeOptions | None = None,
    workspace: Workspace | None = None,
) -> SideBySide:
    """Measure a checkpoint of a run, and another model on the very same rows and prompts; nothing is kept.

    Args:
        against: RUN[@STEP], or a model's folder, GGUF file, or owner/name[@revision] of the hub.
        checkpoint: of `run`; default: the last one.
    Raises:
        InvalidRange: a token of the rows means something else to the other; a probe needs several checkpoints.
        UnknownRun, MissingCheckpoint, MissingFile, MissingState, CorruptFile, UnsafeFile, UnsupportedRecipe
        TooMuchToFetch, AccessDenied, Unreachable, Offline, OutOfMemory
    """
    from forensics.probing import opened

    workspace, options = workspace or Workspace(), options or ProbeOptions()
    record = workspace.run(run)
    if checkpoint is None:
        there = [c for c in checkpoints_with_weights(workspace, record) if c.is_available() is not False]
        checkpoint = there[-1].step if there else 0
    sweep = opened(workspace, run, names, [checkpoint], options)
    if joined := [bound.name for bound in sweep.probes if bound.joined is not None]:
        raise InvalidRange(f"{joined[0]} is measured over several checkpoints, and cannot be put side by side")
    probes = {bound.name: probe for bound in sweep.probes if (probe := bound.at(checkpoint)) is not None}
    sources = [token_source(f"{run}@{checkpoint}", workspace), token_source(against, workspace)]
    _require_same_tokens(record, sources[1], probes)
    wanted = sum(bytes_to_fetch(source, workspace) for source in sources)
    require_allowed(wanted, options.max_fetch, f"the weights of {' and '.join(source.label for source in sources)}")
    one, other = (_measured(source, probes, sweep.computing, workspace) for source in sources)
    labels = [source.label for source in sources]
    return SideBySide(
        one=labels[0],
        other=labels[1],
        rows=tuple(_rows(probes, one, other)),
        messages=tuple(sweep.messages),
        problems=tuple(_problems(labels, [one, other])),
    )


def _measured(source: TokenSource, probes: Mapping[str, Probe], computing: Computing, workspace: Workspace) -> Measured:
    from forensics.probing import config_of

    if source.run is not None:
        assert source.step is not None
        run = workspace.run(source.run)
        checkpoint = workspace.checkpoint(run, source.step)
        task = Task(checkpoint=checkpoint, config=config_of(run, checkpoint), probes=probes)
    else:
        checkpoint = Checkpoint(run=source.label, step=0, location=source.place, layout="hf", states=("weights",))
        if source.place.suffix == ".gguf":
            return _of_gguf(source, checkpoint, probes, computing)
        task = Task(checkpoint=checkpoint, config=read_json_object(source.place / "config.json"), probes=probes)
    return measured(task, *read_needed(task), computing)


def _of_gguf(
    source: TokenSource, checkpoint: Checkpoint, probes: Mapping[str, Probe], computing: Computing
) -> Measured:
    """Its tensors are those of the model that transformers makes of it, as no name in the file is a parameter's."""
    import torch

    from replay.causal_model import model_of_place

    dtype = getattr(torch, PRECISIONS[computing.precision])
    model = model_of_place(source.place, device=torch.device("cpu"), dtype=dtype)
    task = Task(checkpoint=checkpoint, config=model.config.to_dict(), probes=probes)
    return measured(task, model.state_dict(), 0, computing)


def _require_same_tokens(run: Run, other: TokenSource, probes: Mapping[str, Any]) -> None:
    """
    Raises:
        InvalidRange: an id that the probes put to the models is another token to the other model.
    """
    try:
        own = load_tokenizer(run)
    except ForensicsError:
        return  # nothing is known of what the ids mean
    for token in _ids_of(probes.values()):
        one, two = own.id_to_token(token), other.tokenizer.id_to_token(token)
        if one != two:
            raise InvalidRange(
                f"token {token} is {one!r} to {run.name} and {two!r} to {other.label}: the same rows mean something "
                "else to them. Benchmarks (task:NAME) put their texts in each model's own tokens; probe each by itself"
            )


def _ids_of(probes: Iterable[Any]) -> list[int]:
    """All token ids that probes put to a model, rising."""
    found: set[int] = set()
    for probe in probes:
        rows = probe.rows.token_ids if hasattr(probe, "rows") else getattr(probe, "token_ids", None)
        for ids in [rows, *getattr(probe, "prompts", ())]:
            if ids is not None:
                found.update(np.unique(ids).tolist())
    return sorted(found)


def _rows(names: Mapping[str, Any], one: Measured, other: Measured) -> Iterator[dict[str, Any]]:
    for name in names:
        sides: list[dict[str, Measurement]] = [
            {found.metric: found for found in side.answers[name].measurements} for side in (one, other)
        ]
        for metric in dict.fromkeys([*sides[0], *sides[1]]):
            mine, theirs = (side.get(metric) for side in sides)
            unit = next(found.unit for found in (mine, theirs) if found is not None)
            yield {
                "probe": name,
                "metric": metric,
                **_numbers(mine, ("value", "low", "high", "text")),
                **_numbers(theirs, ("other", "other_low", "other_high", "other_text")),
                "difference": None if mine is None or theirs is None else theirs.value - mine.value,
                "unit": unit,
            }


def _numbers(found: Measurement | None, names: Sequence[str]) -> dict[str, Any]:
    values = (None,) * 4 if found is None else (found.value, found.low, found.high, found.text)
    return dict(zip(names, values, strict=True))


def _problems(labels: Sequence[str], sides: Sequence[Measured]) -> Iterator[str]:
    for label, side in zip(labels, sides, strict=True):
        failed = [(answer.problem, name) for name, answer in side.answers.items() if answer.problem is not None]
        for problem, group in groupby(sorted(failed), key=lambda pair: pair[0]):
            yield f"{label}: {', '.join(name for _, name in group)}: {problem}"


def differences(found: SideBySide) -> list[Mapping[str, Any]]:
    """Rows with a finite number on both sides."""
    return [
        row
        for row in found.rows
        if row["difference"] is not None and math.isfinite(row["value"]) and math.isfinite(row["other"])
    ]
