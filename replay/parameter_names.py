"""The trainers' own names for their parameters, and the order in which they go through them.

Weights are kept under transformers' names. A trainer's parameter may be several of them laid on top of each other (a
fused projection), so each is described as a list of transformers' tensors whose rows make it up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from data_index.errors import UnsupportedRecipe
from replay import names_olmo

# A trainer's parameter name -> transformers' names of the tensors stacked in it.
TrainerTensors = dict[str, tuple[str, ...]]

# OLMo-core's name -> transformers' name. No tensor is permuted.
_OLMO_CORE = (
    (r"^embeddings\.weight$", "model.embed_tokens.weight"),
    (r"^lm_head\.norm\.weight$", "model.norm.weight"),
    (r"^lm_head\.w_out\.weight$", "lm_head.weight"),
    (r"^blocks\.(\d+)\.attention\.w_out\.weight$", r"model.layers.\1.self_attn.o_proj.weight"),
    (r"^blocks\.(\d+)\.attention\.w_([qkv])\.weight$", r"model.layers.\1.self_attn.\2_proj.weight"),
    (r"^blocks\.(\d+)\.attention\.([qk])_norm\.weight$", r"model.layers.\1.self_attn.\2_norm.weight"),
    (r"^blocks\.(\d+)\.attention_norm\.weight$", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"^blocks\.(\d+)\.feed_forward\.w1\.weight$", r"model.layers.\1.mlp.gate_proj.weight"),
    (r"^blocks\.(\d+)\.feed_forward\.w2\.weight$", r"model.layers.\1.mlp.down_proj.weight"),
    (r"^blocks\.(\d+)\.feed_forward\.w3\.weight$", r"model.layers.\1.mlp.up_proj.weight"),
    (r"^blocks\.(\d+)\.feed_forward_norm\.weight$", r"model.layers.\1.post_feedforward_layernorm.weight"),
)
OLMO_CORE_BLOCK = (
    *("attention.w_q", "attention.w_k", "attention.w_v", "attention.w_out", "attention.q_norm", "attention.k_norm"),
    *("attention_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "feed_forward_norm"),
)


def from_olmo_core(name: str) -> str:
    """transformers' name of an OLMo-core parameter.

    Raises:
        UnsupportedRecipe: it has none.
    """
    for pattern, replacement in _OLMO_CORE:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    raise UnsupportedRecipe(f"the OLMo-core parameter {name!r} has no place in an Olmo2 or Olmo3 model")


def trainer_tensors(names: Iterable[str], convention: str, no_decay: Collection[str] = ()) -> TrainerTensors:
    """The trainer's parameters in the trainer's order.

    The order matters: a global gradient norm is a norm of norms, and its last bit depends on it.

    Args:
        names: transformers' names, in the model's order.
        convention: whose order: `native` (the model's), `olmo_core`, `olmo`.
        no_decay: names without weight decay, which the legacy OLMo trainer goes through last.
    """
    names = list(names)
    return _CONVENTIONS[convention](names, no_decay)


def _native(names: list[str], no_decay: Collection[str]) -> TrainerTensors:
    return {name: (name,) for name in names}


def _olmo_core(names: list[str], no_decay: Collection[str]) -> TrainerTensors:
    layers = sorted({int(match[1]) for name in names if (match := re.search(r"\.layers\.(\d+)\.", name))})
    blocks = [f"blocks.{layer}.{part}.weight" for layer in layers for part in OLMO_CORE_BLOCK]
    theirs = ["embeddings.weight", *blocks, "lm_head.norm.weight", "lm_head.w_out.weight"]
    there = set(names)
    return {name: (ours,) for name in theirs if (ours := from_olmo_core(name)) in there}


def _olmo(names: list[str], no_decay: Collection[str]) -> TrainerTensors:
    """Two groups, with weight decay and without, each sorted by the trainer's names (olmo/optim.py)."""
    tensors = names_olmo.trainer_parameters(names)
    return dict(sorted(tensors.items(), key=lambda item: (item[1][0] in no_decay, item[0])))


_CONVENTIONS: Mapping[str, Callable[[list[str], Collection[str]], TrainerTensors]] = {
    "native": _native,
    "olmo_core": _olmo_core,
    "olmo": _olmo,
}
