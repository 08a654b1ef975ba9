"""Rows of a run as content: which readings stand for the run, and what is read of a row beside its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_index.batch_queries import instances_at, reader_of, readings_of_instances
from data_index.document_queries import documents_of_instances, tags_of_instances
from data_index.errors import InvalidRange, MissingFile, UnsupportedRecipe
from data_index.files import BLOCK_BYTES
from data_index.masking import document_lengths
from data_index.run import Run
from data_index.text import load_spelling
from data_index.text_queries import documents_in_force
from data_index.tokens import TokenReader
from data_index.workspace import Workspace
from forensics.fetching import bytes_of_instances

NUM_ROWS = 2048
MAX_BASE_TOKENS = 2**22  # of long rows fewer are taken


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readings:
    """Readings of a run that stand for all of them, in step order.

    Attributes:
        steps, positions, instances: int64 of shape [readings]; an instance may be among them more than once.
        num_readings: of the run before the step asked for, these among them.
    """

    steps: np.ndarray
    positions: np.ndarray
    instances: np.ndarray
    num_readings: int


def drawn_readings(
    workspace: Workspace,
    run: Run,
    *,
    before_step: int | None = None,
    without: Sequence[int] | np.ndarray = (),
    num_rows: int = NUM_ROWS,
    seed: int = 0,
) -> Readings:
    """Readings by the attempts that were kept: all of them where they are few, else drawn evenly without repetition.

    Args:
        before_step: only of steps before this one; default: of the whole run.
        without: instances that are left out, however often they were read.
        num_rows: readings at most, and no more than `MAX_BASE_TOKENS` tokens.
    Raises:
        UnknownOrder: what the run read is not known.
        InvalidRange: no reading is left.
    """
    run.segment_of_step(run.last_step)  # says why nothing is known
    stop = run.last_step + 1 if before_step is None else before_step
    stretches = [segment for segment in run.kept_stretches() if segment.first_step < stop]
    sizes = [min(s.num_steps, stop - s.first_step) * s.instances_per_batch for s in stretches]
    ends = np.cumsum([0, *sizes])
    wanted = min(num_rows, max(MAX_BASE_TOKENS // max(run.sequence_length, 1), 1))
    total = int(ends[-1])
    chosen = np.arange(total)
    if total > wanted:
        chosen = np.sort(np.random.default_rng(seed).choice(total, wanted, replace=False))
    number = np.searchsorted(ends, chosen, side="right") - 1
    within = chosen - ends[number]
    first, start, rows = (
        np.array([getattr(s, name) for s in stretches], dtype=np.int64)[number]
        for name in ("first_step", "first_position", "instances_per_batch")
    )
    steps, positions = first + within // np.maximum(rows, 1), start + within
    instances = instances_at(workspace, run, steps, positions) if total else np.empty(0, dtype=np.int64)
    left = ~np.isin(instances, np.asarray(without, dtype=np.int64))
    if not left.any():
        where = "" if before_step is None else f" before step {before_step}"
        raise InvalidRange(
            f"{run.name} read nothing{where} to compare with, besides the {len(without)} instances in question: ask "
            "about fewer, or a later step"
        )
    return Readings(steps=steps[left], positions=positions[left], instances=instances[left], num_readings=total)


def cost_of_readings(workspace: Workspace, run: Run, readings: Readings, *, verify: bool = True) -> dict[str, int]:
    """What reading them takes: rows, tokens, bytes to read (whole blocks where they are checked), bytes to fetch."""
    reader = TokenReader(run, None)
    unique = np.unique(readings.instances)
    blocks, num_bytes = set(), 0
    for number, start, stop in (piece for instance in unique.tolist() for piece in reader.pieces_of(instance)):
        file = run.files[number]
        item = file.num_bytes / max(reader.num_tokens_in(number), 1)
        num_bytes += round((stop - start) * item)
        if isinstance(file.path, Path) and verify:
            last = max(round(stop * item) - 1, 0) // BLOCK_BYTES
            blocks |= {(number, block) for block in range(int(start * item) // BLOCK_BYTES, last + 1)}
    checked = sum(
        min(BLOCK_BYTES, run.files[number].num_bytes - block * BLOCK_BYTES) for number, block in sorted(blocks)
    )
    return {
        "rows": len(unique),
        "tokens": int(reader.num_tokens_of(unique).sum()),
        "read": max(num_bytes, checked),
        "download": bytes_of_instances(workspace, run, unique.tolist()),
    }


class RowContents:
    """Reads what stands beside the tokens of a run's rows: their text, documents, tags, earlier readings.

    `without_text` says why there is no text, where there is none.
    """

    def __init__(self, workspace: Workspace, run: Run, *, verify: bool = True) -> None:
        self.workspace, self.run = workspace, run
        self.reader = reader_of(workspace, run, verify=verify)
        self.has_documents = bool(documents_in_force(workspace, run))
        self.without_text: str | None = None
        self._pieces: tuple[bytes, ...] = ()
        try:
            self._pieces = load_spelling(run).pieces
        except (MissingFile, UnsupportedRecipe) as error:
            self.without_text = str(error)

    def trimmed(self, instances: np.ndarray, token_ids: np.ndarray) -> list[np.ndarray]:
        """The rows without their padding."""
        lengths = self.reader.num_tokens_of(instances)
        return [row[:length] for row, length in zip(token_ids, lengths.tolist(), strict=True)]

    def texts(self, rows: Sequence[np.ndarray]) -> list[bytes] | None:
        """The bytes that rows stand for, special tokens left out; None without a tokenizer that can be read."""
        if self.without_text is not None:
            return None
        pieces = self._pieces
        return [b"".join([pieces[token] for token in row.tolist() if token < len(pieces)]) for row in rows]

    def documents(self, instances: np.ndarray, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """How many documents have a piece in each row, and the shortest and longest of them (tokens); NaN: not known.

        By the run's documents where it has any; else by its end token: then only documents that begin and end in the
        row have a known length, and nothing is known without an end token.
        """
        found = {name: np.full(len(rows), np.nan) for name in ("documents", "shortest", "longest")}
        if self.has_documents:
            known = documents_of_instances(self.workspace, self.run, np.unique(instances))
            place = {int(instance): n for n, instance in enumerate(known["instance"])}
            here = np.array([place.get(int(instance), -1) for instance in instances], dtype=np.int64)
            for name in found:
                found[name][here >= 0] = known[name][here[here >= 0]]
        elif self.run.eos_token_id is not None:
            for n, row in enumerate(rows):
                lengths = document_lengths(row, self.run.eos_token_id)
                found["documents"][n] = len(lengths)
                if len(lengths) > 2:  # the first and the last are cut
                    found["shortest"][n], found["longest"][n] = lengths[1:-1].min(), lengths[1:-1].max()
        return found

    def tags(self, instances: np.ndarray) -> Mapping[int, frozenset[str]]:
        """Tags of the documents with a piece in each row."""
        found: dict[int, set[str]] = {}
        if self.has_documents:
            for instance, tag in tags_of_instances(self.workspace, self.run, np.unique(instances)):
                found.setdefault(instance, set()).add(tag)
        return {instance: frozenset(tags) for instance, tags in found.items()}

    def read_before(self, instances: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Did an earlier step read the instance, or this one twice? Bool of shape [readings]; kept attempts count."""
        table: Any = readings_of_instances(self.workspace, self.run, np.unique(instances).tolist())
        found = {name: table.column(name).to_numpy() for name in ("instance", "step", "attempt")}
        kept = np.zeros(table.num_rows, dtype=bool)
        for first, last, attempt in self.run.kept_steps():
            kept |= (found["step"] >= first) & (found["step"] <= last) & (found["attempt"] == attempt)
        by_instance: dict[int, list[int]] = {}
        for instance, step in zip(found["instance"][kept].tolist(), found["step"][kept].tolist(), strict=True):
            by_instance.setdefault(instance, []).append(step)
        earlier = (
            sum(other < step for other in by_instance.get(instance, ()))
            + max(by_instance.get(instance, []).count(step) - 1, 0)
            for instance, step in zip(instances.tolist(), steps.tolist(), strict=True)
        )
        return np.array([count > 0 for count in earlier], dtype=bool)
