"""Files of weights with equal content at different steps, by the hashes that are stated or were taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from data_index.artifacts import Artifact
from forensics.audit_rows import Result, Row, named_steps, row

Hashes = Mapping[str, str]  # artifact's name -> sha256


def equal_file_rows(
    artifacts: Mapping[int, Sequence[Artifact]],
    hashes: Hashes,
    groups: Sequence[Sequence[int]],
    rests: Callable[[int, int], bool | None],
) -> Iterator[tuple[tuple[int, ...], bool, Row]]:
    """Findings (steps, whether these are all of their weights, row).

    Args:
        artifacts: by step.
        groups: steps whose weights were found equal already: they are not said twice.
    """
    weights = {
        step: {a.file: hashes.get(a.name) for a in files if a.holds_weights} for step, files in artifacts.items()
    }
    known = {step: files for step, files in weights.items() if files and None not in files.values()}
    said = [set(group) for group in groups]
    for steps in _alike({step: tuple(sorted(files.items())) for step, files in known.items()}):
        if not any(set(steps) <= group for group in said):
            said.append(set(steps))
            yield steps, True, _row("weights", "weights", steps, rests)
    names = sorted({file for files in weights.values() for file in files})
    for name in names:
        for steps in _alike({step: files[name] for step, files in weights.items() if files.get(name)}):
            if not any(set(steps) <= group for group in said):
                yield steps, False, _row(name, "bytes", steps, rests)


def _alike(content: Mapping[int, object]) -> list[tuple[int, ...]]:
    groups: dict[object, list[int]] = {}
    for step, what in content.items():
        groups.setdefault(what, []).append(step)
    return [tuple(sorted(steps)) for steps in groups.values() if len(steps) > 1]


def _row(artifact: str, what: str, steps: Sequence[int], rests: Callable[[int, int], bool | None]) -> Row:
    resting = [rests(one, other) for one, other in zip(steps, steps[1:], strict=False)]
    result: Result = "failed"
    why = f", with {steps[-1] - steps[0]:,} steps of training between them"
    if all(resting):
        result, why = "expected", ", as they should: the learning rate is 0 between them, or the steps were skipped"
    elif None in resting and list(steps) == [0, 1]:
        result, why = "not known", "; whether the first update's learning rate is 0 is not known"
    where = "" if artifact == "weights" else f" in {artifact}"
    return row(artifact, "equal bytes", result, f"{named_steps(steps)} hold the same {what}{where}{why}", steps=steps)
