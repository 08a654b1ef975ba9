"""The summary of `tokens --track`: one row a token, with what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data_index.token_categories import TokenizerAnalysis
from forensics.kept_paths import Choice, PathPoint
from forensics.path_exposures import COUNTED, PathExposures
from forensics.token_origins import TokenOrigins

HARDLY = 10  # readings; a token of fewer is hardly in the data
# What is said of a token, the most interesting first.
NEVER_READ, HARDLY_READ, READ_UNTRAINED, FELL_BACK = "never read", "hardly read", "often read, untrained", "fell back"
FINDINGS = (NEVER_READ, HARDLY_READ, READ_UNTRAINED, FELL_BACK)
# Of a row of the summary. Counts, steps and the indicator are those of the last checkpoint.
#   finding           one of FINDINGS, or null
#   exposures         the readings that move the row (TokenPaths.counted)
#   untrained         it is in the cluster of untrained rows; null: nothing tells
#   left_step         the first checkpoint from which on it was outside the cluster, up to the last
#   left_after_min    its exposures at the checkpoint before that one, and left_after_max at that one
#   fell_back_step    the last checkpoint at which it was inside again after one at which it was outside
#   documents         ids of the first ones that it was read in; tags: of all its readings, `tag (readings)`, most first
SUMMARY = (
    *("token_id", "text", "category", "finding", "exposures", "as_input", "as_target", "first_step", "last_step"),
    *("indicator", "distance_to_unused", "untrained", "never_updated", "left_step", "left_after_min"),
    *("left_after_max", "fell_back_step", "documents", "tags"),
)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leaving:
    """When rows left the cluster and fell back, int64 of shape [rows]; -1: never, or not known.

    Attributes:
        step: of the first checkpoint from which on a row was outside. fell_back: of the last at which it was in again.
        exposures: at `step`; exposures_before: at the last checkpoint before it whose cluster is known.
    """

    step: np.ndarray
    fell_back: np.ndarray
    exposures: np.ndarray
    exposures_before: np.ndarray


class Point(Protocol):
    """What is asked of a checkpoint: its step, and which rows lie in its cluster; None: nothing tells."""

    @property
    def step(self) -> int: ...

    @property
    def inside(self) -> np.ndarray | None: ...


def leaving(points: Sequence[Point], counts: np.ndarray | None, num_rows: int) -> Leaving:
    """
    Args:
        counts: exposures, int64 of shape [points, rows]; None: not known.
    """
    from probes.departures import departures

    known = [number for number, point in enumerate(points) if point.inside is not None]
    never = np.full(num_rows, -1, dtype=np.int64)
    if not known:
        return Leaving(step=never, fell_back=never, exposures=never, exposures_before=never)
    found = departures(np.stack([inside for point in points if (inside := point.inside) is not None]))
    steps = np.array([*(points[number].step for number in known), -1])  # -1 stays -1

    def at(number: np.ndarray) -> np.ndarray:
        read = never if counts is None else counts[np.array(known)[number], np.arange(num_rows)]
        return np.where(number >= 0, read, -1)

    return Leaving(
        step=steps[found.left],
        fell_back=steps[found.fell_back],
        exposures=at(found.left),
        exposures_before=at(np.where(found.left > 0, found.left - 1, -1)),
    )


def often_read(left: Leaving, texts: np.ndarray) -> int:
    """Exposures that half of the tokens had not had when they left; at least HARDLY.

    Args:
        texts: bool of shape [rows]; tokens with a text.
    """
    gone = left.exposures[(left.step >= 0) & texts]
    return max(HARDLY, int(np.median(gone))) if len(gone) else HARDLY


def path_rows(
    choice: Choice,
    analysis: TokenizerAnalysis,
    last: PathPoint,
    exposures: PathExposures | None,
    counts: np.ndarray | None,
    origins: TokenOrigins | None,
    left: Leaving,
    often: int | None,
) -> tuple[Row, ...]:
    """Rows of SUMMARY, those with a finding first.

    Args:
        counts: the exposures that move rows, int64 of shape [points, rows]; None: not known. often: likewise.
    """
    columns = _columns(choice, last, exposures, counts, left)
    rows = []
    for token, values in enumerate(zip(*columns.values(), strict=True)):
        known = analysis.tokens[token] if token < len(analysis.tokens) else None
        row: Row = dict.fromkeys(SUMMARY) | {
            "token_id": token,
            "text": known.text if known is not None and known.piece is not None else None,
            "category": known.category if known is not None else "no_token",
            "documents": [] if origins is None else list(origins.documents[token]),
            "tags": [] if origins is None else [f"{tag} ({times})" for tag, times in origins.tags[token]],
        }
        row |= zip(columns, values, strict=True)
        row["finding"] = finding_of(row, often)
        rows.append(row)
    return tuple(sorted(rows, key=_order))


def _columns(
    choice: Choice, last: PathPoint, exposures: PathExposures | None, counts: np.ndarray | None, left: Leaving
) -> dict[str, list[Any]]:
    """What arrays say of each row, by column; columns of which nothing is known are left out."""
    found = {"indicator": last.values.tolist()}
    for name, values in (("distance_to_unused", last.distance), ("untrained", last.inside)):
        if values is not None:
            found[name] = values.tolist()
    if choice.never_updated is not None:
        found["never_updated"] = np.isin(np.arange(choice.num_rows), choice.never_updated).tolist()
    found |= {"left_step": _from(left.step, 0), "fell_back_step": _from(left.fell_back, 0)}
    if exposures is not None and counts is not None:
        least = {"as_input": 0, "as_target": 0, "first_step": 1, "last_step": 1}
        found |= {name: _from(getattr(exposures, name)[-1], least[name]) for name in COUNTED}
        found |= {"exposures": counts[-1].tolist()}
        found |= {"left_after_min": _from(left.exposures_before, 0), "left_after_max": _from(left.exposures, 0)}
    return found


def _from(values: np.ndarray, least: int) -> list[int | None]:
    """None in place of what is below."""
    return [value if value >= least else None for value in values.tolist()]


def finding_of(row: Row, often: int | None) -> str | None:
    """
    Args:
        row: with text, exposures, untrained and fell_back_step of SUMMARY.
    """
    if row["text"] is None:
        return None
    if row["exposures"] is not None and row["exposures"] < HARDLY:
        return HARDLY_READ if row["exposures"] else NEVER_READ
    if often is not None and row["untrained"] and row["exposures"] >= often:
        return READ_UNTRAINED
    return FELL_BACK if row["fell_back_step"] is not None else None


def _order(row: Row) -> tuple[Any, ...]:
    """Findings first; of one finding those read least; of tokens without one those that left last."""
    rank = FINDINGS.index(row["finding"]) if row["finding"] else len(FINDINGS)
    if row["finding"]:
        return rank, row["exposures"] or 0, row["indicator"], row["token_id"]
    return rank, row["text"] is None, -(row["left_step"] or 0), row["token_id"]
