"""Models from recipes, and the trainers' own names for their parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data_index.errors import UnsupportedRecipe

ARCHITECTURES = ("olmo2",)


def build_model(config: Mapping[str, Any], *, device: torch.device, seed: int | None = None) -> torch.nn.Module:
    """A causal language model in fp32, in training mode, without dropout or cache.

    Args:
        config: a transformers config as a dict.
        seed: initialize with this seed; None leaves the weights undefined, to be loaded.
    Raises:
        UnsupportedRecipe: another architecture.
    """
    if config.get("model_type") not in ARCHITECTURES:
        raise UnsupportedRecipe(
            f"models of type {config.get('model_type')!r} are not replayed; {', '.join(ARCHITECTURES)} are"
        )
    settings = {key: value for key, value in config.items() if key != "model_type"}
    settings.setdefault("bos_token_id", None)
    # transformers would give the padding token a zero embedding that never learns; no supported trainer does that.
    settings["pad_token_id"] = None
    parsed = AutoConfig.for_model(config["model_type"], **settings, use_cache=False)
    if seed is not None:
        torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(parsed, dtype=torch.float32, attn_implementation="sdpa")
    return model.train()


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


def from_olmo_core(name: str) -> str:
    """transformers' name of an OLMo-core parameter.

    Raises:
        UnsupportedRecipe: it has none.
    """
    for pattern, replacement in _OLMO_CORE:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    raise UnsupportedRecipe(f"the OLMo-core parameter {name!r} has no place in an Olmo2 model")


NAME_MAPS: Mapping[str, Callable[[str], str]] = {"native": lambda name: name, "olmo_core": from_olmo_core}


_OLMO_CORE_BLOCK = (
    *("attention.w_q", "attention.w_k", "attention.w_v", "attention.w_out", "attention.q_norm", "attention.k_norm"),
    *("attention_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "feed_forward_norm"),
)


def trainer_parameters(names: Iterable[str], convention: str) -> dict[str, str]:
    """The trainer's parameter names in the trainer's order, each with transformers' name.

    The order matters: a global gradient norm is a norm of norms, and its last bit depends on it.

    Args:
        names: transformers' names, in the model's order.
    """
    names = list(names)
    if convention == "native":
        return {name: name for name in names}
    layers = sorted({int(match[1]) for name in names if (match := re.search(r"\.layers\.(\d+)\.", name))})
    blocks = [f"blocks.{layer}.{part}.weight" for layer in layers for part in _OLMO_CORE_BLOCK]
    theirs = ["embeddings.weight", *blocks, "lm_head.norm.weight", "lm_head.w_out.weight"]
    return {name: ours for name in theirs if (ours := from_olmo_core(name)) in names}


def layer_of(name: str) -> str:
    """The layer a parameter is counted to: `embedding`, `layer 3`, `final norm`, `head`."""
    if match := re.search(r"\.(?:layers|h)\.(\d+)\.", name):
        return f"layer {match[1]}"
    if "embed" in name or "wte" in name:
        return "embedding"
    return "head" if "head" in name or "embed_out" in name else "final norm"
