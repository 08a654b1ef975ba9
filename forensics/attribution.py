"""`blame`: which rows of which step made a spike, proved by taking the steps again without them.

The stages are in `investigation`, what they allow to say in `attribution_result`. Here the question is taken, the
suspects' contents are looked at, and everything is put into rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from data_index.errors import AccessDenied, InvalidRange, StepOutOfRange, TooMuchToFetch, Unreachable
from data_index.files import canonical_json, exclusive_lock, sha256_of_file
from data_index.run import Run
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace
from forensics.attribution_result import Attribution, Cause
from forensics.attribution_rows import (
    candidate_rows,
    document_rows,
    documents_of_rows,
    fork_commands,
    removal_row,
    step_rows,
)
from forensics.configured import configured_run
from forensics.content_odds import OddsRatio
from forensics.content_signals import ContentSignals, RowSignals, base_of_run
from forensics.document_removal import without_documents
from forensics.investigation import Investigation, Progress, Search
from forensics.reproduction import Setup, prepare
from forensics.spike_window import SpikeWindow, window_of
from forensics.starting import started_at_zero
from forensics.window_replay import WindowReplay
from replay.determinism import deterministic

Row = Mapping[str, Any]
STRONGEST_ODDS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blame:
    """The answer.

    Attributes:
        verdict: `data` or `unexplained`; cause: of the data `instance`, `group` or `batch`; reason: what it rests on.
        candidates: one row each: rank, step, row, instance, file, offset, share (of the step's gradient, signed, mean
            1), grad_norm_share, grad_norm_z, loss, loss_z, loss_if_removed, null_low, null_high (of the loss without
            random rows), the same three of grad_norm, restored (share of the excess; None: no spike), span_start,
            span_stop, loss_if_span_hidden, restored_by_span, documents, signals.
        group, batch: the same of several rows at once; None: none was tried.
        documents: that the rows in question hold most of, what the window reads of each hidden from the loss:
            document_id, source, num_tokens, rows, loss_if_hidden, grad_norm_if_hidden, null_low, null_high (of the
            measure that spikes, random other documents hidden), restored.
        steps: of the window: loss and gradient norm as taken again, and by how much the step's update changed the loss
            of the peak's batch.
        odds: content signals of the suspect rows beside the run's other rows.
        order_trust: why what the steps read is to be believed.
        commands: that take the same steps as a fork, to look further.
        notes: what was passed over, not known or left out.
    """

    run: str
    verdict: str
    cause: Cause | None
    reason: str
    found: Attribution
    candidates: tuple[Row, ...]
    group: Row | None
    batch: Row | None
    documents: tuple[Row, ...]
    steps: tuple[Row, ...]
    odds: tuple[OddsRatio, ...]
    signals: tuple[RowSignals, ...]
    order_trust: str
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    replayed: WindowReplay

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors, by stable names."""
        window, found = self.found.window, self.found
        usual = {name: value.value for name, value in window.usual.items()}
        return {
            "run": self.run,
            "asked": window.asked,
            "verdict": self.verdict,
            "cause": self.cause,
            "reason": self.reason,
            "measure": window.measure,
            "onset": window.onset,
            "peak": window.peak,
            "checkpoint": window.start.step,
            "suspect_steps": list(found.steps),
            "loss": found.peak_loss,
            "loss_logged": window.logged.get("loss"),
            "loss_usual": usual.get("loss"),
            "grad_norm": found.peak_grad_norm,
            "grad_norm_logged": window.logged.get("grad_norm"),
            "grad_norm_usual": usual.get("grad_norm"),
            "candidates": list(self.candidates),
            "group": self.group,
            "batch": self.batch,
            "documents": list(self.documents),
            "steps": list(self.steps),
            "odds": [asdict(odds) for odds in self.odds],
            "order_trust": self.order_trust,
            "commands": list(self.commands),
            "notes": list(self.notes),
        }


def blame(
    run: str,
    step: int,
    *,
    workspace: Workspace | None = None,
    search: Search | None = None,
    device: str = "auto",
    precision: str = "recipe",
    enforce_determinism: bool = True,
    approximate: bool = False,
    fresh_optimizer: bool = False,
    verify: bool = True,
    progress: Progress = lambda stage, done, total: None,
) -> Blame:
    """Find which data made the spike that a step belongs to, or say that no data did.

    What was computed is kept: the same call goes on where it was interrupted.

    Raises:
        UnknownRun, StepOutOfRange, MissingCheckpoint, MissingState, CorruptFile, UnsupportedRecipe, OutOfMemory, Busy
    """
    workspace, search = workspace or Workspace(), search or Search()
    window, setup = prepare_search(
        workspace,
        workspace.run(run),
        step,
        search,
        device=device,
        precision=precision,
        enforce_determinism=enforce_determinism,
        approximate=approximate,
        fresh_optimizer=fresh_optimizer,
    )
    folder = workspace.home(run) / "attributions" / identity_of(setup, window)
    with (
        exclusive_lock(folder.with_name(f".{folder.name}.lock"), f"looking into step {step} of {run}"),
        deterministic(setup.recipe.num_threads, enforce=enforce_determinism),
    ):
        replayed = WindowReplay.open(setup, window.start, window.peak, verify=verify)
        looking = Investigation(window=window, search=search, replayed=replayed, folder=folder, progress=progress)
        found = looking.run()
        documents = without_documents(found, looking.removals, search.seed)
    answer = _answer(setup, found, replayed, document_rows(setup, found, *documents), verify)
    seen = remember_first_seen(workspace, setup.run, replayed.reader)
    return replace(answer, notes=(*answer.notes, f"{seen}.")) if seen else answer


def prepare_search(
    workspace: Workspace,
    run: Run,
    step: int,
    search: Search,
    *,
    device: str,
    precision: str,
    enforce_determinism: bool,
    approximate: bool,
    fresh_optimizer: bool,
) -> tuple[SpikeWindow, Setup]:
    """What will be looked at, before any tensor is loaded."""
    if not run.first_step <= step <= run.last_step:
        raise StepOutOfRange(f"{run.name} took steps {run.first_step}..{run.last_step}, not {step}")
    run.segment_of_step(step)  # says why nothing is known, where that is so
    window = window_of(workspace, run, step, before=search.before, fresh_optimizer=fresh_optimizer)
    if run.segment_of_step(window.peak).outcome == "skipped":
        raise StepOutOfRange(
            f"{run.name} skipped step {window.peak}: its batch was consumed without computing anything, so that there "
            f"is no loss to explain; ask about a step that was taken (forensics spikes {run.name})"
        )
    configured = configured_run(run, window.start.step, window.peak, approximate=approximate)
    if fresh_optimizer:
        configured = replace(configured, environment={**configured.environment, "fresh_optimizer": True})
    return window, prepare(workspace, configured, device, precision, enforce_determinism, approximate)


def identity_of(setup: Setup, window: SpikeWindow) -> str:
    """What outcomes depend on: those of another window, recipe or device must not be taken for these."""
    identity = {
        "run": setup.run.name,
        "run_toml": sha256_of_file(setup.workspace.home(setup.run.name) / "run.toml"),
        "start": window.start.step,
        "peak": window.peak,
        "recipe": setup.recipe.to_table(),
        "fresh_optimizer": setup.fresh_optimizer,
        "device": setup.device.type,
        "deterministic": setup.enforce,
        "torch": torch.__version__,
    }
    return hashlib.sha256(canonical_json(identity)).hexdigest()[:12]


# --- into rows -----------------------------------------------------------------------------------------------------


def _answer(setup: Setup, found: Attribution, replayed: WindowReplay, removed: Sequence[Row], verify: bool) -> Blame:
    workspace, run, window = setup.workspace, setup.run, found.window
    cause, reason = found.verdict()
    notes = [*replayed.notes, *(f"Passed over on request: {what}." for what in _passed_over(setup, window))]
    base = _base(setup, found, verify, notes)
    signals = _signals(base, found, replayed)
    documents = documents_of_rows(workspace, run, found)
    return Blame(
        run=run.name,
        verdict="data" if cause else "unexplained",
        cause=cause,
        reason=reason,
        found=found,
        candidates=tuple(candidate_rows(found, replayed, signals, documents)),
        group=removal_row(found, found.group, found.group_bands),
        batch=removal_row(found, found.batch, {}),
        documents=tuple(removed),
        steps=tuple(step_rows(found)),
        odds=tuple(_odds(base, found, cause, signals, replayed)),
        signals=tuple(signals),
        order_trust=str(run.trust.of_steps(window.start.step + 1, window.peak)),
        commands=tuple(fork_commands(run, found, cause, replayed, notes)),
        notes=tuple(notes),
        replayed=replayed,
    )


def _passed_over(setup: Setup, window: SpikeWindow) -> list[str]:
    zero = started_at_zero(window.start, setup.fresh_optimizer)
    return [*setup.recipe.approximated, *([zero] if zero else [])]


def _base(setup: Setup, found: Attribution, verify: bool, notes: list[str]) -> ContentSignals | None:
    """The run's other rows; None, and why, where there are none or they cannot be fetched."""
    without = [suspect.instance for suspect in found.suspects]
    try:
        return base_of_run(setup.workspace, setup.run, without=without, verify=verify)
    except (InvalidRange, TooMuchToFetch, Unreachable, AccessDenied) as error:
        notes.append(f"Without content signals: {error}")
        return None


def _signals(base: ContentSignals | None, found: Attribution, replayed: WindowReplay) -> list[RowSignals]:
    if not found.suspects or base is None:
        return []
    rows = [replayed.batch(s.place[0]).token_ids[s.place[1]] for s in found.suspects]
    instances = [suspect.instance for suspect in found.suspects]
    return base.describe(instances, np.stack(rows), steps=[suspect.place[0] for suspect in found.suspects])


def _odds(
    base: ContentSignals | None,
    found: Attribution,
    cause: Cause | None,
    signals: Sequence[RowSignals],
    replayed: WindowReplay,
) -> list[OddsRatio]:
    """Of the rows that are the cause; where none is, of the rows of the suspect steps that were taken away."""
    if base is None:
        return []
    if cause == "batch" and found.batch is not None:
        step = found.batch.places[0][0]
        batch = replayed.batch(step)
        signals = base.describe(batch.instances, batch.token_ids, steps=step)
    elif cause == "instance":
        signals = signals[:1]
    elif cause == "group" and found.group is not None:
        there = [suspect.place in found.group.places for suspect in found.suspects]
        signals = [row for row, belongs in zip(signals, there, strict=True) if belongs]
    return [odds for odds in base.odds_ratios(signals) if odds.suspects_with][:STRONGEST_ODDS] if signals else []
