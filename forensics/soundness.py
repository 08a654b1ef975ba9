"""Is a run sound? What the audit asks, and in which order.

    files        are they there, of the stated or first-seen size and content; do they open
    listing      which steps are listed, and which are missing
    weights      of each checkpoint: readable, equal to another's, in their place in the run
    tokenizer    does it fit the data and the model
    evaluations  do published numbers contradict the weights

What is read of a checkpoint is kept (`audit_work`); one that cannot be read does not stop the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from data_index.artifacts import (
    Artifact,
    artifacts_of,
    content_of,
    identity_of_all,
    revisions_now,
    run_artifacts,
)
from data_index.errors import ForensicsError, MissingState, UnknownLayout, UnsupportedRecipe
from data_index.evaluations import Evaluations
from data_index.metric_queries import logged_metrics
from data_index.run import Checkpoint, Run
from data_index.workspace import Workspace
from forensics import artifact_checks as files
from forensics.artifact_checks import READING, reason
from forensics.audit_memory import first_seen, gone_rows, kept_evaluations, remember
from forensics.audit_picture import picture
from forensics.audit_plan import plan_audit
from forensics.audit_rows import Row, judged, row, unique_rows
from forensics.audit_work import AuditWork
from forensics.configured import learning_rate_of_step
from forensics.equal_files import equal_file_rows
from forensics.fetching import require_allowed
from forensics.figure import Figure
from forensics.listing_gaps import gap_rows
from forensics.named_steps import counted_steps, optimizer_step_rows, revision_row
from forensics.odd_elements import jump_rows
from forensics.published_evaluations import evaluation_rows
from forensics.run_continuity import Continuity, judge
from forensics.tokenizer_check import tokenizer_rows
from forensics.weight_samples import Change, Reading, name_of_reading, odd_changes, read_checkpoint, read_far_sample

EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "word_embeddings.weight")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """Rows of `artifact, step, check, result, detail, num_bytes, checked_at`, sorted by step, those of the run first.

    `result` is "ok", "failed", "expected" (odd, and as it should be) or "not known". `steps` holds all steps of a
    finding that is about several.
    """

    run: str
    rows: tuple[Row, ...]
    figure: Figure
    notes: tuple[str, ...]

    @property
    def failed(self) -> list[Row]:
        return [found for found in self.rows if found["result"] == "failed"]


def audit(
    run: str,
    *,
    deep: bool = False,
    evaluations: Path | str | None = None,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
    progress: Progress = lambda message: None,
) -> AuditResult:
    """Check every artifact of a run against itself, its publisher, and the run's other artifacts.

    Args:
        deep: also read every token file and every tensor, and hash all files anew.
        evaluations: a folder of published result files (lm-eval's); default: those given at an earlier audit.
        max_fetch: bytes that may be fetched from servers; default: 1 GiB. A deep audit fetches all there is.
    Raises:
        UnknownRun, TooMuchToFetch
        MissingFile, CorruptFile: `evaluations` holds none.
    """
    workspace = workspace or Workspace()
    record = workspace.run(run, verify=False)  # what is wrong with it is a row
    if deep and _lies_on_servers(workspace, record):
        planned = plan_audit(run, deep=True, workspace=workspace)
        require_allowed(planned["fetch_bytes"], max_fetch, f"a deep audit of {run}")
    published = kept_evaluations(workspace, record, evaluations)
    return _Audit(workspace, record, deep=deep, evaluations=published, progress=progress).result()


def _lies_on_servers(workspace: Workspace, run: Run) -> bool:
    places = [*(file.path for file in run.files), *(c.location for c in workspace.checkpoints(run))]
    return not all(isinstance(place, Path) for place in places)


@dataclass(slots=True)
class _Seen:
    """What was learned of the checkpoints on the way."""

    artifacts: dict[int, list[Artifact]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    readings: dict[int, Reading] = field(default_factory=dict)


class _Audit:
    def __init__(
        self, workspace: Workspace, run: Run, *, deep: bool, evaluations: Evaluations | None, progress: Progress
    ) -> None:
        self.workspace, self.run, self.deep, self.say = workspace, run, deep, progress
        self.evaluations = evaluations
        self.home = workspace.home(run.name)
        self.work = AuditWork(self.home, deep=deep)
        self.rests = cache(self._rests)
        self.expected_equal: dict[int, set[str]] = {}
        self._logged_skips: dict[int, bool] | None = None
        self.seen = _Seen()

    def result(self) -> AuditResult:
        self.work.begin()
        rows = list(self._own_rows())
        checkpoints = self._checkpoints(rows)
        self.expected_equal = {
            c.step: {issue for issue in c.issues if issue.startswith("expected_equal:")} for c in checkpoints
        }
        for checkpoint in checkpoints:
            self.seen.artifacts[checkpoint.step] = artifacts_of(self.workspace, self.run, checkpoint)
        rows += self._optimizer_rows(checkpoints)
        now = revisions_now(checkpoints)
        rows += [found for c in checkpoints if (found := revision_row(c, now)) is not None]
        rows += gap_rows(self.run, [checkpoint.step for checkpoint in checkpoints])
        for number, checkpoint in enumerate(checkpoints, 1):
            doing = "reading" if self.deep else "sampling"
            self.say(f"checkpoint {checkpoint.step} ({number} of {len(checkpoints)}): {doing}")
            rows += self._checkpoint_rows(checkpoint)
        self.say("comparing checkpoints")
        continuity = judge([self.seen.readings[step] for step in sorted(self.seen.readings)], self.rests)
        rows += continuity.rows
        rows += self._equal_files(continuity)
        rows += self._jumps(checkpoints)
        self.say("tokenizer")
        rows += tokenizer_rows(self.workspace, self.run, self._vocabulary(), deep=self.deep)
        if self.evaluations is not None:
            last = max(self.seen.artifacts, default=0)
            rows += evaluation_rows(self.evaluations, continuity, last)
        rows += gone_rows(first_seen(self.workspace, self.home), self.seen.artifacts)
        rows = unique_rows(rows)
        rows.sort(key=lambda found: -1 if found["step"] is None else found["step"])
        remember(self.workspace, self.home, rows, self.seen.hashes)
        self.work.finish()
        steps = [checkpoint.step for checkpoint in checkpoints]
        figure = picture(self.run.name, steps, rows, continuity.curve)
        return AuditResult(run=self.run.name, rows=tuple(rows), figure=figure, notes=tuple(self._notes(rows)))

    def _notes(self, rows: Sequence[Row]) -> Iterator[str]:
        if not self.deep:
            yield "Weights were sampled, not read: --deep reads every element, and all token files."
        if self.evaluations is None:
            yield "No published evaluations were compared: --evals DIR names a folder of them."

    # --- the run's own files -----------------------------------------------------------------------------------------

    def _own_rows(self) -> Iterator[Row]:
        found = run_artifacts(self.workspace, self.run)
        yield from files.availability_rows(found)
        yield from files.seal_rows(self.home, deep=self.deep, say=self.say)
        yield from files.index_rows(self.workspace, self.run)
        yield from files.order_rows(self.run)
        yield from files.piece_rows(self.run)
        by_name = {artifact.name: artifact for artifact in found}
        yield from files.token_rows(self.workspace, self.run, by_name, deep=self.deep, say=self.say)
        # Token files have hashes of their own; the index is made from the rest.
        tokens = {file.name for file in (*self.run.files, *self.run.heldout)} | {"index.duckdb"}
        yield from self._hash_rows("run-files", [a for a in found if a.name not in tokens])

    def _checkpoints(self, rows: list[Row]) -> list[Checkpoint]:
        try:
            return self.workspace.checkpoints(self.run)
        except ForensicsError as error:
            rows.append(judged("checkpoints", "listed", str(error)))
            return []

    # --- one checkpoint ----------------------------------------------------------------------------------------------

    def _checkpoint_rows(self, checkpoint: Checkpoint) -> Iterator[Row]:
        there = self.seen.artifacts[checkpoint.step]
        yield from files.availability_rows(there)
        yield from files.checkpoint_rows(checkpoint)
        if self._is_hashed(there):
            yield from self._hash_rows(f"step{checkpoint.step}-files", there)
        for artifact in there:
            if artifact.sha256_stated is not None:
                self.seen.hashes.setdefault(artifact.name, artifact.sha256_stated)
        failure = None
        try:
            reading = self._reading(checkpoint)
            if reading is not None:
                self.seen.readings[checkpoint.step] = reading
                read = f"{len(reading.shapes)} parameters, {'all elements' if self.deep else 'a sample'} read"
                yield row(f"checkpoint {checkpoint.step} weights", "reads", "ok", read, step=checkpoint.step)
        except (MissingState, UnknownLayout, UnsupportedRecipe) as error:
            reading, failure = None, row("", "reads", "not known", str(error))
        except READING as error:
            reading, failure = None, row("", "reads", "failed", reason(error))
        if failure is not None:
            yield failure | {"artifact": f"checkpoint {checkpoint.step} weights", "step": checkpoint.step}
        if self.deep:
            yield from files.content_rows(checkpoint, reading)

    def _optimizer_rows(self, checkpoints: Sequence[Checkpoint]) -> list[Row]:
        counted = {}
        for checkpoint in checkpoints:
            with contextlib.suppress(*READING):  # whether it opens is another row
                if (count := counted_steps(checkpoint)) is not None:
                    counted[checkpoint.step] = count
        return list(optimizer_step_rows(counted))

    def _is_hashed(self, artifacts: Sequence[Artifact]) -> bool:
        return self.deep or files.is_small(self.seen.artifacts)

    def _hash_rows(self, name: str, artifacts: Sequence[Artifact]) -> Iterator[Row]:
        """Hash files, or find the hashes kept; and judge them."""
        chosen = [a for a in artifacts if files.can_be_hashed(a, deep=self.deep)]
        identity = identity_of_all(chosen)
        kept = self.work.find(name, identity)
        if kept is None:
            kept = {}
            for artifact in chosen:
                if (artifact.num_bytes or 0) >= files.SMALL_FILE_BYTES:
                    self.say(f"{artifact.name}: hashing {artifact.num_bytes:,} bytes")
                try:
                    kept[artifact.name] = content_of(artifact)
                except READING as error:
                    yield judged(artifact.name, "hash", reason(error), step=artifact.step)
            self.work.keep(name, identity, kept)
        seen = first_seen(self.workspace, self.home)
        for artifact in chosen:
            if artifact.name in kept:
                self.seen.hashes[artifact.name] = kept[artifact.name]
                yield files.hash_row(artifact, kept[artifact.name], seen)

    def _reading(self, checkpoint: Checkpoint) -> Reading | None:
        """What is known of the weights; None where there are none, or on a server without a way to read a part."""
        if "weights" not in checkpoint.states:
            return None
        far = not self.deep and not isinstance(checkpoint.location, Path)
        name = name_of_reading(checkpoint, deep=self.deep)
        identity = identity_of_all(self.seen.artifacts[checkpoint.step])
        kept, sample = self.work.find(name, identity), self.work.numbers(name)
        if kept is not None and sample is not None:
            return Reading.from_record(kept, sample)
        reading = read_far_sample(checkpoint) if far else read_checkpoint(checkpoint, whole=self.deep)
        if reading is None:
            return None
        self.work.keep(name, identity, reading.to_record(), reading.sample)
        return reading

    # --- all of them -------------------------------------------------------------------------------------------------

    def _equal_files(self, continuity: Continuity) -> Iterator[Row]:
        found = equal_file_rows(self.seen.artifacts, self.seen.hashes, continuity.groups, self.rests)
        for steps, whole, finding in list(found):
            if whole:
                continuity.groups.append(steps)
            yield finding

    def _jumps(self, checkpoints: Sequence[Checkpoint]) -> list[Row]:
        """Deep: every element of neighbouring checkpoints against each other."""
        if not self.deep:
            return []
        there = [checkpoint for checkpoint in checkpoints if checkpoint.step in self.seen.readings]
        changes: dict[tuple[int, int], list[Change]] = {}
        for one, other in zip(there, there[1:], strict=False):
            if self.seen.readings[one.step].shapes != self.seen.readings[other.step].shapes:
                continue
            name = f"step{one.step}-step{other.step}-changes"
            identity = identity_of_all([*self.seen.artifacts[one.step], *self.seen.artifacts[other.step]])
            kept = self.work.find(name, identity)
            if kept is None:
                self.say(f"checkpoints {one.step} and {other.step}: comparing all elements")
                kept = {"changes": [_as_record(change) for change in odd_changes(one, other)]}
                self.work.keep(name, identity, kept)
            changes[one.step, other.step] = [Change(**change) for change in kept["changes"]]
        return list(jump_rows([checkpoint.step for checkpoint in there], changes))

    def _rests(self, first: int, last: int) -> bool | None:
        """Did steps first+1 .. last all leave the weights as they were? None: not known.

        They did where the trainer skipped them (a loss scale that overflowed), or at a learning rate of 0; and where
        the catalog says that they should have.
        """
        if self.expected_equal.get(first, set()) & self.expected_equal.get(last, set()):
            return True
        for step in range(first + 1, last + 1):
            try:
                if self._skipped().get(step) or self.run.segment_of_step(step).outcome != "applied":
                    continue
                rate = learning_rate_of_step(self.workspace, self.run, step, approximate=True)
            except ForensicsError:
                rate = None
            if rate != 0:
                return None if rate is None else False
        return True

    def _skipped(self) -> dict[int, bool]:
        if self._logged_skips is None:
            metrics = logged_metrics(self.workspace, self.run, 0, self.run.last_step, ("skipped",))
            self._logged_skips = {step: bool(values.get("skipped")) for step, values in metrics.items()}
        return self._logged_skips

    def _vocabulary(self) -> int | None:
        """Rows of the model's embedding, as its weights have it; else as its config says."""
        for reading in self.seen.readings.values():
            for name, shape in reading.shapes.items():
                if name.endswith(EMBEDDINGS):
                    return shape[0]
        size = self.run.config.get("padded_vocab_size") or self.run.config.get("vocab_size")
        return size if isinstance(size, int) else None


def _as_record(change: Change) -> dict[str, Any]:
    return {name: getattr(change, name) for name in Change.__slots__}
