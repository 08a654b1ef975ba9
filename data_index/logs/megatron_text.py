"""The text that Megatron-LM, Megatron-DeepSpeed and GPT-NeoX print: `iteration 31219/ 115311 | lm loss: 6.9E+00 | …`.

Lines of other kinds, of other ranks, times before them and colours are passed over. What is printed every N iterations
is, for losses and counts of skipped iterations, of all N: a loss then is their mean, and no `loss` of a step.

Source: NVIDIA/Megatron-LM megatron/training/training.py training_log and evaluate_and_print_results;
EleutherAI/gpt-neox megatron/training.py v1.0; bigscience-workshop/Megatron-DeepSpeed megatron/training.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_index.errors import UnsafeFile
from data_index.files import open_existing
from data_index.logs.points import Notes, Points, Wanted, as_number, as_step, gathered

MAX_LINE_BYTES = 4 * 2**20
ITERATION = re.compile(rb"(?:^|[^\w.])iteration\s+(\d{1,18})\s*/\s*\d{1,18}\s*\|")
_EVALUATION = re.compile(rb"(validation|test) (?:loss|results) at iteration\s+(\d{1,18})[^|]{0,80}\|")
_COLOURS = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
# Sums and means over all iterations since the line before.
_OF_INTERVAL = re.compile(r"loss|number of (skipped|nan) iterations")


def read(path: Path, wanted: Wanted, notes: Notes) -> Iterator[Points]:
    """
    Raises:
        MissingFile
        UnsafeFile: a line longer than any in a log.
    """
    notes.step_field = "iteration"
    interval = _Interval()
    names: set[str] = set()
    for points in gathered(_points(path, interval, notes)):
        names.add(points.name)
        yield points
    if interval.shortest is not None and interval.shortest > 1:
        means = {name for name in names if _OF_INTERVAL.search(name) and not name.startswith(("validation", "test"))}
        notes.unclear |= means - {"loss scale"}
        notes.messages.append(
            f"{path} prints every {interval.shortest} iterations: losses are means over them and keep their own names"
        )


class _Interval:
    """The shortest way from one printed iteration to the next."""

    def __init__(self) -> None:
        self.last: int | None = None
        self.shortest: int | None = None

    def saw(self, step: int) -> None:
        if self.last is not None and step > self.last:
            self.shortest = min(step - self.last, self.shortest or step - self.last)
        self.last = step


def _points(path: Path, interval: _Interval, notes: Notes) -> Iterator[tuple[int, Iterable[tuple[str, float]]]]:
    for number, line in _lines(path):
        where = f"{path} line {number}"
        whole = line.endswith((b"\n", b"\r"))
        for before, step, fields in _printed(_COLOURS.sub(b"", line)):
            found = as_step(step, where, "iteration")
            if not before:
                interval.saw(found)
            # Of a line that was cut off, what has its border is whole.
            kept = fields if whole or fields.rstrip().endswith(b"|") else fields.rpartition(b"|")[0]
            if len(kept) < len(fields):
                notes.messages.append(f"{where} was cut off; its last number is left out")
            yield found, _values(kept, before, notes)


def _printed(line: bytes) -> Iterator[tuple[str, str, bytes]]:
    """(what the names begin with, the iteration, its fields): processes may print into one line."""
    found = sorted([*ITERATION.finditer(line), *_EVALUATION.finditer(line)], key=lambda match: match.start())
    for match, after in zip(found, [*found[1:], None], strict=False):
        *before, step = (group.decode() for group in match.groups())
        yield "".join(f"{word} " for word in before), step, line[match.end() : after.start() if after else None]


def _values(fields: bytes, before: str, notes: Notes) -> Iterator[tuple[str, float]]:
    for field in fields.decode(errors="replace").split("|"):
        name, colon, text = field.rpartition(":")
        if not colon or not name.strip():
            continue
        number = as_number(text)
        if number is None:
            notes.left_out[before + name.strip()] += 1
        else:
            yield before + name.strip(), number


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that print an iteration; numbered from 1."""
    number = 0
    with open_existing(path) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise UnsafeFile(f"{path} line {number} has more than {MAX_LINE_BYTES:,} bytes, as no log's has")
            if b"iteration" in line:
                yield number, line
