"""What is kept of a run's spikes, to be looked at again: its events, and what `blame` found of one of them.

Findings may come from others, so that nothing is believed of them but their form.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_index.errors import ForensicsError
from data_index.files import sha256_of_file
from data_index.finding_files import finding_names
from data_index.workspace import Workspace
from forensics.figure import Figure
from forensics.finding import Finding, finding_name, read_finding
from forensics.fork_list import Composition
from forensics.marked_text import MarkedText

Row = Mapping[str, Any]
SPIKE_KINDS = ("fast", "slow", None)
OTHER_KINDS = {
    "not_finite": "not a number",
    "level_shift": "new level",
    "gradient_growth": "gradient norm grows",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptSpikes:
    """
    Attributes:
        spikes: events of the robust definition, in step order; those of attempts that were given up say so in `detail`.
        others: steps without a number, new levels with their cause, growth of the gradient norm.
        published: events of the published definitions. definitions: their counts, and those of ours.
        messages: what one has to know to believe it, restarts among them.
        searched: was it ever asked?
        missing: why there is no finding, where there is none.
    """

    spikes: tuple[Row, ...]
    others: tuple[Row, ...]
    published: tuple[Row, ...] = ()
    definitions: tuple[Row, ...] = ()
    messages: tuple[str, ...] = ()
    figure: Figure | None = None
    made_at: str | None = None
    searched: bool = False
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptBlame:
    """A finding of `blame`, its answer in the parts that are looked at.

    Attributes:
        removals: what the peak came to without each candidate, its span, the group, the batch: what, step, value,
            null_low, null_high (of random ones), restored (share of the excess).
        changed: what is no longer as it was when it was made; None: nothing.
    """

    finding: Finding
    peak: int
    measure: str
    verdict: str
    cause: str | None
    reason: str
    facts: Row
    candidates: tuple[Row, ...]
    removals: tuple[Row, ...]
    documents: tuple[Row, ...]
    odds: tuple[Row, ...]
    steps: tuple[Row, ...]
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    changed: str | None

    @property
    def texts(self) -> tuple[tuple[Row, MarkedText], ...]:
        """The first candidates with their coloured rows."""
        return tuple(zip(self.candidates, self.finding.texts, strict=False))


def kept_spikes(run: str, *, workspace: Workspace | None = None) -> KeptSpikes:
    """What `forensics spikes` found of a run: as its finding has it, else as the view `spikes` has it.

    Raises:
        UnknownRun, CorruptFile, MissingFile
    """
    workspace = workspace or Workspace()
    home = workspace.home(run)
    learned = [dict(row) for row in workspace.learned(home, "spikes")]
    searched = bool(workspace.learned_files(home, "spikes"))
    finding, missing = _finding(workspace, finding_name("spikes", run), "spikes", run)
    if finding is None:
        spikes, others = _parted(learned)
        return KeptSpikes(spikes=spikes, others=others, searched=searched, missing=missing)
    rows = _rows(finding.answer.get("rows"))
    spikes, others = _parted(row for row in rows if row.get("definition") == "robust")
    return KeptSpikes(
        spikes=spikes,
        others=others,
        published=tuple(row for row in rows if row.get("definition") != "robust"),
        definitions=_rows(finding.answer.get("definitions")),
        messages=_strings(finding.answer.get("messages")),
        figure=finding.figure,
        made_at=_text(finding.made.get("at")),
        searched=True,
    )


def kept_blame(run: str, peak: int, *, workspace: Workspace | None = None) -> KeptBlame | str | None:
    """What `blame` found of the spike that a step belongs to; a sentence: it cannot be read; None: it was not asked.

    Raises:
        UnknownRun
    """
    workspace = workspace or Workspace()
    workspace.home(run)
    finding, missing = _finding(workspace, finding_name("blame", run, peak), "blame", run)
    if finding is not None:
        return blame_of_finding(workspace, run, finding)
    return missing


def blame_of_finding(workspace: Workspace, run: str, finding: Finding) -> KeptBlame:
    answer = finding.answer
    candidates = _rows(answer.get("candidates"))
    measure = "grad_norm" if answer.get("measure") == "grad_norm" else "loss"
    names = ("onset", "peak", "checkpoint", measure, f"{measure}_logged", f"{measure}_usual")
    peak = answer.get("peak")
    return KeptBlame(
        finding=finding,
        peak=peak if isinstance(peak, int) else 0,
        measure=measure,
        verdict=_text(answer.get("verdict")) or "unknown",
        cause=_text(answer.get("cause")),
        reason=_text(answer.get("reason")) or "",
        facts={name: answer.get(name) for name in names},
        candidates=candidates,
        removals=tuple(_removals(answer, candidates, measure)),
        documents=_rows(answer.get("documents")),
        odds=_rows(answer.get("odds")),
        steps=_rows(answer.get("steps")),
        commands=_strings(answer.get("commands")),
        notes=_strings(answer.get("notes")),
        changed=_changed(workspace, run, finding),
    )


def blamed_steps(run: str, *, workspace: Workspace | None = None) -> list[int]:
    """Peaks of which there is a finding of `blame`, in step order; by their names, nothing is opened."""
    prefix = finding_name("blame", run, "")
    names = [name.removeprefix(prefix) for name in finding_names(workspace or Workspace()) if name.startswith(prefix)]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def fork_of_command(command: str) -> Composition | None:
    """The fork that a finding's command makes; None where the command is another."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    options, edits = words[3::2], tuple(words[8::2])
    wanted = ["--from", "--num-steps", *("--edit" for _ in edits)]
    numbers = words[4:7:2]
    if words[:2] != ["forensics", "fork"] or options != wanted or not all(map(str.isdecimal, numbers)):
        return None
    return Composition(run=words[2], from_step=int(numbers[0]), num_steps=int(numbers[1]), edits=edits)


def _finding(workspace: Workspace, name: str, verb: str, run: str) -> tuple[Finding | None, str | None]:
    """A finding of that name, or why it cannot be read."""
    if name not in finding_names(workspace):
        return None, None
    try:
        found = read_finding(workspace, name)
    except ForensicsError as error:
        return None, str(error)
    if found.verb != verb or run not in found.runs:
        return None, f"the finding {name} is of {found.verb} and of {', '.join(found.runs)}"
    return found, None


def _changed(workspace: Workspace, run: str, finding: Finding) -> str | None:
    made_from = finding.inputs.get(run)
    if made_from is None:
        return f"it does not say what it was made from, so that nothing tells whether {run} is still the same"
    if made_from.get("run_toml") != sha256_of_file(workspace.home(run) / "run.toml"):
        return f"{run} was registered again since: what its steps read, or how they are taken, may be another now"
    return None


def _parted(rows: Any) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Spikes, and what is none; each with a step that names it."""
    spikes: list[Row] = []
    others: list[Row] = []
    for row in rows:
        if not isinstance(row.get("onset"), int):
            continue
        is_spike = row.get("kind") in SPIKE_KINDS and isinstance(row.get("peak"), int)
        (spikes if is_spike else others).append(row)
    return tuple(sorted(spikes, key=lambda row: int(row["peak"]))), tuple(others)


def _removals(answer: Row, candidates: Sequence[Row], measure: str) -> Iterator[Row]:
    low, high = ("null_low", "null_high") if measure == "loss" else ("grad_norm_null_low", "grad_norm_null_high")
    removed, hidden = f"{measure}_if_removed", f"{measure}_if_span_hidden"
    for row in candidates:
        what = f"instance {row.get('instance')}"
        yield _removal(what, row.get("step"), row.get(removed), row.get(low), row.get(high), row.get("restored"))
        if isinstance(row.get("span_start"), int):
            span = f"… its tokens {row['span_start']}..{row.get('span_stop')} hidden"
            yield _removal(span, row.get("step"), row.get(hidden), None, None, row.get("restored_by_span"))
    for name, what in (("group", "{} rows at once"), ("batch", "another batch")):
        together = answer.get(name)
        if isinstance(together, Mapping):
            rows = together.get("rows")
            count = len(rows) if isinstance(rows, Sequence) else "?"
            steps = together.get("steps")
            step = steps[0] if isinstance(steps, Sequence) and steps else None
            low_end, high_end = together.get(f"{measure}_null_low"), together.get(f"{measure}_null_high")
            yield _removal(what.format(count), step, together.get(removed), low_end, high_end, together.get("restored"))


def _removal(what: str, step: Any, value: Any, low: Any, high: Any, restored: Any) -> Row:
    values = {"value": value, "null_low": low, "null_high": high, "restored": restored}
    return {"without": what, "step": step, **{name: number(one) for name, one in values.items()}}


def number(value: Any) -> float | None:
    """A finding writes what is no number as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return None if math.isnan(found) else found


def _rows(value: Any) -> tuple[Row, ...]:
    rows = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return tuple(row for row in rows if isinstance(row, Mapping))


def _strings(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return tuple(item for item in items if isinstance(item, str))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
