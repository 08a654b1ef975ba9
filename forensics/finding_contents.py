"""What a pack of a finding holds: the finding, its page and picture, its tables, the rows it rests on, its inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_index.batch_queries import reader_of
from data_index.errors import UNFORESEEN, ForensicsError
from data_index.files import canonical_json, sha256_of_file
from data_index.finding_files import read_finding_file
from data_index.packed_run import portable_table
from data_index.run import Run
from data_index.workspace import Workspace, read_current, valid_name
from forensics.cli.output import printable
from forensics.figure import UNDRAWABLE, picture
from forensics.finding import Finding, finding_name, parsed_finding, rows_of
from forensics.marked_text import pieces_of
from forensics.pack_budget import Contents
from forensics.packed_checkpoints import known_hashes
from forensics.page_sections import Section, page_html
from forensics.run_contents import array_bytes, table_bytes, tomli_bytes

MAX_ROW_BYTES = 8 * 10**6  # of token rows; their text takes about as much again
_NOT_NUMBERS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def contents_of_finding(workspace: Workspace, name: str, *, budget: int) -> tuple[Finding, Contents]:
    """
    Raises:
        MissingFile, CorruptFile
    """
    raw, source = read_finding_file(workspace, name)
    finding = parsed_finding(raw, source)
    contents = Contents(budget=budget)
    contents.put("finding", {"finding.json": raw})
    if finding.figure is not None:
        try:
            contents.put("picture", {"picture.png": picture(finding.figure, "png")})
        except UNDRAWABLE as error:
            contents.leave_out("picture", None, f"cannot be drawn: {error!r}")
    for table, rows in rows_of(finding.answer).items():
        contents.offer(
            f"table {printable(table)}", {f"tables/{finding_name(table)}.parquet": table_bytes(as_table(rows))}
        )
    for run in finding.runs:
        _put_run(contents, workspace, finding, run)
    _offer_rows(contents, workspace, finding)
    contents.put("page", {"index.html": page_html(f"Finding {finding.name}", _sections(finding, contents)).encode()})
    return finding, contents


def as_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as an Arrow table; a column of values that no one type holds becomes JSON."""
    import pyarrow

    names = list(dict.fromkeys(name for row in rows for name in row))
    return pyarrow.table({printable(str(name)): _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> Any:
    import pyarrow

    if any(isinstance(value, float) for value in values):  # JSON says those that are no number as strings
        values = [_NOT_NUMBERS.get(value, value) if isinstance(value, str) else value for value in values]
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, *UNFORESEEN):
        return pyarrow.array([None if value is None else json.dumps(value) for value in values])


# --- the runs it is about --------------------------------------------------------------------------------------------


def _put_run(contents: Contents, workspace: Workspace, finding: Finding, name: str) -> None:
    """The record of a run, and hashes of what answers about it are made from, as they were then and as they are now."""
    try:
        run, home = workspace.run(valid_name(name)), workspace.home(name)
        inputs = {
            "when_made": finding.inputs.get(name, {}),
            "run_toml_sha256": sha256_of_file(home / "run.toml"),
            "token_files": [
                {"name": file.name, "num_bytes": file.num_bytes, "sha256": file.sha256, "dtype": file.dtype}
                for file in (*run.files, *run.heldout)
            ],
            "checkpoints": list(known_hashes(workspace, run)),
            "tables": {kind: [path.rpartition("/")[2] for path in paths] for kind, paths in read_current(home).items()},
        }
        contents.put(
            f"record of {name}",
            {
                f"runs/{name}/run.toml": tomli_bytes(portable_table(run, run.order)),
                f"runs/{name}/inputs.json": canonical_json(inputs),
            },
        )
    except ForensicsError as error:
        contents.leave_out(f"record of {name[:100]}", None, str(error))


# --- the rows it rests on --------------------------------------------------------------------------------------------


def instances_in(answer: Any) -> Iterator[int]:
    """Instances that rows anywhere in an answer name, in their order, each as often as it is named."""
    if isinstance(answer, Mapping):
        instance = answer.get("instance")
        if type(instance) is int and instance >= 0:
            yield instance
        for value in answer.values():
            yield from instances_in(value)
    elif isinstance(answer, list | tuple):
        for value in answer:
            yield from instances_in(value)


def _offer_rows(contents: Contents, workspace: Workspace, finding: Finding) -> None:
    """Token rows that the answer names, of the run that it is about first of all, with their text."""
    wanted = list(dict.fromkeys(instances_in(finding.answer)))
    if not wanted or not finding.runs:
        return
    name = finding.runs[0]
    try:
        run = workspace.run(valid_name(name))
        most = MAX_ROW_BYTES // (4 * run.sequence_length)
        if len(wanted) > most:
            contents.leave_out(
                f"{len(wanted) - most:,} token rows", None, f"only the first {most:,} that it names go in"
            )
        _offer_some(contents, workspace, run, wanted[:most])
    except ForensicsError as error:
        contents.leave_out(f"{len(wanted):,} token rows of {name[:100]}", None, str(error))
    except UNFORESEEN as error:  # an answer of someone else may name anything
        contents.leave_out(f"{len(wanted):,} token rows of {name[:100]}", None, f"cannot be read: {error!r}")


def _offer_some(contents: Contents, workspace: Workspace, run: Run, instances: Sequence[int]) -> None:
    import pyarrow

    reader = reader_of(workspace, run)
    rows = reader.rows(instances)
    places = [reader.place_of(instance) for instance in instances]
    texts = pyarrow.table(
        {
            "instance": pyarrow.array(instances, pyarrow.int64()),
            "file": [file.name for file, _ in places],
            "offset": pyarrow.array([offset for _, offset in places], pyarrow.int64()),
            "text": ["".join(pieces_of(run, row)) for row in rows],
        }
    )
    small = rows.astype(np.uint16 if rows.max(initial=0) < 2**16 else np.uint32)
    contents.offer(
        f"{len(instances):,} token rows of {run.name}",
        {f"rows/{run.name}.npy": array_bytes(small), f"rows/{run.name}.parquet": table_bytes(texts)},
    )


# --- the page --------------------------------------------------------------------------------------------------------


def _sections(finding: Finding, contents: Contents) -> list[Section]:
    plain = [(name, value) for name, value in finding.answer.items() if isinstance(value, str | int | float | None)]
    sections = [
        Section(title="Asked", commands=[finding.command], facts=[("about", ", ".join(finding.runs))]),
        Section(
            title="Answer", facts=[(name, value) for name, value in plain if value is not None], figure=finding.figure
        ),
    ]
    sections += [Section(title=name, rows=rows) for name, rows in rows_of(finding.answer).items()]
    if finding.texts:
        sections.append(Section(title="The texts it rests on", texts=finding.texts))
    made = [
        (f"{run}: {kind}", json.dumps(value)) for run, kinds in finding.inputs.items() for kind, value in kinds.items()
    ]
    sections.append(Section(title="Made from", facts=[*finding.made.items(), *made]))
    left_out = [{name: row[name] for name in ("part", "why")} for row in contents.left_out]
    return [*sections, Section(title="What is not in this pack", rows=left_out, lines=[] if left_out else ["nothing"])]
