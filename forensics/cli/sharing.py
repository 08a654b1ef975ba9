"""Verbs that hand answers and runs to others: pack, open, report, cite."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_index.errors import ForensicsError
from forensics.cli.options import FormatOption, PlanOption, RunArgument, WorkspaceOption, open_workspace
from forensics.cli.output import Format, draw, emit_object, emit_rows, printable, say

if TYPE_CHECKING:
    from data_index.workspace import Workspace

PARTS = ("part", "num_bytes", "packed", "why")


def pack(
    name: Annotated[str, typer.Argument(metavar="FINDING|RUN", help="A finding, a run or a fork.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.zip", help="[default: named after it, here].")
    ] = None,
    budget: Annotated[str, typer.Option(metavar="BYTES", help="What a pack of a run may take: 500MB, 2GB.")] = "100MB",
    tokens: Annotated[bool, typer.Option("--tokens", help="Token files too, if they fit.")] = False,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Write a finding, or a run (also one that failed), as one file that others can verify and open.

    Of a finding: answer, picture, texts, the rows it rests on, the hashes of its inputs. Of a run: card, record, order,
    log, tables, findings, and checkpoints by budget: the last, the first, those around spikes, then evenly.
    The same content gives the same bytes; publish the sha256 that it prints.

    Example: forensics pack demo -o demo.zip --budget 500MB --tokens
    """
    from forensics.packing import pack as write

    done = write(
        name,
        output,
        budget=budget,
        tokens=tokens,
        plan=plan,
        progress=lambda message: say(printable(message)),
        workspace=open_workspace(workspace),
    )
    if plan:
        emit_rows(done.parts, format, PARTS)
        say(f"in all about {done.num_bytes:,} bytes")
        return
    told = {"file": str(done.path), "what": done.what, "name": done.name, "num_bytes": done.num_bytes}
    told |= {"sha256": done.sha256, "left_out": [dict(row) for row in done.left_out]}
    emit_object(told, format, lambda: print(f"sha256 {done.sha256}  {printable(str(done.path))}"))
    for row in done.left_out:
        say(printable(f"not in it: {row['part']}: {row['why']}"))
    say(f"{done.num_bytes:,} bytes; others open it with: forensics open FILE.zip")


def open_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A pack that `pack` wrote.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call it here.")] = None,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Verify a pack of someone else, every byte of it, and put its finding or run into the workspace.

    Prints the pack's own sha256 first: compare it with what the sender published. Nothing in a pack is run, and nothing
    is written unless all of it is what its manifest says.

    Example: forensics open demo.zip --name theirs
    """
    from forensics.opening import open_pack

    there = open_workspace(workspace)
    done = open_pack(file, name=name, progress=lambda message: say(printable(message)), workspace=there)
    told = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(done).items()}
    told["messages"] = list(done.messages)
    emit_object(told, format, lambda: print(f"{done.what} {done.name}: {printable(str(done.path))}"))
    for message in done.messages:
        say(printable(message))
    if done.what == "finding":
        _draw(there, done.name)
    said = "forensics app shows it" if done.what == "finding" else f"ask it: forensics show {done.name}"
    say(f"packed with {printable(done.toolkit)}; {said}")


def _draw(workspace: Workspace, name: str) -> None:
    """The picture of a finding, from its numbers: that of the pack may show anything."""
    from data_index.finding_files import findings_folder
    from forensics.figure import UNDRAWABLE
    from forensics.finding import read_finding

    figure = read_finding(workspace, name).figure
    if figure is None:
        return
    try:
        draw(lambda: figure, None, findings_folder(workspace) / name)
    except ForensicsError:
        raise
    except UNDRAWABLE as error:
        say(printable(f"its picture cannot be drawn: {error!r}"))


def report(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="FILE.html or FILE.md [default: RUN.html].")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write all that is known of a run on one page: losses, order and why it is believed, checkpoints, findings.

    The page opens without a network and runs nothing.

    Example: forensics report demo -o demo.html
    """
    from forensics.run_page import report as write

    for path in write(run, output or Path(f"{run}.html"), workspace=open_workspace(workspace)):
        print(path)


def cite(
    name: Annotated[str | None, typer.Argument(metavar="[RUN|FINDING]", help="What else to cite.")] = None,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Say how to cite the toolkit, a run or a finding, as text and as BibTeX; of others' work what the catalog knows.

    Example: forensics cite blame-demo-154
    """
    from forensics.citation import cite as find

    found = find(name, workspace=open_workspace(workspace))
    lines = [*found.text, "", *found.bibtex]
    plain = {"text": list(found.text), "bibtex": list(found.bibtex), "notes": list(found.notes)}
    emit_object(plain, format, lambda: print("\n".join(_lines(lines))))
    for note in found.notes:
        say(printable(note))


def _lines(texts: list[str]) -> list[str]:
    return [printable(line) for text in texts for line in text.split("\n")]


open_.__name__ = "open"  # the verb is a builtin of Python's

COMMANDS = (pack, open_, report, cite)
