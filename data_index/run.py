"""What a run is: frozen records, and their form in run.toml.

A step is 1-based: step s turns checkpoint s-1 into checkpoint s. `A:B` means from checkpoint A to checkpoint B, that
is steps A+1 .. B. A position is the 0-based place of an instance in the consumption order of its epoch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_index.errors import CorruptFile, InvalidRange, MissingFile, NewerWorkspace, StepOutOfRange
from data_index.files import write_toml

RUN_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """A file of raw little-endian token ids, and the instances cut from it."""

    name: str
    path: Path
    dtype: str
    num_bytes: int
    first_instance: int
    num_instances: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of steps with one order, one batch size, one epoch.

    `loss_denominator` is set where the trainer divided a step's summed loss by something else than the number of
    labels in its batch.
    """

    first_step: int
    num_steps: int
    epoch: int
    first_position: int
    instances_per_batch: int
    attempt: int = 1
    loss_denominator: int | None = None

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
    """

    level: Literal["exact", "derived", "chunk", "unknown"]
    witness: str
    missing: str = ""

    def __str__(self) -> str:
        return f"{self.level} ({self.witness}{'; missing: ' + self.missing if self.missing else ''})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a checkpoint is and which states it holds; it carries no tensors."""

    run: str
    step: int
    location: Path
    layout: str
    states: tuple[str, ...]
    tokens: int | None = None
    issues: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One pretraining run, as the toolkit understood it. A fork is a run with a parent."""

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
    recipe_overrides: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    eos_token_id: int | None = None
    heldout: tuple[TokenFile, ...] = ()
    parent: tuple[str, int] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_instances(self) -> int:
        return sum(file.num_instances for file in self.files)

    @property
    def first_step(self) -> int:
        return min(segment.first_step for segment in self.segments)

    @property
    def last_step(self) -> int:
        return max(segment.last_step for segment in self.segments)

    @property
    def epochs(self) -> tuple[int, ...]:
        return tuple(sorted({segment.epoch for segment in self.segments}))

    def segment_of_step(self, step: int) -> Segment:
        """The segment of a step; of its last attempt where it was taken more than once.

        Raises:
            StepOutOfRange
        """
        covering = [segment for segment in self.segments if segment.first_step <= step <= segment.last_step]
        if covering:
            return max(covering, key=lambda segment: segment.attempt)
        raise StepOutOfRange(
            f"{self.name} took steps {self.first_step}..{self.last_step}, not {step}"
            + (" (checkpoint 0 is the initialization; the first step is 1)" if step == 0 else "")
        )

    def tokens_after(self, step: int) -> int:
        """Tokens consumed when checkpoint `step` was taken, masked ones included, counted from the run's start."""
        rows = sum(
            max(min(step, last) - first + 1, 0) * self.segment_of_step(first).instances_per_batch
            for first, last, _ in self.kept_steps()
        )
        return int(self.facts.get("tokens_before", "0")) + rows * self.sequence_length

    def kept_steps(self) -> list[tuple[int, int, int]]:
        """Stretches (first, last, attempt) that tile the steps; where segments overlap, the later attempt counts."""
        borders = sorted({s.first_step for s in self.segments} | {s.last_step + 1 for s in self.segments})
        found = []
        for first, stop in zip(borders, borders[1:], strict=False):
            covering = [s for s in self.segments if s.first_step <= first <= s.last_step]
            if covering:
                found.append((first, stop - 1, max(s.attempt for s in covering)))
        return found


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
    return first, last


def place_files(files: Sequence[tuple[str, Path, int, str | None]], dtype: str, rows_of: Any) -> tuple[TokenFile, ...]:
    """Number the instances of files laid end to end.

    Args:
        files: name, path, bytes and sha256 (or None) of each file, in the trainer's order.
        rows_of: bytes of a file -> instances cut from it.
    """
    placed, first = [], 0
    for name, path, num_bytes, sha256 in files:
        rows = rows_of(num_bytes)
        placed.append(
            TokenFile(
                name=name,
                path=path,
                dtype=dtype,
                num_bytes=num_bytes,
                first_instance=first,
                num_instances=rows,
                sha256=sha256,
            )
        )
        first += rows
    return tuple(placed)


def _file_table(file: TokenFile, base: Path) -> dict[str, Any]:
    table: dict[str, Any] = {
        "name": file.name,
        "path": path_text(file.path, base),
        "dtype": file.dtype,
        "num_bytes": file.num_bytes,
        "first_instance": file.first_instance,
        "num_instances": file.num_instances,
    }
    return table | ({"sha256": file.sha256} if file.sha256 else {})


def path_text(path: Path, base: Path) -> str:
    """Relative inside `base`, so that a run folder can be moved; absolute elsewhere."""
    path, base = path.absolute(), base.absolute()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def run_to_table(run: Run, base: Path) -> dict[str, Any]:
    """The TOML form of a run whose run.toml lies in `base`."""
    table: dict[str, Any] = {
        "format": "forensics-run",
        "version": RUN_FORMAT_VERSION,
        "name": run.name,
        "layout": run.layout,
        "source": path_text(run.source, base),
        "sequence_length": run.sequence_length,
        "config_format": run.config_format,
    }
    if run.tokenizer is not None:
        table["tokenizer"] = path_text(run.tokenizer, base)
    if run.eos_token_id is not None:
        table["eos_token_id"] = run.eos_token_id
    if run.parent is not None:
        table["parent"] = {"run": run.parent[0], "step": run.parent[1]}
    table["trust"] = {"level": run.trust.level, "witness": run.trust.witness, "missing": run.trust.missing}
    table["facts"] = dict(run.facts)
    table["environment"] = dict(run.environment)
    table["recipe_overrides"] = dict(run.recipe_overrides)
    table["order"] = {"rule": run.order.rule, "parameters": dict(run.order.parameters)}
    table["config"] = drop_none(run.config)
    table["files"] = [_file_table(file, base) for file in run.files]
    table["heldout"] = [_file_table(file, base) for file in run.heldout]
    table["segments"] = [
        {
            "first_step": s.first_step,
            "num_steps": s.num_steps,
            "epoch": s.epoch,
            "first_position": s.first_position,
            "instances_per_batch": s.instances_per_batch,
            "attempt": s.attempt,
        }
        | ({} if s.loss_denominator is None else {"loss_denominator": s.loss_denominator})
        for s in run.segments
    ]
    return table


def drop_none(value: Any) -> Any:
    """TOML has no null: an absent key means the same in every config we store."""
    if isinstance(value, Mapping):
        return {key: drop_none(item) for key, item in value.items() if item is not None}
    return [drop_none(item) for item in value] if isinstance(value, list | tuple) else value


def write_run(run: Run, folder: Path) -> None:
    write_toml(folder / "run.toml", run_to_table(run, folder))


def read_run(folder: Path) -> Run:
    """Parse `folder/run.toml`.

    Raises:
        MissingFile, CorruptFile, NewerWorkspace
    """
    path = folder / "run.toml"
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is not there") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path} is not TOML: {error}") from error
    if table.get("format") != "forensics-run":
        raise CorruptFile(f'{path} does not say format = "forensics-run"')
    version = table.get("version", 0)
    if not isinstance(version, int) or isinstance(version, bool):
        raise CorruptFile(f"{path} states no version")
    if version > RUN_FORMAT_VERSION:
        raise NewerWorkspace(
            f"{path} is version {table['version']}, this toolkit reads up to {RUN_FORMAT_VERSION}: update it"
        )
    try:
        return _run_from_table(table, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile(f"{path} lacks or misstates {error}") from error


TOKEN_DTYPE_BYTES = {"uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "int32": 4, "int64": 8}


def _check(run: Run) -> Run:
    """Refuse what no run can be; the message names the value.

    Raises:
        ValueError
    """
    if run.sequence_length < 1:
        raise ValueError(f"sequence_length ({run.sequence_length})")
    names: set[str] = set()
    for group in (run.files, run.heldout):
        expected = 0
        for file in group:
            sizes = (file.num_bytes, file.first_instance, file.num_instances)
            if not all(type(size) is int and size >= 0 for size in sizes) or file.dtype not in TOKEN_DTYPE_BYTES:
                raise ValueError(f"the file {file.name} ({file.dtype}, {sizes})")
            item = TOKEN_DTYPE_BYTES[file.dtype]
            if file.first_instance != expected or file.num_instances * run.sequence_length * item > file.num_bytes:
                raise ValueError(f"the instances of {file.name}: they do not follow the file before, or do not fit")
            if file.name in names:
                raise ValueError(f"the file name {file.name}: there are two of it")
            names.add(file.name)
            expected += file.num_instances
    for segment in run.segments:
        numbers = (segment.first_step, segment.num_steps, segment.epoch, segment.instances_per_batch, segment.attempt)
        if not all(type(number) is int and number >= 1 for number in numbers) or segment.first_position < 0:
            raise ValueError(f"the segment at step {segment.first_step}")
    return run


def _run_from_table(table: Mapping[str, Any], base: Path) -> Run:
    def files(key: str) -> tuple[TokenFile, ...]:
        return tuple(TokenFile(**(entry | {"path": base / entry["path"]})) for entry in table.get(key, []))

    parent = table.get("parent")
    segments = tuple(Segment(**entry) for entry in table["segments"])
    if not segments:
        raise ValueError("segments (there is none)")
    run = Run(
        name=table["name"],
        layout=table["layout"],
        source=base / table["source"],
        sequence_length=int(table["sequence_length"]),
        files=files("files"),
        order=Order(rule=table["order"]["rule"], parameters=table["order"].get("parameters", {})),
        segments=segments,
        trust=OrderTrust(**table["trust"]),
        config_format=table["config_format"],
        config=table["config"],
        recipe_overrides=table.get("recipe_overrides", {}),
        tokenizer=base / table["tokenizer"] if "tokenizer" in table else None,
        eos_token_id=table.get("eos_token_id"),
        heldout=files("heldout"),
        parent=(parent["run"], int(parent["step"])) if parent else None,
        environment=table.get("environment", {}),
        facts=table.get("facts", {}),
    )
    return _check(run)
