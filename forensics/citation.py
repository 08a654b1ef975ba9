"""`cite`: how to name the toolkit, a run or a finding in a text; of others' work only what the catalog knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from data_index.catalog_file import ReleasedRun
from data_index.errors import ForensicsError, UnknownRun
from data_index.files import sha256_of_file
from data_index.finding_files import finding_names, findings_folder
from data_index.registry import find_family, find_run
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.finding import read_finding

AUTHORS = "The Checkpoint Forensics contributors"
TITLE = "Checkpoint Forensics"
LICENCE = "Apache-2.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """
    Attributes:
        text, bibtex: the same, for people and for BibTeX.
        notes: what is not known, and so not said.
    """

    text: tuple[str, ...]
    bibtex: tuple[str, ...]
    notes: tuple[str, ...] = ()


def cite(name: str | None = None, *, workspace: Workspace | None = None) -> Citation:
    """The toolkit; with a name also a run, a released run of the catalog, or a finding.

    Raises:
        UnknownRun: nothing is called so.
    """
    own = _toolkit()
    if name is None:
        return own
    workspace = workspace or Workspace()
    added = _named(workspace, name)
    return Citation(text=added.text + own.text, bibtex=added.bibtex + own.bibtex, notes=added.notes)


def toolkit_version() -> str:
    try:
        return version("checkpoint-forensics")
    except PackageNotFoundError:  # a checkout that is not installed
        return "of a checkout"


def _toolkit() -> Citation:
    number = toolkit_version()
    fields = {"author": f"{{{AUTHORS}}}", "title": f"{{{TITLE}}}", "version": number, "note": f"Licence: {LICENCE}"}
    return Citation(
        text=(f"{AUTHORS}. {TITLE}, version {number}. {LICENCE}.",),
        bibtex=(entry_of("software", "checkpoint-forensics", fields),),
    )


def _named(workspace: Workspace, name: str) -> Citation:
    try:
        run = workspace.run(name)
    except UnknownRun as unknown:
        if name in finding_names(workspace):
            return _of_finding(workspace, name)
        try:
            return _of_released(find_run(name))
        except UnknownRun:
            raise UnknownRun(f"{unknown}; nor is a finding or a released run (forensics catalog)") from None
    return _of_run(workspace, run)


def _of_run(workspace: Workspace, run: Run) -> Citation:
    """A run as it is here, and as it was published where it came from there."""
    record = sha256_of_file(workspace.home(run.name) / "run.toml")
    steps = f"steps {run.first_step}..{run.last_step}"
    here = f"{run.name}: {steps}, order {run.trust.level}; record with sha256 {record}."
    fields = {"title": f"{{{run.name}}}, a training run", "note": f"{steps}; order {run.trust.level}; record {record}"}
    own = Citation(text=(here,), bibtex=(entry_of("misc", run.name, fields),))
    origin = run.facts.get("origin", "").removeprefix("hub:")
    try:
        released = _of_released(find_run(origin))
    except ForensicsError:
        said = f"the catalog does not know where {run.name} comes from: cite its authors as they ask for it"
        return Citation(text=own.text, bibtex=own.bibtex, notes=(said,))
    return Citation(text=own.text + released.text, bibtex=own.bibtex + released.bibtex, notes=released.notes)


def _of_released(run: ReleasedRun) -> Citation:
    """What the catalog says of a released run, each fact with its source there."""
    family = find_family(run.family)
    hub = run.value("hub")
    fields = {"title": f"{{{run.name}}}", "publisher": f"{{{family.publisher}}}", "series": f"{{{family.title}}}"}
    if hub:
        fields["howpublished"] = f"Hugging Face Hub: {hub}"
    where = f" Hugging Face Hub: {hub}." if hub else ""
    return Citation(
        text=(f"{family.publisher}. {run.name} ({family.title}).{where}",),
        bibtex=(entry_of("misc", f"{run.name}-released", fields),),
        notes=(
            f"the catalog knows no paper, year or licence of {run.name}: see its card"
            + (f", https://huggingface.co/{hub}" if hub else ""),
        ),
    )


def _of_finding(workspace: Workspace, name: str) -> Citation:
    finding = read_finding(workspace, name)
    sha256 = sha256_of_file(findings_folder(workspace) / f"{name}.json")
    made = {key: finding.made.get(key) for key in ("at", "checkpoint-forensics")}
    with_ = f", with {TITLE} {made['checkpoint-forensics']}" if made["checkpoint-forensics"] else ""
    about = ", ".join(finding.runs)
    text = f"Finding {name} about {about}: {finding.command}{with_}; sha256 {sha256}."
    fields = {"title": f"Finding {{{name}}} about {about}", "note": f"{finding.command}; sha256 {sha256}"}
    if isinstance(made["at"], str):
        fields["date"] = made["at"][:10]
    own = Citation(text=(text,), bibtex=(entry_of("misc", name, fields),))
    runs = [_named_run(workspace, run) for run in finding.runs]
    return Citation(
        text=own.text + tuple(line for run in runs for line in run.text),
        bibtex=own.bibtex + tuple(entry for run in runs for entry in run.bibtex),
        notes=tuple(note for run in runs for note in run.notes),
    )


def _named_run(workspace: Workspace, name: str) -> Citation:
    try:
        return _of_run(workspace, workspace.run(name))
    except ForensicsError:
        return Citation(text=(), bibtex=(), notes=(f"the run {name} is not here: its sender can say more of it",))


def entry_of(kind: str, key: str, fields: Mapping[str, str]) -> str:
    """An entry of BibTeX; what LaTeX would obey in values from data is escaped."""
    lines = [f"  {name} = {{{_escaped(value)}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{re.sub(r'[^A-Za-z0-9._-]', '-', key)},", *lines, "}"])


_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _escaped(text: str) -> str:
    """Braces stay where they are balanced: they keep capitals."""
    plain = "".join(_SPECIAL.get(char, f"\\{char}" if char in "&%$#_" else char) for char in text if char.isprintable())
    return plain if _balanced(text) else plain.replace("{", "(").replace("}", ")")


def _balanced(text: str) -> bool:
    depth = 0
    for char in text:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    return depth == 0
