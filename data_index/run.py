"""What a run is: frozen records.

A step is 1-based: step s turns checkpoint s-1 into checkpoint s. `A:B` means from checkpoint A to checkpoint B, that
is steps A+1 .. B. A position is the 0-based place of an instance in the consumption order of its epoch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_index.errors import InvalidRange, MissingFile, StepOutOfRange, UnknownOrder

if TYPE_CHECKING:
    from data_index.remote.path import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """A file of token ids, and the instances that begin in it.

    Attributes:
        dtype: of raw little-endian token ids; `jsonl` for a file with one instance a line (`{"token_ids": […]}`).
        first_token: where its first instance begins; what lies before belongs to an instance that began in the file
            before (a shard's border need not be an instance's). The last instance may run on into the next file.
        label_mask: a file of as many booleans as tokens; False keeps a token out of the loss.
        lines: for `jsonl`, an .npy of int64 byte offsets: line i is bytes lines[i] .. lines[i + 1].
    """

    name: str
    path: Place
    dtype: str
    num_bytes: int
    first_instance: int
    num_instances: int
    sha256: str | None = None
    first_token: int = 0
    label_mask: Path | None = None
    lines: Path | None = None

    @property
    def on_disk(self) -> Path:
        """
        Raises:
            MissingFile: it is on a server, and what was asked for reads whole files.
        """
        if isinstance(self.path, Path):
            return self.path
        raise MissingFile(
            f"{self.path} is on a server, and {self.num_bytes:,} bytes of it would have to be read: download it, and "
            "say where it is with --data DIR"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPieces:
    """The folder in which the pieces of a run's instances are kept (`data_index.pieces`), and a hash of its content."""

    path: Path
    num_instances: int
    num_pieces: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """What a trainer hides from the loss by looking at the tokens; computed when a batch is read.

    Attributes:
        repetition: (max_period, min_period, max_count) of the instance filter: an instance in which up to max_period
            tokens are repeated max_count times or more leaves the loss as a whole. None: no filter.
        filter_sees_padding: the filter looks at rows after they were padded, so that much padding hides a row.
        hidden_token_id: targets of this id do not count.
    """

    repetition: tuple[int, int, int] | None = None
    filter_sees_padding: bool = False
    hidden_token_id: int | None = None


Outcome = Literal["applied", "skipped", "withheld"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of steps with one order, one batch size, one epoch.

    Attributes:
        loss_denominator: set where a step's summed loss is divided by something else than the recipe's rule gives.
        outcome: `skipped`: the trainer consumed the batches and computed nothing; `withheld`: it computed gradients and
            threw them away (a loss scale that overflowed).
    """

    first_step: int
    num_steps: int
    epoch: int
    first_position: int
    instances_per_batch: int
    attempt: int = 1
    loss_denominator: int | None = None
    outcome: Outcome = "applied"

    @property
    def last_step(self) -> int:
        return self.first_step + self.num_steps - 1

    def positions_of_step(self, step: int) -> slice:
        """The half-open range of positions that one step reads."""
        if not self.first_step <= step <= self.last_step:
            raise StepOutOfRange(f"this segment covers steps {self.first_step}..{self.last_step}, not {step}")
        start = self.first_position + (step - self.first_step) * self.instances_per_batch
        return slice(start, start + self.instances_per_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The rule that turns positions into instances; `orders` computes it."""

    rule: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderTrust:
    """Why the order is to be believed.

    exact: proved against the trainer's own record. derived: computed by the trainer's rule from verified inputs; the
    missing witness is named. chunk: only the set per chunk is known. unknown.

    Attributes:
        proved: stretches (first, last) of steps whose batches are exact, though not all of the run's are.
    """

    level: Literal["exact", "derived", "chunk", "unknown"]
    witness: str
    missing: str = ""
    proved: tuple[tuple[int, int], ...] = ()

    def of_steps(self, first: int, last: int) -> OrderTrust:
        """Why what steps first .. last read is to be believed."""
        if any(start <= first and last <= stop for start, stop in self.proved):
            return OrderTrust(level="exact", witness="the trainer's record of instances and token ids")
        return self

    def __str__(self) -> str:
        return f"{self.level} ({self.witness}{'; missing: ' + self.missing if self.missing else ''})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a checkpoint is and which states it holds; it carries no tensors.

    Attributes:
        revision: what the publisher calls it, where it is a branch or tag of a repository.
        commit: what that named when the run was registered; the location is that of the commit.
        available: whether it was there when it was last looked for, at `checked_at` (ISO 8601); None: never looked.
    """

    run: str
    step: int
    location: Place
    layout: str
    states: tuple[str, ...]
    tokens: int | None = None
    issues: tuple[str, ...] = ()
    revision: str | None = None
    commit: str | None = None
    available: bool | None = None
    checked_at: str | None = None

    def is_available(self) -> bool | None:
        """Is it there? On a server: was it, when it was last looked for."""
        return self.location.exists() if isinstance(self.location, Path) else self.available

    @property
    def folder(self) -> Path:
        """Its folder on disk.

        Raises:
            MissingFile: it is on a server, and what was asked for is read from disk only.
        """
        if isinstance(self.location, Path):
            return self.location
        raise MissingFile(
            f"checkpoint {self.step} of {self.run} lies at {self.location}, and what was asked for is read from disk "
            "only: download it, and add its folder"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One pretraining run, as the toolkit understood it. A fork is a run with a parent.

    Attributes:
        sequence_length: tokens of a row as it is read; with `extra_label` one more than the model reads, since the last
            one is a label only (as in Megatron's trainers).
        source: the run's folder; of a run read from servers, its home in the workspace (`origin` says where from).
        segments: none where it is not known what the steps read; `facts["last_step"]` then says how many there were.
        pieces: for instances that are put together from pieces of files; those cut from files come after them.
        pad_token_id: what fills a row that is too short; padding never counts in the loss.
        tokenizer_sha256: of the file, as it was when the run was added or as the run itself states.
    """

    name: str
    layout: str
    source: Path
    sequence_length: int
    files: tuple[TokenFile, ...]
    order: Order
    segments: tuple[Segment, ...]
    trust: OrderTrust
    config_format: str
    config: Mapping[str, Any]
    extra_label: bool = False
    pieces: StoredPieces | None = None
    masking: Masking = Masking()
    pad_token_id: int | None = None
    recipe_overrides: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    tokenizer_sha256: str | None = None
    eos_token_id: int | None = None
    heldout: tuple[TokenFile, ...] = ()
    parent: tuple[str, int] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Where the run comes from, for people: a folder, or a repository of the hub."""
        return self.facts.get("origin", str(self.source))

    @property
    def num_instances(self) -> int:
        return (self.pieces.num_instances if self.pieces else 0) + sum(file.num_instances for file in self.files)

    @property
    def tokens_per_instance(self) -> int:
        """Tokens that the trainer counts for a row: those that the model reads."""
        return self.sequence_length - self.extra_label

    @property
    def largest_token_id(self) -> int:
        """What the token files can hold; lines of JSON hold any id."""
        dtypes = {file.dtype for file in self.files}
        return max(
            2**31 - 1 if dtype == "jsonl" else 2 ** (int(dtype.lstrip("uint")) - dtype.startswith("int")) - 1
            for dtype in dtypes
        )

    @property
    def vocabulary_size(self) -> int | None:
        """Rows of the model's embedding by the trainer's config; None where it does not say. No token id reaches it."""
        model = self.config.get("model")
        where: Mapping[str, Any] = model if isinstance(model, Mapping) else self.config
        for name in ("embedding_size", "padded_vocab_size", "vocab_size"):
            if type(size := where.get(name)) is int and size > 0:
                return size
        return None

    @property
    def hides_tokens(self) -> bool:
        """Does the trainer keep tokens out of the loss, by their content, by padding or by label masks?"""
        return self.masking != Masking() or self.pieces is not None or any(file.label_mask for file in self.files)

    @property
    def first_step(self) -> int:
        return min((segment.first_step for segment in self.segments), default=1)

    @property
    def last_step(self) -> int:
        return max((segment.last_step for segment in self.segments), default=int(self.facts.get("last_step", "0")))

    @property
    def epochs(self) -> tuple[int, ...]:
        return tuple(sorted({segment.epoch for segment in self.segments}))

    def segment_of_step(self, step: int) -> Segment:
        """The segment of a step; of its last attempt where it was taken more than once.

        Raises:
            StepOutOfRange
            UnknownOrder: what the run read is not known at all.
        """
        if not self.segments:
            raise UnknownOrder(
                f"what the steps of {self.name} read is not known here ({self.trust.missing or self.trust.witness}); "
                "its checkpoints can be listed, audited and compared"
            )
        covering = [segment for segment in self.segments if segment.first_step <= step <= segment.last_step]
        if covering:
            return max(covering, key=lambda segment: segment.attempt)
        if self.first_step < step < self.last_step:
            raise StepOutOfRange(f"step {step} of {self.name} read data that are not there")
        raise StepOutOfRange(
            f"{self.name} took steps {self.first_step}..{self.last_step}, not {step}"
            + (" (checkpoint 0 is the initialization; the first step is 1)" if step == 0 else "")
        )

    def tokens_after(self, step: int) -> int:
        """Tokens consumed when checkpoint `step` was taken, masked ones included, counted from the run's start."""
        rows = sum(
            max(min(step, last) - first + 1, 0) * segment.instances_per_batch
            for first, last, segment in self.kept_segments()
        )
        return int(self.facts.get("tokens_before", "0")) + rows * self.tokens_per_instance

    def kept_steps(self) -> list[tuple[int, int, int]]:
        """Stretches (first, last, attempt) that tile the steps; where segments overlap, the later attempt counts."""
        return [(first, last, segment.attempt) for first, last, segment in self.kept_segments()]

    def kept_stretches(self) -> list[Segment]:
        """The same stretches as segments: of each step the attempt that counts, in step order."""
        return [
            replace(
                segment,
                first_step=first,
                num_steps=last - first + 1,
                first_position=segment.positions_of_step(first).start,
            )
            for first, last, segment in self.kept_segments()
        ]

    def kept_segments(self) -> Iterator[tuple[int, int, Segment]]:
        """Stretches (first, last) with the segment that counts; the time does not grow with the square of them."""
        borders = sorted({s.first_step for s in self.segments} | {s.last_step + 1 for s in self.segments})
        coming = sorted(range(len(self.segments)), key=lambda n: self.segments[n].first_step, reverse=True)
        begun: list[tuple[int, int]] = []  # a heap: the latest attempt first
        for first, stop in zip(borders, borders[1:], strict=False):
            while coming and self.segments[coming[-1]].first_step <= first:
                number = coming.pop()
                heapq.heappush(begun, (-self.segments[number].attempt, number))
            while begun and self.segments[begun[0][1]].last_step < first:
                heapq.heappop(begun)
            if begun:
                yield first, stop - 1, self.segments[begun[0][1]]


def parse_steps(text: str, run: Run) -> tuple[int, int]:
    """Read `STEP` or `A:B` into checkpoint numbers (a, b): steps a+1 .. b.

    Raises:
        InvalidRange: it cannot be read, or is empty.
        StepOutOfRange: the run did not take those steps.
    """
    parts = text.split(":")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InvalidRange(f"{text!r} is neither a step (137) nor a range from checkpoint to checkpoint (100:160)")
    first, last = (numbers[0] - 1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
    if last <= first:
        raise InvalidRange(f"{text!r} holds no step: A:B means from checkpoint A to checkpoint B, steps A+1 .. B")
    for step in (first + 1, last):
        run.segment_of_step(step)
    for (_, end, _), (start, _, _) in zip(run.kept_steps(), run.kept_steps()[1:], strict=False):
        if first < end < start - 1 < last:
            raise StepOutOfRange(
                f"steps {end + 1}..{start - 1} of {run.name} read data that are not there; ask for {first}:{end} and "
                f"{start - 1}:{last} apart"
            )
    return first, last
