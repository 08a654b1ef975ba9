"""Which part of a language model each of its parameters belongs to, whatever the architecture calls it."""

from __future__ import annotations

import re
from typing import Any

import torch

INPUT_EMBEDDING, OUTPUT_EMBEDDING, TIED_EMBEDDING = "input embedding", "output embedding", "tied embedding"
MATRICES, VECTORS = "matrices", "vectors"
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def groups_by_part(model: torch.nn.Module) -> dict[str, list[str]]:
    """Parameter names by part: the embeddings, the matrices and the vectors (norms, biases) of each layer, the rest.

    Every parameter is in exactly one group: `input embedding` and `output embedding`, or `tied embedding` where both
    are one weight; then `layer 0 matrices`, `layer 0 vectors`, …; what is in no layer (the final norm, positions, an
    output bias) in `other matrices` and `other vectors`. Groups stand in the order of their first parameter.

    Args:
        model: a causal language model of transformers.
    """
    embeddings = embedding_groups(model)
    groups: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        group = embeddings.get(id(parameter)) or _group_of(name, parameter)
        groups.setdefault(group, []).append(name)
    return groups


def embedding_groups(model: Any) -> dict[int, str]:
    """The group of each embedding weight, by the identity of the parameter."""
    weights = [
        getattr(module, "weight", None) for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    if weights[0] is weights[1]:
        return {id(weights[0]): TIED_EMBEDDING}
    names = (INPUT_EMBEDDING, OUTPUT_EMBEDDING)
    return {id(weight): name for weight, name in zip(weights, names, strict=True) if weight is not None}


def _group_of(name: str, parameter: torch.nn.Parameter) -> str:
    kind = MATRICES if parameter.dim() > 1 else VECTORS
    layer = _LAYER.search(name)
    return f"layer {layer[1]} {kind}" if layer else f"other {kind}"
