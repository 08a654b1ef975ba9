"""Which part of a language model each of its parameters belongs to, whatever the architecture calls it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

INPUT_EMBEDDING, OUTPUT_EMBEDDING, TIED_EMBEDDING = "input embedding", "output embedding", "tied embedding"
EMBEDDINGS = (INPUT_EMBEDDING, OUTPUT_EMBEDDING, TIED_EMBEDDING)
MATRICES, VECTORS = "matrices", "vectors"
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_INPUT = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings)\.weight$")
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")


def groups_by_part(model: torch.nn.Module) -> dict[str, list[str]]:
    """Parameter names by part: the embeddings, the matrices and the vectors (norms, biases) of each layer, the rest.

    Every parameter is in exactly one group: `input embedding` and `output embedding`, or `tied embedding` where both
    are one weight; then `layer 0 matrices`, `layer 0 vectors`, …; what is in no layer (the final norm, positions, an
    output bias) in `other matrices` and `other vectors`. Groups stand in the order of their first parameter.

    Args:
        model: a causal language model of transformers.
    """
    by_identity = embedding_groups(model)
    named = dict(model.named_parameters())
    embeddings = {name: by_identity[id(weight)] for name, weight in named.items() if id(weight) in by_identity}
    return groups_by_name({name: tuple(weight.shape) for name, weight in named.items()}, embeddings)


def groups_by_name(
    shapes: Mapping[str, tuple[int, ...]], embeddings: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """The same groups from names and shapes alone, such as those of stored tensors.

    Args:
        shapes: by transformers' names.
        embeddings: the group of each embedding weight; None: known by their names (`named_embeddings`).
    """
    embeddings = named_embeddings(shapes) if embeddings is None else embeddings
    groups: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        groups.setdefault(embeddings.get(name) or _group_of(name, shape), []).append(name)
    return groups


def named_embeddings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The group of each embedding weight, by its name. An input embedding without an output weight is tied."""
    outputs = {name: OUTPUT_EMBEDDING for name in shapes if _OUTPUT.search(name)}
    group = INPUT_EMBEDDING if outputs else TIED_EMBEDDING
    return {name: group for name in shapes if _INPUT.search(name)} | outputs


def embedding_groups(model: Any) -> dict[int, str]:
    """The group of each embedding weight, by the identity of the parameter."""
    weights = [
        getattr(module, "weight", None) for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    if weights[0] is weights[1]:
        return {id(weights[0]): TIED_EMBEDDING}
    names = (INPUT_EMBEDDING, OUTPUT_EMBEDDING)
    return {id(weight): name for weight, name in zip(weights, names, strict=True) if weight is not None}


def place_in_layer(name: str) -> tuple[int, str] | None:
    """The layer of a parameter, 0-based, and its name inside it; None for what is in no layer."""
    layer = _LAYER.search(name)
    return (int(layer[1]), name[layer.end() :]) if layer else None


def _group_of(name: str, shape: tuple[int, ...]) -> str:
    kind = MATRICES if len(shape) > 1 else VECTORS
    place = place_in_layer(name)
    return f"layer {place[0]} {kind}" if place else f"other {kind}"
