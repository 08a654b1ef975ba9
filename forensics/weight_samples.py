"""A checkpoint's weights in few numbers: a sample that shows how far it has come, and a hash of all or of the sample.

The sample holds elements of every parameter, at the same places in every checkpoint of a run. One tensor is in memory
at a time. Deep readings see every element: they hash them, find what is no number, and compare neighbours element by
element. Of checkpoints on servers, a sample is a few stretches, each one request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_index.run import Checkpoint
from replay.stored_remote import read_stretches
from replay.weights import StoredPart, fetch_weights, stored_weights, tensor_bytes

MAX_ELEMENTS = 65_536
LEAST_ELEMENTS = 16  # of each parameter, where it has as many and there are not too many parameters
GOLDEN = 0.6180339887498949
MOST_NAMED = 16  # elements of a tensor that are looked at as odd ones
# Of a checkpoint on a server: so many stretches of so many elements, at most one in a parameter.
STRETCHES, STRETCH_ELEMENTS = 24, 1024
ODD_CHANGE = 20.0  # times the root mean square of the other changes in the tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What was read of a checkpoint's weights.

    Attributes:
        shapes: of each parameter, by name, in name order; `dtypes` likewise.
        sample: fp32 [elements], parameter after parameter in name order.
        sample_sha256: of names, dtypes, shapes and the sampled elements' bytes.
        weights_sha256: `replay.weights.content_hash` of all of it; None where only the sample was read.
        not_finite: (parameter, index, value as text) of elements that are NaN or infinite, the first few of each.
        num_not_finite: how many there are, in what was read.
        far: the sample is stretches, not places spread over all parameters.
    """

    step: int
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    sample: np.ndarray
    sample_sha256: str
    weights_sha256: str | None = None
    not_finite: tuple[tuple[str, int, str], ...] = ()
    num_not_finite: int = 0
    far: bool = False

    @property
    def places(self) -> dict[str, np.ndarray]:
        """Which elements of each flattened parameter the sample holds, parameter after parameter."""
        return sampled_places(self.shapes, far=self.far)

    @property
    def groups(self) -> np.ndarray:
        """For each element of the sample, the number of its parameter."""
        counts = [len(places) for places in self.places.values()]
        return np.repeat(np.arange(len(counts)), counts)

    def to_record(self) -> dict[str, Any]:
        """All but the sample, as JSON."""
        return {
            "step": self.step,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "dtypes": dict(self.dtypes),
            "sample_sha256": self.sample_sha256,
            "weights_sha256": self.weights_sha256,
            "not_finite": [list(element) for element in self.not_finite],
            "num_not_finite": self.num_not_finite,
            "far": self.far,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], sample: np.ndarray) -> Reading:
        return cls(
            step=record["step"],
            shapes={name: tuple(shape) for name, shape in record["shapes"].items()},
            dtypes=record["dtypes"],
            sample=sample,
            sample_sha256=record["sample_sha256"],
            weights_sha256=record["weights_sha256"],
            not_finite=tuple((name, index, value) for name, index, value in record["not_finite"]),
            num_not_finite=record["num_not_finite"],
            far=record["far"],
        )


def counts_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """How many elements of each parameter are sampled: in proportion, and a few of every one, however small."""
    sizes = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
    total = sum(sizes.values())
    if total <= MAX_ELEMENTS:
        return sizes
    least = max(min(LEAST_ELEMENTS, MAX_ELEMENTS // 2 // max(len(sizes), 1)), 1)
    rest = max(MAX_ELEMENTS - least * len(sizes), 0)
    return {name: min(size, least + size * rest // total) for name, size in sizes.items()}


def places_of(num_elements: int, count: int) -> np.ndarray:
    """`count` different places among `num_elements`, rising: one in each of as many even stretches.

    Where in its stretch each lies goes by the golden ratio: at even distances they would all lie in the same columns of
    a matrix.
    """
    number = np.arange(count)
    starts, stops = number * num_elements // max(count, 1), (number + 1) * num_elements // max(count, 1)
    inside = (np.modf(number * GOLDEN)[0] * (stops - starts)).astype(np.int64)
    return starts + inside


def sampled_places(shapes: Mapping[str, tuple[int, ...]], *, far: bool) -> dict[str, np.ndarray]:
    """The elements of each parameter that a sample holds."""
    sizes = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
    if not far:
        return {name: places_of(sizes[name], count) for name, count in counts_of(shapes).items()}
    # Matrices change in every step; gains and biases may be at their start for long.
    matrices = [name for name, shape in shapes.items() if len(shape) > 1 and sizes[name]] or list(shapes)
    chosen = [matrices[place] for place in places_of(len(matrices), min(STRETCHES, len(matrices)))]
    found = {}
    for number, name in enumerate(chosen):
        length = min(STRETCH_ELEMENTS, sizes[name])
        start = int((sizes[name] - length) * np.modf(number * GOLDEN)[0])
        found[name] = np.arange(start, start + length)
    return found


def name_of_reading(checkpoint: Checkpoint, *, deep: bool) -> str:
    """What a reading is kept as: samples of different places must not be compared."""
    far = not deep and not isinstance(checkpoint.location, Path)
    return f"step{checkpoint.step}-{'stretches' if far else 'weights'}"


def read_far_sample(checkpoint: Checkpoint) -> Reading | None:
    """A sample of a checkpoint on a server, its stretches alone fetched; None where its layout has no stretches.

    Raises:
        what `read_checkpoint` raises
    """
    parts = stored_weights(checkpoint)
    if any(part.tensor.place is None or part.rows is not None for part in parts.values()):
        return None
    shapes = {name: part.shape for name, part in sorted(parts.items())}
    places = sampled_places(shapes, far=True)
    wanted = [(parts[name].tensor, int(at[0]), int(at[-1]) + 1) for name, at in places.items() if len(at)]
    sampled, odd, samples = hashlib.sha256(), _Odd(), []
    for (name, at), chosen in zip(places.items(), read_stretches(wanted), strict=True):
        sampled.update(f"{name} {chosen.dtype} {shapes[name]} ".encode())
        sampled.update(tensor_bytes(chosen))
        samples.append(chosen.float().numpy())
        odd.look(name, chosen, at)
    return Reading(
        step=checkpoint.step,
        shapes=shapes,
        dtypes={name: str(parts[name].tensor.dtype) for name in shapes},
        sample=np.concatenate(samples) if samples else np.empty(0, np.float32),
        sample_sha256=sampled.hexdigest(),
        not_finite=tuple(odd.named),
        num_not_finite=odd.count,
        far=True,
    )


def read_checkpoint(checkpoint: Checkpoint, *, whole: bool) -> Reading:
    """Sample the weights of a checkpoint; with `whole`, hash and look at every element too.

    Raises:
        MissingState, MissingFile, CorruptFile, UnsafeFile, UnsupportedRecipe, UnknownLayout
    """
    fetch_weights(checkpoint)
    parts = stored_weights(checkpoint)
    shapes = {name: part.shape for name, part in sorted(parts.items())}
    counts = counts_of(shapes)
    everything, sampled = hashlib.sha256(), hashlib.sha256()
    odd = _Odd()
    samples, dtypes = [], {}
    for name, tensor in in_name_order(parts):
        flat = tensor.reshape(-1)
        chosen = flat[torch.from_numpy(places_of(len(flat), counts[name]))]
        label = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
        sampled.update(label)
        sampled.update(tensor_bytes(chosen))
        dtypes[name] = str(tensor.dtype)
        samples.append(chosen.float().numpy())
        if whole:
            everything.update(label)
            everything.update(tensor_bytes(tensor))
            odd.look(name, flat)
        else:
            odd.look(name, chosen, places_of(len(flat), counts[name]))
    return Reading(
        step=checkpoint.step,
        shapes=shapes,
        dtypes=dtypes,
        sample=np.concatenate(samples) if samples else np.empty(0, np.float32),
        sample_sha256=sampled.hexdigest(),
        weights_sha256=everything.hexdigest() if whole else None,
        not_finite=tuple(odd.named),
        num_not_finite=odd.count,
    )


@dataclass(slots=True)
class _Odd:
    """Elements that are no finite numbers."""

    named: list[tuple[str, int, str]] = field(default_factory=list)
    count: int = 0

    def look(self, name: str, flat: torch.Tensor, places: np.ndarray | None = None) -> None:
        if not flat.dtype.is_floating_point or bool(torch.isfinite(flat).all()):
            return
        where = torch.nonzero(~torch.isfinite(flat)).reshape(-1)
        self.count += len(where)
        for at in where[:4].tolist():
            index = at if places is None else int(places[at])
            if len(self.named) < MOST_NAMED:
                self.named.append((name, index, str(float(flat[at]))))


def in_name_order(parts: Mapping[str, StoredPart]) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights one by one, names sorted; what neighbours in that order share is read once."""
    source, whole = None, torch.empty(0)
    for name in sorted(parts):
        part = parts[name]
        if part.tensor is not source:
            source, whole = part.tensor, part.tensor.read()
        yield name, whole if part.rows is None else whole[part.rows]


# --- element by element ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An element that changed far more from one checkpoint to the next than others of its tensor.

    Attributes:
        index: in the flattened parameter.
        typical: root mean square of the tensor's other changes.
        largest_before, largest_after: absolute value of the largest other element of the tensor.
    """

    name: str
    index: int
    before: float
    after: float
    typical: float
    largest_before: float
    largest_after: float


def odd_changes(one: Checkpoint, other: Checkpoint) -> list[Change]:
    """The odd changes between two checkpoints of the same parameters; all elements of both are read.

    Raises:
        what `read_checkpoint` raises
    """
    found: list[Change] = []
    before, after = in_name_order(stored_weights(one)), in_name_order(stored_weights(other))
    for (name, old), (other_name, new) in zip(before, after, strict=True):
        if name == other_name and old.shape == new.shape and old.numel():
            found += _odd_changes(name, old.reshape(-1), new.reshape(-1))
    return found


def _odd_changes(name: str, old: torch.Tensor, new: torch.Tensor) -> Iterator[Change]:
    old, new = old.double(), new.double()
    change = torch.nan_to_num((new - old).abs(), nan=0.0, posinf=torch.finfo(torch.float64).max)
    # Most elements stay to compare with.
    largest, where = torch.topk(change, min(MOST_NAMED, len(change) // 4))
    others = torch.ones_like(change, dtype=torch.bool)
    others[where] = False
    typical = float(change[others].square().mean().sqrt())
    for index, size in zip(where.tolist(), largest.tolist(), strict=True):
        if size > ODD_CHANGE * typical and size > 0:
            yield Change(
                name=name,
                index=index,
                before=float(old[index]),
                after=float(new[index]),
                typical=typical,
                largest_before=_largest_but(old, where),
                largest_after=_largest_but(new, where),
            )


def _largest_but(flat: torch.Tensor, where: torch.Tensor) -> float:
    rest = torch.nan_to_num(flat.abs())
    rest[where] = 0.0
    return float(rest.max())
