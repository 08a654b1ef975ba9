"""`import`: what a training loop logged, and what was evaluated of its checkpoints, put beside a run.

Files that are named together are one log, in their order: where it goes back to an earlier step (a restart), the steps
taken again are attempts 2, 3, …, whichever file they are in. Files that tell of the same training in two ways are
imported one after another: each import numbers its attempts on its own, and every row names its source. What the
trainer recorded itself (`add`) has no source, and counts wherever a question needs one value.

An import that holds everything of an earlier one takes its place: a log that grew is imported again. Of a run whose
weights and data are not at hand, an import can make a run that holds nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import CorruptFile, ForensicsError, InvalidRange, UnknownLayout
from data_index.evaluations import Evaluation, read_evaluations, read_tokens
from data_index.files import exclusive_lock
from data_index.kinds import KINDS, table_of_rows
from data_index.logs import LM_EVAL, read_log, recognise, require_format
from data_index.run import Run
from data_index.workspace import Workspace, learn
from forensics.records_run import new_record, register_records, registered

if TYPE_CHECKING:
    from data_index.logs.points import Points

Progress = Callable[[str], None]
Row = Mapping[str, Any]
COLUMNS = (
    *("kind", "name", "original_name", "points", "first_step", "last_step", "attempts", "nan", "lowest", "highest"),
    "sources",
)
NAMED_IN_MESSAGES = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImportedMetrics:
    """What an import found.

    Attributes:
        rows: one a metric: COLUMNS. NaN is counted, and is neither lowest nor highest.
        messages: what was left out, cut off, or says something else than what was there.
        kinds: that were written; a plan, and an import of what is there already, write none.
    """

    run: str
    rows: tuple[Row, ...]
    messages: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def num_points(self) -> int:
        return sum(row["points"] for row in self.rows)


def import_metrics(
    run: str,
    *files: Path | str,
    format: str | None = None,
    step_field: str | None = None,
    step_offset: int = 0,
    only: Mapping[str, str] | None = None,
    new: bool = False,
    replace: bool = False,
    plan: bool = False,
    workspace: Workspace | None = None,
    progress: Progress = lambda message: None,
) -> ImportedMetrics:
    """Put logs and evaluations beside a run, every point as it is.

    Args:
        files: together one log, in the order of time; a folder for TensorBoard, W&B and lm-eval.
        format: one of data_index.logs.FORMATS; default: as the content of each file says.
        step_field: what the logs call their step; default: one of the usual names.
        step_offset: what is added to the logs' steps. Step s is the s-th optimizer step, from 1.
        only: field -> text: only records where it reads so, of files that hold several runs.
        new: the run is not registered, and what the files say is all that there will be of it.
        replace: in place of everything imported before; what the trainer recorded itself stays.
        plan: read, and write nothing.
    Raises:
        UnknownRun, MissingFile, UnsafeFile, CorruptFile, UnknownLayout, Busy, DiskFull
        RunExists: one of that name is registered, and a new one was asked for.
        InvalidRange: no file, or an offset that makes a step negative.
    """
    workspace = workspace or Workspace()
    if not files:
        raise InvalidRange("import takes one file or more")
    places = [Path(file) for file in files]
    record = new_record(workspace, run, places[0]) if new else registered(workspace, run)
    formats = {place: require_format(format) if format else recognise(place, step_field) for place in places}
    logs = {place: of for place, of in formats.items() if of != LM_EVAL}
    evaluated = [place for place, of in formats.items() if of == LM_EVAL]
    found: list[tuple[str, Any, list[Row]]] = []
    messages: list[str] = []
    points = _read_logs(logs, step_field, step_offset, only or {}, messages, progress)
    if evaluated:
        found.append(("evaluations", *_read_evaluations(evaluated, messages)))
        points.series.extend(stated for place in evaluated for stated in _stated_tokens(place))
    if points.series:
        found.insert(0, ("metrics", *_as_table(points, record, messages)))
    written: list[str] = []
    if new and not plan:
        written = register_records(workspace, record, {kind: table for kind, table, _ in found})
    elif not plan:
        home = workspace.home(run)
        with exclusive_lock(home.with_name(f".{home.name}.lock"), f"importing into {run}"):
            for kind, table, _ in found:
                if _put_in_force(workspace, home, kind, table, replace, messages):
                    written.append(kind)
    return ImportedMetrics(
        run=run,
        rows=tuple({"kind": kind, **row} for kind, _, rows in found for row in rows),
        messages=tuple(messages),
        kinds=tuple(written),
    )


def table_of_logs(
    *files: Path | str,
    format: str | None = None,
    step_field: str | None = None,
    only: Mapping[str, str] | None = None,
    messages: list[str],
) -> Any:
    """What `import` would write of logs that belong to no run: an Arrow table of the kind `metrics`.

    Raises:
        MissingFile, UnsafeFile, CorruptFile, UnknownLayout
    """
    from data_index.logs.table import metrics_table

    places = [Path(file) for file in files]
    formats = {place: require_format(format) if format else recognise(place, step_field) for place in places}
    for place, of in formats.items():
        if of == LM_EVAL:
            raise UnknownLayout(f"{place} holds evaluations of checkpoints, and no log of training steps")
    logs = _read_logs(formats, step_field, 0, only or {}, messages, lambda message: None)
    return metrics_table(logs.series, unclear=logs.unclear)


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Logs:
    """Points of logs by source, in the order of the logs, and names that must not become canonical ones."""

    series: list[tuple[str, Sequence[Points]]]
    unclear: set[str]


def _read_logs(
    logs: Mapping[Path, str],
    step_field: str | None,
    step_offset: int,
    only: Mapping[str, str],
    messages: list[str],
    progress: Progress,
) -> _Logs:
    """
    Raises:
        MissingFile, UnsafeFile
        CorruptFile: a log cannot be read, or holds nothing that is wanted.
    """
    from data_index.logs.points import Notes, Wanted

    names = [place.name for place in logs]
    found = _Logs([], set())
    for place, format in logs.items():
        progress(f"reading {place} ({format})")
        notes = Notes()
        wanted = Wanted(step_field=step_field, only=only)
        try:
            points = [part.moved(step_offset) for part in read_log(place, format, wanted, notes)]
        except ForensicsError as error:
            raise error if str(place) in str(error) else type(error)(f"{place}: {error}") from error
        if not points:
            raise CorruptFile(f"{place} holds no point: no number beside a step{' that is wanted' if only else ''}")
        found.series.append((place.name if names.count(place.name) == 1 else str(place), points))
        found.unclear.update(notes.unclear)
        messages += notes.messages
        messages += _told(place, notes.step_field, notes.left_out)
    return found


def _as_table(logs: _Logs, run: Run, messages: list[str]) -> tuple[Any, list[Row]]:
    from data_index.logs.table import metrics_table, summary_rows

    table = metrics_table(logs.series, unclear=logs.unclear)
    _compare_with_run(table, run, messages)
    return table, list(summary_rows(table))


def _told(place: Path, step_field: str | None, left_out: Mapping[str, int]) -> Iterator[str]:
    yield f"{place}: its step is {step_field}"
    if left_out:
        named = [f"{name} ({count:,})" for name, count in sorted(left_out.items(), key=lambda item: -item[1])]
        more = ", …" if len(named) > NAMED_IN_MESSAGES else ""
        yield (
            f"{place}: {sum(left_out.values()):,} values that are no numbers are left out: "
            f"{', '.join(named[:NAMED_IN_MESSAGES])}{more}"
        )


def _compare_with_run(table: Any, run: Run, messages: list[str]) -> None:
    """
    Raises:
        InvalidRange: a negative step.
    """
    steps = table.column("step").to_numpy()
    if steps.min() < 0:
        raise InvalidRange(f"with this offset the first step would be {steps.min()}; steps count from 1")
    if steps.min() == 0:
        messages.append(
            "step 0 is there, which is before the first step: right for what was measured at the start; if the log "
            "counts its steps from 0, import it with --step-offset 1"
        )
    if run.segments and steps.max() > run.last_step:
        messages.append(
            f"{(steps > run.last_step).sum():,} points are after the last step of {run.name}, {run.last_step}: is this "
            "log of another run?"
        )


def _read_evaluations(places: Sequence[Path], messages: list[str]) -> tuple[Any, list[Row]]:
    """
    Raises:
        MissingFile
        CorruptFile: a file that was named is no result file.
    """
    found = read_evaluations(*places)
    names = {row.source for row in found.rows}
    for name, problem in found.problems:
        if name not in names and any(place.name == name for place in places):
            raise CorruptFile(problem)
        messages.append(problem)
    rows = [{name: getattr(row, name) for name in KINDS["evaluations"]} for row in found.rows]
    return table_of_rows("evaluations", rows, places[0]), list(_evaluation_rows(found.rows))


def _stated_tokens(place: Path) -> Iterator[tuple[str, Sequence[Points]]]:
    """How many tokens the checkpoints of whole trajectories had been trained on, as their files state."""
    from data_index.logs.points import gathered

    for path in sorted(place.rglob("*.json")) if place.is_dir() else [place]:
        try:
            stated = read_tokens(path)
        except ForensicsError:
            continue  # the file was said to be wrong when its evaluations were read
        if stated:
            yield path.name, list(gathered((step, [("tokens", count)]) for step, count in stated))


def _evaluation_rows(evaluations: Sequence[Evaluation]) -> Iterator[Row]:
    by_metric: dict[str, list[Evaluation]] = {}
    for one in evaluations:
        by_metric.setdefault(f"{one.task}/{one.metric}", []).append(one)
    for name, points in sorted(by_metric.items()):
        numbers = [point.value for point in points if point.value == point.value]
        yield {
            "name": name,
            "original_name": name,
            "points": len(points),
            "first_step": min(point.step for point in points),
            "last_step": max(point.step for point in points),
            "attempts": 1,
            "nan": len(points) - len(numbers),
            "lowest": min(numbers, default=None),
            "highest": max(numbers, default=None),
            "sources": sorted({point.source for point in points}),
        }


# --- writing ---------------------------------------------------------------------------------------------------------


def _put_in_force(workspace: Workspace, home: Path, kind: str, table: Any, replace: bool, messages: list[str]) -> bool:
    """Write a table, in place of what it holds all of; returns False where an earlier import holds all of it."""
    from data_index.metric_queries import rows_only_in, rows_that_differ

    there = workspace.learned_files(home, kind)
    earlier = [path for path in there if kind != "metrics" or is_import(path)]
    gone = earlier if replace else [path for path in earlier if not rows_only_in(kind, path, table)]
    if not replace and any(not rows_only_in(kind, table, path) for path in earlier):
        messages.append(f"all {table.num_rows:,} {kind} are there already; nothing was written")
        return False
    for path in there:
        if path not in gone and (differing := rows_that_differ(kind, table, path))[0]:
            messages.append(_difference(kind, path, *differing))
    learn(home, kind, table, replace_kind=False, in_place_of=gone)
    return True


def is_import(path: Path) -> bool:
    """Does a table of metrics come from a log, rather than from the trainer's own record?"""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        if "source" not in file.schema_arrow.names:
            return False
        first = next(file.iter_batches(1, columns=["source"]), None)
    return first is not None and first.num_rows > 0 and first.column(0)[0].is_valid


def _difference(kind: str, path: Path, count: int, first: tuple[Any, ...]) -> str:
    *keys, value, other = first
    whose = "an earlier import" if kind != "metrics" or is_import(path) else "the trainer's own record"
    counts = "" if whose == "an earlier import" else "; the trainer's own counts where one value is needed"
    return (
        f"{count:,} {kind} differ from {whose}, for example {' '.join(map(str, keys))}: {value:.9g} here, {other:.9g} "
        f"there. Both are kept{counts}"
    )
