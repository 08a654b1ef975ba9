"""All that is kept of one token of a run: what was found, how often it was read, its path, what it was read in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_index.errors import InvalidRange
from data_index.run import Run
from data_index.text import load_tokenizer
from data_index.token_queries import exposures_of_token, origin_of_token, path_of_token, rows_of_token
from data_index.workspace import Workspace
from forensics.figure import BLUE, GREY, Figure, Panel, Series
from forensics.kept_token_paths import cluster_limits

Row = Mapping[str, Any]
NO_EXPOSURE = 0.5  # where none is drawn, on an axis that has no 0
_INCHES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPage:
    """
    Attributes:
        text: None: no token of this id is known. piece: as the tokenizer writes it; None: none is known.
        found: rows of the view `tokens`, one a checkpoint, in step order.
        exposures: step, as_input, as_target, first_step, last_step of each record, in step order.
        path: step, indicator_name, indicator, distance_to_unused, untrained of each checkpoint; `limits`: step -> where
            the cluster of untrained rows ends.
        documents: ids of the first ones that it was read in. tags: (tag, readings) of all its readings, most first.
        traced: both were looked for.
        counted_from: the checkpoint that a fork begins at; None: the run is none.
    """

    run: str
    token_id: int
    text: str | None
    piece: str | None
    found: tuple[Row, ...]
    exposures: tuple[Row, ...]
    path: tuple[Row, ...]
    limits: Mapping[int, float]
    documents: tuple[int, ...] = ()
    tags: tuple[tuple[str, int], ...] = ()
    traced: bool = False
    counted_from: int | None = None

    @property
    def note(self) -> str:
        """What has to be known to read its picture."""
        parts = ["Low indicators are suspicious."]
        parts += ["Inside the cluster: untrained."] if self.limits else []
        parts += [counted_from(self.counted_from)] if self.exposures else []
        return " ".join(filter(None, parts))


def counted_from(step: int | None) -> str:
    """Of a fork, counts are its own."""
    return "" if step is None else f"Readings are counted from checkpoint {step} on, where the fork begins."


def token_page(run: str, token_id: int, *, workspace: Workspace | None = None) -> TokenPage:
    """
    Raises:
        UnknownRun, CorruptFile
        InvalidRange: the run has no such id, as far as anything is known of its tokens.
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    found, path = rows_of_token(workspace, record, token_id), path_of_token(workspace, record, token_id)
    text = found[-1]["text"] if found else None
    piece, decoded = _of_tokenizer(record, token_id)
    text = decoded if text is None else text
    if not found and not path and text is None:
        raise InvalidRange(f"nothing is known of a token {token_id} of {run} (forensics tokens {run} ranks them all)")
    origin = origin_of_token(workspace, record, token_id)
    return TokenPage(
        run=run,
        token_id=token_id,
        text=text,
        piece=piece,
        found=tuple(found),
        exposures=tuple(exposures_of_token(workspace, record, token_id)),
        path=tuple(path),
        limits=cluster_limits(workspace, record) if path else {},
        documents=tuple(origin["document_ids"] or ()) if origin else (),
        tags=tuple(zip(origin["tags"] or (), origin["tag_counts"] or (), strict=True)) if origin else (),
        traced=bool(workspace.learned_files(workspace.home(run), "token_origins")),
        counted_from=record.parent[1] if record.parent else None,
    )


def _of_tokenizer(run: Run, token_id: int) -> tuple[str | None, str | None]:
    """Its piece and its text; None: no tokenizer is known, or it has no such id."""
    if run.tokenizer is None:
        return None, None
    tokenizer = load_tokenizer(run)
    piece = tokenizer.id_to_token(token_id)
    return piece, None if piece is None else tokenizer.decode([token_id], skip_special_tokens=False)


def token_figure(found: TokenPage) -> Figure | None:
    """Its indicator and its exposures over steps, and the one against the other; None: neither is kept."""
    panels = [panel for panel in (_path(found), _exposures(found), _both(found)) if panel is not None]
    if not panels:
        return None
    return Figure(
        title=f"token {found.token_id} of {found.run}",
        x_label="",
        panels=panels,
        shared_x=False,
        note=found.note,
    )


def _path(found: TokenPage) -> Panel | None:
    rows = [row for row in found.path if row["indicator"] is not None]
    if not rows:
        return None
    steps = [row["step"] for row in rows]
    series = [Series(name="this token", x=steps, y=[row["indicator"] for row in rows], colour=BLUE)]
    if found.limits:
        limits = [found.limits.get(step) for step in steps]
        series.append(Series(name="limit of the untrained cluster", x=steps, y=limits, style="dashed", colour=GREY))
    return Panel(
        title="indicator at each checkpoint",
        y_label=rows[-1]["indicator_name"],
        x_label="step",
        series=series,
        inches=_INCHES,
    )


def _exposures(found: TokenPage) -> Panel | None:
    if not found.exposures:
        return None
    steps = [row["step"] for row in found.exposures]
    names = {"as_input": "as input", "as_target": "as target"}
    series = [
        Series(
            name=name,
            x=steps,
            y=[row[column] for row in found.exposures],
            style="line" if column == "as_input" else "dashed",
            colour=number,
        )
        for number, (column, name) in enumerate(names.items())
    ]
    most = max(max(row["as_input"], row["as_target"]) for row in found.exposures)
    return Panel(
        title="exposures so far", y_label="times", x_label="step", series=series, top=1.08 * most or 1, inches=_INCHES
    )


def _both(found: TokenPage) -> Panel | None:
    """Checkpoints of which both are known."""
    counts = {row["step"]: max(row["as_input"], row["as_target"]) for row in found.exposures}
    points = [
        (counts[row["step"]], row) for row in found.path if row["step"] in counts and row["indicator"] is not None
    ]
    if len({count for count, _ in points}) < 2:
        return None
    line = Series(
        name="this token",
        x=[max(count, NO_EXPOSURE) for count, _ in points],
        y=[row["indicator"] for _, row in points],
        colour=BLUE,
        thin=True,
    )
    return Panel(
        title="its path: exposures against the indicator",
        y_label=points[-1][1]["indicator_name"],
        x_label="exposures so far, as input or as target",
        series=[line],
        log_x=True,
        inches=_INCHES,
    )


def shown_tags(found: TokenPage, most: int) -> Sequence[dict[str, Any]]:
    return [{"tag": tag, "readings": readings} for tag, readings in found.tags[:most]]


def numbers_at_checkpoints(found: TokenPage) -> list[dict[str, Any]]:
    """One row for each checkpoint of which anything is kept."""
    rows: dict[int, dict[str, Any]] = {}
    names = ("step", "indicator", "distance_to_unused", "untrained", "as_input", "as_target")
    for kept in (*found.path, *found.exposures):
        rows.setdefault(kept["step"], {"step": kept["step"]}).update(
            {name: kept[name] for name in names if name in kept}
        )
    return [{name: rows[step].get(name) for name in names} for step in sorted(rows)]
