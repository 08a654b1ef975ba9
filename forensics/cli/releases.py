"""The verb that looks at what is published: catalog. It reads no network and opens no workspace."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forensics.cli.options import FormatOption
from forensics.cli.output import Format, emit_object, emit_rows, print_table, printable, say, to_json

if TYPE_CHECKING:  # the catalog is read when it is asked for
    from data_index.listings import Listing, Mistake
    from data_index.registry import Fact, Family, KnownIssue, PublishedEvent, ReleasedRun

COLUMNS = ("family", "run", "parameters", "steps", "tokens", "states", "order", "replay", "issues")
# What of it fits into 80 characters; families are rows of their own there.
TABLE_COLUMNS = ("run", "size", "steps", "states", "order", "replay", "issues")
TOLD_COLUMNS = ("run", "kind", "name", "value", "note", "source")
LISTING_COLUMNS = ("file", "rows", "unique", "off_grid", "kind", "lines", "text")


def catalog(
    name: Annotated[str | None, typer.Argument(metavar="[FAMILY|RUN]", help="A family, a run or its hub id.")] = None,
    listing: Annotated[
        Path | None, typer.Option(help="Check an official checkpoint list, or a folder of them.")
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Show released runs: what is published, what is missing, what is known to be wrong.

    As CSV, a family or run is a row a fact, setting, issue or event.

    Example: forensics catalog pythia
    """
    from data_index.registry import families, find_run

    if listing is not None:
        if name is not None:
            raise typer.BadParameter("give a family or run, or --listing, not both")
        _check_listings(listing, format)
        return
    found = [family for family in families() if name is not None and family.name == name.lower()]
    if name is None:
        _show_all(families(), format)
    elif found:
        _show_family(found[0], format)
    else:
        _show_run(find_run(name), format)


# --- runs ------------------------------------------------------------------------------------------------------------


def _show_all(families: Sequence[Family], format: Format) -> None:
    if format is not Format.table:
        from forensics.released import released_row

        emit_rows([released_row(run) for family in families for run in family.runs], format, COLUMNS)
        return
    print_table(TABLE_COLUMNS, [row for family in families for row in _table_rows(family)])
    say("every fact of one: forensics catalog RUN; what is known to be wrong: forensics catalog FAMILY")


def _table_rows(family: Family) -> Iterator[dict[str, Any]]:
    """A row with the family's name, and one for each of its runs."""
    from forensics.released import released_row

    yield {"run": family.name}
    for run in family.runs:
        row = released_row(run)
        yield row | {
            "run": f"  {run.name}",
            "size": row["parameters"],
            "states": "all" if len(row["states"]) == 3 else "+".join(row["states"]),
            "replay": row["replay"].replace("approximate", "approx."),
        }


# --- a family --------------------------------------------------------------------------------------------------------


def _show_family(family: Family, format: Format) -> None:
    from forensics.released import released_row

    value: dict[str, Any] = {
        "family": family.name,
        "title": family.title,
        "publisher": family.publisher,
        "runs": [released_row(run) for run in family.runs],
        "issues": [_issue_row(issue) for issue in family.issues],
        "events": [_event_row(event) for event in family.events],
        "sources": dict(family.sources),
    }
    if format is Format.csv:
        facts = [row for run in family.runs for row in _fact_rows(run)]
        emit_rows([*facts, *_told_rows(value["issues"], value["events"])], format, TOLD_COLUMNS)
    else:
        emit_object(value, format, lambda: _print_family(family, value))


def _issue_row(issue: KnownIssue) -> dict[str, Any]:
    names = ("kind", "runs", "steps", "first_step", "last_step", "listed_steps", "text", "source")
    return {name: getattr(issue, name) for name in names}


def _event_row(event: PublishedEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in ("kind", "runs", "at", "step", "text", "source")}


def _print_family(family: Family, value: Mapping[str, Any]) -> None:
    print(f"{family.title} ({family.publisher})\n")
    print_table(TABLE_COLUMNS, list(_table_rows(family)))
    _print_told("known issues", value["issues"], "steps")
    _print_told("published spikes and restarts", value["events"], "at")


def _print_told(title: str, rows: Sequence[Mapping[str, Any]], where: str) -> None:
    if rows:
        print(f"\n{title}")
    for row in rows:
        place = f", {'steps ' if where == 'steps' else ''}{row[where]}" if row[where] else ""
        print()
        _print_wrapped(f"{row['kind']}: {', '.join(row['runs'])}{place}", "  ", "    ")
        _print_wrapped(row["text"], "    ")
        _print_wrapped(f"[{row['source']}]", "    ", "     ")


def _print_wrapped(text: str, first: str, rest: str | None = None) -> None:
    """Text in lines no wider than the terminal, `first` and `rest` before them; words and addresses stay whole."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    whole = re.sub(r"<[^<>]*>", lambda part: part[0].replace(" ", "\xa0"), text)  # .../<run id>/...
    lines = textwrap.wrap(
        whole,
        max(width, 40),
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines).replace("\xa0", " "))


# --- one run ---------------------------------------------------------------------------------------------------------


def _show_run(run: ReleasedRun, format: Format) -> None:
    from data_index.registry import events_of, issues_of

    issues = [_issue_row(issue) for issue in issues_of(run)]
    events = [_event_row(event) for event in events_of(run)]
    if format is Format.csv:
        told = [row | {"run": run.name} for row in _told_rows(issues, events)]
        emit_rows([*_fact_rows(run), *told], format, TOLD_COLUMNS)
        return
    value = {
        "run": run.name,
        "family": run.family,
        "facts": {name: _fact(fact) for name, fact in run.facts.items()},
        "settings": {name: _fact(fact) for name, fact in run.settings.items()},
        "issues": issues,
        "events": events,
    }
    emit_object(value, format, lambda: _print_run(run, issues, events))


def _fact(fact: Fact) -> dict[str, Any]:
    return {"value": fact.value, "note": fact.note, "source": fact.source}


def _fact_rows(run: ReleasedRun) -> Iterator[dict[str, Any]]:
    for kind, facts in (("fact", run.facts), ("setting", run.settings)):
        for name, fact in facts.items():
            yield {"run": run.name, "kind": kind, "name": name} | _fact(fact)


def _told_rows(issues: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Issues and events; the steps that they concern as the note."""
    for kind, rows, where in (("issue", issues, "steps"), ("event", events, "at")):
        for row in rows:
            told = {"name": row["kind"], "value": row["text"], "note": row[where], "source": row["source"]}
            yield {"run": ", ".join(row["runs"]), "kind": kind} | told


def _print_run(run: ReleasedRun, issues: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> None:
    numbers: dict[str, int] = {}
    print(f"{run.name} (family {run.family})\n")
    _print_facts(run.facts, numbers)
    if run.settings:
        print("\nwhat the trainer was told")
        _print_facts(run.settings, numbers)
    print("\nsources")
    for source, number in numbers.items():
        _print_wrapped(f"[{number}] {source}", "  ", "      ")
    _print_told("known issues", issues, "steps")
    _print_told("published spikes and restarts", events, "at")


def _print_facts(facts: Mapping[str, Fact], numbers: dict[str, int]) -> None:
    """A line a fact, its source as the number of a citation; `numbers` collects them."""
    for name, fact in facts.items():
        number = numbers.setdefault(fact.source, len(numbers) + 1)
        shown = (
            ", ".join(map(str, fact.value))
            if isinstance(fact.value, list)
            else fact.value
            if isinstance(fact.value, str)
            else to_json(fact.value)
        )
        note = f" ({fact.note})" if fact.note else ""
        _print_wrapped(f"{shown}{note} [{number}]", f"  {name:22} ", " " * 25)


# --- official lists --------------------------------------------------------------------------------------------------


def _check_listings(path: Path, format: Format) -> None:
    from data_index.listing_checks import mistakes, mistakes_among
    from data_index.listings import read_listing, read_listings

    listings = read_listings(path) if path.is_dir() else [read_listing(path)]
    found = mistakes_among(listings) if path.is_dir() else mistakes(listings[0])
    if format is not Format.table:
        emit_rows([row for one in listings for row in _listing_rows(one, found)], format, LISTING_COLUMNS)
        return
    columns = ("file", "rows", "unique", "off_grid", "mistakes")
    summary = [_listing_row(one) | {"mistakes": sum(m.file == one.name for m in found)} for one in listings]
    print_table(columns, summary)
    for mistake in found:
        where = f", line {mistake.lines[0]}" if mistake.lines else ""
        where += f" and {len(mistake.lines) - 1} more" if len(mistake.lines) > 1 else ""
        print(f"\n  {printable(mistake.file)}{where}: {mistake.kind}")
        _print_wrapped(printable(mistake.text), "    ")
    say(f"lists: {len(listings)}, mistakes: {len(found)}; checkpoints off the grid are none, but may be restarts")


def _listing_row(listing: Listing) -> dict[str, Any]:
    from data_index.listing_checks import off_grid_steps

    off_grid = 0 if listing.shape == "provenance" else sum(len(off_grid_steps(listing, g)) for g in listing.groups)
    return {"file": listing.name, "rows": listing.num_rows, "unique": listing.num_unique, "off_grid": off_grid}


def _listing_rows(listing: Listing, found: Iterable[Mistake]) -> list[dict[str, Any]]:
    """A row a mistake; one without for a list that has none."""
    row = _listing_row(listing)
    own = [{"kind": m.kind, "lines": m.lines, "text": m.text} for m in found if m.file == listing.name]
    return [row | mistake for mistake in own] or [row | {"kind": None, "lines": (), "text": None}]


COMMANDS = (catalog,)
