"""Models from recipes, and what they attend to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask

from data_index.errors import CorruptFile, UnsupportedRecipe

# Beyond these a model config is damaged or boasts.
LARGEST = {"num_hidden_layers": 2**12, "hidden_size": 2**15, "intermediate_size": 2**18, "vocab_size": 2**23}
ARCHITECTURES = ("olmo", "olmo2", "olmo3", "gpt_neox", "llama")


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """torch's own attention, with shared key and value heads repeated first, as the trainers do.

    transformers would hand shared heads to a kernel that adds up their gradients in another order.

    Args:
        query: [rows, heads, length, size]. key, value: the same with fewer heads.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    attended = F.scaled_dot_product_attention(
        query,
        repeat_kv(key, groups),
        repeat_kv(value, groups),
        attn_mask=attention_mask,
        # Without a mask, a single token after a cache sees all of it; torch would let it see the first token only.
        is_causal=attention_mask is None and query.shape[2] > 1,
        scale=scaling,
    )
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register("forensics", attention)
AttentionMaskInterface.register("forensics", sdpa_mask)


def build_model(config: Mapping[str, Any], *, device: torch.device, seed: int | None = None) -> torch.nn.Module:
    """A causal language model in fp32, in training mode, without dropout or cache.

    Args:
        config: a transformers config as a dict.
        seed: initialize with this seed; None leaves the weights undefined, to be loaded.
    Raises:
        UnsupportedRecipe: another architecture, or one with dropout.
    """
    require_architecture(config)
    settings = {key: value for key, value in config.items() if key != "model_type"}
    settings.setdefault("bos_token_id", None)
    # transformers would give the padding token a zero embedding that never learns; no supported trainer does that.
    settings["pad_token_id"] = None
    parsed = AutoConfig.for_model(config["model_type"], **settings, use_cache=False)
    if seed is not None:
        torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(parsed, dtype=torch.float32, attn_implementation="forensics")
    return model.train()


def require_architecture(config: Mapping[str, Any]) -> None:
    """
    Raises:
        UnsupportedRecipe
        CorruptFile: its sizes are absurd.
    """
    if config.get("model_type") not in ARCHITECTURES:
        raise UnsupportedRecipe(
            f"models of type {config.get('model_type')!r} are not replayed; {', '.join(ARCHITECTURES)} are. The run "
            "can be indexed and probed all the same"
        )
    for name, largest in LARGEST.items():
        if not 0 < _number(config, name) <= largest:
            raise CorruptFile(f"the model config has {name} = {str(config[name])[:80]}, which no model has")
    for name in ("attention_dropout", "hidden_dropout"):
        if config.get(name):
            raise UnsupportedRecipe(
                f"the model has {name} = {config[name]}: which units were dropped is not known, so the step cannot be "
                "taken again"
            )


def _number(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name, 1)
    return value if isinstance(value, int) else 0


def layer_of(name: str) -> str:
    """The layer a parameter is counted to: `embedding`, `layer 3`, `final norm`, `head`."""
    if match := re.search(r"\.(?:layers|h)\.(\d+)\.", name):
        return f"layer {match[1]}"
    if "embed_in" in name or "embed_tokens" in name or "wte" in name:
        return "embedding"
    return "head" if "head" in name or "embed_out" in name else "final norm"


def document_masks(
    token_ids: torch.Tensor, end_token_id: int, config: Mapping[str, Any]
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Attention that ends at document borders: each token sees itself and what came before it in its document.

    The end token belongs to the document that it ends.

    Args:
        token_ids: [rows, length].
    Returns:
        bool of shape [rows, 1, length, length], True where attention is; by layer type where the model has several.
    """
    ends = (token_ids == end_token_id).long()
    document = ends.cumsum(dim=1) - ends
    length = token_ids.shape[1]
    distance = torch.arange(length, device=token_ids.device)[:, None] - torch.arange(length, device=token_ids.device)
    same = (document[:, :, None] == document[:, None, :]) & (distance >= 0)
    full = same[:, None]
    if "layer_types" not in config:
        return full
    near = full & (distance < config["sliding_window"]) if config.get("sliding_window") else full
    return {"full_attention": full, "sliding_attention": near}
