"""Which steps an OLMo-core run takes: epochs, durations, batch-size schedules, ranges of steps that are skipped.

Source: Python package ai2-olmo-core 3.0.0 (train/trainer.py, train/common.py, train/callbacks/batch_size_scheduler.py,
data/data_loader.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data_index.durations import Duration, olmo_core_duration
from data_index.errors import OrderMismatch
from data_index.run import Segment
from data_index.sources.olmo_position import MAX_EPOCHS

MAX_TURNS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizes:
    """The batch-size schedule: sizes in tokens, and when each one is due."""

    tokens: tuple[int, ...] = ()
    due: tuple[Duration, ...] = ()


def batch_sizes_of(config: Mapping[str, Any]) -> BatchSizes:
    callbacks = (config.get("trainer") or {}).get("callbacks") or {}
    chosen = next((c for c in callbacks.values() if "BatchSizeScheduler" in str((c or {}).get("_CLASS_"))), None)
    chosen = chosen or callbacks.get("batch_size_scheduler") or {}
    if not chosen.get("schedule") or chosen.get("enabled") is False:
        return BatchSizes()
    due = tuple(olmo_core_duration(d, "callbacks.batch_size_scheduler.schedule") for d in chosen["schedule"])
    return BatchSizes(tokens=tuple(int(size) for size in chosen["batch_sizes"]), due=due)


@dataclass(slots=True, kw_only=True)
class Walk:
    """Goes through a run as the trainer does, a stretch of equal batches at a time.

    Attributes:
        num_positions: instances of an epoch's order; those that fill no batch are dropped.
        sequence_length: tokens of an instance.
        batch_tokens: the global batch size now.
        base_rate_changes: (first step, factor) by which the base learning rate was multiplied there.
    """

    num_positions: int
    sequence_length: int
    batch_tokens: int
    sizes: BatchSizes = BatchSizes()
    steps: int = 0
    tokens: int = 0
    epoch: int = 1
    position: int = 0
    segments: list[Segment] = field(default_factory=list)
    base_rate_changes: list[tuple[int, float]] = field(default_factory=list)

    def go(self, until: Sequence[Duration]) -> None:
        """Take steps until the first of the durations is reached.

        The trainer looks at the batch size before it asks for a batch, so that a smaller size that is due at the end of
        an epoch may still find one there.

        Raises:
            OrderMismatch: an epoch does not hold one batch.
        """
        turns = 0
        while not any(stop.is_reached(self.steps, self.tokens, self.epoch - 1) for stop in until):
            turns += 1
            if self.epoch > MAX_EPOCHS or turns > MAX_TURNS:
                raise OrderMismatch(
                    f"by its config the run goes through its {self.num_positions} instances more than {MAX_EPOCHS} "
                    "times, or never comes to its end: check max_duration, the batch sizes and the token files"
                )
            pending = self._choose_batch_size()
            rows = self.batch_tokens // self.sequence_length
            batches = (self.num_positions - self.position) // rows
            if batches == 0:
                if self.position == 0:
                    raise OrderMismatch(f"{self.num_positions} instances do not fill one batch of {rows}")
                self.epoch, self.position = self.epoch + 1, 0
                continue
            ends = [d.batches_until(self.steps, self.tokens, self.batch_tokens) for d in (*until, *self.sizes.due)]
            taken = 1 if pending else min([batches, *(end for end in ends if end)])
            self._take(taken, rows)

    def _take(self, batches: int, rows: int) -> None:
        segment = Segment(
            first_step=self.steps + 1,
            num_steps=batches,
            epoch=self.epoch,
            first_position=self.position,
            instances_per_batch=rows,
        )
        last = self.segments[-1] if self.segments else None
        if last and (last.epoch, last.instances_per_batch) == (segment.epoch, rows):
            self.segments[-1] = replace(last, num_steps=last.num_steps + batches)
        else:
            self.segments.append(segment)
        self.steps += batches
        self.tokens += batches * self.batch_tokens
        self.position += batches * rows

    def _choose_batch_size(self) -> bool:
        """Change to the latest size that is due; True where an increase has to wait for whole larger batches."""
        for size, due in reversed(list(zip(self.sizes.tokens, self.sizes.due, strict=True))):
            if not due.is_reached(self.steps, self.tokens, self.epoch - 1):
                continue
            processed = self.position * self.sequence_length // self.batch_tokens
            if size > self.batch_tokens and processed % (size // self.batch_tokens):
                return True
            if size != self.batch_tokens:
                self.base_rate_changes.append((self.steps + 1, math.sqrt(size / self.batch_tokens)))
                self.batch_tokens = size
            return False
        return False


def walk_of(config: Mapping[str, Any], num_positions: int, sequence_length: int) -> Walk:
    """All steps that the trainer was told to take: the shorter of max_duration and hard_stop, else one epoch."""
    trainer = config.get("trainer") or {}
    until = [
        olmo_core_duration(trainer[name], f"trainer.{name}")
        for name in ("max_duration", "hard_stop")
        if trainer.get(name)
    ]
    walk = Walk(
        num_positions=num_positions,
        sequence_length=sequence_length,
        batch_tokens=int(config["data_loader"]["global_batch_size"]),
        sizes=batch_sizes_of(config),
    )
    walk.go(until or [Duration(value=1, unit="epochs")])
    return walk


def skip_steps(segments: Sequence[Segment], ranges: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
    """Segments cut so that the steps in `steps_to_skip` (start inclusive, stop exclusive) stand apart."""
    for skipped in ranges:
        start, stop = int(skipped["start"]), int(skipped["stop"])
        segments = [piece for segment in segments for piece in _cut(segment, start, stop)]
    return tuple(segments)


def _cut(segment: Segment, start: int, stop: int) -> list[Segment]:
    borders = [
        segment.first_step,
        max(start, segment.first_step),
        min(stop, segment.last_step + 1),
        segment.last_step + 1,
    ]
    if borders[1] >= borders[2]:
        return [segment]
    return [
        replace(
            segment,
            first_step=first,
            num_steps=end - first,
            first_position=segment.first_position + (first - segment.first_step) * segment.instances_per_batch,
            outcome="skipped" if inside else segment.outcome,
        )
        for first, end, inside in zip(borders, borders[1:], (False, True, False), strict=False)
        if end > first
    ]
