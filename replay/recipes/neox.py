"""The recipe of a GPT-NeoX run (v1.0, which Pythia used, or main), from its configuration files.

Source: EleutherAI/gpt-neox v1.0 and @ ea7aefd8 (megatron/training.py, megatron/learning_rates.py,
megatron/model/utils.py, megatron/model/transformer.py, megatron/neox_arguments/).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from data_index.run import Run
from replay.config_fields import ConfigFields
from replay.recipe import Recipe
from replay.schedule_readers import schedule_from_neox

_STEP: dict[str, Any] = {
    "optimizer.type": ("Adam", "adam", "AdamW", "FusedAdam"),
    "pos_emb": "rotary",
    "norm": (None, "layernorm"),
    "activation": (None, "gelu"),
    "eod_mask_loss": (None, False),
    "reset_attention_mask": (None, False),
    "reset_position_ids": (None, False),
    "mup": (None, False),
    "use_mup": (None, False),
    "moe_num_experts": (None, 1),
    "label_smoothing": (None, 0, 0.0),
    "gpt_j_tied": (None, False),
    "use_bias_in_norms": (None, True),
    "use_bias_in_attn_linear": (None, True),
    "use_qk_layernorm": (None, False),
    "sliding_window_width": None,
    "soft_prompt_tuning.enabled": (None, False),
    "train_impl": (None, "normal"),
}
# What holds where the files say nothing.
_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "v1.0": {"weight_decay": 0.01, "gradient_clipping": 0.0, "attention_dropout": 0.1, "hidden_dropout": 0.1},
    "main": {"weight_decay": 0.1, "gradient_clipping": 1.0, "attention_dropout": 0.0, "hidden_dropout": 0.0},
}


def recipe_from(run: Run, approximate: bool) -> Recipe:
    """
    Raises:
        UnsupportedRecipe
    """
    fields = ConfigFields(run.config, "the NeoX config", approximate=approximate)
    version = _version(run)
    default = _DEFAULTS[version]
    fields.require(_STEP | {"num_kv_heads": (None, fields.get("num_attention_heads"))})
    for name in ("attention_dropout", "hidden_dropout"):
        if fields.number(name, default[name]):
            fields.refuse(f"{name} = {fields.number(name, default[name])}: which units were dropped is not known")
    params = fields.config["optimizer"]["params"]
    betas = params.get("betas", (0.9, 0.999))
    model = _model(fields)
    return Recipe(
        model=model,
        learning_rate=float(params["lr"]),
        betas=(float(betas[0]), float(betas[1])),
        eps=float(params.get("eps", 1e-8)),
        # An optimizer's own weight_decay stands before the general one.
        weight_decay=float(params.get("weight_decay", fields.get("weight_decay", default["weight_decay"]))),
        no_decay=_no_decay(model),
        schedule=schedule_from_neox(run.config, version=version),
        max_grad_norm=_max_grad_norm(fields, version),
        denominator="targets",
        labels="extra_token",
        withholds_logged_skips=True,
        instances_per_microbatch=_rows_at_once(fields),
        precision=_precision(fields),
        unfaithful=tuple(_other_kernels(fields, version)),
        approximated=tuple(fields.approximated),
    )


def _version(run: Run) -> Literal["v1.0", "main"]:
    """Learning rates changed after v1.0, which trained Pythia; the run says which (`forensics add --set`)."""
    return "main" if run.facts.get("neox_version") == "main" else "v1.0"


def _max_grad_norm(fields: ConfigFields, version: str) -> float | None:
    """Main hands DeepSpeed only what differs from its own defaults, where DeepSpeed's is not to clip: at 1.0 nothing is
    clipped (since @ 5c5fb945, March 2023)."""
    default = _DEFAULTS[version]["gradient_clipping"]
    limit = fields.number("gradient_clipping", default)
    return None if limit == default else limit or None


def _rows_at_once(fields: ConfigFields) -> int | None:
    rows = fields.get("train_micro_batch_size_per_gpu")
    return None if rows is None else int(rows)


def _precision(fields: ConfigFields) -> Any:
    if fields.get("bf16.enabled") or fields.get("precision") == "bfloat16":
        return "bf16"
    if fields.get("fp16.enabled") or fields.get("precision") == "fp16":
        fields.refuse("fp16 with a loss scale: the forward pass was computed in fp16, which is not replayed")
    return "fp32"


def _other_kernels(fields: ConfigFields, version: str) -> list[str]:
    notes = []
    stages, parts = int(fields.number("pipe_parallel_size", 0)), fields.get("gradient_accumulation_steps", 1)
    if version == "main" and stages > 0 and parts != 1:
        notes.append(
            "gradient_accumulation_steps: the DeeperSpeed of 2025 (@ 91d1c55b) adds up a pipeline's gradients where it "
            "should average them; here they are averaged, and moments of such a checkpoint are too large"
        )
    if _precision(fields) == "bf16":
        notes.append("bf16: the trainer kept weights in bf16 beside those in fp32; here autocast rounds them")
    if "flash" in str(fields.get("attention_config")):
        notes.append("attention_config: attention is computed by torch's own kernels")
    if fields.get("scaled_upper_triang_masked_softmax_fusion"):
        notes.append("scaled_upper_triang_masked_softmax_fusion: the softmax is torch's own")
    return notes


def _model(fields: ConfigFields) -> dict[str, Any]:
    hidden = int(fields.number("hidden_size"))
    length = int(fields.number("seq_length"))
    return {
        "model_type": "gpt_neox",
        "vocab_size": int(fields.number("padded_vocab_size")),
        "hidden_size": hidden,
        "intermediate_size": int(fields.number("intermediate_size", 4 * hidden)),
        "num_hidden_layers": int(fields.number("num_layers")),
        "num_attention_heads": int(fields.number("num_attention_heads")),
        # The fused kernel is the tanh approximation; transformers' Pythia configs say "gelu".
        "hidden_act": "gelu_pytorch_tanh" if fields.get("bias_gelu_fusion") else "gelu",
        "use_parallel_residual": bool(fields.get("gpt_j_residual", False)),
        "layer_norm_eps": fields.number("layernorm_epsilon", 1e-5),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": fields.number("rotary_emb_base", 10000),
            "partial_rotary_factor": fields.number("rotary_pct", 1.0),
        },
        "max_position_embeddings": int(fields.number("max_position_embeddings", length)),
        "tie_word_embeddings": not fields.get("no_weight_tying", False),
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "eos_token_id": None,
        "bos_token_id": None,
    }


def _no_decay(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Biases, and both parameters of every layer norm."""
    layer = (
        *("input_layernorm.weight", "input_layernorm.bias"),
        *("post_attention_layernorm.weight", "post_attention_layernorm.bias"),
        *("attention.query_key_value.bias", "attention.dense.bias"),
        *("mlp.dense_h_to_4h.bias", "mlp.dense_4h_to_h.bias"),
    )
    layers = range(model["num_hidden_layers"])
    final = ["gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"]
    return tuple([f"gpt_neox.layers.{n}.{name}" for n in layers for name in layer] + final)
