"""Two checkpoints side by side, as far as what is kept of them allows: nothing is measured.

Numbers of two checkpoints are only put beside each other where they were measured under the same settings, which name
the rows by their hash. What is missing, `probe --against` measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_index.probe_queries import measured_at
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.side_by_side import SideBySide
from forensics.trajectory_names import natural_order

Row = Mapping[str, Any]
_NAMED = 4  # probes in a message


def kept_sides(
    run: str, step: int, other: str, other_step: int, *, probes: Sequence[str] = (), workspace: Workspace | None = None
) -> SideBySide:
    """What was measured of two checkpoints, of the same run or of two; rows without a partner are told, not shown.

    Args:
        probes: only these; default: all of which both have a number.
    Raises:
        UnknownRun, CorruptFile
    """
    workspace = workspace or Workspace()
    records = [workspace.run(run), workspace.run(other)]
    sides = [measured_at(workspace, record, at) for record, at in zip(records, (step, other_step), strict=True)]
    one, two = ({(row["probe"], row["metric"]): row for row in side} for side in sides)
    both = [key for key in one if key in two and (not probes or key[0] in probes)]
    wanted = sorted(both, key=lambda key: (key[0], natural_order(key[1])))
    comparable = [key for key in wanted if one[key]["settings"] == two[key]["settings"]]
    labels = [f"{run}@{step}", f"{other}@{other_step}"]
    return SideBySide(
        one=labels[0],
        other=labels[1],
        rows=tuple(_row(one[key], two[key]) for key in comparable),
        messages=tuple(_told(records, labels, (one, two), wanted, comparable, probes)),
        problems=(),
    )


def _row(mine: Row, theirs: Row) -> dict[str, Any]:
    there = mine["value"] is not None and theirs["value"] is not None
    return {
        "probe": mine["probe"],
        "metric": mine["metric"],
        **{name: mine[name] for name in ("value", "low", "high", "text")},
        **{"other": theirs["value"], "other_low": theirs["low"], "other_high": theirs["high"]},
        "other_text": theirs["text"],
        "difference": theirs["value"] - mine["value"] if there else None,
        "unit": mine["unit"] or "",
    }


def _told(
    records: Sequence[Run],
    labels: Sequence[str],
    sides: Sequence[Mapping[tuple[str, str], Row]],
    wanted: Sequence[tuple[str, str]],
    comparable: Sequence[tuple[str, str]],
    probes: Sequence[str],
) -> Iterator[str]:
    """What is not shown, and why."""
    one, other = records
    hashes = {record.tokenizer_sha256 for record in records}
    if comparable and len(hashes) > 1:
        yield f"{one.name} and {other.name} have different tokenizers: numbers about rows of tokens say little here"
    if differing := _probes_of(set(wanted) - set(comparable)):
        yield f"measured under different settings, so that the numbers do not compare: {_some(differing)}"
    for label, here, there in zip(labels, sides, reversed(sides), strict=True):
        alone = [probe for probe in _probes_of(here) if probe not in _probes_of(there)]
        if alone := [probe for probe in alone if not probes or probe in probes]:
            yield f"kept of {label} alone: {_some(alone)}"


def _probes_of(keys: Any) -> list[str]:
    return sorted({probe for probe, _ in keys})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
