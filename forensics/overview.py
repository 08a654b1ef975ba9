"""What is in a workspace: its runs and forks, what is kept of each, and what is known to be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_index.errors import ForensicsError
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace, read_current
from forensics.cli.output import printable

STATES = ("weights", "optimizer", "trainer")
Row = dict[str, Any]


def overview(workspace: Workspace | None = None) -> list[Row]:
    """One row for each run, then each fork; of one that cannot be read, `problem` says why.

    `checkpoints` counts steps; `available` those of them that are there, or were when last looked for; `weights,
    optimizer, trainer` those that hold this state; `issues` those with a known issue; `learned` names the kinds of
    tables beside the run.
    """
    workspace = workspace or Workspace()
    return [_row(workspace, name) for name in [*workspace.run_names(), *workspace.fork_ids()]]


def _row(workspace: Workspace, name: str) -> Row:
    row: Row = {"run": name, "problem": ""}
    try:
        run = workspace.run(name)
        return row | _facts(run) | _kept(workspace.checkpoints(run)) | {"learned": _learned(workspace, name)}
    except ForensicsError as error:
        return row | {"problem": printable(str(error))}


def _facts(run: Run) -> Row:
    return {
        "parent": f"{run.parent[0]} at {run.parent[1]}" if run.parent else None,
        "layout": run.layout,
        "first_step": run.first_step,
        "last_step": run.last_step,
        "instances": run.num_instances,
        "sequence_length": run.sequence_length,
        "order": run.trust.level,
        "why": printable(str(run.trust)),
        "source": printable(run.origin),
    }


def _kept(checkpoints: list[Checkpoint]) -> Row:
    """A step whose checkpoint lies in two places counts once."""
    steps = {c.step for c in checkpoints}
    there = [c for c in checkpoints if c.is_available()]
    counts = {state: len({c.step for c in there if state in c.states}) for state in STATES}
    return {
        "checkpoints": len(steps),
        "available": len({c.step for c in there}),
        **counts,
        "issues": len({c.step for c in checkpoints if c.issues}),
    }


def _learned(workspace: Workspace, name: str) -> list[str]:
    return sorted(kind for kind, files in read_current(workspace.home(name)).items() if files)


def known_issues(workspace: Workspace | None = None) -> list[Row]:
    """Known issues of checkpoints, and what the last audit of each run found: run, step, what, kind, issue.

    `kind`: the audit's check, `known issue`, or `cannot be read`.
    """
    workspace = workspace or Workspace()
    found: list[Row] = []
    for name in [*workspace.run_names(), *workspace.fork_ids()]:
        try:
            run = workspace.run(name)
            found += [
                {"run": name, "step": c.step, "what": "checkpoint", "kind": "known issue", "issue": printable(issue)}
                for c in workspace.checkpoints(run)
                for issue in c.issues
            ]
            found += [
                {"run": name, "step": row["step"], "what": printable(row["artifact"]), **_audited(row)}
                for row in workspace.learned(workspace.home(name), "audit")
                if row["result"] != "ok"
            ]
        except ForensicsError as error:
            found.append(
                {"run": name, "step": None, "what": "run", "kind": "cannot be read", "issue": printable(str(error))}
            )
    return found


def _audited(row: Row) -> Row:
    detail = f", {row['detail']}" if row["detail"] else ""
    return {"kind": printable(row["check"]), "issue": printable(f"{row['result']}{detail}")}


def issue_matrix(issues: Sequence[Row]) -> list[Row]:
    """One row for each run that has any: how many issues of each kind; null where there is none."""
    kinds = sorted({row["kind"] for row in issues})
    counts = Counter((row["run"], row["kind"]) for row in issues)
    runs = dict.fromkeys(row["run"] for row in issues)
    return [{"run": run} | {kind: counts.get((run, kind)) for kind in kinds} for run in runs]
