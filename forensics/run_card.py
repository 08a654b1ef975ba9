"""A run's card: what it was, what was tried with it, where it failed; facts alone, as a pack and a report tell them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.errors import ForensicsError
from data_index.files import read_json_object
from data_index.finding_files import finding_names
from data_index.kinds import conform
from data_index.registry import find_run, issues_of
from data_index.run import Run, Segment
from data_index.sources.native import read_table
from data_index.workspace import Workspace
from forensics.finding import Finding, read_finding
from forensics.fork_list import forks_of

MOST_NAMED = 100  # steps with a value that is no number

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How far a run came, and what went wrong on the way, as far as its log tells.

    Attributes:
        last_logged_step: None: nothing was logged.
        not_finite: (step, metric) of values that are no number, the first ones; num_not_finite: all of them.
        last_values: of each metric the last one logged.
        given_up: (first, last, attempt) of steps that a later attempt took again.
        spikes: rows as `forensics spikes` kept them; searched: whether it was ever asked.
    """

    last_step: int
    last_checkpoint: int | None
    last_logged_step: int | None
    not_finite: tuple[tuple[int, str], ...]
    num_not_finite: int
    last_values: Mapping[str, tuple[int, float]]
    given_up: tuple[tuple[int, int, int], ...]
    spikes: tuple[Mapping[str, Any], ...]
    searched: bool

    @property
    def events(self) -> list[int]:
        """Steps to look around: the first value that is no number, then spikes, the highest first."""
        first = [step for step, _ in self.not_finite[:1]]
        highest = sorted(self.spikes, key=lambda row: (-(row["peak_z"] or 0), row["peak"]))
        return list(dict.fromkeys([*first, *(int(row["peak"]) for row in highest)]))


def failure_of(workspace: Workspace, run: Run) -> Failure:
    home = workspace.home(run.name)
    steps, wrong, last = _logged(workspace, home)
    return Failure(
        last_step=run.last_step,
        last_checkpoint=max((c.step for c in workspace.checkpoints(run)), default=None),
        last_logged_step=steps,
        not_finite=tuple(wrong[:MOST_NAMED]),
        num_not_finite=len(wrong),
        last_values=last,
        given_up=tuple(_given_up(run)),
        spikes=tuple(sorted(workspace.learned(home, "spikes"), key=lambda row: int(row["peak"]))),
        searched=bool(workspace.learned_files(home, "spikes")),
    )


def _logged(workspace: Workspace, home: Path) -> tuple[int | None, list[tuple[int, str]], dict[str, tuple[int, float]]]:
    """The last logged step, (step, metric) of values that are no number, and of each metric its last step and value."""
    import pyarrow
    import pyarrow.compute

    tables = [
        conform(table, "metrics", path)
        for path in workspace.learned_files(home, "metrics")
        if (table := read_table(path)) is not None
    ]
    if not tables or not sum(table.num_rows for table in tables):
        return None, [], {}
    rows = pyarrow.concat_tables(tables).sort_by([("step", "ascending"), ("attempt", "ascending")])
    finite = pyarrow.compute.fill_null(pyarrow.compute.is_finite(rows.column("value")), False)
    bad = rows.filter(pyarrow.compute.invert(finite)).select(["step", "name"]).to_pylist()
    whole = pyarrow.compute.ScalarAggregateOptions(skip_nulls=False)
    ends = rows.group_by("name", use_threads=False).aggregate([("step", "last", whole), ("value", "last", whole)])
    last = {row["name"]: (row["step_last"], row["value_last"]) for row in ends.to_pylist()}
    return rows.column("step")[-1].as_py(), sorted({(row["step"], row["name"]) for row in bad}), last


def _given_up(run: Run) -> list[tuple[int, int, int]]:
    """Stretches (first, last, attempt) that a later attempt took again."""
    kept = set(run.kept_steps())
    return sorted(
        (one.first_step, one.last_step, one.attempt)
        for one in run.segments
        if any(_takes_again(other, one) for other in run.segments)
        and (one.first_step, one.last_step, one.attempt) not in kept
    )


def _takes_again(later: Segment, one: Segment) -> bool:
    overlaps = later.first_step <= one.last_step and later.last_step >= one.first_step
    return later.attempt > one.attempt and overlaps


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def findings_of(workspace: Workspace, run: str) -> list[Finding]:
    """Findings about a run, by name; what is no finding is passed over."""
    found = []
    for name in sorted(finding_names(workspace)):
        try:
            finding = read_finding(workspace, name)
        except ForensicsError:
            continue
        found += [finding] if run in finding.runs else []
    return found


def tried(workspace: Workspace, run: Run, findings: Sequence[Finding]) -> list[Row]:
    """Forks, replays and findings of a run: what, name, command, result."""
    rows: list[Row] = []
    for fork in forks_of(workspace, run.name):
        span = f"from {fork['from_step']}, {fork['done']} of {fork['num_steps']} steps done"
        rows.append(
            {"what": "fork", "name": fork["id"], "command": fork["edits"], "result": f"{span}; {fork['recipe']}"}
        )
    for path in sorted(workspace.folder.glob("replays/*/report.json")):
        report = read_json_object(path)
        if report.get("run") == run.name:
            command = f"forensics replay {run.name} {report['first']}:{report['last']}"
            rows.append(
                {"what": "replay", "name": path.parent.name, "command": command, "result": f"grade {report['grade']}"}
            )
    for finding in findings:
        verdict = finding.answer.get("verdict")
        result = f"verdict: {verdict}" if isinstance(verdict, str) else ""
        rows.append({"what": "finding", "name": finding.name, "command": finding.command, "result": result})
    return rows


def issues_known(workspace: Workspace, run: Run) -> list[Row]:
    """Known issues of its checkpoints, of the released run that it is, and what its last audit found."""
    rows = [{"step": c.step, "issue": issue} for c in workspace.checkpoints(run) for issue in c.issues]
    try:
        released = find_run(run.facts.get("origin", run.name).removeprefix("hub:"))
        rows += [{"step": None, "issue": f"{issue.text} ({issue.source})"} for issue in issues_of(released)]
    except ForensicsError:
        pass
    for row in workspace.learned(workspace.home(run.name), "audit"):
        if row["result"] != "ok":
            said = f"{row['artifact']}, {row['check']}: {row['result']} {row['detail'] or ''}".strip()
            rows.append({"step": row["step"], "issue": said})
    return rows


def card_table(workspace: Workspace, run: Run, failure: Failure, findings: Sequence[Finding]) -> dict[str, Any]:
    """The card as TOML; numbers that are none are strings."""
    return {
        "name": run.name,
        "layout": run.layout,
        "first_step": run.first_step,
        "last_step": run.last_step,
        "instances": run.num_instances,
        "sequence_length": run.sequence_length,
        "order_trust": str(run.trust),
        "environment": dict(run.environment),
        "failed": {
            "last_logged_step": failure.last_logged_step,
            "last_checkpoint": failure.last_checkpoint,
            "num_not_finite": failure.num_not_finite,
            "not_finite": [{"step": step, "metric": name} for step, name in failure.not_finite],
            "last_values": [
                {"metric": name, "step": step, "value": value if _is_number(value) else str(value)}
                for name, (step, value) in sorted(failure.last_values.items())
            ],
            "given_up": [{"first_step": a, "last_step": b, "attempt": n} for a, b, n in failure.given_up],
            "spike_peaks": [int(row["peak"]) for row in failure.spikes],
        },
        "tried": tried(workspace, run, findings),
        "known_issues": issues_known(workspace, run),
    }
