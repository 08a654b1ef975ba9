"""The questions that `forensics demo` asks the sample run, each with its command; together a tour of the toolkit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_index.files import read_json
from data_index.finding_files import findings_folder
from data_index.run import Run
from data_index.store import run_query
from data_index.text import decode
from data_index.workspace import Workspace
from forensics.attribution import blame
from forensics.attribution_picture import page_below
from forensics.cli.output import show_value
from forensics.divergence import NO_NULLS, compare
from forensics.figure import write_figure
from forensics.finding import Finding, keep_finding
from forensics.forking import fork
from forensics.kept_findings import (
    finding_of_blame,
    finding_of_comparison,
    finding_of_spikes,
    finding_of_trajectory,
)
from forensics.lookup import batch, where
from forensics.mixture import mixture_figure
from forensics.probe_options import ProbeOptions
from forensics.probing import probe
from forensics.repetition import repeats
from forensics.reproduction import prepare, replay, replay_folder
from forensics.sample_run import SampleSpec
from forensics.spike_detection import spikes
from forensics.token_answer import for_people
from forensics.token_counts import exposures
from forensics.token_paths import token_paths
from forensics.trajectories import trajectory

Say = Callable[[str], None]

# The accident is found as a user would find it: by what the index says of the rows.
BAD_ROWS = "source LIKE '%.pyc.z'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What every question needs."""

    workspace: Workspace
    run: Run
    spec: SampleSpec
    show: Say
    progress: Callable[[str], Any]

    @property
    def stretch(self) -> str:
        return f"{self.spec.stretch[0]}:{self.spec.stretch[1]}"

    def ask(self, question: str, command: str) -> None:
        self.show(f"\n{question}\n$ {command}")

    def rows(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], most: int = 8) -> None:
        cells = [list(columns), *[[show_value(row[name]) for name in columns] for row in rows[:most]]]
        widths = [max(len(line[n]) for line in cells) for n in range(len(columns))]
        for line in cells:
            self.show("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if len(rows) > most:
            self.show(f"  … and {len(rows) - most} more")

    def keep(self, finding: Finding, below: str = "") -> None:
        keep_finding(self.workspace, finding)
        base = findings_folder(self.workspace) / finding.name
        for ending in (".png", ".html"):
            assert finding.figure is not None
            write_figure(finding.figure, base.with_name(f"{base.name}{ending}"), below)
        self.show(f"  picture: {base}.png")

    def query(self, query: str) -> dict[str, Any]:
        row: dict[str, Any] = run_query(self.workspace, query).to_pylist()[0]
        return row


def ask_step(walk: Walk) -> None:
    run, step = walk.run, walk.spec.look_at_step
    walk.ask(f"What did step {step} read?", f"forensics batch {run.name} {step} --tokens")
    rows = batch(run.name, step, tokens=True, workspace=walk.workspace).to_pylist()
    walk.show(f"  {len(rows)} instances, {sum(row['num_tokens'] for row in rows):,} tokens; order: {run.trust}")
    for row in rows[:4]:
        text = " ".join(decode(run, np.array(row["token_ids"])).split())
        walk.show(f"  instance {row['instance']:>5}  {row['file']} +{row['offset']:<7} {show_value(text[:60])}")
    walk.show(f"  … and {len(rows) - 4} more")


def ask_stretch(walk: Walk) -> None:
    first, last = walk.spec.stretch
    walk.ask(
        f"What did the steps between checkpoints {first} and {last} read, by tag?",
        f"forensics batch {walk.run.name} {walk.stretch} --by tag",
    )
    rows = batch(walk.run.name, walk.stretch, by="tag", workspace=walk.workspace).to_pylist()
    shown = [row | {"share": f"{row['share']:.1%}", "run_share": f"{row['run_share']:.1%}"} for row in rows]
    walk.rows(shown, ["tag", "instances", "tokens", "share", "run_share", "repeats"])


def ask_document(walk: Walk) -> None:
    run = walk.run
    document = walk.query(
        "SELECT document_id, source, source_start, source_end FROM documents "
        f"WHERE run = '{run.name}' AND file = 'text-1.bin' ORDER BY document_id LIMIT 1"
    )
    walk.ask(
        f"Which steps read document {document['document_id']} ({document['source']}, characters "
        f"{document['source_start']}..{document['source_end']})?",
        f"forensics where {run.name} --document {document['document_id']}",
    )
    rows = where(run.name, document=document["document_id"], workspace=walk.workspace).to_pylist()
    walk.rows(rows, ["step", "position", "instance", "file", "offset"])


def ask_text(walk: Walk) -> None:
    text = "import sys"
    walk.ask(f"Which steps read the text {text!r}?", f'forensics where {walk.run.name} --text "{text}"')
    walk.rows(
        where(walk.run.name, text=text, workspace=walk.workspace).to_pylist(),
        ["step", "position", "instance", "file", "offset", "document_ids"],
        most=4,
    )


def ask_repeats(walk: Walk) -> None:
    found = repeats(walk.run.name, of="instances", limit=2, workspace=walk.workspace)
    walk.ask("Which rows did it read more than once?", f"forensics repeats {walk.run.name} --of instances --limit 2")
    walk.rows(found.rows.to_pylist(), ["group", "step", "position", "instance", "num_tokens", "file"])
    walk.show(f"  {found}")


def ask_exposures(walk: Walk) -> None:
    walk.ask("How often had it seen each token id?", f"forensics exposures {walk.run.name}")
    counted = exposures(walk.run.name, workspace=walk.workspace)
    rows = counted.summary[-3:]
    walk.rows(rows, ["step", "seen_ids", "new_ids", "as_input", "as_target"])


def ask_tokens(walk: Walk) -> None:
    from forensics.token_path_picture import figure_of
    from forensics.token_path_report import agreements

    walk.ask(
        "Which tokens did it never learn, and how often had it read them?", f"forensics tokens {walk.run.name} --track"
    )
    found = token_paths(walk.run.name, workspace=walk.workspace)
    rows = [for_people(found.analysis, row) for row in found.rows if row["category"] == "ok"]
    walk.rows(rows, ["token_id", "text", "finding", "exposures", "indicator", "untrained", "left_step"], most=5)
    for name, value in agreements(found):
        walk.show(f"  {name}: {value}")
    picture = walk.workspace.folder / "findings" / f"tokens-{walk.run.name}.png"
    write_figure(figure_of(found), picture)
    walk.show(f"  picture: {picture}")


def ask_probes(walk: Walk) -> None:

    names = ("loss", "loss-by-frequency", "next-batch", "norms")
    walk.ask(
        "How do its metrics develop through all checkpoints?", f"forensics probe {walk.run.name} {' '.join(names)}"
    )
    found = probe(walk.run.name, *names, options=ProbeOptions(device="cpu"), workspace=walk.workspace)
    steps = sorted({row["step"] for row in found.rows})
    chosen = [steps[0], steps[len(steps) // 2], steps[-1]]
    shown = ["probe", "metric", *(f"step {step}" for step in chosen)]
    metrics: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found.rows:
        if row["step"] in chosen and "layer" not in row["metric"] and "root mean square" not in row["metric"]:
            of_metric = metrics.setdefault((row["probe"], row["metric"]), {**dict.fromkeys(shown), **row})
            of_metric[f"step {row['step']}"] = round(row["value"], 3)
    walk.rows(list(metrics.values()), shown, most=18)
    command = f"forensics trajectory {walk.run.name} {' '.join(names[:3])}"
    walk.ask("And drawn?", command)
    drawn = trajectory(walk.run.name, names[:3], workspace=walk.workspace)
    walk.keep(finding_of_trajectory(drawn, "steps", command))


def ask_mixture(walk: Walk) -> None:
    every = max(walk.spec.num_steps // 20, 1)
    path = walk.workspace.folder / "findings" / f"mixture-{walk.run.name}.png"
    steps = f"0:{walk.spec.num_steps}"
    walk.ask(
        "How did the mixture change over time?",
        f"forensics batch {walk.run.name} {steps} --by tag --every {every} --picture {path.name}",
    )
    table = batch(walk.run.name, steps, by="tag", every=every, workspace=walk.workspace)
    write_figure(mixture_figure(walk.workspace, walk.run, table, "tag", every), path)
    walk.show(f"  picture: {path}")


def ask_replay(walk: Walk) -> None:
    from forensics.explaining import summarize_report

    run, (first, last) = walk.run, walk.spec.stretch
    walk.ask(f"Does a replay of {walk.stretch} give the same bits?", f"forensics replay {run.name} {walk.stretch}")
    setup = prepare(walk.workspace, run, "cpu", "recipe")
    earlier = replay_folder(setup, first, last, True) / "report.json"
    if earlier.exists():
        walk.show(f"  grade {read_json(earlier)['grade']} (replayed before; the command replays it again)")
        return
    progress = walk.progress(f"replaying {run.name} {walk.stretch}")
    report = replay(run.name, walk.stretch, device="cpu", workspace=walk.workspace, progress=progress)
    for line in summarize_report(report):
        walk.show(f"  {line}")


def ask_spikes(walk: Walk) -> None:
    """And who is to blame for the largest one of the loss; a run too short to tell has none."""
    run = walk.run
    command = f"forensics spikes {run.name}"
    walk.ask("Where does its loss or gradient norm spike?", command)
    found = spikes(run.name, workspace=walk.workspace)
    walk.rows(found.robust_rows, ["onset", "peak", "recovery", "kind", "series", "peak_value", "peak_z"])
    walk.keep(finding_of_spikes(found, command))
    of_loss = [event for event in found.events if event.is_spike and "loss" in event.series and event.peak is not None]
    if not of_loss:
        return
    peak = max(of_loss, key=lambda event: event.peak_z or 0.0).peak
    assert peak is not None
    command = f"forensics blame {run.name} {peak}"
    walk.ask(f"Which data made the spike at step {peak}?", command)
    answer = blame(run.name, peak, device="cpu", workspace=walk.workspace)
    shown = ["rank", "step", "instance", "loss", "share", "loss_if_removed", "null_low", "null_high", "signals"]
    walk.rows(answer.candidates, shown, most=5)
    walk.show(f"  {answer.verdict}: {answer.reason}")
    walk.keep(finding_of_blame(answer, command), page_below(answer))


def ask_fork(walk: Walk) -> None:
    run, spec = walk.run, walk.spec
    bad = walk.query(
        "SELECT min(step) AS step, count(DISTINCT instance) AS rows FROM batches JOIN spans USING (run, instance) "
        f"JOIN documents USING (run, document_id) WHERE run = '{run.name}' AND {BAD_ROWS}"
    )
    edit = f'drop where:"{BAD_ROWS}" @{bad["step"]}'
    quoted = edit.replace('"', '\\"')
    walk.ask(
        f"Step {bad['step']} read {bad['rows']} rows of compiled Python files that slipped in as text. What if not?",
        f'forensics fork {run.name} --from {spec.fork_from} --num-steps {spec.fork_steps} --edit "{quoted}"',
    )
    result = fork(
        run.name,
        from_step=spec.fork_from,
        num_steps=spec.fork_steps,
        edits=[edit],
        device="cpu",
        workspace=walk.workspace,
        progress=walk.progress(f"forking {run.name}"),
    )
    for line in result.edits:
        walk.show(f"  {line}")
    _show_comparison(walk, result.id, bad["step"])


def _show_comparison(walk: Walk, fork_id: str, bad_step: int) -> None:
    command = f"forensics compare {fork_id}"
    walk.ask("How far is that from what happened?", command)
    comparison = compare(fork_id, workspace=walk.workspace)
    steps = (bad_step - 1, bad_step, bad_step + 1, walk.spec.fork_from + walk.spec.fork_steps)
    metrics = ("loss", "heldout_loss", "distance/all")
    rows = [row for row in comparison.rows if row["metric"] in metrics and row["step"] in steps]
    shown = [row | {"treatment": f"{row['treatment']:+.3f}"} for row in rows]
    walk.rows(shown, ["metric", "step", "treatment"])
    walk.keep(finding_of_comparison(comparison, command))
    walk.show(f"  ({NO_NULLS})")


QUESTIONS: tuple[Callable[[Walk], None], ...] = (
    ask_step,
    ask_stretch,
    ask_mixture,
    ask_document,
    ask_text,
    ask_repeats,
    ask_exposures,
    ask_tokens,
    ask_probes,
    ask_replay,
    ask_spikes,
    ask_fork,
)
