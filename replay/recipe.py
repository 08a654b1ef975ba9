"""Everything a step does besides the data, understood from the trainer's own config.

One reader per config format. A reader takes every field that defines the step, and refuses by name what it does not
know: a setting passed over in silence would make every later number wrong.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from data_index.errors import CorruptFile, UnsupportedRecipe
from data_index.run import Run
from replay.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one optimizer step is computed.

    Attributes:
        model: a transformers config as a dict, with `model_type`.
        learning_rate: the base rate that the schedule works on.
        no_decay: parameter names (transformers') without weight decay.
        max_grad_norm: clip the global gradient norm to this; None: do not clip.
        z_loss: multiplier of the mean squared log-normalizer; 0: none.
        instances_per_microbatch: rows per forward and backward pass; None: all at once.
        precision: fp32, or bf16 autocast over fp32 master weights.
        num_threads: intra-op threads the bits were made with.
        parameter_order: whose order of parameters the gradient norm is taken in.
        unfaithful: settings of the trainer that are replayed with other kernels, for the report.
    """

    model: Mapping[str, Any]
    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    schedule: Schedule
    no_decay: tuple[str, ...] = ()
    max_grad_norm: float | None = None
    z_loss: float = 0.0
    instances_per_microbatch: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    num_threads: int = 1
    parameter_order: Literal["native", "olmo_core"] = "native"
    unfaithful: tuple[str, ...] = ()

    def to_table(self) -> dict[str, Any]:
        """The `[recipe]` table of the native format: everything but the model, None left out."""
        table = {key: value for key, value in asdict(self).items() if value is not None}
        del table["model"]
        return table


def recipe_of_run(run: Run) -> Recipe:
    """The recipe that a run was trained with, its overrides applied.

    Raises:
        UnsupportedRecipe: a setting defines the step differently; the message names it.
        CorruptFile: the config cannot be read.
    """
    reader = {"native": _from_native, "olmo_core": _from_olmo_core}.get(run.config_format)
    if reader is None:
        raise UnsupportedRecipe(f"{run.name} has a config of format {run.config_format!r}, which is not replayed")
    try:
        recipe = reader(run.config)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"the config of {run.name} lacks or misstates {error}") from error
    return apply_overrides(recipe, run.recipe_overrides)


def apply_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Set fields by dotted name: `learning_rate`, `schedule.max_steps`.

    Raises:
        UnsupportedRecipe: no such field, or a value of another type.
    """
    for name, value in overrides.items():
        recipe = _override(recipe, name.removeprefix("recipe.").split("."), value, name)
    return recipe


def _override(record: Any, path: list[str], value: Any, name: str) -> Any:
    known = {field.name for field in fields(record)} - {"model", "unfaithful"}
    if path[0] not in known:
        raise UnsupportedRecipe(f"the recipe has no field {name!r}; it has {', '.join(sorted(known))}")
    if len(path) > 1:
        if path[0] != "schedule":
            raise UnsupportedRecipe(f"recipe.{path[0]} has no field {'.'.join(path[1:])!r}")
        return replace(record, schedule=_override(record.schedule, path[1:], value, name))
    kind = get_type_hints(type(record))[path[0]]
    return replace(record, **{path[0]: _typed(value, kind, name)})


def _typed(value: Any, kind: Any, name: str) -> Any:
    """Check a value against a field's annotation; whole numbers are fine where a float is asked."""
    if get_origin(kind) is types.UnionType:
        if value is None or value == "none":
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UnsupportedRecipe(f"{name} = {value!r} is not a {getattr(kind, '__name__', kind)}")


def _from_native(config: Mapping[str, Any]) -> Recipe:
    table = dict(config["recipe"])
    known = {field.name for field in fields(Recipe)} - {"model"}
    if unknown := set(table) - known:
        raise UnsupportedRecipe(f"the recipe has fields that this version does not know: {', '.join(sorted(unknown))}")
    table["schedule"] = Schedule(**table["schedule"])
    for name in ("betas", "no_decay", "unfaithful"):
        table[name] = tuple(table.get(name, ()))
    return Recipe(model=config["model"], **table)


# --- OLMo-core ---------------------------------------------------------------------------------------------------
# Source for all of this: Python package ai2-olmo-core 3.0.0 (train/train_module/transformer/train_module.py,
# optim/adamw.py, optim/scheduler.py, nn/).

_BLOCK_DEFAULTS: Mapping[str, Any] = {
    "name": "reordered_norm",
    "sequence_mixer.name": "default",
    "sequence_mixer.type": "attention",
    "sequence_mixer.bias": False,
    "sequence_mixer.use_head_qk_norm": False,
    "sequence_mixer.scalable_softmax": False,
    "sequence_mixer.attention_sinks": False,
    "sequence_mixer.clip_qkv": None,
    "sequence_mixer.dropout": (None, 0.0),
    "sequence_mixer.sliding_window": None,
    "sequence_mixer.gate": None,
    "sequence_mixer.rope.name": "default",
    "sequence_mixer.rope.full_precision": True,
    "sequence_mixer.rope.no_global_rope": False,
    "sequence_mixer.rope.partial_rotary_factor": (None, 1.0),
    "sequence_mixer.rope.scaling": None,
    "sequence_mixer.qk_norm.name": "rms",
    "sequence_mixer.qk_norm.bias": False,
    "layer_norm.name": "rms",
    "layer_norm.bias": False,
    "feed_forward.name": "default",
    "feed_forward.bias": False,
    "feed_forward.activation": (None, "silu"),
    "feed_forward_moe": None,
    "dropout": (None, 0.0),
    "block_overrides": None,
}


def _from_olmo_core(config: Mapping[str, Any]) -> Recipe:
    module, optim = config["train_module"], config["train_module"]["optim"]
    dataset = config["dataset"]
    _require(
        config,
        {
            "dataset.generate_doc_lengths": (None, False),
            "dataset.instance_filter_config": None,
            "dataset.label_mask_paths": None,
            "train_module.float8_config": None,
            "train_module.autocast_precision": (None, "bfloat16"),
            "train_module.label_ignore_index": (None, -100),
            "train_module.tp_config": None,
            "train_module.cp_config": None,
            "train_module.ep_config": None,
            "train_module.pp_config": None,
            "train_module.dp_config": None,
            "train_module.optim.type": "adamw",
            "train_module.optim.amsgrad": (None, False),
            "train_module.optim.fixed_fields": (["initial_lr"],),
            "trainer.steps_to_skip": (None, []),
            "trainer.callbacks.batch_size_scheduler": None,
            "trainer.callbacks.sequence_length_scheduler": None,
        },
    )
    length = int(dataset["sequence_length"])
    compiled = [
        name for name, on in (("compile_model", module.get("compile_model")), ("compile", optim.get("compile"))) if on
    ]
    return Recipe(
        model=_olmo_core_model(config),
        learning_rate=float(optim["lr"]),
        betas=(float(optim["betas"][0]), float(optim["betas"][1])),
        eps=float(optim["eps"]),
        weight_decay=float(optim["weight_decay"]),
        no_decay=_olmo_core_no_decay(optim),
        schedule=_olmo_core_schedule(config),
        max_grad_norm=module.get("max_grad_norm"),
        z_loss=float(module.get("z_loss_multiplier") or 0.0),
        instances_per_microbatch=int(module["rank_microbatch_size"]) // length,
        precision="bf16" if module.get("autocast_precision") == "bfloat16" else "fp32",
        parameter_order="olmo_core",
        unfaithful=tuple(f"train_module.{name} is replayed without compilation" for name in compiled),
    )


def _lookup(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _require(config: Mapping[str, Any], expected: Mapping[str, Any], where: str = "") -> None:
    """Raise UnsupportedRecipe for the first field whose value is none of the expected ones."""
    for path, allowed in expected.items():
        actual = _lookup(config, path)
        options = allowed if isinstance(allowed, tuple) else (allowed,)
        if actual not in options:
            raise UnsupportedRecipe(
                f"config.json: {where}{path} = {actual!r} makes a different step than this version replays "
                f"({' or '.join(map(repr, options))})"
            )


def _olmo_core_no_decay(optim: Mapping[str, Any]) -> tuple[str, ...]:
    overrides = optim.get("group_overrides") or []
    for group in overrides:
        if list(group.get("opts", {})) != ["weight_decay"] or group["opts"]["weight_decay"] != 0.0:
            raise UnsupportedRecipe(
                f"config.json: train_module.optim.group_overrides {group.get('opts')} is not replayed"
            )
        if list(group["params"]) != ["embeddings.weight"]:
            raise UnsupportedRecipe(
                f"config.json: train_module.optim.group_overrides for {group['params']} is not replayed"
            )
    return ("model.embed_tokens.weight",) if overrides else ()


def _olmo_core_schedule(config: Mapping[str, Any]) -> Schedule:
    scheduler = config["train_module"].get("scheduler")
    if scheduler is None or scheduler.get("type") != "cos_with_warmup":
        raise UnsupportedRecipe(f"config.json: train_module.scheduler {(scheduler or {}).get('type')} is not replayed")
    _require(scheduler, {"units": (None, "steps"), "warmup_fraction": None, "t_max": None}, "train_module.scheduler.")
    duration = config["trainer"]["max_duration"]
    if duration["unit"] != "steps":
        raise UnsupportedRecipe(f"config.json: trainer.max_duration in {duration['unit']} is not replayed; steps are")
    return Schedule(
        kind="cosine_with_warmup",
        warmup_steps=int(scheduler["warmup"]),
        max_steps=int(duration["value"]),
        alpha_final=float(scheduler["alpha_f"]),
        warmup_min=float(scheduler.get("warmup_min_lr") or 0.0),
    )


def _olmo_core_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The transformers config (Olmo2) of an OLMo-core transformer."""
    model = config["model"]
    block = model["block"]
    _require(model, {"name": "default", "dtype": "float32", "block_overrides": None}, "model.")
    _require(model["lm_head"], {"name": "default", "bias": False, "loss_implementation": "default"}, "model.lm_head.")
    _require(block, _BLOCK_DEFAULTS, "model.block.")
    attention, norm_eps = block["sequence_mixer"], block["layer_norm"]["eps"]
    if {attention["qk_norm"]["eps"], model["lm_head"]["layer_norm"]["eps"]} != {norm_eps}:
        raise UnsupportedRecipe("config.json: the model's norms have different eps")
    return {
        "model_type": "olmo2",
        "vocab_size": model["vocab_size"],
        "hidden_size": model["d_model"],
        "intermediate_size": block["feed_forward"]["hidden_size"],
        "num_hidden_layers": model["n_layers"],
        "num_attention_heads": attention["n_heads"],
        "num_key_value_heads": attention.get("n_kv_heads") or attention["n_heads"],
        "rms_norm_eps": norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention["rope"]["theta"]},
        "tie_word_embeddings": bool(model.get("tie_word_embeddings")),
        "max_position_embeddings": config["dataset"]["sequence_length"],
        "eos_token_id": config["dataset"]["tokenizer"]["eos_token_id"],
        "bos_token_id": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
    }
