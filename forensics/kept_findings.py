"""What each question keeps as a finding: its answer, its picture and its texts under a name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import ForensicsError
from data_index.workspace import Workspace
from forensics.finding import Finding, finding_name

if TYPE_CHECKING:
    from forensics.attribution import Blame
    from forensics.divergence import Comparison
    from forensics.side_by_side import SideBySide
    from forensics.soundness import AuditResult
    from forensics.spike_detection import Spikes
    from forensics.trajectories import Trajectories
    from forensics.trajectory_picture import XAxis


def finding_of_spikes(found: Spikes, command: str) -> Finding:
    from forensics.spike_picture import picture_of

    other = found.coincidence.other if found.coincidence is not None else None
    answer: dict[str, Any] = {
        "rows": found.rows,
        "definitions": found.definitions,
        "messages": found.messages,
        "coincidence": None,
    }
    if (together := found.coincidence) is not None:
        answer["coincidence"] = {name: getattr(together, name) for name in together.__slots__}
    return Finding(
        name=finding_name("spikes", found.run, *([Path(other).name] if other is not None else [])),
        verb="spikes",
        command=command,
        runs=(found.run,),
        answer=answer,
        figure=picture_of(found),
    )


def finding_of_blame(found: Blame, command: str) -> Finding:
    from forensics.attribution_picture import picture_of, texts_of

    return Finding(
        name=finding_name("blame", found.run, found.found.window.peak),
        verb="blame",
        command=command,
        runs=(found.run,),
        answer=found.to_json(),
        figure=picture_of(found),
        texts=tuple(texts_of(found)),
    )


def finding_of_comparison(found: Comparison, command: str) -> Finding:
    return Finding(
        name=finding_name("compare", *found.forks),
        verb="compare",
        command=command,
        runs=(found.parent, *found.forks),
        answer={"rows": found.rows, "notes": found.notes},
        figure=found.figure,
    )


def finding_of_trajectory(found: Trajectories, x: XAxis, command: str) -> Finding:
    from forensics.trajectory_picture import figure_of

    return Finding(
        name=finding_name("trajectory", *found.runs, *found.probes),
        verb="trajectory",
        command=command,
        runs=tuple(found.runs),
        answer={"rows": found.rows, "gaps": found.gaps, "messages": found.messages},
        figure=figure_of(found, x),
    )


def finding_of_sides(run: str, against: str, found: SideBySide, command: str, workspace: Workspace) -> Finding:
    """
    Args:
        against: as it was asked for: another run, or a model that is none.
    """
    from forensics.side_by_side_picture import figure_of_sides

    other = against.partition("@")[0]
    return Finding(
        name=finding_name("sides", found.one, found.other),
        verb="probe",
        command=command,
        runs=tuple(dict.fromkeys([run, *([other] if _is_here(workspace, other) else [])])),
        answer=_sides(found),
        figure=figure_of_sides(found),
    )


def _sides(found: SideBySide) -> Mapping[str, Any]:
    return {
        "one": found.one,
        "other": found.other,
        "rows": found.rows,
        "messages": found.messages,
        "problems": found.problems,
    }


def _is_here(workspace: Workspace, name: str) -> bool:
    try:
        workspace.home(name)
    except ForensicsError:
        return False
    return True


def finding_of_audit(found: AuditResult, command: str) -> Finding:
    return Finding(
        name=finding_name("audit", found.run),
        verb="audit",
        command=command,
        runs=(found.run,),
        answer={"rows": found.rows, "notes": found.notes},
        figure=found.figure,
    )
