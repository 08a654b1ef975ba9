"""Paths of tokens as `tokens --track` kept them, read from the views: no lock, no weights, nothing is written.

The same picture is drawn of them (forensics.token_path_picture) as of the answer itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_index.errors import ForensicsError
from data_index.files import read_json_object
from data_index.run import Run
from data_index.token_queries import (
    counted_steps,
    exposure_arrays,
    path_arrays,
    path_indicator,
    texts_of_tokens,
    token_checkpoints,
)
from data_index.workspace import Workspace
from forensics.token_path_rows import FINDINGS, Row, finding_of, leaving, often_read

COLUMNS = (
    *("token_id", "text", "finding", "exposures", "indicator", "untrained", "left_step", "left_after_min"),
    *("left_after_max", "fell_back_step"),
)
INPUT_NORM = "input_norm"  # of probes.embedding_indicators, which needs torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptPoint:
    """One checkpoint, of every row: the indicator, and whether it lies in the cluster; None: nothing tells.

    `limit`: where the cluster ends; None: nothing tells, or it is not kept.
    """

    step: int
    values: np.ndarray
    inside: np.ndarray | None
    limit: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptTokenPaths:
    """
    Attributes:
        points: rising by step.
        counts: exposures that move rows, int64 of shape [points, rows]; None: they are not kept of every checkpoint.
        rows: COLUMNS of every row of the matrix; tokens with a finding first, in the order of FINDINGS.
    """

    run: str
    indicator: str
    points: tuple[KeptPoint, ...]
    counts: np.ndarray | None
    counted: str
    rows: tuple[Row, ...]
    often: int | None
    messages: tuple[str, ...] = ()

    @property
    def steps(self) -> list[int]:
        return [point.step for point in self.points]

    def exposures_at(self) -> np.ndarray | None:
        return self.counts


def kept_token_paths(run: str, *, workspace: Workspace | None = None) -> KeptTokenPaths | None:
    """None: no paths are kept.

    Raises:
        UnknownRun, CorruptFile
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    indicator = path_indicator(workspace, record)
    if indicator is None:
        return None
    points = _points(workspace, record)
    counted = counted_of(workspace, run, indicator)
    steps, num_rows = [point.step for point in points], len(points[-1].values)
    counts = _counts(workspace, record, steps, num_rows, counted)
    texts, told = _texts(workspace, record, num_rows)
    known = np.array([text is not None for text in texts], dtype=bool)
    left = leaving(points, counts, num_rows)
    often = None if counts is None else often_read(left, known)
    columns: dict[str, list[Any]] = {
        "text": list(texts),
        "exposures": [None] * num_rows if counts is None else counts[-1].tolist(),
        "indicator": points[-1].values.tolist(),
        "untrained": [None] * num_rows if points[-1].inside is None else points[-1].inside.tolist(),
        "left_step": _from_0(left.step),
        "left_after_min": _from_0(left.exposures_before),
        "left_after_max": _from_0(left.exposures),
        "fell_back_step": _from_0(left.fell_back),
    }
    if counts is None:
        lacking = _uncounted(workspace, record, steps)
        told.append(
            f"how often tokens were read is not kept of every checkpoint (forensics exposures {lacking} counts it)"
        )
    return KeptTokenPaths(
        run=run,
        indicator=indicator,
        points=tuple(points),
        counts=counts,
        counted=counted,
        rows=_rows(columns, often),
        often=often,
        messages=tuple(told),
    )


def _rows(columns: Mapping[str, Sequence[Any]], often: int | None) -> tuple[Row, ...]:
    rows = []
    for token, values in enumerate(zip(*columns.values(), strict=True)):
        row: Row = {"token_id": token} | dict(zip(columns, values, strict=True))
        rows.append({name: row.get(name) for name in COLUMNS} | {"finding": finding_of(row, often)})
    return tuple(sorted(rows, key=_order))


def _order(row: Row) -> tuple[Any, ...]:
    """Findings first; of one finding those read least."""
    if row["finding"]:
        return FINDINGS.index(row["finding"]), row["exposures"] or 0, row["token_id"]
    return len(FINDINGS), -(row["left_step"] or 0), row["token_id"]


def _from_0(values: np.ndarray) -> list[int | None]:
    return [value if value >= 0 else None for value in values.tolist()]


def _points(workspace: Workspace, run: Run) -> list[KeptPoint]:
    found = path_arrays(workspace, run)
    step, token = (np.asarray(found[name]) for name in ("step", "token_id"))
    limits, num_rows = cluster_limits(workspace, run), int(token.max()) + 1
    points = []
    for one in np.unique(step).tolist():
        here = step == one
        values = np.full(num_rows, np.nan, dtype=np.float32)
        values[token[here]] = np.ma.filled(found["indicator"][here].astype(np.float32), np.nan)
        untrained, inside = found["untrained"][here], None
        if not np.ma.getmaskarray(untrained).all():
            inside = np.zeros(num_rows, dtype=bool)
            inside[token[here]] = np.ma.filled(untrained, False)
        points.append(KeptPoint(step=one, values=values, inside=inside, limit=limits.get(one)))
    return points


def cluster_limits(workspace: Workspace, run: Run) -> dict[int, float]:
    """Step -> the highest indicator inside the cluster, as it was kept beside the paths."""
    limits: dict[int, float] = {}
    for folder in {path.parent for path in workspace.learned_files(workspace.home(run.name), "token_paths")}:
        try:
            steps = read_json_object(folder / "state.json")["steps"]
            kept = {int(step): state["cluster"]["limit"] for step, state in steps.items()}
        except (ForensicsError, LookupError, TypeError, ValueError, AttributeError):
            continue
        limits |= {step: float(limit) for step, limit in kept.items() if limit is not None}
    return limits


def counted_of(workspace: Workspace, run: str, indicator: str) -> str:
    """Which exposures move the rows: `as_input`, `as_target`, or `either` where one matrix reads and predicts."""
    for path in sorted((workspace.home(run) / "token_paths" / "choices").glob("*.json")):
        try:
            if read_json_object(path)["tied"]:
                return "either"
        except (ForensicsError, LookupError, TypeError):
            continue
    return "as_input" if indicator == INPUT_NORM else "as_target"


def _uncounted(workspace: Workspace, run: Run, steps: Sequence[int]) -> str | None:
    """The run, of this one and the parents that a fork has, whose counts are not kept of all these checkpoints."""
    if set(_own(run, steps)) - set(counted_steps(workspace, run)):
        return run.name
    if run.parent is None:
        return None
    name, at = run.parent
    return _uncounted(workspace, workspace.run(name), [at])


def _own(run: Run, steps: Sequence[int]) -> list[int]:
    """Those of these checkpoints that come after a step of the run."""
    return [step for step in steps if step >= run.first_step]


def _counts(workspace: Workspace, run: Run, steps: Sequence[int], num_rows: int, counted: str) -> np.ndarray | None:
    """Up to each checkpoint, int64 of shape [steps, rows], with those of a fork's parents; None: not all are kept."""
    if _uncounted(workspace, run, steps) is not None:
        return None
    counts = np.zeros((len(steps), num_rows), dtype=np.int64)
    if run.parent is not None:
        name, at = run.parent
        before = _counts(workspace, workspace.run(name), [at], num_rows, counted)
        assert before is not None
        counts += before[0]
    found = exposure_arrays(workspace, run, _own(run, steps))
    number, token = np.searchsorted(steps, np.asarray(found["step"])), np.asarray(found["token_id"])
    here = token < num_rows
    as_input, as_target = (np.ma.filled(found[name], 0) for name in ("as_input", "as_target"))
    values = {"either": np.maximum(as_input, as_target), "as_input": as_input, "as_target": as_target}[counted]
    counts[number[here], token[here]] += values[here]
    return counts


def _texts(workspace: Workspace, run: Run, num_rows: int) -> tuple[list[str | None], list[str]]:
    """As `tokens` kept them with the last checkpoint it looked at; where it did not, ids stand."""
    kept = token_checkpoints(workspace, run)
    if not kept:
        return [f"<{token}>" for token in range(num_rows)], [
            f"what the tokens say is not kept (forensics tokens {run.name} keeps it): ids stand for them"
        ]
    texts = texts_of_tokens(workspace, run, kept[-1]["step"], range(num_rows))
    return [texts.get(token) for token in range(num_rows)], []
