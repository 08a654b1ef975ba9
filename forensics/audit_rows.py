"""Rows of an audit: one for each thing that was checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from data_index.artifacts import today

Row = dict[str, Any]
Result = Literal["ok", "failed", "expected", "not known"]
# From the worst on: what a cell of several checks shows.
WORST_FIRST: tuple[Result, ...] = ("failed", "not known", "expected", "ok")
COLUMNS = ["artifact", "step", "check", "result", "detail", "num_bytes", "checked_at"]


def row(
    artifact: str,
    check: str,
    result: Result,
    detail: str = "",
    *,
    step: int | None = None,
    num_bytes: int | None = None,
    checked_at: str | None = None,
    steps: Sequence[int] = (),
) -> Row:
    """
    Args:
        artifact: what was looked at: a file, a checkpoint, the order.
        steps: of a finding about several checkpoints, all of them; `step` is then the first.
    """
    return {
        "artifact": artifact,
        "step": steps[0] if steps and step is None else step,
        "check": check,
        "result": result,
        "detail": detail,
        "num_bytes": num_bytes,
        "checked_at": checked_at or today(),
        "steps": list(steps),
    }


def judged(artifact: str, check: str, error: str | None, *, ok: str = "", **more: Any) -> Row:
    """A check that either holds or does not, and then says why."""
    return row(artifact, check, "ok" if error is None else "failed", ok if error is None else error, **more)


def unique_rows(rows: Sequence[Row]) -> list[Row]:
    """Each finding once, however many ways led to it."""
    return list({(r["artifact"], r["step"], r["check"], r["result"], r["detail"]): r for r in rows}.values())


def steps_of(found: Row) -> list[int]:
    """The checkpoints that a row is about."""
    return found["steps"] or ([found["step"]] if found["step"] is not None else [])


def named_steps(steps: Sequence[int]) -> str:
    """`step 10`, `steps 1 and 2`, `steps 1, 2, 4 … 63000`."""
    texts = [str(step) for step in steps]
    if len(texts) == 1:
        return f"step {texts[0]}"
    if len(texts) > 8:
        return f"steps {', '.join(texts[:3])} … {texts[-1]} ({len(texts)} of them)"
    return f"steps {', '.join(texts[:-1])} and {texts[-1]}"
