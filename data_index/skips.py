"""Steps that a run took without applying them, and data that it passed over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data_index.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """A stretch of steps, or of positions, that changed no weight.

    Attributes:
        first_step, last_step: of `unread` data, the step that was taken next.
        kind: `skipped` and `withheld` as a segment's outcome; `unread`: positions of an epoch between those of two
            steps that were kept (a loader that was moved on after a restart).
    """

    first_step: int
    last_step: int
    attempt: int
    kind: str
    epoch: int
    first_position: int
    num_instances: int


def stretches_passed_over(run: Run) -> list[PassedOver]:
    """What a run's segments say, of all attempts, in step order."""
    found = [*_not_applied(run), *_unread(run)]
    return sorted(found, key=lambda stretch: (stretch.first_step, stretch.attempt, stretch.kind != "unread"))


def _not_applied(run: Run) -> Iterator[PassedOver]:
    for segment in run.segments:
        if segment.outcome != "applied":
            yield PassedOver(
                first_step=segment.first_step,
                last_step=segment.last_step,
                attempt=segment.attempt,
                kind=segment.outcome,
                epoch=segment.epoch,
                first_position=segment.first_position,
                num_instances=segment.num_steps * segment.instances_per_batch,
            )


def _unread(run: Run) -> Iterator[PassedOver]:
    reached: dict[int, int] = {}
    for first, last, segment in run.kept_segments():
        start, stop = segment.positions_of_step(first).start, segment.positions_of_step(last).stop
        before = reached.get(segment.epoch, start)
        if start > before:
            yield PassedOver(
                first_step=first,
                last_step=first,
                attempt=segment.attempt,
                kind="unread",
                epoch=segment.epoch,
                first_position=before,
                num_instances=start - before,
            )
        reached[segment.epoch] = max(before, stop)
