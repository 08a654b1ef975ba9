"""A replay's report in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from replay.fidelity import ReplayReport

GRADES = {
    "R0": "bit for bit: every logged loss, and every tensor of the checkpoint or the trainer's hash of them",
    "R1": "every logged loss within 1e-6 relative",
    "unbanded": "below R1, and no noise band has been measured to place it in",
}


def summarize_report(report: ReplayReport) -> Iterator[str]:
    """The grade first, then what differs first and by how much."""
    steps = report.last - report.first
    yield f"{report.run} {report.first}:{report.last}  grade {report.grade}  ({GRADES[report.grade]})"
    compared = [row for row in report.steps if row["loss_logged"] is not None]
    if compared:
        yield f"  losses: {len(compared)} of {steps} logged; largest difference {report.max_abs_loss_difference:.3g}"
    if report.first_divergent_step is not None:
        row = next(row for row in report.steps if row["step"] == report.first_divergent_step)
        values = [f"{n} {row[n]:.9g} instead of {row[f'{n}_logged']:.9g}" for n in _different(row)]
        what = ", ".join(values) or "the weights differ from the recorded hash"
        yield f"  first divergent step: {row['step']} ({what})"
    if report.differences:
        first = report.differences[0]
        yield (
            f"  checkpoint {report.last}: {len(report.differences)} tensors differ; first {first.name}, "
            f"{first.num_different:,} of {first.num_elements:,} elements, at most {first.max_abs:.3g} "
            f"({first.relative:.3g} of its norm)"
        )
    elif report.states_equal:
        yield f"  checkpoint {report.last}: every tensor equal"
    elif report.weights_equal:
        yield f"  weights after step {report.last}: their hash equals the trainer's"
    for note in report.notes:
        yield f"  {note}"


def _different(row: object) -> Iterator[str]:
    assert isinstance(row, dict)
    for name in ("loss", "z_loss", "grad_norm", "learning_rate"):
        if row[f"{name}_logged"] is not None and row[name] != row[f"{name}_logged"]:
            yield name


def explain_report(report: ReplayReport) -> Iterator[str]:
    """What each part of the grade rests on."""
    yield "The grade:"
    for grade, meaning in GRADES.items():
        yield f"  {'>' if grade == report.grade else ' '} {grade:9} {meaning}"
    known = {True: "equal", False: "different", None: "nothing to compare with"}
    yield f"Weights at {report.last}: {known[report.weights_equal]}"
    yield f"Weights and moments at {report.last}: {known[report.states_equal]}"
    if report.weight_distance is not None:
        yield f"Distance of the weights: {report.weight_distance:.3g} of their norm"
    yield f"Arithmetic fingerprint: {known[report.fingerprint_matches]}"
    yield "Computed with: " + ", ".join(f"{key} {value}" for key, value in report.environment.items() if value)
