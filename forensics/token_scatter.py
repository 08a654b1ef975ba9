"""Tokens by two numbers of what is kept of them: indicator, rank, exposures, what prompting found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_index.errors import InvalidRange
from data_index.run import Run
from data_index.token_queries import (
    counted_steps,
    exposure_arrays,
    texts_of_tokens,
    token_arrays,
    token_checkpoints,
)
from data_index.workspace import Workspace
from forensics.chosen_points import MOST_POINTS, chosen_points
from forensics.figure import BLACK, GREY, Figure, Panel, Series
from forensics.step_text import readable_text
from forensics.token_page import counted_from

INDICATOR, RANK, AS_INPUT, AS_TARGET = "indicator", "rank", "exposures as input", "exposures as target"
PROBABILITY, AT = "highest probability", "indicator at "  # and a step
# What a point is drawn as: the first that holds.
REPEATED, UNUSED, CANDIDATE, ORDINARY, OTHERS = (
    "cannot be repeated",
    "known unused",
    "candidates",
    "ordinary tokens",
    "bytes, specials, parts",
)
_COLOURS = {OTHERS: 4, ORDINARY: 5, UNUSED: BLACK, CANDIDATE: 3, REPEATED: 1}  # drawn in this order
NO_EXPOSURE, LEAST_PROBABILITY = 0.5, 1e-9  # where 0 is drawn, on axes that have none
_DECADES = 20.0
_CHARACTERS = 40  # of a token under the mouse


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScatter:
    """
    Attributes:
        x, y: names of the axes.
        points: by kind (`_COLOURS`), (token id, text, x, y) of those that are drawn.
        num_tokens: that have both numbers; num_drawn of them are drawn.
        num_covered: flagged ones (of what a point is drawn as, the first three) that another one covers.
        cuts: (name, value of the main indicator).
        counted_from: the checkpoint that a fork begins at; None: the run is none.
    """

    run: str
    step: int
    indicator: str
    x: str
    y: str
    points: dict[str, list[tuple[int, str, float, float]]]
    num_tokens: int
    num_drawn: int
    num_covered: int
    cuts: tuple[tuple[str, float], ...]
    counted_from: int | None = None


def axes(workspace: Workspace, run: Run, step: int) -> list[str]:
    """What the tokens of a checkpoint can be drawn against, as far as it is kept."""
    kept = token_checkpoints(workspace, run)
    here = next(row for row in kept if row["step"] == step)
    counted = any(counted <= step for counted in counted_steps(workspace, run))
    found = [INDICATOR, RANK, *([AS_TARGET, AS_INPUT] if counted else [])]
    found += [PROBABILITY] if here["num_prompted"] else []
    return found + [f"{AT}{row['step']}" for row in kept if row["step"] != step]


def scatter(
    run: str, step: int, x: str, y: str, *, most: int = MOST_POINTS, workspace: Workspace | None = None
) -> TokenScatter:
    """
    Args:
        x, y: of `axes`.
        most: about so many points; all candidates, known-unused and prompted tokens and all extremes are among them.
    Raises:
        UnknownRun, CorruptFile
        InvalidRange: no tokens of that checkpoint are kept, or nothing of that name.
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    about = next((row for row in token_checkpoints(workspace, record) if row["step"] == step), None)
    if about is None:
        raise InvalidRange(
            f"no tokens of checkpoint {step} of {run} are kept (forensics tokens {run} --checkpoint {step} finds them)"
        )
    if missing := [name for name in (x, y) if name not in axes(workspace, record, step)]:
        raise InvalidRange(
            f"{missing[0]!r} of the tokens of {run} is not kept; there are {_all(workspace, record, step)}"
        )
    columns = token_arrays(workspace, record, step)
    values = [_values(workspace, record, step, name, columns) for name in (x, y)]
    kinds = _kinds(columns)
    drawn = [np.log10(v) if is_log(name, v) else v for name, v in zip((x, y), values, strict=True)]
    marked = ~np.isin(kinds, [ORDINARY, OTHERS]) | np.asarray(columns["prompted"], dtype=bool)
    kept = chosen_points(drawn[0], drawn[1], marked, most)
    ids = np.asarray(columns["token_id"])[kept].tolist()
    texts = texts_of_tokens(workspace, record, step, ids)
    finite = np.isfinite(drawn[0]) & np.isfinite(drawn[1])
    points: dict[str, list[tuple[int, str, float, float]]] = {}
    for token, kind, one, two in zip(ids, kinds[kept].tolist(), *(v[kept].tolist() for v in values), strict=True):
        points.setdefault(kind, []).append((token, _short(texts.get(token)), one, two))
    cuts = (("gap", about["gap"]), ("2 %", about["two_percent"]))
    return TokenScatter(
        run=run,
        step=step,
        indicator=about["indicator_name"],
        x=x,
        y=y,
        points={kind: points[kind] for kind in _COLOURS if kind in points},
        num_tokens=int(finite.sum()),
        num_drawn=len(kept),
        num_covered=int((finite & marked).sum() - marked[kept].sum()),
        cuts=tuple((name, float(cut)) for name, cut in cuts if cut is not None),
        counted_from=record.parent[1] if record.parent else None,
    )


def _all(workspace: Workspace, run: Run, step: int) -> str:
    return ", ".join(axes(workspace, run, step))


def _short(text: str | None) -> str:
    shown = "" if text is None else readable_text(text).replace("\n", "\\n")
    return shown[:_CHARACTERS] + ("…" if len(shown) > _CHARACTERS else "")


def _kinds(columns: dict[str, Any]) -> np.ndarray:
    """What each row is drawn as."""
    verified, unused, candidate, ordinary = (
        np.asarray(columns[name], dtype=bool) for name in ("verified", "in_unused_set", "candidate", "ordinary")
    )
    names = np.array([REPEATED, UNUSED, CANDIDATE, ORDINARY, OTHERS], dtype=object)
    return names[np.select([verified, unused, candidate, ordinary], [0, 1, 2, 3], 4)]


def _values(workspace: Workspace, run: Run, step: int, name: str, columns: dict[str, Any]) -> np.ndarray:
    """One number of each row, NaN where there is none; 0 where it can be drawn."""
    ids = np.asarray(columns["token_id"])
    if name in (AS_INPUT, AS_TARGET):
        counts = _counts(workspace, run, step, "as_input" if name == AS_INPUT else "as_target", ids)
        return np.maximum(counts, NO_EXPOSURE)
    if name == PROBABILITY:
        return np.maximum(np.ma.filled(columns["max_probability"].astype(float), np.nan), LEAST_PROBABILITY)
    if name.startswith(AT):
        other = token_arrays(workspace, run, int(name.removeprefix(AT)))
        return _looked_up(ids, other["token_id"], np.ma.filled(other["indicator"].astype(float), np.nan))
    return np.asarray(np.ma.filled(columns[name].astype(float), np.nan))


def _counts(workspace: Workspace, run: Run, step: int, column: str, ids: np.ndarray) -> np.ndarray:
    """Up to the last record that is not after the checkpoint."""
    record = max(counted for counted in counted_steps(workspace, run) if counted <= step)
    found = exposure_arrays(workspace, run, [record])
    counts = _looked_up(ids, found["token_id"], np.ma.filled(found[column].astype(float), 0.0))
    return np.nan_to_num(counts, nan=0.0)


def _looked_up(ids: np.ndarray, there: Any, values: np.ndarray) -> np.ndarray:
    """The value of each id, NaN where it has none."""
    known = np.asarray(there)
    order = np.argsort(known)
    if not len(known):
        return np.full(len(ids), np.nan)
    place = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)]
    return np.where(known[place] == ids, values[place], np.nan)


# --- its picture -----------------------------------------------------------------------------------------------------


def is_log(name: str, values: np.ndarray) -> bool:
    """Counts, ranks and probabilities are drawn on logarithmic axes; indicators where they span decades."""
    if not (name.startswith(INDICATOR)):
        return True
    finite = values[np.isfinite(values)]
    return bool(len(finite) and 0 < finite.min() and finite.max() > _DECADES * finite.min())


def scatter_figure(found: TokenScatter) -> Figure:
    every = [point for points in found.points.values() for point in points]
    xs, ys = (np.array([point[place] for point in every]) for place in (2, 3))
    series = [
        Series(
            name=f"{kind} ({len(points):,})",
            x=[point[2] for point in points],
            y=[point[3] for point in points],
            style="points",
            colour=_COLOURS[kind],
            about=[(token, text) for token, text, _, _ in points],
        )
        for kind, points in found.points.items()
    ]
    if found.y == INDICATOR and every:
        ends = [float(xs.min()), float(xs.max())]
        series += [Series(name=name, x=ends, y=[cut, cut], style="dashed", colour=GREY) for name, cut in found.cuts]
    panel = Panel(
        title=f"{found.num_drawn:,} of {found.num_tokens:,} tokens, checkpoint {found.step}",
        y_label=_label(found, found.y),
        x_label=_label(found, found.x),
        series=series,
        log_x=is_log(found.x, xs),
        log_y=is_log(found.y, ys),
        marks=[*_marks(found)],
        inches=4.2,
    )
    return Figure(title=f"tokens of {found.run}", x_label="", panels=[panel], shared_x=False, note=_note(found))


def _label(found: TokenScatter, name: str) -> str:
    return f"{name}: {found.indicator}" if name == INDICATOR else name


def _marks(found: TokenScatter) -> Sequence[tuple[float, str]]:
    if found.x == INDICATOR:
        return [(cut, name) for name, cut in found.cuts]
    return [(NO_EXPOSURE, "none")] if found.x in (AS_INPUT, AS_TARGET) else []


def _note(found: TokenScatter) -> str:
    parts = ["Low indicators are suspicious."]
    if found.num_drawn < found.num_tokens:
        covered = f" but {found.num_covered:,} that others cover" if found.num_covered else ""
        parts.append(
            f"All candidates, known-unused and prompted tokens{covered}, and all extremes are drawn, of others some."
        )
    if {found.x, found.y} & {AS_INPUT, AS_TARGET}:
        parts += ["A token without an exposure is drawn at 0.5.", counted_from(found.counted_from)]
    return " ".join(filter(None, parts))
