"""Everything a step does besides the data, understood from the trainer's own config.

One reader per config format (`replay.recipes`). A reader takes every field that defines the step, and refuses by name
what it does not know: a setting passed over in silence would make every later number wrong.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from data_index.batch import Denominator
from data_index.errors import CorruptFile, UnsupportedRecipe
from data_index.run import Run
from replay.schedule import Schedule

NOT_TO_SET = {"model", "unfaithful", "approximated"}  # fields of Recipe that no override names


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipRule:
    """OLMo-core's SkipStepAdamW: a step whose loss or gradient norm stands out from the last ones is not applied.

    Attributes:
        interval: how many steps before it a step is compared with.
        sigma: standard deviations above their mean that are too many.
        foreach: multi-tensor kernels, which round otherwise than the plain ones.
        counts_steps: False where the trainer had the bug that Adam's step counter stood still.
    """

    interval: int = 128
    sigma: float = 6.0
    foreach: bool = True
    counts_steps: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipWarmup:
    """The legacy OLMo trainer's other limit of the gradient norm at the start, in the schedule's units."""

    until: int
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one optimizer step is computed.

    Attributes:
        model: a transformers config as a dict, with `model_type`.
        learning_rate: the base rate that the schedule works on.
        base_rate_changes: (first step, factor): from there on the base rate is multiplied (batch-size schedules).
        no_decay: parameter names (transformers') without weight decay.
        skip: the rule by which the optimizer leaves steps out; None: plain AdamW.
        max_grad_norm: clip the global gradient norm to this; None: do not clip.
        clip_warmup: another limit at the start. The trainer sets the limit after clipping, so that each is in force one
            step later, and after a restart first `max_grad_norm` is.
        z_loss: multiplier of the mean squared log-normalizer; 0: none.
        logs_z_loss_in_loss: the logged loss contains the z-loss.
        denominator: what the summed loss is divided by.
        labels: what becomes of the last token of a row, which has no next one (`replay.train_step`).
        document_end_token: attention ends at this token; None: it does not.
        withholds_logged_skips: steps that the log marks as skipped were computed and not applied (a loss scale that
            overflowed), and do not advance the schedule.
        num_ranks: data-parallel ranks of the run; each divides by its own denominator.
        instances_per_microbatch: rows per forward and backward pass; None: all at once.
        precision: fp32, or bf16 autocast over fp32 master weights.
        num_threads: intra-op threads the bits were made with.
        parameter_order: whose order of parameters the gradient norm is taken in.
        unfaithful: settings of the trainer that are replayed with other kernels, for the report.
        approximated: settings that define another step and were passed over on request; no bits can be claimed.
    """

    model: Mapping[str, Any]
    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    schedule: Schedule
    base_rate_changes: tuple[tuple[int, float], ...] = ()
    no_decay: tuple[str, ...] = ()
    skip: SkipRule | None = None
    max_grad_norm: float | None = None
    clip_warmup: ClipWarmup | None = None
    z_loss: float = 0.0
    logs_z_loss_in_loss: bool = False
    denominator: Denominator = "targets"
    labels: Literal["last_ignored", "last_dropped", "extra_token"] = "last_ignored"
    document_end_token: int | None = None
    withholds_logged_skips: bool = False
    num_ranks: int = 1
    instances_per_microbatch: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    num_threads: int = 1
    parameter_order: Literal["native", "olmo_core", "olmo"] = "native"
    unfaithful: tuple[str, ...] = ()
    approximated: tuple[str, ...] = ()

    def to_table(self) -> dict[str, Any]:
        """The `[recipe]` table of the native format: everything but the model; what is as by default is left out."""
        default = {field.name: field.default for field in fields(self)}
        table = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("model", "schedule") or value is None or value == default[field.name]:
                continue
            table[field.name] = asdict(value) if isinstance(value, SkipRule | ClipWarmup) else value
        return table | {"schedule": self.schedule.to_table()}

    def tokens_per_instance(self, row_length: int) -> int:
        return row_length - (self.labels == "extra_token")

    def learning_rate_of(self, step: int, tokens: int, num_skipped: int) -> float:
        """The rate of a step, in the arithmetic of the trainer.

        Args:
            tokens: consumed since the run's start, this step's included.
            num_skipped: steps before this one that were not applied.
        """
        base = self.learning_rate
        for first, factor in self.base_rate_changes:
            if step >= first:
                base *= factor
        return self.schedule.learning_rate(
            base, step=step, tokens=tokens, num_skipped=num_skipped if self.withholds_logged_skips else 0
        )

    def max_grad_norm_of(self, step: int, tokens: int, *, restarted: bool) -> float | None:
        """The limit in force at a step: the one that the trainer set at the step before."""
        if self.clip_warmup is None or self.max_grad_norm is None or restarted:
            return self.max_grad_norm
        tokens_per_step = tokens // step
        before = step - 1 if self.schedule.units == "steps" else tokens - tokens_per_step
        return self.max_grad_norm * (self.clip_warmup.factor if before <= self.clip_warmup.until else 1.0)


def recipe_of_run(run: Run, *, approximate: bool = False) -> Recipe:
    """The recipe that a run was trained with, its overrides applied.

    Raises:
        UnsupportedRecipe: a setting defines the step differently; the message names it. With `approximate` it is passed
            over and kept in `Recipe.approximated`.
        CorruptFile: the config cannot be read.
    """
    from replay.recipes import amber, native, neox, olmo, olmo_core

    readers = {"amber": amber, "native": native, "olmo_core": olmo_core, "olmo": olmo, "neox": neox}
    if run.config_format not in readers:
        raise UnsupportedRecipe(
            f"{run.name} has a config of format {run.config_format!r}, whose step is not replayed; the run can be "
            "indexed, searched and probed"
        )
    try:
        recipe = readers[run.config_format].recipe_from(run, approximate)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, UnsupportedRecipe):
            raise
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
    if isinstance(record, Schedule):
        return record.with_field(".".join(path), value)
    known = {field.name for field in fields(record)} - NOT_TO_SET
    if path[0] not in known:
        raise UnsupportedRecipe(f"the recipe has no field {name!r}; it has {', '.join(sorted(known))}")
    if len(path) > 1:
        inner = getattr(record, path[0])
        if not is_dataclass(inner):
            raise UnsupportedRecipe(f"recipe.{path[0]} has no field {'.'.join(path[1:])!r}")
        return replace(record, **{path[0]: _override(inner, path[1:], value, name)})
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
    if kind is bool and isinstance(value, bool):
        return value
    raise UnsupportedRecipe(f"{name} = {value!r} is not a {getattr(kind, '__name__', kind)}")


def fields_of_recipe(recipe: Recipe) -> dict[str, Any]:
    """Every field that `apply_overrides` can set, by dotted name, with its value; lists count as one."""
    found: dict[str, Any] = {}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.name == "schedule":
            found |= {f"recipe.schedule.{name}": item for name, item in recipe.schedule.to_table().items()}
        elif is_dataclass(value) and not isinstance(value, type):
            found |= {f"recipe.{field.name}.{name}": item for name, item in asdict(value).items()}
        elif field.name not in NOT_TO_SET:
            found[f"recipe.{field.name}"] = value
    return found
