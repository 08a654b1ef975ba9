"""`forensics demo`: train the sample run, index it, and ask it the questions that exist, each with its command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_index.run import Run
from data_index.store import run_query
from data_index.text import decode
from data_index.workspace import Workspace
from forensics.cli.output import show_value
from forensics.divergence import NO_NULLS, compare
from forensics.figure import write_figure
from forensics.forking import fork
from forensics.lookup import batch, where
from forensics.reproduction import prepare, replay, replay_folder
from forensics.sample_run import SampleSpec, train_sample_run

Say = Callable[[str], None]

# Where the questions look. They find the accidents as a user would: by what the index says of the rows.
LOOK_AT_STEP, STRETCH, STRETCH_STEPS = 137, "100:160", (100, 160)
FORK_FROM, FORK_STEPS = 140, 40
BAD_ROWS = "source LIKE '%.pyc.z'"


def demo(
    *,
    workspace: Workspace | None = None,
    plan: bool = False,
    spec: SampleSpec | None = None,
    say: Say = lambda message: None,
    show: Say = print,
    progress: Callable[[str], Any] = lambda doing: lambda result, last: None,
) -> None:
    """Train, index and question the sample run; what exists already is found, not made again.

    Raises:
        MissingFile: this Python has no standard-library sources.
        Busy, DiskFull
    """
    workspace = workspace or Workspace()
    spec = spec or SampleSpec()
    if plan:
        show(
            f"trains {spec.num_steps} steps of {spec.instances_per_batch} x {spec.sequence_length} tokens on one "
            f"thread (about a minute), keeps {spec.num_steps // spec.save_every + 1} states (about 150 MB) in "
            f"{workspace.folder}, downloads nothing"
        )
        return
    run = prepare_sample(workspace, spec, say, progress)
    for question in (ask_step, ask_stretch, ask_document, ask_replay, ask_fork):
        question(workspace, run, show, progress)
    show("\nNext:")
    for command in next_commands(run.name):
        show(f"  {command}")


def prepare_sample(workspace: Workspace, spec: SampleSpec, say: Say, progress: Callable[[str], Any]) -> Run:
    from data_index.registration import add

    folder = workspace.folder / "trained" / spec.name
    workspace.create()
    train_sample_run(folder, spec, progress=progress("training the sample run"), say=say)
    if spec.name not in workspace.run_names():
        add(folder, workspace=workspace, progress=say)
    say(f"{spec.name}: trained in {folder}, registered in {workspace.folder}")
    return workspace.run(spec.name)


def _ask(show: Say, question: str, command: str) -> None:
    show(f"\n{question}\n$ {command}")


def _show_rows(show: Say, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    cells = [list(columns), *[[show_value(row[name]) for name in columns] for row in rows]]
    widths = [max(len(line[n]) for line in cells) for n in range(len(columns))]
    for line in cells:
        show("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def ask_step(workspace: Workspace, run: Run, show: Say, progress: Any) -> None:
    _ask(show, f"What did step {LOOK_AT_STEP} read?", f"forensics batch {run.name} {LOOK_AT_STEP} --tokens")
    rows = batch(run.name, LOOK_AT_STEP, tokens=True, workspace=workspace).to_pylist()
    show(f"  {len(rows)} instances, {sum(row['num_tokens'] for row in rows):,} tokens; order: {run.trust}")
    for row in rows[:4]:
        text = " ".join(decode(run, np.array(row["token_ids"])).split())
        show(f"  instance {row['instance']:>5}  {row['file']} +{row['offset']:<7} {show_value(text[:60])}")
    show(f"  … and {len(rows) - 4} more")


def ask_stretch(workspace: Workspace, run: Run, show: Say, progress: Any) -> None:
    _ask(
        show,
        f"What did the steps between checkpoints {STRETCH.replace(':', ' and ')} read, by tag?",
        f"forensics batch {run.name} {STRETCH} --by tag",
    )
    rows = batch(run.name, STRETCH, by="tag", workspace=workspace).to_pylist()[:8]
    shown = [row | {"share": f"{row['share']:.1%}", "run_share": f"{row['run_share']:.1%}"} for row in rows]
    _show_rows(show, shown, ["tag", "instances", "tokens", "share", "run_share", "repeats"])


def ask_document(workspace: Workspace, run: Run, show: Say, progress: Any) -> None:
    (document,) = run_query(
        workspace,
        "SELECT document_id, source, source_start, source_end FROM documents "
        f"WHERE run = '{run.name}' AND file = 'text-1.bin' ORDER BY document_id LIMIT 1",
    ).to_pylist()
    _ask(
        show,
        f"Which steps read document {document['document_id']} ({document['source']}, characters "
        f"{document['source_start']}..{document['source_end']})?",
        f"forensics where {run.name} --document {document['document_id']}",
    )
    rows = where(run.name, document=document["document_id"], workspace=workspace).to_pylist()
    _show_rows(show, rows[:8], ["step", "position", "instance", "file", "offset"])
    if len(rows) > 8:
        show(f"  … and {len(rows) - 8} more")


def ask_replay(workspace: Workspace, run: Run, show: Say, progress: Any) -> None:
    from forensics.explaining import summarize_report

    first, last = STRETCH_STEPS
    _ask(show, f"Does a replay of {STRETCH} give the same bits?", f"forensics replay {run.name} {STRETCH}")
    setup = prepare(workspace, run, "cpu", "recipe")
    earlier = replay_folder(setup, first, last, True) / "report.json"
    if earlier.exists():
        report = json.loads(earlier.read_bytes())
        show(f"  grade {report['grade']} (replayed before; the command replays it again)")
        return
    report = replay(
        run.name, STRETCH, device="cpu", workspace=workspace, progress=progress(f"replaying {run.name} {STRETCH}")
    )
    for line in summarize_report(report):
        show(f"  {line}")


def ask_fork(workspace: Workspace, run: Run, show: Say, progress: Any) -> None:
    (bad,) = run_query(
        workspace,
        "SELECT min(step) AS step, count(DISTINCT instance) AS rows FROM batches b JOIN spans s USING (run, instance) "
        f"JOIN documents d USING (run, document_id) WHERE run = '{run.name}' AND {BAD_ROWS}",
    ).to_pylist()
    edit = f'drop where:"{BAD_ROWS}" @{bad["step"]}'
    quoted = edit.replace('"', '\\"')
    _ask(
        show,
        f"Step {bad['step']} read {bad['rows']} rows of compiled Python files that slipped in as text. What if not?",
        f'forensics fork {run.name} --from {FORK_FROM} --num-steps {FORK_STEPS} --edit "{quoted}"',
    )
    result = fork(
        run.name,
        from_step=FORK_FROM,
        num_steps=FORK_STEPS,
        edits=[edit],
        device="cpu",
        workspace=workspace,
        progress=progress(f"forking {run.name}"),
    )
    for line in result.edits:
        show(f"  {line}")
    _ask(show, "How far is that from what happened?", f"forensics compare {result.id}")
    comparison = compare(result.id, workspace=workspace)
    steps = (bad["step"] - 1, bad["step"], bad["step"] + 1, FORK_FROM + FORK_STEPS)
    rows = [
        r for r in comparison.rows if r["metric"] in ("loss", "heldout_loss", "distance/all") and r["step"] in steps
    ]
    _show_rows(show, [r | {"treatment": f"{r['treatment']:+.3f}"} for r in rows], ["metric", "step", "treatment"])
    for ending in (".png", ".html"):
        picture = workspace.folder / "findings" / f"compare-{result.id}{ending}"
        write_figure(comparison.figure, picture)
        show(f"  picture: {picture}")
    show(f"  ({NO_NULLS})")


def next_commands(name: str) -> list[str]:
    return [
        f"forensics at {name} {LOOK_AT_STEP}",
        f'forensics where {name} --text "import sys"',
        f"forensics sql \"from batch('{name}', {LOOK_AT_STEP})\"",
        f"forensics replay {name} 0:240 --explain",
        f'forensics fork {name} --from 100 --num-steps 60 --edit "shuffle @100:160 seed=1"',
        "forensics --help",
    ]
