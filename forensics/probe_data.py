"""What probes need of a run besides rows to predict: counts of its own data, rows read at known steps, bytes of tokens.

Everything is read when a probe first asks for it, and once for all probes of a question.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.batch import rows_as_trained
from data_index.batch_queries import instances_at, plan_of, reader_of, readings_of_instances
from data_index.files import sha256_of_file
from data_index.run import Run
from data_index.text import token_bytes
from data_index.workspace import Workspace
from forensics.fetching import bytes_of_instances, require_allowed
from forensics.probe_options import ProbeOptions
from forensics.probe_rows import ProbeRows
from forensics.row_sources import applied_stretches, probe_rows, sampled_instances, sampled_readings

if TYPE_CHECKING:
    from probes.ngram_agreement import BigramCounts
    from probes.probe import TokenRows

# Of the run's own data, counted for frequencies and n-grams: all of a small run, a sample of a large one.
COUNTED_TOKENS = 2**24
# Rows whose reading is known, spread over all steps.
COHORT_ROWS = 256
COHORT_LENGTH = 512
# Rows of the batch before a checkpoint, and of the batch after it.
BATCH_ROWS = 32
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnCounts:
    """Tokens and pairs of neighbours in rows of the run's own data.

    Attributes:
        unigrams: int64 of shape [vocabulary]. num_tokens: that were counted; complete: they are all that was read.
    """

    unigrams: np.ndarray
    bigrams: BigramCounts
    num_tokens: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cohorts:
    """Rows that the run was trained on, with the step that read each first.

    Attributes:
        token_ids: int64 of shape [rows, length]. first_steps: int64 of shape [rows], rising.
    """

    token_ids: np.ndarray
    scored: np.ndarray | None
    first_steps: np.ndarray

    def for_model(self) -> TokenRows:
        from probes.probe import TokenRows

        return TokenRows(token_ids=self.token_ids, scored=self.scored)


class ProbeData:
    """Of one run."""

    def __init__(self, workspace: Workspace, run: Run, options: ProbeOptions) -> None:
        self.workspace, self.run, self.options = workspace, run, options
        self._rows: dict[str | None, tuple[ProbeRows, TokenRows]] = {}

    def rows(self, source: str | None) -> tuple[ProbeRows, TokenRows]:
        """Rows of a source, and the same object for every probe that looks at them.

        Raises:
            MissingFile, CorruptFile, UnknownOrder, InvalidRange, TooMuchToFetch, AccessDenied, Unreachable, Offline
        """
        if source not in self._rows:
            found = probe_rows(self.workspace, self.run, source, self.options)
            self._rows[source] = found, found.for_model()
        return self._rows[source]

    def utf8_bytes(self, token_ids: np.ndarray) -> np.ndarray:
        """Bytes of text that each token stands for, int64, of the shape of the ids.

        Raises:
            MissingFile, CorruptFile, UnsupportedRecipe: the tokenizer does not tell.
        """
        lengths = np.array([len(piece) for piece in token_bytes(self.run)], dtype=np.int64)
        # Rows of the embedding beyond the tokenizer stand for no text.
        padded = np.zeros(max(len(lengths), int(token_ids.max(initial=-1)) + 1), dtype=np.int64)
        padded[: len(lengths)] = lengths
        return padded[token_ids]

    @cached_property
    def identity(self) -> str:
        """Changes when what is known of the run's order does."""
        return sha256_of_file(self.workspace.home(self.run.name) / "run.toml")[:16]

    @cached_property
    def own_counts(self) -> OwnCounts:
        """
        Raises:
            UnknownOrder, MissingFile, CorruptFile, TooMuchToFetch, AccessDenied, Unreachable, Offline
        """
        from probes.ngram_agreement import BigramCounts

        rows, is_token, complete = self._counted_rows()
        tokens, is_pair = rows[is_token], is_token[:, 1:]  # padding comes last
        width = max(self.run.vocabulary_size or 0, int(tokens.max(initial=-1)) + 1)
        return OwnCounts(
            unigrams=np.bincount(tokens, minlength=width),
            bigrams=BigramCounts.of_pairs(rows[:, :-1][is_pair], rows[:, 1:][is_pair]),
            num_tokens=tokens.size,
            complete=complete,
        )

    def _counted_rows(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """Readings of the run, each as often as it happened; which of their tokens are no padding; are they all."""
        length = self.run.tokens_per_instance
        steps, positions = sampled_readings(self.run, COUNTED_TOKENS // length, self.options.seed)
        complete = len(steps) == sum(one.num_steps * one.instances_per_batch for one in applied_stretches(self.run))
        instances = instances_at(self.workspace, self.run, steps, positions)
        self._require(instances, "counting tokens of")
        reader = reader_of(self.workspace, self.run)
        parts = [reader.rows(part)[:, :length] for part in _parts(instances)]
        rows = np.concatenate(parts) if parts else np.empty((0, length), np.int64)
        return rows, np.arange(length) < reader.num_tokens_of(instances)[:, None], complete

    @cached_property
    def cohorts(self) -> Cohorts:
        """
        Raises:
            UnknownOrder, MissingFile, CorruptFile, TooMuchToFetch, AccessDenied, Unreachable, Offline
        """
        instances = sampled_instances(self.workspace, self.run, COHORT_ROWS, self.options.seed)
        self._require(instances, "rows whose reading is known, of")
        first = self._first_steps(self.run, instances)
        steps = np.array([first[int(instance)] for instance in instances], dtype=np.int64)
        order = np.argsort(steps, kind="stable")
        return Cohorts(first_steps=steps[order], **self._read(instances[order], COHORT_LENGTH))

    def _first_steps(self, run: Run, instances: np.ndarray) -> dict[int, int]:
        """By instance, the first step that trained on it; of a fork, its parent's steps before are among them."""
        stretches = applied_stretches(run)
        starts = [stretch.first_step for stretch in stretches]
        found: dict[int, int] = {}
        rows = readings_of_instances(self.workspace, run, instances.tolist()).to_pydict()
        for instance, step, attempt in zip(*(rows[name] for name in ("instance", "step", "attempt")), strict=True):
            # An attempt that was given up, and a batch that was consumed for nothing, left no trace in the weights.
            stretch = stretches[max(bisect_right(starts, step) - 1, 0)]
            if stretch.first_step <= step <= stretch.last_step and stretch.attempt == attempt:
                found[instance] = min(step, found.get(instance, step))
        return found | self._before_the_fork(run, instances)

    def _before_the_fork(self, run: Run, instances: np.ndarray) -> dict[int, int]:
        """Nothing where the run is no fork, or has other data than its parent."""
        if run.parent is None or run.parent[0] not in {*self.workspace.run_names(), *self.workspace.fork_ids()}:
            return {}
        parent, last = self.workspace.run(run.parent[0]), run.parent[1]
        shared = [(file.path, file.first_instance) for file in run.files[: len(parent.files)]]
        if shared != [(file.path, file.first_instance) for file in parent.files] or not parent.segments:
            return {}
        first = self._first_steps(parent, instances[instances < parent.num_instances])
        return {instance: step for instance, step in first.items() if step <= last}

    def around(self, step: int) -> tuple[TokenRows, np.ndarray] | None:
        """Rows of the batch that a checkpoint read last and of the one that comes next; which are read already, bool of
        shape [rows]; None where neither is known.
        """
        from probes.probe import TokenRows

        found, is_read = [], []
        for first, read in ((step - 1, True), (step, False)):
            plan = plan_of(self.workspace, self.run, first, first + 1).by_step.get(first + 1)
            # Before the first step, after the last, where data are not there, or where nothing was learned of them.
            if plan is None or plan.outcome != "applied":
                continue
            instances = plan.instances
            chosen = np.random.default_rng([self.options.seed, first]).permutation(len(instances))[:BATCH_ROWS]
            found.append(instances[np.sort(chosen)])
            is_read += [read] * len(chosen)
        if not found:
            return None
        rows = self._read(np.concatenate(found), self.options.length)
        return TokenRows(**rows), np.array(is_read)

    def _read(self, instances: np.ndarray, most: int | None) -> dict[str, Any]:
        own = self.run.tokens_per_instance
        length = min(own, most or own)
        self._require(instances, "rows of")
        ids, counts = (array[:, :length] for array in rows_as_trained(instances, reader_of(self.workspace, self.run)))
        return {"token_ids": ids, "scored": None if counts.all() else counts}

    def _require(self, instances: np.ndarray, what: str) -> None:
        wanted = bytes_of_instances(self.workspace, self.run, instances)
        require_allowed(wanted, self.options.max_fetch, f"{what} {self.run.name}")


def _parts(instances: np.ndarray) -> list[np.ndarray]:
    return [instances[start : start + ROWS_AT_ONCE] for start in range(0, len(instances), ROWS_AT_ONCE)]


def hash_of(arrays: Mapping[str, np.ndarray | None]) -> str:
    """Of the content of named arrays; 16 hex digits."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        if array is not None:
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
