"""The official checkpoint lists of OLMo and OLMo-core: CSV files with one address a row, mistakes included.

    Step,Checkpoint Directory                        one run
    Ingredient,Step,Checkpoint Directory             stage 2: a run per ingredient, and soups
    Stage,Step,Tokens Seen,Checkpoint Directory      all stages of a model
    Dataset,Data Directory                           provenance.csv: a file per token file

Rows are kept as they stand, with their line in the file; `data_index.listing_checks` says what is wrong with them.

Source: allenai/OLMo configs/official-*/ @ 59a53e3; allenai/OLMo-core src/scripts/official/ @ fa6c501
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_index.errors import CorruptFile, MissingFile
from data_index.files import read_limited

# Far more than any official list has.
MAX_LISTING_BYTES = 16 * 2**20
MAX_GROUPS = 1000
_SHAPES = {
    ("Step", "Checkpoint Directory"): "run",
    ("Ingredient", "Step", "Checkpoint Directory"): "ingredients",
    ("Stage", "Step", "Tokens Seen", "Checkpoint Directory"): "stages",
    ("Dataset", "Data Directory"): "provenance",
}
_NUMBER = re.compile(r"[0-9]{1,18}\Z")
_STEP_FOLDER = re.compile(r"(?:[^/]*-)?step(\d{1,18})(?:-unsharded)?\Z")
_RUN_ID = re.compile(r"/ai2-llm/[^/]+/([^/]+)/step[^/]*/?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRow:
    """One row; `group` is its ingredient, stage or data set, "" in the list of a single run. Lines count from 1."""

    line: int
    group: str
    address: str
    step: int | None = None
    tokens: int | None = None

    @property
    def step_of_address(self) -> int | None:
        """What the last part of the address says, where it ends in one step: `step1000-unsharded`."""
        found = _STEP_FOLDER.match(self.address.rstrip("/").rpartition("/")[2])
        return int(found[1]) if found else None

    @property
    def run_id(self) -> str:
        """The trainer's own id of the run; restarts got new ones. "" where the address has none."""
        found = _RUN_ID.search(self.address)
        return found[1] if found else ""

    @property
    def content(self) -> tuple[str, int | None, int | None, str]:
        return self.group, self.step, self.tokens, self.address


@dataclass(frozen=True, kw_only=True)
class Listing:
    """
    Attributes:
        name: the file's name, after its folder's where that says that it was removed upstream.
        shape: run, ingredients, stages or provenance.
    """

    path: Path
    name: str
    shape: str
    rows: tuple[ListedRow, ...]

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def num_unique(self) -> int:
        return len(self.contents)

    @cached_property
    def contents(self) -> frozenset[tuple[str, int | None, int | None, str]]:
        return frozenset(row.content for row in self.rows)

    @cached_property
    def groups(self) -> Mapping[str, tuple[ListedRow, ...]]:
        """Rows by ingredient, stage or data set, in the order of the file."""
        found: dict[str, list[ListedRow]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        return {group: tuple(rows) for group, rows in found.items()}

    def steps(self, group: str) -> list[int]:
        """The steps of a group, each once, in order."""
        return sorted({row.step for row in self.groups[group] if row.step is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """
    Attributes:
        lines: where in the file, header included; none for what is not there.
    """

    kind: str
    text: str
    lines: tuple[int, ...] = ()
    file: str = ""


# --- reading ---------------------------------------------------------------------------------------------------------


def read_listing(path: Path) -> Listing:
    """Read one official list.

    Raises:
        MissingFile, UnsafeFile
        CorruptFile: with the line that is at fault.
    """
    try:
        text = read_limited(path, MAX_LISTING_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path} is not UTF-8: {error}") from error
    lines = _csv_rows(text, path)
    _, header = next(lines, (1, []))
    shape = _SHAPES.get(tuple(header))
    if shape is None:
        known = "; ".join(",".join(columns) for columns in _SHAPES)
        raise CorruptFile(f"{path} line 1: the columns {','.join(header)[:200]!r} are of no official list ({known})")
    rows = tuple(_row(shape, header, line, values, path) for line, values in lines)
    if not rows:
        raise CorruptFile(f"{path} lists nothing")
    if len({row.group for row in rows}) > MAX_GROUPS:
        raise CorruptFile(f"{path} names more than {MAX_GROUPS} stages, ingredients or data sets")
    removed = path.absolute().parent.name.startswith("removed-")
    name = f"{path.absolute().parent.name}/{path.name}" if removed else path.name
    return Listing(path=path, name=name, shape=shape, rows=rows)


def read_listings(folder: Path) -> list[Listing]:
    """All official lists in a folder, and in those below it whose name begins with `removed-`.

    Raises:
        MissingFile: there is none.
        CorruptFile, UnsafeFile
    """
    paths = sorted(folder.glob("*.csv")) + sorted(folder.glob("removed-*/*.csv"))
    if not paths:
        raise MissingFile(f"{folder} holds no official list (*.csv)")
    return [read_listing(path) for path in paths]


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line they end on; empty lines are none."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise CorruptFile(f"{path} line {reader.line_num}: {error}") from error
        if values:
            yield reader.line_num, values


def _row(shape: str, header: Sequence[str], line: int, values: Sequence[str], path: Path) -> ListedRow:
    if len(values) != len(header):
        raise CorruptFile(f"{path} line {line}: {len(values)} values for {len(header)} columns")
    if any(not value.isprintable() for value in values):
        raise CorruptFile(f"{path} line {line} has control characters")
    table = dict(zip(header, values, strict=True))
    for column in ("Step", "Tokens Seen"):
        if column in table and not _NUMBER.match(table[column]):
            raise CorruptFile(f"{path} line {line}: {column} is {table[column][:40]!r}, which is no number")
    address = table["Data Directory" if shape == "provenance" else "Checkpoint Directory"]
    if not address.startswith("https://"):
        raise CorruptFile(f"{path} line {line}: {address[:80]!r} is no https address")
    return ListedRow(
        line=line,
        group=table.get("Ingredient", table.get("Stage", table.get("Dataset", ""))),
        address=address,
        step=int(table["Step"]) if "Step" in table else None,
        tokens=int(table["Tokens Seen"]) if "Tokens Seen" in table else None,
    )
