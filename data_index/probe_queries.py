"""Questions about what was measured of checkpoints, here and by their publishers, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_index.run import Run
from data_index.store import opened_for, readable
from data_index.workspace import Workspace

COLUMNS = ("step", "tokens", "probe", "metric", "value", "low", "high", "unit", "text", "settings", "source")


@readable
def probe_names(workspace: Workspace, run: Run) -> list[str]:
    """Probes of which the run has a value, published tasks (task:NAME) among them."""
    found = opened_for(workspace, run, "probes").execute("SELECT DISTINCT probe FROM probes ORDER BY probe")
    return [name for (name,) in found.fetchall()]


@readable
def probe_rows(workspace: Workspace, run: Run, probes: Sequence[str]) -> list[dict[str, Any]]:
    """Every value of some probes, in the order of their steps; what was measured here comes before what was published.

    A row that stands twice comes once.
    """
    found = opened_for(workspace, run, "probes").execute(
        f"SELECT DISTINCT {', '.join(COLUMNS)} FROM probes WHERE list_contains($probes::VARCHAR[], probe) "
        "ORDER BY step, source NULLS FIRST, probe, metric, settings, value",
        {"probes": list(probes)},
    )
    return [dict(zip(COLUMNS, row, strict=True)) for row in found.fetchall()]


@readable
def probe_summaries(workspace: Workspace, run: Run) -> Any:
    """One row for each probe of which the run has values: how many metrics, at how many checkpoints, and from where."""
    return (
        opened_for(workspace, run, "probes")
        .sql(
            "SELECT probe, count(DISTINCT metric) AS metrics, count(DISTINCT step) AS checkpoints, "
            "min(step) AS first_step, max(step) AS last_step, CASE WHEN any_value(source) IS NULL THEN 'measured' "
            "WHEN count(*) = count(source) THEN 'published' ELSE 'both' END AS origin "
            "FROM probes GROUP BY probe ORDER BY probe"
        )
        .to_arrow_table()
    )


@readable
def probe_metrics(workspace: Workspace, run: Run) -> list[tuple[str, str]]:
    """(probe, metric) of every number that the run has, published ones among them."""
    found = opened_for(workspace, run, "probes").execute(
        "SELECT DISTINCT probe, metric FROM probes WHERE value IS NOT NULL ORDER BY probe, metric"
    )
    return [(probe, metric) for probe, metric in found.fetchall()]


@readable
def measured_steps(workspace: Workspace, run: Run) -> list[int]:
    """Checkpoints of which anything was measured here, rising."""
    found = opened_for(workspace, run, "measured_probes").execute(
        "SELECT DISTINCT step FROM measured_probes ORDER BY step"
    )
    return [step for (step,) in found.fetchall()]


@readable
def measured_at(workspace: Workspace, run: Run, step: int) -> list[dict[str, Any]]:
    """What was measured here of one checkpoint, by the names of probes and metrics."""
    names = tuple(name for name in COLUMNS if name != "source")
    found = opened_for(workspace, run, "measured_probes").execute(
        f"SELECT {', '.join(names)} FROM measured_probes WHERE step = $step ORDER BY probe, metric", {"step": step}
    )
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
