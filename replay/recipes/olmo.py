"""The recipe of a run of the legacy OLMo trainer, from the config.yaml of its checkpoints.

Source: Python package ai2-olmo 0.6.0 (olmo/train.py, olmo/optim.py, olmo/model.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_index.run import Run
from replay.config_fields import ConfigFields
from replay.recipe import ClipWarmup, Recipe
from replay.schedule_readers import schedule_from_olmo

# `auxiliary_loss_multiplier` is in the configs and never read: every branch of the trainer multiplies by this.
Z_LOSS = 1e-4

_STEP: Mapping[str, Any] = {
    "optimizer.name": "adamw",
    "optimizer.selective_updates": (None, False),
    "max_grad_norm_ratio": None,
    "model.block_type": ("sequential", "llama"),
    "model.alibi": (None, False),
    "model.rope": True,
    "model.rope_full_precision": (None, True),
    "model.activation_type": (None, "swiglu"),
    "model.attention_dropout": (0, None),
    "model.residual_dropout": (0, None),
    "model.embedding_dropout": (0, None),
    "model.embedding_layer_norm": (None, False),
    "model.include_bias": (None, False),
    "model.bias_for_layer_norm": (None, False),
    "model.scale_logits": (None, False),
    "model.scale_emb_init": (None, False),
    "reset_optimizer_state": (None, False),
}


def recipe_from(run: Run, approximate: bool) -> Recipe:
    """
    Raises:
        UnsupportedRecipe
    """
    fields = ConfigFields(run.config, "config.yaml", approximate=approximate)
    fields.require(_STEP)
    optimizer = fields.config["optimizer"]
    model = _model(fields)
    batch = int(fields.config["global_train_batch_size"])
    per_epoch = int(run.environment.get("instances_per_epoch", run.num_instances)) // batch
    fused = bool(fields.get("fused_loss"))
    max_norm = fields.get("max_grad_norm")
    return Recipe(
        model=model,
        learning_rate=float(optimizer["learning_rate"]),
        betas=(float(optimizer["betas"][0]), float(optimizer["betas"][1])),
        eps=fields.number("optimizer.eps", 1e-5),
        weight_decay=float(optimizer["weight_decay"]),
        no_decay=_no_decay(fields, model),
        schedule=schedule_from_olmo(
            run.config, tokens_per_step=batch * run.sequence_length, batches_per_epoch=per_epoch
        ),
        max_grad_norm=None if max_norm is None else float(max_norm),
        clip_warmup=_clip_warmup(fields),
        z_loss=Z_LOSS if fields.get("softmax_auxiliary_loss") or fused else 0.0,
        logs_z_loss_in_loss=fused,
        denominator="tokens",
        labels="last_dropped",
        document_end_token=int(fields.number("model.eos_token_id"))
        if fields.get("data.generate_doc_lengths")
        else None,
        num_ranks=int(run.environment.get("world_size", 1)),
        instances_per_microbatch=int(fields.config["device_train_microbatch_size"]),
        precision=_precision(fields),
        parameter_order="olmo",
        unfaithful=tuple(_other_kernels(fields)),
        approximated=tuple(fields.approximated),
    )


def _precision(fields: ConfigFields) -> Any:
    stated = fields.get("precision")
    if stated not in (None, "fp32", "amp_bf16"):
        fields.refuse(f"precision = {stated!r} is not replayed")
    return "bf16" if stated == "amp_bf16" else "fp32"


def _clip_warmup(fields: ConfigFields) -> ClipWarmup | None:
    until, factor = fields.get("scheduler.grad_clip_warmup_steps"), fields.get("scheduler.grad_clip_warmup_factor")
    if until is None or factor is None:
        return None
    return ClipWarmup(until=int(float(until)), factor=float(factor))


def _other_kernels(fields: ConfigFields) -> list[str]:
    notes = []
    if fields.get("compile"):
        notes.append("compile: the step is replayed without compilation")
    if fields.get("model.flash_attention"):
        notes.append("model.flash_attention: attention is computed by torch's own kernels")
    if fields.get("fused_loss"):
        notes.append("fused_loss: the loss is computed by torch's own kernels; the logged loss contains the z-loss")
    if fields.get("optimizer.record_update_metrics"):
        notes.append(
            "optimizer.record_update_metrics: logged steps took a hand-written update, here torch's AdamW does"
        )
    if fields.get("fsdp.precision") in ("pure", "mixed") and fields.get("distributed_strategy", "fsdp") == "fsdp":
        if fields.get("precision") == "amp_bf16":
            notes.append("fsdp.precision: parameters were cast to bf16 as a whole, here autocast does")
    return notes


def _no_decay(fields: ConfigFields, model: Mapping[str, Any]) -> tuple[str, ...]:
    """The optimizer's second group: norms unless `decay_norm_and_bias`, the embedding unless `decay_embeddings`."""
    exempt = [] if fields.get("optimizer.decay_embeddings") else ["model.embed_tokens.weight"]
    if not fields.get("optimizer.decay_norm_and_bias") and model["model_type"] == "olmo2":
        norms = ("self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm", "post_feedforward_layernorm")
        layers = range(model["num_hidden_layers"])
        exempt += [f"model.layers.{layer}.{norm}.weight" for layer in layers for norm in norms] + ["model.norm.weight"]
    return tuple(exempt)


def _model(fields: ConfigFields) -> dict[str, Any]:
    """The transformers config: Olmo2 where norms follow the sublayers, Olmo where they precede them without weights."""
    model = fields.config["model"]
    heads = int(model["n_heads"])
    kv_heads = int(model.get("n_kv_heads") or (1 if model.get("multi_query_attention") else heads))
    hidden = int(model["d_model"])
    inner = int(model.get("mlp_hidden_size") or int(model["mlp_ratio"]) * hidden)
    config: dict[str, Any] = {
        "vocab_size": int(model.get("embedding_size") or model["vocab_size"]),
        "hidden_size": hidden,
        # The trainer counts both halves of the gated projection.
        "intermediate_size": inner // 2,
        "num_hidden_layers": int(model["n_layers"]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(model.get("rope_theta") or 10000)},
        "tie_word_embeddings": bool(model.get("weight_tying", True)),
        "max_position_embeddings": int(model["max_sequence_length"]),
        "eos_token_id": model.get("eos_token_id"),
        "bos_token_id": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
    }
    if model.get("norm_after"):
        fields.require(
            {
                "layer_norm_type": "rms",
                "layer_norm_with_affine": (None, True),
                "attention_layer_norm": True,
                "attention_layer_norm_with_affine": (None, True),
                "clip_qkv": None,
            },
            model,
            "model.",
        )
        return config | {"model_type": "olmo2", "rms_norm_eps": float(model.get("layer_norm_eps") or 1e-5)}
    fields.require(
        {
            "layer_norm_type": (None, "default", "low_precision"),
            "layer_norm_with_affine": False,
            "attention_layer_norm": (None, False),
        },
        model,
        "model.",
    )
    if float(model.get("layer_norm_eps") or 1e-5) != 1e-5:
        fields.refuse(f"model.layer_norm_eps = {model['layer_norm_eps']} is not that of transformers' Olmo (1e-5)")
    return config | {"model_type": "olmo", "clip_qkv": model.get("clip_qkv")}
