"""Released runs as rows: what of each is published, and what kinds of things are known to be wrong."""

from __future__ import annotations

from collections import Counter
from typing import Any

from data_index.catalog_file import KnownIssue, ReleasedRun
from data_index.registry import families, issues_of, released_runs


def released_row(run: ReleasedRun) -> dict[str, Any]:
    return {
        "family": run.family,
        "run": run.name,
        "parameters": run.value("parameters"),
        "steps": run.value("last_step"),
        "tokens": run.value("tokens"),
        "states": run.value("states", []),
        "order": run.value("order"),
        "replay": run.value("replay"),
        "issues": len(issues_of(run)),
    }


def issue_kinds() -> list[str]:
    """Kinds of known issues, the most frequent first."""
    counts = Counter(issue.kind for family in families() for issue in family.issues)
    return [kind for kind, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def issue_matrix() -> list[dict[str, Any]]:
    """One row for each released run: how many known issues of each kind; null where there is none."""
    rows = []
    for run in released_runs():
        counts = Counter(issue.kind for issue in issues_of(run))
        rows.append({"family": run.family, "run": run.name} | {kind: counts.get(kind) for kind in issue_kinds()})
    return rows


def issue_rows(issues: list[KnownIssue]) -> list[dict[str, Any]]:
    return [{"kind": i.kind, "steps": i.steps, "issue": i.text, "source": i.source} for i in issues]
