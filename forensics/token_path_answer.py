"""What `tokens --track` answers: one row a token, and one for each token and checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_index.token_categories import TokenizerAnalysis
from forensics.kept_paths import Choice, PathPoint
from forensics.path_exposures import PathExposures
from forensics.token_origins import TokenOrigins
from forensics.token_path_rows import HARDLY, Row, leaving, often_read, path_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Tokens in the cluster at the last checkpoint against tokens without an exposure.

    Attributes:
        inside, unread, both: how many.
        others_read: how often those inside that had been read were: the median, and most.
    """

    inside: int
    unread: int
    both: int
    others_read: tuple[float, int] | None

    @property
    def precision(self) -> float | None:
        return self.both / self.inside if self.inside else None

    @property
    def recall(self) -> float | None:
        return self.both / self.unread if self.unread else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenPaths:
    """The answer for one run.

    Attributes:
        points: rising by step. exposures, origins: None where they are not known; messages say why.
        counted: which exposures move the rows of the matrix: `as_input`, `as_target`, or `either`, the larger of both,
            where one matrix reads and predicts.
        rows: one a row of the matrix, SUMMARY; tokens with a finding first, in the order of FINDINGS.
        often: a token of fewer exposures is not called often read: HARDLY, or as many as half of the tokens that left
            the cluster had had then.
        num_bytes: of tensors, read for this answer.
    """

    run: str
    choice: Choice
    analysis: TokenizerAnalysis
    points: tuple[PathPoint, ...]
    exposures: PathExposures | None
    origins: TokenOrigins | None
    counted: str
    rows: tuple[Row, ...]
    often: int | None
    agreement: Agreement | None
    num_bytes: int
    messages: tuple[str, ...] = ()

    @property
    def steps(self) -> list[int]:
        return [point.step for point in self.points]

    @property
    def indicator(self) -> str:
        return self.choice.indicator

    def found(self, *findings: str) -> list[Row]:
        """Rows of some findings: `found(NEVER_READ, HARDLY_READ)` are in the vocabulary and hardly in the data."""
        return [row for row in self.rows if row["finding"] in findings]

    def exposures_at(self) -> np.ndarray | None:
        """The counts that move rows, int64 of shape [checkpoints, rows]."""
        return None if self.exposures is None else exposures_that_move(self.exposures, self.counted)

    def table(self) -> Any:
        """One row for each checkpoint and row of the matrix, as an Arrow table."""
        import pyarrow

        return pyarrow.concat_tables([self._table_of(number) for number in range(len(self.points))])

    def _table_of(self, number: int) -> Any:
        import pyarrow

        point, known, count = self.points[number], self.analysis.tokens, len(self.points[number].values)
        texts = [token.text if token.piece is not None else None for token in known]
        columns: dict[str, Any] = {
            "step": pyarrow.array(np.full(count, point.step)),
            "token_id": pyarrow.array(np.arange(count)),
            "text": pyarrow.array(texts + [None] * (count - len(texts)), pyarrow.string()),
            "indicator": pyarrow.array(point.values),
            "distance_to_unused": _or_null(point.distance, count, pyarrow.float32()),
            "untrained": _or_null(point.inside, count, pyarrow.bool_()),
        }
        read = self.exposures
        for name in ("as_input", "as_target"):
            columns[name] = _or_null(None if read is None else getattr(read, name)[number], count, pyarrow.int64())
        for name in ("first_step", "last_step"):
            at = None if read is None else getattr(read, name)[number]
            columns[name] = _or_null(at, count, pyarrow.int64(), none=None if at is None else at == 0)
        return pyarrow.table(columns)


def _or_null(values: np.ndarray | None, count: int, kind: Any, none: np.ndarray | None = None) -> Any:
    import pyarrow

    return pyarrow.nulls(count, kind) if values is None else pyarrow.array(values, kind, mask=none)


def exposures_that_move(exposures: PathExposures, counted: str) -> np.ndarray:
    if counted == "either":
        return np.maximum(exposures.as_input, exposures.as_target)
    found: np.ndarray = getattr(exposures, counted)
    return found


def counted_for(choice: Choice) -> str:
    """A row of the input matrix is moved by being read, one of the output matrix by being the target. (Every step's
    softmax moves all rows of the output matrix besides, those of unused tokens alike.)"""
    from probes.embedding_indicators import INPUT_NORM

    if choice.tied:
        return "either"
    return "as_input" if choice.indicator == INPUT_NORM else "as_target"


def answered(
    *,
    run: str,
    choice: Choice,
    analysis: TokenizerAnalysis,
    points: Sequence[PathPoint],
    exposures: PathExposures | None,
    origins: TokenOrigins | None,
    num_bytes: int,
    messages: tuple[str, ...],
) -> TokenPaths:
    counted = counted_for(choice)
    counts = None if exposures is None else exposures_that_move(exposures, counted)
    texts = np.zeros(choice.num_rows, dtype=bool)
    texts[[token.token_id for token in analysis.tokens if token.piece is not None]] = True
    left = leaving(points, counts, choice.num_rows)
    often = None if counts is None else often_read(left, texts)
    return TokenPaths(
        run=run,
        choice=choice,
        analysis=analysis,
        points=tuple(points),
        exposures=exposures,
        origins=origins,
        counted=counted,
        rows=path_rows(choice, analysis, points[-1], exposures, counts, origins, left, often),
        often=often,
        agreement=_agreement(points[-1], counts, texts),
        num_bytes=num_bytes,
        messages=messages + tuple(_doubts(points, counts, texts)),
    )


def _doubts(points: Sequence[PathPoint], counts: np.ndarray | None, texts: np.ndarray) -> list[str]:
    """Checkpoints at which the cluster says little or nothing."""
    last, found = points[-1], []
    if steps := [str(point.step) for point in points if point.cluster.limit is None]:
        where = ", ".join(steps)
        found.append(f"no gap tells untrained rows from others at checkpoint {where}: untrained is null there")
    read = texts if counts is None else texts & (counts[-1] >= HARDLY)
    if last.inside is not None and 2 * (num_inside := int(last.inside[read].sum())) >= (total := int(read.sum())) > 0:
        which = "" if counts is None else f"that were read {HARDLY} times or more "
        found.append(
            f"at checkpoint {last.step} {num_inside:,} of {total:,} tokens {which}cannot be told from unused ones by "
            "the indicator: training was too short for it, or it tells little here; another can be named with "
            "--indicator"
        )
    return found


def _agreement(last: PathPoint, counts: np.ndarray | None, texts: np.ndarray) -> Agreement | None:
    if counts is None or last.inside is None:
        return None
    inside, unread = last.inside & texts, (counts[-1] == 0) & texts
    others = counts[-1][inside & ~unread]
    return Agreement(
        inside=int(inside.sum()),
        unread=int(unread.sum()),
        both=int((inside & unread).sum()),
        others_read=(float(np.median(others)), int(others.max())) if len(others) else None,
    )
