"""`forensics demo`: train the sample run, index it, and ask it the questions that exist, each with its command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_index.run import Run
from data_index.workspace import Workspace
from forensics.sample_run import SampleSpec, train_sample_run
from forensics.walked_questions import QUESTIONS, Say, Walk


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
    for question in QUESTIONS:
        question(Walk(workspace=workspace, run=run, spec=spec, show=show, progress=progress))
    show("\nNext:")
    for command in next_commands(spec):
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


def next_commands(spec: SampleSpec) -> list[str]:
    name, (first, last) = spec.name, spec.stretch
    return [
        "forensics app",
        f"forensics at {name} {spec.look_at_step}",
        f"forensics sql \"from exposures('{name}', {spec.look_at_step}) order by as_target limit 5\"",
        f"forensics sql \"from batch('{name}', {spec.look_at_step})\"",
        f"forensics replay {name} 0:{spec.num_steps} --explain",
        f'forensics fork {name} --from {first} --num-steps {last - first} --edit "shuffle @{first}:{last} seed=1"',
        "forensics --help",
    ]
