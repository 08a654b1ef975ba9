"""The legacy OLMo trainer's parameters under transformers' names (Olmo for OLMo 1, Olmo2 for OLMo 2).

The trainer keeps query, key and value in one parameter, `att_proj` (rows: q, then k, then v), and both halves of the
gated feed-forward in another, `ff_proj` (rows: up, then gate: its activation is silu(second half) * first half).
transformers keeps them apart. Nothing is permuted: a part is a stretch of rows, so that moments are cut the same way,
and laying the parts end to end gives the trainer's parameter back.

Source: Python package ai2-olmo 0.6.0 (olmo/model.py, olmo/optim.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from data_index.errors import CorruptFile, UnsupportedRecipe
from data_index.olmo_checkpoint import ModelNumbers

# In the order in which the trainer's model holds a block's parameters.
_BLOCK = {
    "k_norm": ("self_attn.k_norm",),
    "q_norm": ("self_attn.q_norm",),
    "attn_out": ("self_attn.o_proj",),
    "ff_out": ("mlp.down_proj",),
    "att_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "ff_proj": ("mlp.up_proj", "mlp.gate_proj"),
    "attn_norm": ("post_attention_layernorm",),
    "ff_norm": ("post_feedforward_layernorm",),
}
# Blocks of type "llama" keep the three projections apart.
_LLAMA = {"q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj"}
_WHOLE = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "transformer.ff_out.weight": "lm_head.weight",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A parameter of the transformers model: these rows of one of the trainer's; None where it is the whole."""

    name: str
    rows: slice | None


def plain_name(name: str) -> str:
    """A parameter's name without what FSDP and DDP put in front of it."""
    return name.replace("_fsdp_wrapped_module.", "").removeprefix("module.")


def ungrouped(names: Iterable[str]) -> dict[str, str]:
    """Each name with the one it has when blocks are not gathered in groups (`block_groups.<group>.<block>`).

    Raises:
        CorruptFile: groups of different sizes.
    """
    names = list(names)
    places = {
        n: m for n in names if (m := re.match(r"transformer\.block_groups\.(\d{1,9})\.(\d{1,9})\.(.*)", plain_name(n)))
    }
    sizes: dict[int, set[int]] = {}
    for match in places.values():
        sizes.setdefault(int(match[1]), set()).add(int(match[2]))
    per_group = {len(blocks) for blocks in sizes.values()}
    if len(per_group) > 1 or any(blocks != set(range(len(blocks))) for blocks in sizes.values()):
        raise CorruptFile(f"block groups of sizes {sorted(per_group)}: parameters are missing")
    size = per_group.pop() if per_group else 1
    return {
        name: f"transformer.blocks.{int(places[name][1]) * size + int(places[name][2])}.{places[name][3]}"
        if name in places
        else plain_name(name)
        for name in names
    }


def transformers_names(name: str) -> tuple[str, ...]:
    """Names of the parameters that a parameter of the trainer becomes, in the order of its rows.

    Raises:
        UnsupportedRecipe: transformers' Olmo and Olmo2 have no such parameter.
    """
    if name in _WHOLE:
        return (_WHOLE[name],)
    match = re.fullmatch(r"transformer\.blocks\.(\d{1,9})\.(\w+)\.weight", name)
    if match and match[2] in _BLOCK:
        return tuple(f"model.layers.{match[1]}.{part}.weight" for part in _BLOCK[match[2]])
    if match and match[2] in _LLAMA:
        return (f"model.layers.{match[1]}.{_LLAMA[match[2]]}.weight",)
    raise UnsupportedRecipe(
        f"the OLMo parameter {name!r} has no place in an Olmo or Olmo2 model (biases and learned positions have none)"
    )


def parts_of(name: str, shape: tuple[int, ...], numbers: ModelNumbers) -> tuple[Part, ...]:
    """The parameters that one of the trainer's becomes, with their rows.

    Args:
        name: the trainer's, plain and ungrouped.
        shape: of the parameter; of shape () where a number per parameter is meant, which every part shares.
    Raises:
        CorruptFile: its rows are not what the model's numbers make them.
        UnsupportedRecipe: it has no place in transformers' models.
    """
    ours = transformers_names(name)
    if not numbers.norm_after and name.endswith(("attn_norm.weight", "ff_norm.weight")):
        raise UnsupportedRecipe(
            f"the OLMo parameter {name!r} is the weight of a norm before its sublayer (norm_after: false), which "
            "transformers' Olmo and Olmo2 do not have"
        )
    if len(ours) == 1 or shape == ():
        return tuple(Part(name=part, rows=None) for part in ours)
    if len(ours) == 3:
        rows = [numbers.d_model, numbers.kv_rows, numbers.kv_rows]
    else:
        rows = [shape[0] // 2, shape[0] - shape[0] // 2]
    if sum(rows) != shape[0] or (len(rows) == 2 and rows[0] != rows[1]):
        raise CorruptFile(f"{name} has {shape[0]} rows; the model's numbers make it {' + '.join(map(str, rows))}")
    starts = [sum(rows[:n]) for n in range(len(rows))]
    return tuple(
        Part(name=part, rows=slice(start, start + n)) for part, start, n in zip(ours, starts, rows, strict=True)
    )


def numbers_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> ModelNumbers:
    """The model's numbers where no config states them, from the parameters themselves.

    Raises:
        CorruptFile: without an embedding, or with projections that cannot be q, k and v.
    """
    embedding = shapes.get("transformer.wte.weight", ())
    if len(embedding) != 2:
        raise CorruptFile("the weights hold no transformer.wte.weight, so these are not those of an OLMo model")
    fused = {shape[0] for name, shape in shapes.items() if name.endswith(".att_proj.weight") and len(shape) == 2}
    rest = fused.pop() - embedding[1] if len(fused) == 1 else 2 * embedding[1]
    if fused or rest <= 0 or rest % 2:
        raise CorruptFile(f"att_proj has {rest + embedding[1]} rows, which cannot be q, k and v of {embedding[1]}")
    # Norms of queries and keys came with OLMo 2, whose norms lie behind the sublayers; without them it is not known.
    after = any(name.endswith(".q_norm.weight") for name in shapes)
    return ModelNumbers(d_model=embedding[1], kv_rows=rest // 2, norm_after=after)


def trainer_parameters(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The trainer's parameters in the order its model holds them, each with the names of its parts, in row order.

    The inverse of `transformers_names`: laid end to end along the first dimension, the parts are the parameter.

    Args:
        names: transformers' names. Only parameters whose parts are all among them are given.
    """
    names = set(names)
    layers = sorted({int(match[1]) for name in names if (match := re.match(r"model\.layers\.(\d+)\.", name))})
    blocks = [f"transformer.blocks.{layer}.{part}.weight" for layer in layers for part in _BLOCK]
    theirs = ["transformer.wte.weight", "transformer.ln_f.weight", *blocks, "transformer.ff_out.weight"]
    found = {name: transformers_names(name) for name in theirs}
    return {name: parts for name, parts in found.items() if names.issuperset(parts)}
