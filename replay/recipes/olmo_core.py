"""The recipe of an OLMo-core run, from its config.json.

Source: Python package ai2-olmo-core 3.0.0 (train/train_module/transformer/, optim/, nn/, train/trainer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from data_index.run import Run
from data_index.sources.olmo_core_steps import walk_of
from replay.config_fields import ConfigFields
from replay.olmo_core_schedule import schedule_from_olmo_core
from replay.parameter_names import OLMO_CORE_BLOCK, from_olmo_core
from replay.recipe import Recipe, SkipRule

_STEP: Mapping[str, Any] = {
    "dataset.source_mixture_config": None,
    "train_module.float8_config": (None, False),
    "train_module.autocast_precision": (None, "bfloat16"),
    "train_module.label_ignore_index": (None, -100),
    "train_module.tp_config": None,
    "train_module.cp_config": None,
    "train_module.ep_config": None,
    "train_module.pp_config": None,
    "train_module.optim.type": ("adamw", "skip_step_adamw"),
    "train_module.optim.amsgrad": (None, False),
    "train_module.optim.fixed_fields": (None, ["initial_lr"]),
    "train_module.optim.dtype": (None, "float32"),
    "trainer.callbacks.sequence_length_scheduler": None,
    "trainer.callbacks.model_merge": None,
}
_BLOCK: Mapping[str, Any] = {
    "name": "reordered_norm",
    "sequence_mixer.name": "default",
    "sequence_mixer.type": (None, "attention"),
    "sequence_mixer.bias": (None, False),
    "sequence_mixer.use_head_qk_norm": (None, False),
    "sequence_mixer.scalable_softmax": (None, False),
    "sequence_mixer.attention_sinks": (None, False),
    "sequence_mixer.clip_qkv": None,
    "sequence_mixer.dropout": (None, 0.0),
    "sequence_mixer.gate": None,
    "sequence_mixer.rope.name": "default",
    "sequence_mixer.rope.full_precision": True,
    "sequence_mixer.rope.no_global_rope": (None, False),
    "sequence_mixer.rope.partial_rotary_factor": (None, 1.0),
    "sequence_mixer.rope.scaling": None,
    "sequence_mixer.qk_norm.name": "rms",
    "sequence_mixer.qk_norm.bias": (None, False),
    "layer_norm.name": "rms",
    "layer_norm.bias": (None, False),
    "feed_forward.name": (None, "default"),
    "feed_forward.bias": (None, False),
    "feed_forward.activation": (None, "silu"),
    "feed_forward_moe": None,
    "dropout": (None, 0.0),
}


def recipe_from(run: Run, approximate: bool) -> Recipe:
    """
    Raises:
        UnsupportedRecipe
    """
    fields = ConfigFields(run.config, "config.json", approximate=approximate)
    fields.require(_STEP)
    module, optim = fields.get("train_module", {}), fields.get("train_module.optim", {})
    length = run.sequence_length
    positions = int(run.environment.get("instances_per_epoch", run.num_instances))
    walk = walk_of(run.config, positions, length)
    if walk.base_rate_changes:
        _refuse_moving_horizon(fields)
    tokens_per_step = int(run.config["data_loader"]["global_batch_size"])
    model = _model(fields, length)
    return Recipe(
        model=model,
        learning_rate=float(optim["lr"]),
        betas=(float(optim["betas"][0]), float(optim["betas"][1])),
        eps=float(optim["eps"]),
        weight_decay=float(optim["weight_decay"]),
        no_decay=_no_decay(fields, model["num_hidden_layers"]),
        schedule=schedule_from_olmo_core(
            run.config,
            tokens_per_step=tokens_per_step,
            batches_per_epoch=positions // (tokens_per_step // length),
        ),
        base_rate_changes=tuple(walk.base_rate_changes),
        skip=_skip_rule(optim) if optim.get("type") == "skip_step_adamw" else None,
        max_grad_norm=module.get("max_grad_norm"),
        z_loss=float(module.get("z_loss_multiplier") or 0.0),
        denominator="targets_and_filtered",
        document_end_token=_document_end(fields),
        num_ranks=int(run.environment.get("world_size", 1)),
        instances_per_microbatch=int(module["rank_microbatch_size"]) // length,
        precision="bf16" if module.get("autocast_precision") == "bfloat16" or _mixed_precision(module) else "fp32",
        parameter_order="olmo_core",
        unfaithful=tuple(_other_kernels(module, optim)),
        approximated=tuple(fields.approximated),
    )


def _refuse_moving_horizon(fields: ConfigFields) -> None:
    """Trainers turn the run's length into the scheduler's unit anew each step; a new batch size moves that answer."""
    scheduler, unit = fields.get("train_module.scheduler"), fields.get("trainer.max_duration.unit")
    if scheduler and unit != (scheduler.get("units") or "steps"):
        fields.refuse(
            "trainer.callbacks.batch_size_scheduler changes the batch size, and with it the horizon of "
            f"train_module.scheduler, because trainer.max_duration is in {unit}"
        )


def _mixed_precision(module: Mapping[str, Any]) -> bool:
    return (module.get("dp_config") or {}).get("param_dtype") == "bfloat16"


def _other_kernels(module: Mapping[str, Any], optim: Mapping[str, Any]) -> list[str]:
    notes = []
    for name, on in (("compile_model", module.get("compile_model")), ("optim.compile", optim.get("compile"))):
        if on:
            notes.append(f"train_module.{name} is replayed without compilation")
    if module.get("dp_config"):
        notes.append("train_module.dp_config: gradients are averaged over ranks on one device, in rank order")
    return notes


def _document_end(fields: ConfigFields) -> int | None:
    masked = fields.get("dataset.generate_doc_lengths") or fields.get("data_loader.generate_doc_lengths")
    return int(fields.number("dataset.tokenizer.eos_token_id")) if masked else None


def _skip_rule(optim: Mapping[str, Any]) -> SkipRule:
    return SkipRule(
        interval=int(optim.get("rolling_interval_length", 128)),
        sigma=float(optim.get("sigma_factor", 6)),
        foreach=bool(optim.get("foreach", True)),
        counts_steps=bool(optim.get("step_increment_bugfix", True)),
    )


def _no_decay(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    """Parameters of the groups whose weight decay is overridden to 0; patterns are those of fnmatch."""
    exempt: list[str] = []
    for group in fields.get("train_module.optim.group_overrides", []):
        if list(group.get("opts", {})) != ["weight_decay"] or group["opts"]["weight_decay"] != 0.0:
            fields.refuse(f"train_module.optim.group_overrides {group.get('opts')} is not replayed")
            continue
        matched = [n for n in _names(num_layers) if any(fnmatch(n, pattern) for pattern in group["params"])]
        if not matched:
            fields.refuse(f"train_module.optim.group_overrides for {group['params']} fits no parameter")
        exempt += [from_olmo_core(name) for name in matched]
    return tuple(dict.fromkeys(exempt))


def _names(num_layers: int) -> list[str]:
    blocks = [f"blocks.{layer}.{part}.weight" for layer in range(num_layers) for part in OLMO_CORE_BLOCK]
    return ["embeddings.weight", *blocks, "lm_head.norm.weight", "lm_head.w_out.weight"]


def _model(fields: ConfigFields, length: int) -> dict[str, Any]:
    """The transformers config (Olmo2; Olmo3 where some layers attend to a window) of an OLMo-core transformer."""
    model = fields.config["model"]
    block = model["block"]
    fields.require({"name": (None, "default"), "dtype": (None, "float32"), "block_overrides": None}, model, "model.")
    fields.require(
        {"name": (None, "default"), "bias": (None, False), "loss_implementation": (None, "default")},
        model["lm_head"],
        "model.lm_head.",
    )
    # Older versions call the mixer `attention`.
    mixer = block.get("sequence_mixer") or block["attention"]
    fields.require(_BLOCK, dict(block) | {"sequence_mixer": mixer}, "model.block.")
    norm_eps = block["layer_norm"]["eps"]
    if {mixer["qk_norm"]["eps"], model["lm_head"]["layer_norm"]["eps"]} != {norm_eps}:
        fields.refuse("the model's norms have different eps")
    rope = {"rope_type": "default", "rope_theta": mixer["rope"]["theta"]}
    config: dict[str, Any] = {
        "model_type": "olmo2",
        "vocab_size": model["vocab_size"],
        "hidden_size": model["d_model"],
        "intermediate_size": block["feed_forward"]["hidden_size"],
        "num_hidden_layers": model["n_layers"],
        "num_attention_heads": mixer["n_heads"],
        "num_key_value_heads": mixer.get("n_kv_heads") or mixer["n_heads"],
        "rms_norm_eps": norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": bool(model.get("tie_word_embeddings")),
        "max_position_embeddings": length,
        "eos_token_id": fields.get("dataset.tokenizer.eos_token_id"),
        "bos_token_id": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
    }
    windows = _windows(fields, mixer.get("sliding_window"), model["n_layers"])
    if not any(windows):
        return config
    if len(set(windows) - {0}) > 1:
        fields.refuse(f"model.block.sequence_mixer.sliding_window has windows of several sizes {sorted(set(windows))}")
    return config | {
        "model_type": "olmo3",
        "sliding_window": max(windows),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        "rope_parameters": {"full_attention": rope, "sliding_attention": dict(rope)},
    }


def _windows(fields: ConfigFields, sliding: Mapping[str, Any] | None, num_layers: int) -> list[int]:
    """The attention window of each layer, in tokens (itself included); 0: all tokens before."""
    if not sliding:
        return [0] * num_layers
    pattern = [int(window) for window in sliding["pattern"]]
    first_full, last_full = (
        bool(sliding.get(f"force_full_attention_on_{which}_layer", default))
        for which, default in (("first", True), ("last", True))
    )
    shifted = 1 if first_full else 0
    windows = []
    for layer in range(num_layers):
        forced = (layer == 0 and first_full) or (layer == num_layers - 1 and last_full)
        window = pattern[(layer - shifted) % len(pattern)]
        windows.append(0 if forced or window < 0 else window)
    return windows
