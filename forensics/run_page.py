"""`report`: all that is known of a run on one page, which opens without a network and runs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.errors import ForensicsError
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.figure import Figure, Panel, Series
from forensics.finding import Finding
from forensics.page_sections import Section, write_page
from forensics.report_file import require_report_suffix
from forensics.ribbon import ribbon
from forensics.ribbon_picture import ribbon_figure
from forensics.run_card import Failure, failure_of, findings_of, issues_known, tried

SPIKE_COLUMNS = ("onset", "peak", "recovery", "kind", "lead_steps", "series", "peak_value", "peak_z", "detail")
MOST_CURVES = 12  # of kept metrics that are drawn
MOST_LISTED = 40


def report(run: str, output: Path | str, *, workspace: Workspace | None = None) -> list[Path]:
    """Write a report of a run or fork: FILE.html with everything inside, or FILE.md with its pictures beside it.

    Returns:
        What was written.
    Raises:
        UnknownRun, CorruptFile, DiskFull, NotWritable
        InvalidRange: the file is called otherwise.
    """
    workspace, path = workspace or Workspace(), Path(output)
    require_report_suffix(path)
    record = workspace.run(run)
    findings = findings_of(workspace, run)
    sections = run_sections(workspace, record, failure_of(workspace, record), findings)
    return write_page(path, f"Report of {run}", sections)


def run_sections(workspace: Workspace, run: Run, failure: Failure, findings: Sequence[Finding]) -> list[Section]:
    sections = [
        _overview(workspace, run),
        Section(title="How far it came", facts=_how_far(failure)),
        Section(title="What it read, and why that is to be believed", facts=_order(run), rows=_segments(run)),
        Section(title="Checkpoints", rows=_checkpoints(workspace, run), lines=_none(_checkpoints(workspace, run))),
        _spikes(run, failure),
        _measured(workspace, run),
        *(section for finding in findings for section in _finding(finding)),
        _titled("What was tried", tried(workspace, run, findings)),
        _titled("Known issues", issues_known(workspace, run)),
        Section(title="How to look at it again", commands=_commands(run)),
    ]
    return [section for section in sections if section is not None]


def _overview(workspace: Workspace, run: Run) -> Section:
    try:
        figure = ribbon_figure(ribbon(run.name, workspace=workspace))
    except ForensicsError:  # nothing was logged, and nothing is known of its steps
        figure = None
    facts = [
        ("layout", run.layout),
        ("parent", f"{run.parent[0]} at step {run.parent[1]}" if run.parent else run.facts.get("parent")),
        ("steps", f"{run.first_step}..{run.last_step}"),
        ("tokens read", f"{run.tokens_after(run.last_step):,}" if run.segments else None),
        ("instances", f"{run.num_instances:,} of {run.sequence_length:,} tokens"),
        *sorted((f"made with {name}", value) for name, value in run.environment.items()),
    ]
    return Section(title="At a glance", figure=figure, facts=[(name, value) for name, value in facts if value])


def _how_far(failure: Failure) -> list[tuple[str, Any]]:
    wrong = ", ".join(f"{name} at step {step:,}" for step, name in failure.not_finite[:10])
    again = ", ".join(f"{first:,}..{last:,} (attempt {attempt})" for first, last, attempt in failure.given_up)
    facts: list[tuple[str, Any]] = [
        ("last step", failure.last_step),
        ("last logged step", failure.last_logged_step or "nothing was logged"),
        ("last checkpoint", "none" if failure.last_checkpoint is None else failure.last_checkpoint),
        ("values that are no number", f"{failure.num_not_finite:,}: {wrong}" if wrong else "none"),
        ("steps that were taken again", again or "none"),
    ]
    return facts + [
        (f"last {name}", f"{value if value is None else format(value, '.6g')} at step {step:,}")
        for name, (step, value) in sorted(failure.last_values.items())
    ]


def _order(run: Run) -> list[tuple[str, Any]]:
    trust = run.trust
    proved = ", ".join(f"{first}..{last}" for first, last in trust.proved)
    facts = [("order", trust.level), ("witness", trust.witness), ("missing", trust.missing), ("exact steps", proved)]
    hashes = [
        (f"file {file.name}", f"{file.num_bytes:,} bytes, sha256 {file.sha256}") for file in run.files if file.sha256
    ]
    return [(name, value) for name, value in facts if value] + hashes


def _segments(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "first step": segment.first_step,
            "last step": segment.last_step,
            "epoch": segment.epoch,
            "instances a step": segment.instances_per_batch,
            "attempt": segment.attempt,
            "outcome": segment.outcome,
        }
        for segment in run.segments
    ]


def _checkpoints(workspace: Workspace, run: Run) -> list[dict[str, Any]]:
    return [
        {
            "step": checkpoint.step,
            "tokens": checkpoint.tokens,
            "states": checkpoint.states,
            "there": checkpoint.is_available(),
            "issues": "; ".join(checkpoint.issues),
        }
        for checkpoint in workspace.checkpoints(run)
    ]


def _spikes(run: Run, failure: Failure) -> Section:
    rows = [{name: row[name] for name in SPIKE_COLUMNS} for row in failure.spikes]
    asked = "none was found" if failure.searched else f"never looked for: forensics spikes {run.name}"
    return Section(title="Spikes", rows=rows, lines=[] if rows else [asked])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """A metric over checkpoints, measured with one choice of settings: (step, value), rising."""

    probe: str
    metric: str
    unit: str
    points: Sequence[tuple[int, float]]


def _measured(workspace: Workspace, run: Run) -> Section | None:
    """Metrics over checkpoints that were kept: each by its first and last value, and the chief ones drawn."""
    curves = _curves(workspace.learned(workspace.home(run.name), "probes"))
    if not curves:
        return None
    rows = [
        {
            "probe": curve.probe,
            "metric": curve.metric,
            "unit": curve.unit,
            "checkpoints": len(curve.points),
            "first step": curve.points[0][0],
            "first value": curve.points[0][1],
            "last step": curve.points[-1][0],
            "last value": curve.points[-1][1],
        }
        for curve in _chief_first(curves)[:MOST_LISTED]
    ]
    all_of = f"{len(curves):,} metrics were measured; the chief ones of each probe are here. All of them: "
    lines = [f"{all_of}forensics sql \"from probes where run = '{run.name}'\""] if len(curves) > len(rows) else []
    return Section(title="Measured at its checkpoints", rows=rows, figure=_curves_drawn(curves), lines=lines)


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[_Curve]:
    found: dict[tuple[str, str, str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row["value"] is not None:
            key = (row["probe"], row["metric"], row["unit"] or "", row["settings"] or "")
            found.setdefault(key, []).append((row["step"], row["value"]))
    return [
        _Curve(probe=probe, metric=metric, unit=unit, points=sorted(points))
        for (probe, metric, unit, _), points in sorted(found.items())
    ]


def _chief_first(curves: Sequence[_Curve]) -> list[_Curve]:
    """Of each probe its chief metric, which has the shortest name, then of each its second, and so on."""
    ranks: Counter[str] = Counter()
    ranked = []
    for curve in sorted(curves, key=lambda curve: (len(curve.metric), curve.metric)):
        ranked.append((ranks[curve.probe], curve))
        ranks[curve.probe] += 1
    return [curve for _, curve in sorted(ranked, key=lambda item: (item[0], item[1].probe))]


def _curves_drawn(curves: Sequence[_Curve]) -> Figure | None:
    """The chief ones of those that have several checkpoints."""
    chosen = _chief_first([curve for curve in curves if len(curve.points) > 1])[:MOST_CURVES]
    panels = [
        Panel(
            title=curve.metric if curve.metric.startswith(curve.probe) else f"{curve.probe} {curve.metric}",
            y_label=curve.unit,
            series=[Series(name=curve.metric, x=[s for s, _ in curve.points], y=[v for _, v in curve.points])],
            inches=1.6,
        )
        for curve in sorted(chosen, key=lambda curve: (curve.probe, curve.metric))
    ]
    return Figure(title="metrics over checkpoints", x_label="step", panels=panels) if panels else None


def _finding(finding: Finding) -> list[Section]:
    verdict = finding.answer.get("verdict")
    lines = [f"verdict: {verdict}"] if isinstance(verdict, str) else []
    made = [("made", finding.made.get("at")), ("with", finding.made.get("checkpoint-forensics"))]
    return [
        Section(
            title=f"Finding {finding.name}",
            commands=[finding.command],
            lines=lines,
            facts=[(name, value) for name, value in made if value],
            figure=finding.figure,
        )
    ]


def _commands(run: Run) -> list[str]:
    origin = run.facts.get("origin")
    first = [f"forensics add {origin} --name {run.name}"] if origin else []
    asked = [f"forensics show {run.name}", f"forensics audit {run.name} --deep", f"forensics spikes {run.name}"]
    steps = [f"forensics at {run.name} {run.last_step}"] if run.segments else []
    return [*first, *asked, *steps, f"forensics pack {run.name} -o {run.name}.zip"]


def _titled(title: str, rows: Sequence[dict[str, Any]]) -> Section:
    return Section(title=title, rows=rows, lines=_none(rows))


def _none(rows: Sequence[Any]) -> list[str]:
    return [] if rows else ["none"]
