"""Schedules from OLMo-core's configs.

Every setting that defines the rate is taken, and what is not known is refused by name.
Source: Python package ai2-olmo-core 3.0.0, optim/scheduler.py and train/trainer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_index.durations import Duration, Progress, max_steps, max_tokens
from data_index.errors import UnsupportedRecipe
from replay import curves
from replay.curves import Curve
from replay.joined_curves import LateDecay, Sequence, Shape, Stage, Stages
from replay.schedule import Schedule
from replay.schedule_readers import known_settings, scheduler_units

_CORE_CLASSES: Mapping[str, str] = {
    "ConstantScheduler": "constant",
    "ConstantWithWarmup": "constant_with_warmup",
    "WSD": "wsd",
    "PowerLR": "power_lr",
    "LinearWithWarmup": "linear_with_warmup",
    "InvSqrtWithWarmup": "inv_sqrt_with_warmup",
    "CosWithWarmup": "cos_with_warmup",
    "HalfCosWithWarmup": "half_cos_with_warmup",
    "CosWithWarmupAndLinearDecay": "cos_with_warmup_and_linear_decay",
    "ComposableScheduler": "composable",
    "SequentialScheduler": "sequential",
    "WSDS": "wsds",
    "ExponentialScheduler": "exponential",
}
_ALWAYS = "_CLASS_ type units lr_field initial_lr_field "
_WARMUP = "warmup warmup_steps warmup_fraction warmup_min_lr "
_DECAY = "decay decay_steps decay_fraction decay_min_lr "
_CORE_FIELDS: Mapping[str, str] = {
    "constant": "",
    "constant_with_warmup": _WARMUP,
    "wsd": _WARMUP + _DECAY,
    "power_lr": _WARMUP + _DECAY + "b",
    "linear_with_warmup": _WARMUP + "alpha_f t_max",
    "inv_sqrt_with_warmup": _WARMUP + "alpha_f",
    "cos_with_warmup": _WARMUP + "alpha_f t_max",
    "half_cos_with_warmup": _WARMUP + "alpha_f t_max",
    "cos_with_warmup_and_linear_decay": _WARMUP + _DECAY + "alpha_f t_max",
    "composable": "stages override_decay",
    "sequential": "schedulers schedulers_max schedulers_max_steps override_decay",
    "wsds": "period_lengths period_lr_multipliers warmup warmup_fraction warmup_min_lr "
    "decay decay_fraction decay_min_lr",
    "exponential": "lr_min",
}


def schedule_from_olmo_core(
    config: Mapping[str, Any],
    *,
    step: int = 0,
    tokens: int = 0,
    batches: int | None = None,
    tokens_per_step: int | None = None,
    batches_per_epoch: int | None = None,
) -> Schedule:
    """The schedule of a config.json of OLMo-core; `trainer.hard_stop` does not change it.

    Args:
        config: the whole config.
        step, tokens, batches: where the replayed stretch begins, as `Progress`.
        tokens_per_step: None: `data_loader.global_batch_size`.
        batches_per_epoch: needed if the run ends after epochs.
    Raises:
        UnsupportedRecipe: a setting that is not known, or lacks what it needs; the message names it.
    """
    scheduler = config["train_module"].get("scheduler")
    if scheduler is None:
        return Schedule(curve=curves.Constant())
    units = scheduler_units(scheduler.get("units") or "steps")
    length = config["trainer"]["max_duration"]
    if length["unit"] not in ("steps", "tokens", "epochs"):
        raise UnsupportedRecipe(f"config.json: trainer.max_duration.unit = {length['unit']!r} is not known")
    progress = Progress(
        tokens_per_step=tokens_per_step or int(config["data_loader"]["global_batch_size"]),
        step=step,
        tokens=tokens,
        batches=batches,
        batches_per_epoch=batches_per_epoch,
    )
    duration = Duration(value=int(length["value"]), unit=length["unit"])
    horizon = max_steps(duration, progress) if units == "steps" else max_tokens(duration, progress)
    return Schedule(curve=_core_curve(scheduler, horizon, "train_module.scheduler"), units=units)


def _core_curve(scheduler: Mapping[str, Any], horizon: int, where: str) -> Curve:
    """The curve of one scheduler table that runs until `horizon`."""
    # Configs of earlier versions state only the class.
    class_name = str(scheduler.get("_CLASS_")).rpartition(".")[2]
    name = str(scheduler.get("type") or _CORE_CLASSES.get(class_name, class_name))
    if name not in _CORE_FIELDS:
        raise UnsupportedRecipe(f"config.json: {where}.type = {name!r} is not known")
    given = known_settings(scheduler, where, _ALWAYS + _CORE_FIELDS[name])
    for field, expected in (("lr_field", "lr"), ("initial_lr_field", "initial_lr")):
        if given.get(field, expected) != expected:
            raise UnsupportedRecipe(f"config.json: {where}.{field} = {given[field]!r} schedules something else")
    if name == "constant":
        return curves.Constant()
    if name == "exponential":
        return curves.Exponential(max_steps=horizon, start=float(given.get("lr_min", 1e-9)))
    if name == "wsds":
        return _core_periods(given, where)
    if name == "composable":
        return _with_override(_core_stages(given, where), given, where)
    if name == "sequential":
        return _with_override(_core_sequence(given, horizon, where), given, where)

    # A cosine or a line may have a horizon of its own, and a warm-up given as a fraction is a fraction of that.
    own_horizon = int(given.get("t_max", horizon))
    ramp = _core_ramp(given, own_horizon, where)
    alpha_final = float(given.get("alpha_f", 0.1))
    if name == "constant_with_warmup":
        return curves.ConstantWithWarmup(**ramp, ramp_includes_end=True)
    if name == "cos_with_warmup":
        return curves.CosineWithWarmup(**ramp, max_steps=own_horizon, alpha_final=alpha_final)
    if name == "half_cos_with_warmup":
        return curves.HalfCosineWithWarmup(**ramp, max_steps=own_horizon, alpha_final=alpha_final)
    if name == "linear_with_warmup":
        return curves.LinearWithWarmup(**ramp, max_steps=own_horizon, alpha_final=alpha_final)
    if name == "inv_sqrt_with_warmup":
        return curves.InverseSqrtWithWarmup(**ramp, alpha_final=alpha_final)
    tail: dict[str, Any] = {
        "decay_steps": _core_length(given, "decay", horizon, where, default_fraction=0.1),
        "decay_min": float(given.get("decay_min_lr", 0.0)),
    }
    if name == "cos_with_warmup_and_linear_decay":
        return curves.CosineWithLinearDecay(
            **ramp, **tail, max_steps=own_horizon, end_steps=horizon, alpha_final=alpha_final
        )
    if name == "wsd":
        return curves.WarmupStableDecay(**ramp, **tail, max_steps=horizon)
    return curves.PowerWithWarmup(**ramp, **tail, max_steps=horizon, exponent=float(given.get("b", -0.51)))


def _core_ramp(given: Mapping[str, Any], horizon: int, where: str) -> dict[str, Any]:
    return {
        "warmup_steps": _core_length(given, "warmup", horizon, where),
        "warmup_min": float(given.get("warmup_min_lr", 0.0)),
    }


def _core_length(
    given: Mapping[str, Any], name: str, whole: int, where: str, *, default_fraction: float | None = None
) -> int:
    """`warmup` or `decay`: a length, under its present or its deprecated name, or a fraction of the whole."""
    length = given.get(name, given.get(f"{name}_steps"))
    fraction = given.get(f"{name}_fraction", default_fraction if length is None else None)
    if (length is None) == (fraction is None):
        raise UnsupportedRecipe(f"config.json: {where} sets not exactly one of {name} and {name}_fraction")
    return int(length) if length is not None else round(whole * float(fraction))


def _core_periods(given: Mapping[str, Any], where: str) -> Curve:
    periods = tuple(int(length) for length in given["period_lengths"])
    factors = given.get("period_lr_multipliers") or [1.0] * len(periods)
    if not periods or len(factors) != len(periods):
        raise UnsupportedRecipe(f"config.json: {where}.period_lr_multipliers does not match period_lengths")
    return curves.WarmupStableDecayPeriods(
        **_core_ramp(given, periods[0], where),
        period_steps=periods,
        decay_steps=tuple(_core_length(given, "decay", length, where) for length in periods),
        period_factors=tuple(float(factor) for factor in factors),
        decay_min=float(given.get("decay_min_lr", 0.0)),
    )


def _core_stages(given: Mapping[str, Any], where: str) -> Curve:
    stages = []
    for index, table in enumerate(given["stages"]):
        name = f"{where}.stages.{index}"
        stage = known_settings(table, name, "_CLASS_ duration shape start_lr start_lr_fraction end_lr end_lr_fraction")
        stages.append(
            Stage(
                duration_steps=int(stage["duration"]),
                shape=_shape(stage, name),
                start=_float_or_none(stage.get("start_lr")),
                start_fraction=_float_or_none(stage.get("start_lr_fraction")),
                end=_float_or_none(stage.get("end_lr")),
                end_fraction=_float_or_none(stage.get("end_lr_fraction")),
            )
        )
    return Stages(stages=tuple(stages))


def _core_sequence(given: Mapping[str, Any], horizon: int, where: str) -> Curve:
    schedulers = given["schedulers"]
    # A length for the last one, if given, is ignored by the trainer.
    lengths = [int(length) for length in given.get("schedulers_max", given.get("schedulers_max_steps"))]
    if len(lengths) == len(schedulers):
        lengths.pop()
    if len(lengths) + 1 != len(schedulers):
        raise UnsupportedRecipe(f"config.json: {where}.schedulers_max does not match schedulers")
    parts: list[Curve] = []
    left = horizon
    for index, scheduler in enumerate(schedulers):
        is_last = index == len(lengths) or left <= lengths[index]
        own_horizon = left if is_last else lengths[index]
        parts.append(_core_curve(scheduler, own_horizon, f"{where}.schedulers.{index}"))
        if is_last:
            # A run may end before its last curves begin; they have no length then.
            break
        left -= lengths[index]
    return Sequence(curves=tuple(parts), curve_steps=tuple(lengths[: len(parts) - 1]))


def _with_override(curve: Curve, given: Mapping[str, Any], where: str) -> Curve:
    table = given.get("override_decay")
    if table is None:
        return curve
    name = f"{where}.override_decay"
    decay = known_settings(table, name, "_CLASS_ start duration shape end_lr end_lr_fraction")
    return LateDecay(
        curve=curve,
        start_steps=int(decay["start"]),
        decay_steps=int(decay["duration"]),
        shape=_shape(decay, name),
        end=_float_or_none(decay.get("end_lr")),
        end_fraction=_float_or_none(decay.get("end_lr_fraction")),
    )


def _shape(table: Mapping[str, Any], where: str) -> Shape:
    shape = table.get("shape", "linear")
    if shape == "linear":
        return "linear"
    if shape == "cosine":
        return "cosine"
    raise UnsupportedRecipe(f"config.json: {where}.shape = {shape!r} is not known")


def _float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)
