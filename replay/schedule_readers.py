"""Schedules from the configs of OLMo, GPT-NeoX and Amber; OLMo-core's are in `olmo_core_schedule.py`.

A reader takes every setting that defines the rate and refuses by name what it does not know.

Sources: Python package ai2-olmo 0.6.0 (train.py, optim.py) and scripts/train.py in allenai/OLMo; EleutherAI/gpt-neox
megatron/training.py at v1.0 and @ 19f294d5; LLM360/amber-train main.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from data_index.durations import Progress, max_steps, max_tokens, olmo_duration
from data_index.errors import UnsupportedRecipe
from replay import curves, other_curves
from replay.curves import Curve
from replay.joined_curves import BoltOnWarmup
from replay.schedule import Schedule, Units

NeoxVersion = Literal["v1.0", "v2.0", "2023-09", "main"]

# 1706976 sequences a chunk in batches of 2240, 360 chunks.
AMBER = Schedule(curve=other_curves.CosineOfRatio(warmup_steps=2000, max_steps=274320, final=3e-5), units="updates")


def known_settings(table: Mapping[str, Any], where: str, names: str) -> dict[str, Any]:
    """The settings of a table that are set, None left out.

    Raises:
        UnsupportedRecipe: a name that is not among `names` (separated by spaces).
    """
    given = {name: value for name, value in table.items() if value is not None}
    if unknown := [f"{where}.{name}" for name in given if name not in names.split()]:
        raise UnsupportedRecipe(f"the config sets {', '.join(unknown)}, which this version does not know")
    return given


def scheduler_units(name: str) -> Units:
    if name == "steps":
        return "steps"
    if name == "tokens":
        return "tokens"
    raise UnsupportedRecipe(f"scheduler.units = {name!r} is not known")


# --- OLMo --------------------------------------------------------------------------------------------------------


def schedule_from_olmo(
    config: Mapping[str, Any],
    *,
    step: int = 0,
    tokens: int = 0,
    tokens_per_step: int | None = None,
    batches_per_epoch: int | None = None,
    restart_step: int | None = None,
) -> Schedule:
    """The schedule of a config.yaml of the OLMo trainer.

    Args:
        config: the whole config.
        step, tokens: where the replayed stretch begins, as `Progress`; matters only after a change of batch size.
        tokens_per_step: None: what the config's batch size and sequence length make.
        batches_per_epoch: needed if the run ends after epochs and the curve needs to know when.
        restart_step: the checkpoint that the trainer was started from, needed if it forgot the optimizer's state.
    Raises:
        UnsupportedRecipe: a setting that is not known, or lacks what it needs; the message names it.
    """
    scheduler = known_settings(
        config.get("scheduler") or {},
        "scheduler",
        "name units t_warmup t_max alpha_f warmup_min_lr grad_clip_warmup_steps grad_clip_warmup_factor",
    )
    units = scheduler_units(scheduler.get("units", "steps"))
    if tokens_per_step is None:
        tokens_per_step = int(config["global_train_batch_size"]) * int(config["model"]["max_sequence_length"])
    progress = Progress(
        tokens_per_step=tokens_per_step,
        step=step,
        tokens=tokens,
        batches_per_epoch=batches_per_epoch,
    )
    curve = _olmo_curve(scheduler, config, units, progress)
    if config.get("reset_optimizer_state") and config.get("load_path") and not config.get("reset_trainer_state"):
        if restart_step is None:
            raise UnsupportedRecipe(
                "config.yaml: reset_optimizer_state adds a second warm-up from the step of the restart, "
                "and that step is not known"
            )
        # From a step, even where the scheduler counts tokens: the trainer does so.
        end = int(restart_step + scheduler.get("t_warmup", 100))
        curve = BoltOnWarmup(curve=curve, start_steps=restart_step, end_steps=end)
    return Schedule(curve=curve, units=units)


def _olmo_curve(scheduler: Mapping[str, Any], config: Mapping[str, Any], units: Units, progress: Progress) -> Curve:
    name = scheduler.get("name", "cosine_with_warmup")
    ramp: dict[str, Any] = {"warmup_steps": int(scheduler.get("t_warmup", 100))}
    if "warmup_min_lr" in scheduler:
        ramp["warmup_min"] = float(scheduler["warmup_min_lr"])
    else:
        ramp["warmup_min_fraction"] = 0.1
    if name == "constant":
        return curves.Constant()
    if name == "constant_with_warmup":
        return curves.ConstantWithWarmup(**ramp)
    if name == "inverse_sqrt_with_warmup":
        return curves.InverseSqrtWithWarmup(**ramp, alpha_final=0.0)

    decaying: Mapping[str, type[Any]] = {
        "cosine_with_warmup": curves.CosineWithWarmup,
        "linear_with_warmup": curves.LinearWithWarmup,
        "cosine_linear_envelope": curves.CosineLinearEnvelope,
        "max_scheduler": curves.CosineOrInverseSqrt,
    }
    if name not in decaying:
        raise UnsupportedRecipe(f"config.yaml: scheduler.name = {name!r} is not known")
    end = scheduler["t_max"] if "t_max" in scheduler else _olmo_end(config["max_duration"], units, progress)
    curve: Curve = decaying[name](**ramp, max_steps=int(end), alpha_final=float(scheduler.get("alpha_f", 0.1)))
    return curve


def _olmo_end(text: int | str, units: Units, progress: Progress) -> int:
    """Where the run ends, in the schedule's units."""
    duration = olmo_duration(text)
    if units == "steps":
        return max_steps(duration, progress)
    if duration.unit == "epochs":
        # This trainer multiplies, whatever batch sizes it saw before.
        return max_steps(duration, progress) * progress.tokens_per_step
    return max_tokens(duration, progress)


# --- GPT-NeoX ----------------------------------------------------------------------------------------------------


def schedule_from_neox(config: Mapping[str, Any], version: NeoxVersion) -> Schedule:
    """The schedule of a GPT-NeoX config, whose names may be written with hyphens or underscores.

    Args:
        version: "v1.0" and "v2.0" (the same code; Pythia's); "2023-09": main from September 2023 until May 2026, whose
            first update has rate 0; "main": since then.
    Raises:
        UnsupportedRecipe: a setting that schedules otherwise; the message names it.
    """
    settings = {name.replace("-", "_"): value for name, value in config.items()}
    for name in ("scheduler", "use_mup"):
        if settings.get(name):
            raise UnsupportedRecipe(f"{name} = {settings[name]!r} of GPT-NeoX sets rates that are not replayed")
    decay = settings.get("lr_decay_style") or "linear"
    if decay not in ("linear", "cosine", "exponential", "constant"):
        raise UnsupportedRecipe(f"lr_decay_style = {decay!r} of GPT-NeoX is not known")
    length = settings.get("lr_decay_iters")
    if length is None:
        length = settings.get("train_iters")
        fraction = settings.get("lr_decay_fraction")
        if length is None:
            raise UnsupportedRecipe("the GPT-NeoX config states neither lr_decay_iters nor train_iters")
        if fraction is not None and version not in ("v1.0", "v2.0"):
            length = math.floor(length * fraction)
    length = max(1, int(length))
    warmup, minimum = settings.get("warmup"), settings.get("min_lr")
    shape: dict[str, Any] = {
        "warmup_steps": (0.01 if warmup is None else float(warmup)) * length,
        "max_steps": length,
        "decay": decay,
        "minimum": float(0.0 if minimum is None else minimum),
    }
    if version in ("v1.0", "v2.0"):
        return Schedule(curve=other_curves.NeoxVersion1(**shape), units="updates")
    return Schedule(curve=other_curves.Neox(**shape, warmup_first=int(version == "main")), units="updates")
