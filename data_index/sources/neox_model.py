"""A GPT-NeoX model as transformers describes it, in the trainer's own words.

A repository of the hub holds the model's config.json and rarely the trainer's files.

Source: transformers 5.23 (models/gpt_neox/configuration_gpt_neox.py) and the config.json files of EleutherAI/pythia-*;
EleutherAI/gpt-neox @ ea7aefd8 (megatron/neox_arguments/neox_args.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_index.files import read_json_object

_NAMES = {
    "vocab_size": "padded_vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "layer_norm_eps": "layernorm_epsilon",
    "max_position_embeddings": "max_position_embeddings",
    "use_parallel_residual": "gpt_j_residual",
    "attention_dropout": "attention_dropout",
    "hidden_dropout": "hidden_dropout",
    # How they were called before version 5.
    "rotary_pct": "rotary_pct",
    "rotary_emb_base": "rotary_emb_base",
}
_ROPE = {"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"}


def model_settings(folder: Path) -> dict[str, Any]:
    """What `folder/config.json` says of the model, by the trainer's names; nothing without one.

    Raises:
        CorruptFile, UnsafeFile
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    config = read_json_object(path)
    if config.get("model_type") != "gpt_neox":
        return _renamed(config, {"vocab_size": "padded_vocab_size"})
    rope = config.get("rope_parameters")
    found = _renamed(config, _NAMES) | _renamed(rope if isinstance(rope, Mapping) else {}, _ROPE)
    if isinstance(config.get("tie_word_embeddings"), bool):
        found["no_weight_tying"] = not config["tie_word_embeddings"]
    return found | {"pos_emb": "rotary"}


def _renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: config[theirs] for theirs, ours in names.items() if isinstance(config.get(theirs), int | float)}
