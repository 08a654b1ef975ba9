"""L2 norms of groups of tensors, and distances between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

# So many stay in a processor's cache, and no second copy of a whole tensor is made.
ELEMENTS_AT_ONCE = 2**18


def group_norm(tensors: Iterable[torch.Tensor]) -> float:
    """L2 norm of all elements of all tensors together, accumulated in fp64."""
    parts = (part.double() for tensor in tensors for part in tensor.detach().flatten().split(ELEMENTS_AT_ONCE))
    return float(torch.stack([part @ part for part in parts]).sum().sqrt())


def norms_by_group(tensors: Mapping[str, torch.Tensor], groups: Mapping[str, list[str]]) -> list[float]:
    """L2 norm of each group of named tensors, in the groups' order."""
    return [group_norm(tensors[name] for name in names) for names in groups.values()]


def root_mean_square(tensors: Iterable[torch.Tensor]) -> float:
    """Of all elements of all tensors together; NaN without any. Unlike a norm it can be compared between sizes."""
    tensors = list(tensors)
    num_elements = sum(tensor.numel() for tensor in tensors)
    return root_mean_square_of_norm(group_norm(tensors), num_elements) if num_elements else float("nan")


def root_mean_square_of_norm(norm: float, num_elements: int) -> float:
    """The root mean square of so many elements, at least one, whose L2 norm is known."""
    return norm / num_elements**0.5


def root_mean_squares_by_group(tensors: Mapping[str, torch.Tensor], groups: Mapping[str, list[str]]) -> list[float]:
    """Root mean square of the elements of each group of named tensors, in the groups' order."""
    return [root_mean_square(tensors[name] for name in names) for names in groups.values()]


def travel_distance(
    one: Mapping[str, torch.Tensor],
    other: Mapping[str, torch.Tensor],
    start: Mapping[str, torch.Tensor],
    names: Iterable[str],
) -> float:
    """How far apart two states are, in units of how far `other` has moved: |one - other| / |other - start|.

    1 means: as far from each other as `other` is from the common start. NaN where `other` did not move.
    """
    names = list(names)
    apart = group_norm(one[name].cpu() - other[name].cpu() for name in names)
    moved = group_norm(other[name].cpu() - start[name].cpu() for name in names)
    return apart / moved if moved else float("nan")
