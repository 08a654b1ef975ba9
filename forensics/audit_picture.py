"""The picture of an audit: what was checked of each checkpoint, and how far each is from the one before."""

from __future__ import annotations

from collections.abc import Sequence

from forensics.audit_rows import WORST_FIRST, Row, steps_of
from forensics.figure import Figure, Matrix, Panel, Series, State
from forensics.listing_gaps import gaps_of

STATES = (
    State(name="ok", colour="#009E73", symbol="·"),
    State(name="failed", colour="#D55E00", symbol="×"),
    State(name="expected", colour="#56B4E9", symbol="="),
    State(name="not known", colour="#F0E442", symbol="?"),
    State(name="absent", colour="#BBBBBB", symbol="–"),
)
# The matrix' rows: a name, and the checks that it sums up.
CHECKS = {
    "files are there": ("available", "present", "states", "known issue", "listed", "gaps", "final"),
    "sizes": ("size",),
    "opens and reads": ("reads", "opens", "pieces", "tensors", "data"),
    "says its step": ("step", "optimizer step", "revision"),
    "content as stated or first seen": ("hash", "content", "blocks"),
    "numbers": ("numbers", "elements", "dtype"),
    "unlike other checkpoints": ("equal bytes",),
    "in its place": ("continuity",),
    "evaluations": ("agree",),
    "index and order": ("readings", "trust", "computed"),
    "tokenizer": ("round trip", "vocabulary", "largest id"),
}
FILES, UNLIKE, PLACE = "files are there", "unlike other checkpoints", "in its place"
RUN = "run"

Curve = Sequence[tuple[int, int, float]]


def picture(run: str, steps: Sequence[int], rows: Sequence[Row], curve: Curve) -> Figure:
    """A matrix of checks by checkpoints, and below it the distances of neighbours.

    Args:
        steps: of the checkpoints that are listed; a gap between them gets one column.
        curve: (step, next step, distance).
    """
    columns = _columns(steps)
    at = {step: number for number, (_, step) in enumerate(columns) if step is not None}
    names = [name for name, checks in CHECKS.items() if any(found["check"] in checks for found in rows)]
    table = {name: [_Cell() for _ in columns] for name in names}
    by_check = {check: name for name, checks in CHECKS.items() for check in checks}
    for found in rows:
        name = by_check.get(found["check"])
        places = [at[step] for step in steps_of(found) if step in at] if found["check"] != "gaps" else []
        for place in places or [0]:
            if name is not None:
                table[name][place].add(found)
    _fill(table, columns, curve, at)
    failed = sum(found["result"] == "failed" for found in rows)
    matrix = Matrix(
        title="What was checked",
        rows=names,
        cells=[[cell.state for cell in table[name]] for name in names],
        details=[[cell.detail for cell in table[name]] for name in names],
        states=STATES,
    )
    odd = {step for found in rows if found["result"] == "failed" for step in steps_of(found) if step in at}
    panels: list[Panel | Matrix] = [matrix]
    if any(size > 0 for _, _, size in curve):
        panels.append(_distances(curve, at, rows))
    return Figure(
        title=f"Audit of {run}: {f'{failed} checks failed' if failed else 'nothing failed'}",
        x_label="checkpoint (step)",
        panels=panels,
        x_names=[name for name, _ in columns],
        x_always=sorted(at[step] for step in odd),
    )


class _Cell:
    """The worst of some checks, and why."""

    def __init__(self, state: str = "") -> None:
        self.state, self.detail = state, ""

    def add(self, found: Row) -> None:
        order = [*WORST_FIRST, ""]
        if order.index(found["result"]) < order.index(self.state):
            self.state, self.detail = found["result"], f"{found['artifact']}: {found['detail']}"


def _columns(steps: Sequence[int]) -> list[tuple[str, int | None]]:
    """(name, step): one for the run as a whole, one for each checkpoint, one for each gap."""
    columns: list[tuple[str, int | None]] = [(RUN, None)]
    gaps = {first: last for first, last in gaps_of(steps)[1]}
    interval = gaps_of(steps)[0] or 0
    for step in steps:
        columns.append((str(step), step))
        if step + interval in gaps:
            first, last = step + interval, gaps[step + interval]
            columns.append((f"{first}..{last}" if last > first else f"{first}", None))
    return columns


def _fill(
    table: dict[str, list[_Cell]], columns: Sequence[tuple[str, int | None]], curve: Curve, at: dict[int, int]
) -> None:
    """What no row says: gaps are absent, and a checkpoint that was compared and not named is like no other."""
    for place, (_, step) in enumerate(columns):
        if step is None and place and FILES in table:
            table[FILES][place].state = "absent"
    for step in {step for one, other, _ in curve for step in (one, other)}:
        if UNLIKE in table and not table[UNLIKE][at[step]].state:
            table[UNLIKE][at[step]].state = "ok"


def _distances(curve: Curve, at: dict[int, int], rows: Sequence[Row]) -> Panel:
    odd = {
        step
        for found in rows
        if found["result"] == "failed" and found["check"] in ("continuity", "equal bytes", "numbers")
        for step in steps_of(found)
    }
    least = min(size for _, _, size in curve if size > 0)
    middle = [(at[one] + at[other]) / 2 for one, other, _ in curve]
    series = [
        Series(
            name="distance",
            x=middle,
            y=[size or None for _, _, size in curve],
        )
    ]
    touched = [n for n, (one, other, size) in enumerate(curve) if size and {one, other} & odd]
    if touched:
        flagged = Series(
            name="beside a failure",
            x=[middle[n] for n in touched],
            y=[curve[n][2] for n in touched],
            style="points",
            colour=1,
        )
        series.append(flagged)
    equal = [n for n, (_, _, size) in enumerate(curve) if not size]
    if equal:
        at_zero = [least / 3] * len(equal)
        series.append(Series(name="equal (0)", x=[middle[n] for n in equal], y=at_zero, style="points", colour=4))
    return Panel(
        title="Distance from the checkpoint before (root mean square over sampled weights)",
        y_label="distance",
        series=series,
        log_y=True,
    )
