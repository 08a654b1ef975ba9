"""Learning rate as a function of how far training has come. Steps are 1-based: the first update uses step 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from data_index.errors import UnsupportedRecipe
from replay import curves, joined_curves, other_curves
from replay.curves import Curve

Units = Literal["steps", "tokens", "updates"]
Record = TypeVar("Record")

CURVES: Mapping[str, type[Any]] = {
    curve.kind: curve
    for curve in (
        curves.Constant,
        curves.ConstantWithWarmup,
        curves.CosineWithWarmup,
        curves.HalfCosineWithWarmup,
        curves.LinearWithWarmup,
        curves.CosineLinearEnvelope,
        curves.InverseSqrtWithWarmup,
        curves.CosineOrInverseSqrt,
        curves.WarmupStableDecay,
        curves.PowerWithWarmup,
        curves.CosineWithLinearDecay,
        curves.WarmupStableDecayPeriods,
        curves.Exponential,
        other_curves.NeoxVersion1,
        other_curves.Neox,
        other_curves.CosineOfRatio,
        joined_curves.BoltOnWarmup,
        joined_curves.LateDecay,
        joined_curves.Stages,
        joined_curves.Sequence,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A curve, and what it counts.

    Attributes:
        units: "steps": the step taken, 1-based. "tokens": tokens seen since the run's start, the step's own included.
            "updates": updates applied before this one, so 0 at step 1; a step that was skipped because its gradients
            overflowed does not count (GPT-NeoX, Amber).
    """

    curve: Curve
    units: Units = "steps"

    @property
    def kind(self) -> str:
        return self.curve.kind

    def learning_rate(self, base: float, *, step: int, tokens: int, num_skipped: int = 0) -> float:
        """The rate of one step, in the arithmetic of the trainer.

        Args:
            base: the rate that the curve works on.
            step: 1-based.
            tokens: seen since the run's start, this step's own included.
            num_skipped: steps before this one that applied no update and did not advance the trainer's counter.
        """
        current = {"steps": step, "tokens": tokens, "updates": step - 1 - num_skipped}[self.units]
        return self.curve.learning_rate(base, current)

    def to_table(self) -> dict[str, Any]:
        """As a TOML table: the curve's `kind` and fields, and `units` where they are not steps."""
        table: dict[str, Any] = _plain(self.curve)
        return table if self.units == "steps" else table | {"units": self.units}

    def with_field(self, name: str, value: Any) -> Schedule:
        """The schedule with one field set by its dotted name: `warmup_steps`, `units`, `stages.0.end`.

        None (or "none", as the command line writes it) takes an optional field away.

        Raises:
            UnsupportedRecipe: no such field, or a value of another type.
        """
        table = self.to_table()
        inner: Any = table
        *parents, last = name.split(".")
        for parent in parents:
            inner = _inner(inner, parent, name)
        if isinstance(inner, list):
            _inner(inner, last, name)
            inner[int(last)] = value
        elif not isinstance(inner, dict):
            raise UnsupportedRecipe(f"the schedule has no field {name!r}")
        elif value is None or value == "none":
            inner.pop(last, None)
        else:
            inner[last] = value
        return _checked(table)


def schedule_from_table(table: Mapping[str, Any]) -> Schedule:
    """The schedule that `Schedule.to_table` wrote.

    Raises:
        UnsupportedRecipe: an unknown kind or field, a missing one, or a value of another type; named.
    """
    if table.get("kind") == curves.ConstantWithWarmup.kind:
        # Runs written by the first version carry the fields of a decay, which never had a meaning here.
        table = {name: value for name, value in table.items() if name not in ("max_steps", "alpha_final")}
    return _checked(table)


def _checked(table: Mapping[str, Any]) -> Schedule:
    settings = dict(table)
    units = _typed(settings.pop("units", "steps"), Units, "schedule.units")
    return Schedule(curve=_curve_from_table(settings, "schedule"), units=units)


def _curve_from_table(table: Mapping[str, Any], where: str) -> Curve:
    settings = dict(table)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str) or kind not in CURVES:
        raise UnsupportedRecipe(f"{where}.kind = {kind!r} is not known; known are {', '.join(CURVES)}")
    curve: Curve = _record(CURVES[kind], settings, where, kind)
    return curve


def _record(kind: type[Record], settings: Mapping[str, Any], where: str, called: str) -> Record:
    """Build a frozen record from a table, checking names and types."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := [name for name in settings if name not in known]:
        raise UnsupportedRecipe(
            f"{where} has no field {', '.join(unknown)}; {called} has {', '.join(known) or 'no fields'}"
        )
    needed = [name for name, field in known.items() if field.default is MISSING]
    if missing := [name for name in needed if name not in settings]:
        raise UnsupportedRecipe(f"{where} lacks {', '.join(missing)}, which {called} needs")
    hints = get_type_hints(kind)
    return kind(**{name: _typed(value, hints[name], f"{where}.{name}") for name, value in settings.items()})


def _typed(value: Any, kind: Any, name: str) -> Any:
    """Check a value against a field's annotation. Whole numbers do for floats; counts are not negative."""
    if get_origin(kind) is UnionType:
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(item, get_args(kind)[0], f"{name}.{index}") for index, item in enumerate(value))
    if kind is Curve and isinstance(value, Mapping):
        return _curve_from_table(value, name)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return _record(kind, value, name, kind.__name__)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise UnsupportedRecipe(f"{name} = {value!r} is not {_words(kind)}")


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return "a list"
    return {int: "a count", float: "a number", bool: "true or false"}.get(kind, "a table")


def _plain(value: Any) -> Any:
    """Records as tables, tuples as lists, None left out."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not is_dataclass(value):
        return value
    table = {"kind": value.kind} if hasattr(value, "kind") else {}
    settings = {field.name: getattr(value, field.name) for field in fields(value)}
    return table | {name: _plain(setting) for name, setting in settings.items() if setting is not None}


def _inner(table: Any, key: str, name: str) -> Any:
    if isinstance(table, Mapping) and key in table:
        return table[key]
    if isinstance(table, list) and key.isdecimal() and int(key) < len(table):
        return table[int(key)]
    raise UnsupportedRecipe(f"the schedule has no field {name!r}")
