"""Single elements of the weights that are no numbers, or out of all proportion in one checkpoint only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from forensics.audit_rows import Row, row
from forensics.continuity import TINY
from forensics.weight_samples import Change, Reading

# A sampled element is odd where it is so many times farther from its median over the run than in any other checkpoint,
# and than its parameter's elements usually are. Of the first and the last checkpoint, which all elements may leave far
# behind, and of runs of few, only what is also out of proportion to the parameter itself is said.
ODD_ELEMENT, ODD_FOR_PARAMETER = 50.0, 30.0
ENOUGH_CHECKPOINTS, CHECKPOINT_ODD = 5, 3.0
# An element so many times larger than in both neighbours, which agree; or one that changed so many times more than its
# parameter's other elements, and back.
JUMP, LARGE_JUMP = 16.0, 100.0
ELEMENTS_AT_ONCE = 4096


def number_rows(readings: Sequence[Reading]) -> Iterator[Row]:
    """A row for each checkpoint with elements that are NaN or infinite."""
    for reading in readings:
        if not reading.num_not_finite:
            continue
        named = ", ".join(f"{name}[{index}] = {value}" for name, index, value in reading.not_finite[:4])
        more = f" and {reading.num_not_finite - 4} more" if reading.num_not_finite > 4 else ""
        yield row(f"checkpoint {reading.step} weights", "numbers", "failed", f"{named}{more}", step=reading.step)


def parameter_rows(readings: Sequence[Reading]) -> Iterator[Row]:
    """Rows for parameters that are all zero in one checkpoint and not beside it, and for other number formats."""
    usual = Counter(tuple(sorted(reading.dtypes.items())) for reading in readings).most_common(1)
    zero = [_zero_parameters(reading) for reading in readings]
    for n, reading in enumerate(readings):
        beside = [zero[k] for k in (n - 1, n + 1) if 0 <= k < len(readings)]
        # Biases are zero at initialization; what is zero after it was not, is not.
        if names := sorted(zero[n] - set.union(set(), *beside)) if n else []:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            detail = f"{names[0]}{more} is zero in all that was read of it, and is not in the checkpoints beside it"
            yield row(f"checkpoint {reading.step} weights", "elements", "failed", detail, step=reading.step)
        if usual and tuple(sorted(reading.dtypes.items())) != usual[0][0]:
            kinds = ", ".join(sorted(set(reading.dtypes.values())))
            detail = f"stored as {kinds}, other than most: its distances hold what rounding changed"
            yield row(f"checkpoint {reading.step} weights", "dtype", "not known", detail, step=reading.step)


def _zero_parameters(reading: Reading) -> set[str]:
    at, zero = 0, set()
    for name, places in reading.places.items():
        if len(places) and not reading.sample[at : at + len(places)].any():
            zero.add(name)
        at += len(places)
    return zero


def without_odd_elements(readings: Sequence[Reading]) -> tuple[np.ndarray, list[Row]]:
    """The samples, fp32 [n, elements], and rows that name single absurd elements.

    Those are replaced by their median over the run: one of 1e38 would else be all that a distance tells of.
    """
    vectors = np.stack([reading.sample for reading in readings])
    finite = np.isfinite(vectors)
    if len(vectors) < 3:
        return np.where(finite, vectors, np.float32(0)), []
    odd, middle, sizes = _far_from_others(vectors, finite, readings[0].groups)
    rows = []
    for n, reading in enumerate(readings):
        where = np.flatnonzero(odd[n] & finite[n])
        if len(where) > max(0.001 * vectors.shape[1], 16):  # it is no single element that is odd
            odd[n] = False
            continue
        if n in (0, len(readings) - 1) or len(readings) < ENOUGH_CHECKPOINTS:
            where = where[np.abs(vectors[n, where] - middle[where]) > ODD_ELEMENT * sizes[where]]
        if len(where):
            named = ", ".join(f"{_element(reading, k)} = {reading.sample[k]:.3g}" for k in where[:4])
            detail = f"{named}: far from what it is in all other checkpoints, as after a flipped bit"
            rows.append(row(f"checkpoint {reading.step} weights", "numbers", "failed", detail, step=reading.step))
    return np.where(odd | ~finite, middle, vectors).astype(np.float32), rows


def _far_from_others(
    vectors: np.ndarray, finite: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which elements are odd, bool of the vectors' shape; each one's median, and its parameter's root mean square."""
    num_elements = vectors.shape[1]
    middle, second = np.zeros(num_elements, np.float32), np.zeros(num_elements, np.float32)
    usual = np.zeros(num_elements)
    for start in range(0, num_elements, ELEMENTS_AT_ONCE):
        part = slice(start, start + ELEMENTS_AT_ONCE)
        middle[part] = np.median(np.where(finite[:, part], vectors[:, part], 0), axis=0)
        far = np.sort(np.where(finite[:, part], np.abs(vectors[:, part] - middle[part]), 0), axis=0)
        second[part] = far[-2]
        usual[part] = (far[:-1].astype(np.float64) ** 2).mean(axis=0)  # without the checkpoint that is farthest
    counts = np.maximum(np.bincount(groups), 1)
    usual = np.sqrt(np.bincount(groups, usual) / counts)[groups]
    sizes = np.sqrt(np.bincount(groups, middle.astype(np.float64) ** 2) / counts)[groups]
    most = np.maximum(ODD_ELEMENT * second, ODD_FOR_PARAMETER * usual) + TINY
    odd = np.zeros(vectors.shape, dtype=bool)
    for n, vector in enumerate(vectors):
        with np.errstate(invalid="ignore", over="ignore"):
            far = np.abs(vector - middle)
        # Where elements lie far off in general, it is the checkpoint that is odd.
        if 2 * np.count_nonzero((far > CHECKPOINT_ODD * usual)[finite[n]]) < np.count_nonzero(finite[n]):
            odd[n] = far > most
    return odd, middle, sizes


def _element(reading: Reading, place: int) -> str:
    """The parameter and index of an element of the sample."""
    for name, places in reading.places.items():
        if place < len(places):
            return f"{name}[{places[place]}]"
        place -= len(places)
    raise AssertionError("the sample has no such element")


def jump_rows(steps: Sequence[int], changes: Mapping[tuple[int, int], Sequence[Change]]) -> Iterator[Row]:
    """A row for each element that is out of all proportion in one checkpoint only.

    Args:
        steps: of checkpoints that were compared, in order.
        changes: (step, next step) -> the odd changes between them.
    """
    for n, step in enumerate(steps):
        before = changes.get((steps[n - 1], step)) if n else None
        after = changes.get((step, steps[n + 1])) if n + 1 < len(steps) else None
        jumps = _between(before, after) if before is not None and after is not None else _at_end(before, after)
        for name, index, text in jumps:
            detail = f"{name}[{index}] {text}: as after a flipped bit of its exponent"
            yield row(f"checkpoint {step} weights", "elements", "failed", detail, step=step)


def _between(before: Sequence[Change], after: Sequence[Change]) -> Iterator[tuple[str, int, str]]:
    back = {(change.name, change.index): change for change in after}
    for there in before:
        again = back.get((there.name, there.index))
        if again is None:
            continue
        size = abs(there.after - there.before)
        returns = abs(again.after - there.before) < 0.05 * size
        larger = abs(there.after) > JUMP * max(abs(there.before), abs(again.after))
        if returns and (larger or size > LARGE_JUMP * max(there.typical, again.typical)):
            text = f"is {there.after:.4g}, and {there.before:.4g} and {again.after:.4g} in the checkpoints beside it"
            yield there.name, there.index, text


def _at_end(before: Sequence[Change] | None, after: Sequence[Change] | None) -> Iterator[tuple[str, int, str]]:
    """The first and the last have one neighbour: only what is out of proportion to the whole parameter is named."""
    for change in before or ():
        if abs(change.after) > JUMP**2 * max(change.largest_before, abs(change.before), TINY):
            yield change.name, change.index, f"is {change.after:.4g}, and {change.before:.4g} in the checkpoint before"
    for change in after or ():
        if abs(change.before) > JUMP**2 * max(change.largest_after, abs(change.after), TINY):
            yield change.name, change.index, f"is {change.before:.4g}, and {change.after:.4g} in the checkpoint after"
