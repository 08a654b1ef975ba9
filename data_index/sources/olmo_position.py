"""From the data loader's position at each checkpoint to segments: restarts, skipped batches, epochs.

A position is (epoch, instances consumed of that epoch's order). Between checkpoints the loader moves on by one batch a
step; where the positions do not fit, the run was restarted at another place, and the configs mostly say how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_index.errors import OrderMismatch
from data_index.run import Segment

# More than any run read its data; a table is built for each.
MAX_EPOCHS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a data loader stood.

    Attributes:
        epoch: 1-based.
        examples: instances of the epoch's order that were consumed, batches that were skipped over included.
    """

    epoch: int
    examples: int
    world_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What one checkpoint says of the steps that led to it.

    Attributes:
        position: where the loader stood after `last_step`; None where that was not published.
        first_epoch: the epoch that a run with this config begins in.
        told_epoch: the epoch that a restart was told to begin, from its start unless the checkpoint was in it already.
        restarted_from: the checkpoint that the process loaded.
        skipped_batches: batches that it skipped over after loading.
    """

    last_step: int
    position: Position | None
    instances_per_batch: int
    first_epoch: int = 1
    told_epoch: int | None = None
    restarted_from: int | None = None
    skipped_batches: int = 0

    def same_process(self, other: Stretch) -> bool:
        """Every checkpoint that a process saves names the one that it had loaded."""
        one, two = ((s.restarted_from, s.told_epoch, s.skipped_batches, s.instances_per_batch) for s in (self, other))
        return one == two


def join_stretches(
    stretches: Sequence[Stretch], num_positions: int, last_step: int
) -> tuple[tuple[Segment, ...], list[str]]:
    """Segments that tile steps 1 .. last_step, and a sentence for each jump that no config explains.

    Args:
        stretches: in step order, the first checkpoint's first.
        num_positions: length of an epoch's order.
    Raises:
        OrderMismatch: a position cannot be reached from the one before.
    """
    joined = _Joined(num_positions=num_positions, position=Position(epoch=stretches[0].first_epoch, examples=0))
    before = None
    for stretch in stretches:
        if before is None or not stretch.same_process(before):
            joined.restart(stretch)
        joined.reach(stretch)
        before = stretch
    joined.go_on(replace(stretches[-1], last_step=max(last_step, joined.step), position=None, restarted_from=None))
    return tuple(joined.segments), joined.notes


class _Joined:
    """Segments so far; where the loader stood after each checkpoint's step."""

    def __init__(self, num_positions: int, position: Position) -> None:
        self.num_positions = num_positions
        self.step, self.position = 0, position
        self.at_step = {0: position}
        self.segments: list[Segment] = []
        self.notes: list[str] = []

    def reach(self, stretch: Stretch) -> None:
        """Add the steps up to a checkpoint, by the config's account where that fits, else by its position's."""
        start, expected = self.position, stretch.position
        segments, end = self._advance(start, stretch)
        if expected is not None and not self._same(end, expected, stretch.instances_per_batch):
            taken = (stretch.last_step - self.step) * stretch.instances_per_batch
            start = Position(epoch=expected.epoch, examples=expected.examples - taken)
            if start.examples < 0:
                raise OrderMismatch(
                    f"checkpoint {stretch.last_step}: its data loader stood at instance {expected.examples:,} of epoch "
                    f"{expected.epoch}, which {stretch.last_step - self.step} steps of {stretch.instances_per_batch} "
                    f"instances after step {self.step} (instance {self.position.examples:,} of epoch "
                    f"{self.position.epoch}) cannot lead to: a checkpoint or config is another run's"
                )
            if stretch.last_step > self.step:
                self.notes.append(
                    f"where between steps {self.step} and {stretch.last_step} the data loader jumped from instance "
                    f"{self.position.examples:,} of epoch {self.position.epoch} to {start.examples:,} of epoch "
                    f"{start.epoch} (taken to be right after step {self.step})"
                )
            segments, end = self._advance(start, stretch)
        self._take(segments, stretch.last_step, expected or end)

    def go_on(self, stretch: Stretch) -> None:
        segments, end = self._advance(self.position, stretch)
        self._take(segments, stretch.last_step, end)

    def _take(self, segments: list[Segment], step: int, position: Position) -> None:
        for segment in segments:
            for piece in self._numbered(segment):
                self._append(piece)
        self.step, self.position = step, position
        self.at_step[step] = position

    def _numbered(self, segment: Segment) -> list[Segment]:
        """A segment cut where the number of earlier attempts at its steps changes."""
        edges = {edge for s in self.segments for edge in (s.first_step, s.last_step + 1)}
        inside = sorted(edge for edge in edges if segment.first_step < edge <= segment.last_step)
        borders = [segment.first_step, *inside, segment.last_step + 1]
        return [
            replace(
                segment,
                first_step=first,
                num_steps=stop - first,
                first_position=segment.positions_of_step(first).start,
                attempt=1 + sum(s.first_step <= first <= s.last_step for s in self.segments),
            )
            for first, stop in zip(borders, borders[1:], strict=False)
        ]

    def _append(self, segment: Segment) -> None:
        """Add a segment, to the one before where it only goes on."""
        last = self.segments[-1] if self.segments else segment
        goes_on = replace(
            last,
            first_step=last.last_step + 1,
            num_steps=segment.num_steps,
            first_position=last.first_position + last.num_steps * last.instances_per_batch,
        )
        if self.segments and segment == goes_on:
            self.segments[-1] = replace(last, num_steps=last.num_steps + segment.num_steps)
        else:
            self.segments.append(segment)

    def restart(self, stretch: Stretch) -> None:
        """Go back to the checkpoint that the process loaded; steps after it that were taken are taken again."""
        loaded = stretch.restarted_from
        if loaded is None or loaded not in self.at_step or loaded >= stretch.last_step:
            return
        position = self.at_step[loaded]
        if stretch.told_epoch is not None and stretch.told_epoch != position.epoch:
            position = Position(epoch=stretch.told_epoch, examples=0)
        skipped = stretch.skipped_batches * stretch.instances_per_batch
        self.step, self.position = loaded, replace(position, examples=position.examples + skipped)

    def _advance(self, start: Position, stretch: Stretch) -> tuple[list[Segment], Position]:
        """Segments of the steps after `self.step` up to the stretch's last, and where the loader stands then."""
        segments, step, position, rows = [], self.step, start, stretch.instances_per_batch
        if self.num_positions < rows:
            raise OrderMismatch(f"the {self.num_positions:,} instances of an epoch do not fill one batch of {rows}")
        epochs = (stretch.last_step - step) // max(self.num_positions // rows, 1)
        if epochs > MAX_EPOCHS:
            raise OrderMismatch(
                f"by its config the run goes through its {self.num_positions:,} instances {epochs:,} times: check "
                "max_duration, stop_at and the token files"
            )
        while step < stretch.last_step:
            batches = (self.num_positions - position.examples) // rows
            if batches <= 0:
                position = Position(epoch=position.epoch + 1, examples=0)
                continue
            taken = min(batches, stretch.last_step - step)
            segments.append(
                Segment(
                    first_step=step + 1,
                    num_steps=taken,
                    epoch=position.epoch,
                    first_position=position.examples,
                    instances_per_batch=rows,
                )
            )
            step += taken
            position = replace(position, examples=position.examples + taken * rows)
        return segments, position

    def _same(self, one: Position, other: Position, rows: int) -> bool:
        """The end of an epoch is the start of the next."""

        def normal(position: Position) -> tuple[int, int]:
            over = self.num_positions - position.examples < rows
            return (position.epoch + 1, 0) if over else (position.epoch, position.examples)

        return normal(one) == normal(other)
