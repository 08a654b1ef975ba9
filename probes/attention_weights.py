"""Attention weights of a model, one layer at a time.

Fused kernels never form the weights. So the model computes with transformers' own step-by-step attention ("eager")
for as long as it is looked at, and each layer's weights are handed on and let go before the next layer's exist.

Shapes: weights are [rows, heads, queries, keys], heads counted as query heads; a query's place is its position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from probes.evaluation_mode import evaluation_mode

# (0-based layer, weights in the model's dtype, which keys a query sees: bool, broadcastable to the weights)
Observer = Callable[[int, torch.Tensor, torch.Tensor], None]


def observe_attention(model: Any, token_ids: np.ndarray, observer: Observer, *, rows_at_once: int = 4) -> None:
    """Hand each layer's attention weights to an observer: batch by batch, in each the layers from first to last.

    One layer of one batch holds rows_at_once x heads x length x length weights. They are what the model computes, in
    its dtype: in bf16 each is rounded to 8 bits, and their sum over the keys is 1 only to that precision.

    Args:
        model: a causal language model of transformers, with any attention implementation; it gets it back.
        token_ids: integers of shape [rows, length], without padding.
    Raises:
        ValueError: the model forms no attention weights that can be seen.
    """
    device = next(model.parameters()).device
    # The head is left out: its logits would be the largest tensor of all.
    body = getattr(model, "base_model", model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(eager_attention(model))
        layers = stack.enter_context(_observed(model, observer))
        for start in range(0, len(token_ids), rows_at_once):
            rows = np.ascontiguousarray(token_ids[start : start + rows_at_once], dtype=np.int64)
            layers.clear()
            body(input_ids=torch.from_numpy(rows).to(device), use_cache=False, output_attentions=False)
            if not layers:
                raise ValueError(
                    f"{type(model).__name__} forms no attention weights that can be seen: its layers either have no "
                    "attention or do not return its weights in transformers' eager implementation"
                )


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """The model in evaluation mode with transformers' eager attention; both as before afterwards, also after an error.

    The implementation is restored in each config by itself, as parts of a model may have different ones.
    """
    before = [(config, config._attn_implementation_internal) for config in _configs(model)]
    with evaluation_mode(model):
        try:
            model.set_attn_implementation("eager")
            yield
        finally:
            for config, implementation in before:
                config._attn_implementation_internal = implementation


def _configs(model: Any) -> list[Any]:
    """Every config that names an attention implementation, once: of all modules, and those inside configs."""
    waiting = [module.config for module in model.modules() if hasattr(module, "config")]
    found: dict[int, Any] = {}
    while waiting:
        config = waiting.pop()
        if id(config) in found or not hasattr(config, "_attn_implementation_internal"):
            continue
        found[id(config)] = config
        waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


@contextmanager
def _observed(model: torch.nn.Module, observer: Observer) -> Iterator[set[int]]:
    """Hooks on the attention modules, which are known by their layer index and by returning (output, weights).

    Yields:
        The layers that were seen since it was last cleared.
    """
    seen: set[int] = set()

    def hook(module: torch.nn.Module, args: Any, named: dict[str, Any], output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        layer: Any = module.layer_idx
        if isinstance(weights, torch.Tensor) and weights.ndim == 4 and layer not in seen:
            seen.add(layer)
            observer(layer, weights, visible_keys(named.get("attention_mask"), weights.shape[2], weights))

    modules = [module for module in model.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    hooks = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()


def visible_keys(mask: torch.Tensor | None, length: int, like: torch.Tensor) -> torch.Tensor:
    """Which keys each query sees, bool of shape [rows or 1, heads or 1, length, length].

    Args:
        mask: as a layer of transformers gets it: bool, or 0 where attention is and the dtype's minimum where it is
            not; None: each query sees itself and all before it. Sliding windows are in the mask.
        like: a tensor on the device.
    """
    if mask is None or mask.ndim != 4:
        return torch.ones(length, length, dtype=torch.bool, device=like.device).tril()[None, None]
    mask = mask[..., :length]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
