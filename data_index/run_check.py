"""What no run can be: the last look at a run record before anything is computed from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from data_index.run import Outcome, Run, Segment, TokenFile

TOKEN_DTYPE_BYTES = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8}
LINES = "jsonl"
# Stretches of a run; a table is built for each epoch.
MAX_SEGMENTS = 10_000
MAX_THREADS = 4096


def check_run(run: Run) -> Run:
    """The run itself.

    Raises:
        ValueError: it cannot be; the message names the value.
    """
    for kind, values in _KINDS.items():
        for name in values:
            value = getattr(run, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name} (a {type(value).__name__})")
    if not _whole_numbers(run.environment.get("num_threads", 1)) or run.environment.get("num_threads", 1) > MAX_THREADS:
        raise ValueError(f"environment.num_threads ({run.environment['num_threads']})")
    for fact in ("tokens_before", "last_step"):
        if not str(run.facts.get(fact, "0")).isdecimal():
            raise ValueError(f"facts.{fact}")
    if len(run.segments) > MAX_SEGMENTS:
        raise ValueError(f"segments ({len(run.segments)}, more than {MAX_SEGMENTS})")
    if run.sequence_length < 1 + run.extra_label:
        raise ValueError(f"sequence_length ({run.sequence_length})")
    in_pieces = 0
    if run.pieces is not None:
        in_pieces = run.pieces.num_instances
        if not _whole_numbers(in_pieces, run.pieces.num_pieces):
            raise ValueError(f"pieces ({in_pieces} instances, {run.pieces.num_pieces} pieces)")
    names: set[str] = set()
    _check_files(run.files, run.sequence_length, in_pieces, names)
    _check_files(run.heldout, run.sequence_length, 0, names)
    for segment in run.segments:
        _check_segment(segment)
    return run


# What a damaged or hostile run.toml may hold something else in; a token id may be absent.
_KINDS: Mapping[Any, tuple[str, ...]] = {
    str: ("name", "layout", "config_format"),
    Mapping: ("config", "environment", "facts", "recipe_overrides"),
    int | None: ("pad_token_id", "eos_token_id"),
    str | None: ("tokenizer_sha256",),
}


def _whole_numbers(*numbers: object) -> bool:
    return all(type(number) is int and 0 <= number < 2**63 for number in numbers)


def _check_files(files: tuple[TokenFile, ...], length: int, first_instance: int, names: set[str]) -> None:
    expected, carried = first_instance, 0
    for file in files:
        if not isinstance(file.name, str):
            raise ValueError(f"the name of a file ({file.name})")
        sizes = (file.num_bytes, file.first_instance, file.num_instances, file.first_token)
        if not _whole_numbers(*sizes) or file.dtype not in (*TOKEN_DTYPE_BYTES, LINES):
            raise ValueError(f"the file {file.name} ({file.dtype}, {sizes})")
        if file.name in names:
            raise ValueError(f"the file name {file.name}: there are two of it")
        if file.dtype == LINES:
            # Two brackets, a key and a token at the least.
            fits, carried = file.num_instances * 2 <= file.num_bytes and file.first_token == 0, 0
        else:
            fits, carried = _cut(file, length, carried)
        if file.first_instance != expected or not fits:
            raise ValueError(f"the instances of {file.name}: they do not follow the file before, or do not fit")
        names.add(file.name)
        expected += file.num_instances
    if carried:
        raise ValueError(f"the last instance of {files[-1].name}: it runs past the end of the last file")


def _cut(file: TokenFile, length: int, carried: int) -> tuple[bool, int]:
    """Do a file's instances fit it? And how many tokens of its last one lie in the files after it."""
    tokens = file.num_bytes // TOKEN_DTYPE_BYTES[file.dtype]
    if carried and carried >= tokens:
        # The whole file is the middle of one instance; it may be empty.
        return file.num_instances == 0 and file.first_token == tokens, carried - tokens
    end = file.first_token + file.num_instances * length
    fits = file.first_token == carried and (file.num_instances == 0 or end - length < tokens)
    return fits, max(end - tokens, 0) if file.num_instances else 0


def _check_segment(segment: Segment) -> None:
    numbers = (segment.first_step, segment.num_steps, segment.epoch, segment.instances_per_batch, segment.attempt)
    last_position = segment.first_position + segment.num_steps * segment.instances_per_batch
    denominator = 1 if segment.loss_denominator is None else segment.loss_denominator
    whole = _whole_numbers(*numbers, segment.first_position, last_position, segment.last_step, denominator)
    if not whole or min(*numbers, denominator) < 1:
        raise ValueError(f"the segment at step {segment.first_step}")
    if segment.outcome not in get_args(Outcome):
        raise ValueError(f"the segment at step {segment.first_step}: outcome = {segment.outcome!r}")
