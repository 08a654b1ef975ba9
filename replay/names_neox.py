"""GPT-NeoX's names for its parameters, and in which of the optimizer's groups they are.

A name begins with the place in the pipeline: 0 the embedding, 2 … the layers, then the last norm and the output layer.
No tensor is permuted: queries, keys and values of a head lie together in transformers' GPTNeoX too.

Source: EleutherAI/gpt-neox v1.0 and @ ea7aefd8 (megatron/model/gpt2_model.py, megatron/model/utils.py,
tools/ckpts/convert_neox_to_hf.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data_index.errors import UnsupportedRecipe

_PARTS = r"(weight|bias)"
_NAMES = (
    (r"(?:0|tied_modules\.embed)\.word_embeddings\.weight", "gpt_neox.embed_in.weight"),
    (rf"\d+\.norm\.{_PARTS}", r"gpt_neox.final_layer_norm.\1"),
    (r"\d+\.final_linear\.weight", "lm_head.weight"),
)
_LAYER = re.compile(
    rf"(\d+)\.(input_layernorm|post_attention_layernorm|attention\.query_key_value|attention\.dense|mlp\.\w+)\.{_PARTS}"
)
_MLP = {
    "mlp.linear1": "mlp.dense_h_to_4h",  # since 2024
    "mlp.linear2": "mlp.dense_4h_to_h",
    "mlp.dense_h_to_4h": "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h": "mlp.dense_4h_to_h",
}
_CONSTANT = re.compile(r"rotary_emb\.inv_freq$|attention\.(masked_)?bias$")
# The embedding and a reshaping come before the first layer.
_PLACES_BEFORE_LAYERS = 2


def from_neox(name: str) -> str | None:
    """transformers' name of a parameter; None for a constant that was saved with them.

    Raises:
        UnsupportedRecipe: it has none.
    """
    plain = name.removeprefix("sequential.")
    if _CONSTANT.search(plain):
        return None
    for pattern, replacement in _NAMES:
        if re.fullmatch(pattern, plain):
            return re.sub(pattern, replacement, plain)
    if match := _LAYER.fullmatch(plain):
        layer, module = int(match[1]) - _PLACES_BEFORE_LAYERS, _MLP.get(match[2], match[2])
        if layer >= 0 and (not module.startswith("mlp.") or match[2] in _MLP):
            return f"gpt_neox.layers.{layer}.{module}.{match[3]}"
    raise UnsupportedRecipe(f"the GPT-NeoX parameter {name[:100]!r} has no place in transformers' GPTNeoX model")


def optimizer_groups(names: Sequence[str], num_groups: int) -> list[list[str]] | None:
    """Parameters of each of the optimizer's groups, in their order; None where GPT-NeoX makes no such groups.

    Two groups: with weight decay, and without it (biases, and all of every norm). One, where nothing decays.

    Args:
        names: transformers' names, in the order of the trainer's modules.
    """
    if num_groups == 1:
        return [list(names)]
    if num_groups != 2:
        return None
    exempt = [name.endswith(".bias") or "layernorm." in name or "layer_norm." in name for name in names]
    return [[name for name, is_exempt in zip(names, exempt, strict=True) if is_exempt == want] for want in (0, 1)]
