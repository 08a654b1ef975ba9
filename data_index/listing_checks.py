"""What is wrong with an official checkpoint list: one check a function.

    check(listing, others, known) -> mistakes      `known`: what the catalog says of its runs, by their group

`others` are lists to compare with. A check that needs what the catalog knows finds nothing where it knows nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from data_index.listing_tokens import wrong_tokens
from data_index.listings import ListedRow, Listing, Mistake
from data_index.registry import ReleasedRun, released_runs

Known = Mapping[str, ReleasedRun]
Check = Callable[[Listing, Sequence[Listing], Known], Iterable[Mistake]]

_STAGE = re.compile(r"stage\d_[a-z]+(_ingredient\d+|_souped)?\Z")
_INGREDIENT = re.compile(r"\d+\Z|soup\Z")
_PART = re.compile(r"/part-(\d{1,6})-\d+\.")
_DATE = re.compile(r"-(\d{4})(?=[-.]|\Z)")
# Two lists of which so much is the same are of one run; lists of runs that share their beginning have less in common.
SAME_RUN = 0.9
MOST_NAMED = 8


def releases_of(listing: Listing) -> dict[str, ReleasedRun]:
    """What the catalog knows of the runs that a list is of, by their group in it."""
    return {
        str(run.value("listing_group", "")): run for run in released_runs() if listing.name in run.value("listing", [])
    }


def mistakes(
    listing: Listing, others: Sequence[Listing] = (), release: Mapping[str, ReleasedRun] | None = None
) -> list[Mistake]:
    """Every mistake that can be found in a list.

    Args:
        others: lists to compare it with; lists of stage 2 say from which step stage 1 went on.
        release: what is known of its runs, by group; default: what the catalog says.
    """
    known = releases_of(listing) if release is None else release
    found = [mistake for check in checks_of(listing.shape) for mistake in check(listing, others, known)]
    return [replace(mistake, file=listing.name) for mistake in found]


def mistakes_among(listings: Sequence[Listing]) -> list[Mistake]:
    """Every mistake of several lists, each compared with all others."""
    return [
        mistake
        for listing in listings
        for mistake in mistakes(listing, others=[other for other in listings if other is not listing])
    ]


def checks_of(shape: str) -> tuple[Check, ...]:
    if shape == "provenance":
        return (duplicate_rows, wrong_parts)
    general: tuple[Check, ...] = (
        duplicate_rows,
        two_runs_one_step,
        address_contradicts_step,
        missing_steps,
        gaps,
        misleading_name,
    )
    if shape == "run":
        return (*general, list_of_another_run)
    return (*general, odd_group_names, *([wrong_tokens] if shape == "stages" else []))


# --- checks of any list ----------------------------------------------------------------------------------------------


def duplicate_rows(listing: Listing, others: Sequence[Listing], known: Known) -> Iterator[Mistake]:
    seen: set[Hashable] = set()
    again: dict[str, list[ListedRow]] = {}
    for row in listing.rows:
        if row.content in seen:
            again.setdefault(row.group, []).append(row)
        seen.add(row.content)
    if again:
        rows = [row for found in again.values() for row in found]
        if listing.shape == "provenance":
            which = ", ".join(f"{row.group} {row.address.rpartition('/')[2]}" for row in rows[:MOST_NAMED])
        else:
            which = "; ".join(
                f"{_said(listing, group)}step {_ranges(listing, group, found)}" for group, found in again.items()
            )
        text = f"{len(rows)} of {listing.num_rows} rows are there twice: {which}"
        yield Mistake(kind="duplicate_rows", text=text, lines=tuple(row.line for row in rows))


def two_runs_one_step(listing: Listing, others: Sequence[Listing], known: Known) -> Iterator[Mistake]:
    for group, rows in listing.groups.items():
        at: dict[int | None, dict[str, ListedRow]] = {}
        for row in rows:
            at.setdefault(row.step, {}).setdefault(row.address, row)
        for step, found in at.items():
            if len(found) > 1:
                names = [row.run_id or row.address for row in found.values()]
                text = f"{_said(listing, group)}step {step} is listed under {len(found)} run ids: {' and '.join(names)}"
                yield Mistake(kind="two_runs_one_step", text=text, lines=tuple(row.line for row in found.values()))


def address_contradicts_step(listing: Listing, others: Sequence[Listing], known: Known) -> Iterator[Mistake]:
    for row in listing.rows:
        said = row.step_of_address
        if said is not None and said != row.step:
            text = (
                f"{_said(listing, row.group)}the row says step {row.step}, its address step {said} ({row.address}): "
                "trust neither, ask the trainer's state there"
            )
            yield Mistake(kind="address_contradicts_step", text=text, lines=(row.line,))


def missing_steps(listing: Listing, others: Sequence[Listing], known: Known) -> Iterator[Mistake]:
    """The last step, and those that a later stage was started from."""
    for group in listing.groups:
        run = known.get(group)
        if run is None:
            continue
        listed = set(listing.steps(group))
        children: dict[int, list[str]] = {}
        for child in released_runs():
            parent, _, at = str(child.value("parent", "")).partition("@")
            if parent == run.name and at.isdigit():
                children.setdefault(int(at), []).append(child.name)
        last = run.value("last_step")
        for step in sorted({*children, *([] if last is None else [int(last)])} - listed):
            reasons = [f"the last of {run.name}"] if step == last else []
            reasons += [f"where {', '.join(children[step])} went on"] if step in children else []
            text = f"step {step} is not listed: {', '.join(reasons)}; the last here is {max(listed)}"
            yield Mistake(kind="missing_steps", text=_said(listing, group) + text)


def gaps(listing: Listing, others: Sequence[Listing], known: Known) -> Iterator[Mistake]:
    for group in listing.groups:
        steps, grid = listing.steps(group), grid_of(listing, group)
        wide = [(a, b) for a, b in zip(steps, steps[1:], strict=False) if grid and b - a > grid]
        if wide:
            widest = sorted(wide, key=lambda pair: pair[0] - pair[1])[:MOST_NAMED]
            named = ", ".join(f"{a}-{b}" for a, b in sorted(widest))
            rest = f" and {len(wide) - len(widest)} narrower ones" if len(wide) > len(widest) else ""
            number = "one gap" if len(wide) == 1 else f"{len(wide)} gaps"
            yield Mistake(
                kind="gap",
                text=f"{_said(listing, group)}{number} wider than the {grid} steps between most: {named}{rest}",
            )


def misleading_name(listing: Listing, others: Sequence[Listing], known: Known) -> Iterator[Mistake]:
    """The list's date is not the hub repository's."""
    said = _DATE.findall(listing.name.rpartition("/")[2])
    for hub in sorted({str(run.value("hub", "")) for run in known.values()}):
        dates = _DATE.findall(hub)
        if said and dates and said != dates:
            text = f"the list's name says {said[0]}, the repository that has its weights {dates[0]} ({hub})"
            yield Mistake(kind="naming", text=text)


# --- checks of one shape ---------------------------------------------------------------------------------------------


def odd_group_names(listing: Listing, others: Sequence[Listing], known: Known) -> Iterator[Mistake]:
    pattern = _STAGE if listing.shape == "stages" else _INGREDIENT
    for group, rows in listing.groups.items():
        if not pattern.match(group):
            form = "stage<N>_<name>" if listing.shape == "stages" else "a number, or soup"
            text = f"{len(rows)} rows are of {group!r}, which is not written as the others are ({form})"
            yield Mistake(kind="stage_name", text=text, lines=tuple(row.line for row in rows))


def list_of_another_run(listing: Listing, others: Sequence[Listing], known: Known) -> Iterator[Mistake]:
    """Its rows are those of a list of another name, and none is of the list of its own name."""
    own_name = listing.name.rpartition("/")[2]
    same_name = [o for o in others if o.shape == "run" and o.name.rpartition("/")[2] == own_name]
    for other in others if same_name and all(o.contents.isdisjoint(listing.contents) for o in same_name) else ():
        shared = len(other.contents & listing.contents)
        if other.shape == "run" and shared >= SAME_RUN * max(other.num_unique, listing.num_unique):
            text = (
                f"{shared} of the {other.num_rows} rows of {other.name} are here, and none of the "
                f"{same_name[0].num_rows} of {same_name[0].name}: this is the list of {other.path.stem}"
            )
            yield Mistake(kind="list_of_another_run", text=text)
            return
    yield from _named_like_another(listing, known)


def _named_like_another(listing: Listing, known: Known) -> Iterator[Mistake]:
    """Without a list to compare it with: the catalog knows the run of its name, and that ended elsewhere."""
    listed = set(listing.steps(""))
    for run in released_runs():
        if run.name == listing.path.stem.lower() and "" in known and known[""] is not run:
            if run.value("last_step") not in listed:
                text = (
                    f"it is called like {run.name}, which ended at step {run.value('last_step')}; it lists "
                    f"{known[''].name}, up to step {max(listed)}"
                )
                yield Mistake(kind="list_of_another_run", text=text)


def wrong_parts(listing: Listing, others: Sequence[Listing], known: Known) -> Iterator[Mistake]:
    """Files that the run's configuration does not have, and those that it has and the list lacks."""
    for entry in dict.fromkeys(part for run in known.values() for part in run.value("provenance_parts", [])):
        group, _, numbers = str(entry).rpartition(" ")
        first, _, last = numbers.partition("-")
        wanted = set(range(int(first), int(last or first) + 1))
        rows = {int(match[1]): row for row in listing.groups.get(group, ()) if (match := _PART.search(row.address))}
        for number in sorted(set(rows) - wanted):
            text = f"{group} part {number} is listed, and the configuration does not have it"
            yield Mistake(kind="not_in_config", text=text, lines=(rows[number].line,))
        for number in sorted(wanted - set(rows)):
            yield Mistake(kind="missing_file", text=f"{group} part {number} is in the configuration, and not listed")


# --- what checks say -------------------------------------------------------------------------------------------------


def grid_of(listing: Listing, group: str) -> int:
    """The steps between most checkpoints; 0 where no distance is usual."""
    steps = listing.steps(group)
    distances = Counter(b - a for a, b in zip(steps, steps[1:], strict=False))
    if sum(distances.values()) < 3:
        return 0
    usual, times = distances.most_common(1)[0]
    return usual if 2 * times >= sum(distances.values()) else 0


def off_grid_steps(listing: Listing, group: str) -> list[int]:
    """Checkpoints between the usual ones: no mistakes, but often where a run was restarted or looked into."""
    grid = grid_of(listing, group)
    return [step for step in listing.steps(group) if step % grid] if grid else []


def _ranges(listing: Listing, group: str, rows: Sequence[ListedRow]) -> str:
    """Steps of rows as text: a range where no other step of the grid lies between."""
    some, between = {row.step for row in rows}, set(off_grid_steps(listing, group))
    text: list[str] = []
    first = last = None
    for step in [*listing.steps(group), None]:
        if step is not None and step in some:
            first, last = step if first is None else first, step
        elif first is not None and step not in between:
            text.append(str(first) if first == last else f"{first}-{last}")
            first = None
    return ", ".join(text)


def _said(listing: Listing, group: str) -> str:
    numbered = listing.shape == "ingredients" and group.isdigit()
    return f"{'ingredient ' if numbered else ''}{group}: " if group else ""
