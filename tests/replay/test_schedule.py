"""Rates are compared with `==`: a last bit that differs is another run."""

from __future__ import annotations

import csv
import importlib
import json
import math
import random
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from data_index.durations import Duration, Progress, max_steps, max_tokens, olmo_duration
from data_index.errors import UnsupportedRecipe
from replay.curves import (
    ConstantWithWarmup,
    CosineWithWarmup,
    PowerWithWarmup,
    WarmupStableDecay,
    WarmupStableDecayPeriods,
)
from replay.joined_curves import LateDecay, Sequence, Stage, Stages
from replay.olmo_core_schedule import schedule_from_olmo_core
from replay.schedule import CURVES, Schedule, schedule_from_table
from replay.schedule_readers import AMBER, schedule_from_neox, schedule_from_olmo

FIXTURES = Path(__file__).parents[1] / "fixtures"
# Made by running the schedulers of ai2-olmo 0.6.0 and ai2-olmo-core 3.0.0: a config, a base rate, and rates by step.
UPSTREAM = json.loads((FIXTURES / "schedules" / "rates.json").read_text())
COSINE = Schedule(curve=CosineWithWarmup(warmup_steps=5, max_steps=40))
PYTHIA = {"train-iters": 143000, "lr-decay-iters": 143000, "warmup": 0.01, "lr-decay-style": "cosine", "min-lr": 1e-4}


def rate(schedule: Schedule, base: float, step: int, tokens: int = 0) -> float:
    return schedule.learning_rate(base, step=step, tokens=tokens)


# --- Known rates -------------------------------------------------------------------------------------------------


def test_the_first_step_uses_one_and_not_zero() -> None:
    assert rate(COSINE, 0.003, 1) == 0.0006000000000000001


def upstream_name(case: Mapping[str, Any]) -> str:
    scheduler = case["config"].get("scheduler") or case["config"]["train_module"]["scheduler"]
    return f"{case['trainer']}-{scheduler.get('name') or scheduler['type']}"


@pytest.mark.parametrize("case", UPSTREAM, ids=upstream_name)
def test_every_scheduler_of_olmo_and_olmo_core_gives_its_own_rates(case: Mapping[str, Any]) -> None:
    """Known answers of the trainers' own classes, borders included."""
    if case["trainer"] == "olmo":
        schedule, tokens_per_step = schedule_from_olmo(case["config"], restart_step=case["restart_step"]), 128
    else:
        schedule = schedule_from_olmo_core(case["config"])
        tokens_per_step = case["config"]["data_loader"]["global_batch_size"]

    for step, known in case["rates"].items():
        assert rate(schedule, case["base"], int(step), int(step) * tokens_per_step) == float.fromhex(known), step


def test_rates_that_olmo_core_logged() -> None:
    folder = FIXTURES / "olmo-core" / "main"
    schedule = schedule_from_olmo_core(json.loads((folder / "ckpt" / "step0" / "config.json").read_text()))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["hex"]["optim/LR (group 0)"] for line in lines if "optim/LR (group 0)" in line}

    assert len(logged) == 25
    assert all(rate(schedule, 0.003, step) == float.fromhex(known) for step, known in logged.items())


def test_rates_that_olmo_logged() -> None:
    """That run counts tokens, and its decay ends elsewhere than the run."""
    scheduler = {
        "name": "cosine_with_warmup",
        "units": "tokens",
        "t_warmup": 8192,
        "t_max": 50000.0,
        "alpha_f": 0.1,
        "grad_clip_warmup_steps": None,
        "grad_clip_warmup_factor": None,
        "warmup_min_lr": 0.0,
    }
    schedule = schedule_from_olmo(olmo_config(scheduler=scheduler))
    logged = [json.loads(line) for line in (FIXTURES / "olmo" / "metrics.jsonl").read_text().splitlines()]

    assert len(logged) >= 25
    assert all(rate(schedule, 2e-3, line["step"], line["tokens_seen"]) == line["lr"] for line in logged)


@pytest.mark.parametrize(("version", "file"), [("v1.0", "lr_pythia70m_v1.0.csv"), ("main", "lr_pythia70m_HEAD.csv")])
def test_rates_of_gpt_neox_over_a_whole_pythia_run(version: Any, file: str) -> None:
    schedule = schedule_from_neox(PYTHIA, version)
    with (FIXTURES / "neox" / file).open() as lines:
        known = {int(row["num_iters"]): float(row["lr"]) for row in csv.DictReader(lines)}

    assert len(known) == 316
    assert all(rate(schedule, 1e-3, count + 1) == value for count, value in known.items())


def test_pythia_takes_its_first_step_with_rate_zero_and_main_does_not() -> None:
    """Why Pythia's step1 has the weights of step0."""
    assert rate(schedule_from_neox(PYTHIA, "v1.0"), 1e-3, 1) == 0.0
    assert rate(schedule_from_neox(PYTHIA, "2023-09"), 1e-3, 1) == 0.0
    assert rate(schedule_from_neox(PYTHIA, "main"), 1e-3, 1) > 0.0


def test_steps_that_overflowed_do_not_advance_gpt_neox() -> None:
    schedule = schedule_from_neox(PYTHIA, "v1.0")

    assert schedule.learning_rate(1e-3, step=500, tokens=0, num_skipped=3) == rate(schedule, 1e-3, 497)
    assert COSINE.learning_rate(1e-3, step=20, tokens=0, num_skipped=3) == rate(COSINE, 1e-3, 20)


def test_rates_of_amber() -> None:
    """Computed by LLM360/amber-train; it counts from 0."""
    known = {
        0: 0.0,
        1: 1.5e-07,
        1000: 0.00015,
        2000: 0.0003,
        137160: 0.00016655737955648686,
        274319: 3.0000000008983483e-05,
        274320: 3e-05,
    }

    assert all(rate(AMBER, 3e-4, count + 1) == value for count, value in known.items())


# --- Shapes ------------------------------------------------------------------------------------------------------


def test_warm_up_ends_at_the_base_rate_and_decay_at_a_tenth() -> None:
    assert rate(COSINE, 1.0, 5) == 1.0
    assert rate(COSINE, 1.0, 40) == rate(COSINE, 1.0, 1000) == 0.1


def test_constant_stays() -> None:
    schedule = Schedule(curve=ConstantWithWarmup(warmup_steps=2))

    assert [rate(schedule, 2.0, step) for step in (1, 2, 9, 99)] == [1.0, 2.0, 2.0, 2.0]


def test_the_last_step_of_warm_up_may_not_be_the_base_rate() -> None:
    """OLMo-core computes it by the ramp's formula in some curves, and OLMo does not."""
    base = next(base for base in (n / 1000 for n in range(1, 1000)) if base * 7 / 7 != base)

    assert ConstantWithWarmup(warmup_steps=7).learning_rate(base, 7) == base
    assert ConstantWithWarmup(warmup_steps=7, ramp_includes_end=True).learning_rate(base, 7) == base * 7 / 7
    tailed = WarmupStableDecay(warmup_steps=7, max_steps=20, decay_steps=4)
    assert [tailed.learning_rate(base, step) for step in (7, 8)] == [base * 7 / 7, base]


def test_tails_end_at_their_minimum_and_stay_there() -> None:
    """A fork may go on past the planned end."""
    curve = WarmupStableDecay(warmup_steps=2, max_steps=10, decay_steps=4)

    assert [curve.learning_rate(1.0, step) for step in (2, 6, 7, 10, 15)] == [1.0, 1.0, 0.75, 0.0, 0.0]


def test_periods_decay_each_on_its_own() -> None:
    curve = WarmupStableDecayPeriods(
        warmup_steps=2, period_steps=(10, 10), decay_steps=(4, 2), period_factors=(1.0, 0.5)
    )

    assert [curve.learning_rate(1.0, step) for step in (1, 6, 8, 10, 11, 19, 20, 30)] == [
        *(0.5, 1.0, 0.5, 0.0),
        *(0.5, 0.25, 0.0, 0.0),
    ]


def test_a_sequence_hands_on_the_rate_it_ended_at() -> None:
    first = CosineWithWarmup(warmup_steps=0, max_steps=10, alpha_final=0.5)
    curve = Sequence(curves=(first, ConstantWithWarmup(warmup_steps=2)), curve_steps=(10,))

    assert [curve.learning_rate(1.0, step) for step in (10, 11, 12, 50)] == [0.5, 0.25, 0.5, 0.5]


def test_a_power_law_needs_a_warm_up_and_begins_before_its_tail() -> None:
    with pytest.raises(UnsupportedRecipe, match="warmup_steps of at least 1"):
        PowerWithWarmup(warmup_steps=0, max_steps=10, decay_steps=1)
    with pytest.raises(UnsupportedRecipe, match="decay_steps shorter than max_steps"):
        PowerWithWarmup(warmup_steps=1, max_steps=10, decay_steps=10)


@pytest.mark.parametrize("ends", [{}, {"end": 0.0, "end_fraction": 0.1}])
def test_a_decay_states_one_end(ends: dict[str, float]) -> None:
    with pytest.raises(UnsupportedRecipe, match="either an end or an end_fraction"):
        Stage(duration_steps=3, **ends)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedRecipe, match="either an end or an end_fraction"):
        LateDecay(curve=COSINE.curve, start_steps=1, decay_steps=2, **ends)  # type: ignore[arg-type]


# --- Tables and overrides ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cosine_with_warmup", "constant_with_warmup"])
def test_tables_of_the_first_version_still_mean_the_same(kind: str) -> None:
    table = {"kind": kind, "warmup_steps": 5, "max_steps": 40, "alpha_final": 0.1, "warmup_min": 0.0}

    schedule = schedule_from_table(table)

    known = {"cosine_with_warmup": "0x1.81087fb9ad4d8p-10", "constant_with_warmup": (0.003).hex()}[kind]
    assert schedule.kind == kind and schedule.units == "steps"
    assert rate(schedule, 0.003, 24) == float.fromhex(known)
    assert rate(schedule, 0.003, 3) == 0.0018000000000000002


def test_a_cosine_is_written_as_the_first_version_wrote_it() -> None:
    assert COSINE.to_table() == {
        "kind": "cosine_with_warmup",
        "warmup_steps": 5,
        "max_steps": 40,
        "alpha_final": 0.1,
        "warmup_min": 0.0,
    }


def every_schedule() -> list[Schedule]:
    read = {"olmo": schedule_from_olmo, "olmo_core": schedule_from_olmo_core}
    extra = [{"restart_step": case["restart_step"]} if case["trainer"] == "olmo" else {} for case in UPSTREAM]
    schedules = [read[case["trainer"]](case["config"], **more) for case, more in zip(UPSTREAM, extra, strict=True)]
    return [*schedules, schedule_from_neox(PYTHIA, "v1.0"), schedule_from_neox(PYTHIA, "main"), AMBER]


def test_every_kind_survives_being_written() -> None:
    schedules = every_schedule()

    written = json.dumps([schedule.to_table() for schedule in schedules])

    assert [schedule_from_table(table) for table in json.loads(written)] == schedules
    assert all(f'"kind": "{kind}"' in written for kind in CURVES)


def test_fields_are_overridden_by_name() -> None:
    stages = Schedule(curve=Stages(stages=(Stage(duration_steps=3, end=0.5), Stage(duration_steps=4, end=0.1))))

    assert COSINE.with_field("warmup_steps", 7) == Schedule(curve=CosineWithWarmup(warmup_steps=7, max_steps=40))
    assert COSINE.with_field("units", "tokens").units == "tokens"
    assert COSINE.with_field("alpha_final", 0).to_table()["alpha_final"] == 0.0
    assert stages.with_field("stages.1.end", 0.2).to_table()["stages"][1]["end"] == 0.2


@pytest.mark.parametrize("none", [None, "none"])
def test_an_optional_field_can_be_taken_away(none: Any) -> None:
    tenth = COSINE.with_field("warmup_min_fraction", 0.1)

    assert rate(tenth, 1.0, 1) != rate(COSINE, 1.0, 1)
    assert tenth.with_field("warmup_min_fraction", none) == COSINE


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 1, "no field steps; cosine_with_warmup has warmup_steps"),
        ("curve.warmup_steps", 1, "no field 'curve.warmup_steps'"),
        ("stages.0.end", 1, "no field 'stages.0.end'"),
        ("warmup_steps.first", 1, "no field 'warmup_steps.first'"),
        ("kind", "cosine", "kind = 'cosine' is not known; known are constant"),
        ("units", "hours", "units = 'hours' is not one of steps, tokens, updates"),
        ("warmup_steps", "fast", "warmup_steps = 'fast' is not a count"),
        ("warmup_steps", -1, "warmup_steps = -1 is not a count"),
        ("warmup_steps", 1.5, "warmup_steps = 1.5 is not a count"),
        ("warmup_steps", True, "warmup_steps = True is not a count"),
        ("warmup_steps", None, "lacks warmup_steps, which cosine_with_warmup needs"),
        ("alpha_final", math.nan, "alpha_final = nan is not a number"),
    ],
)
def test_what_is_not_a_field_or_its_value_is_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(UnsupportedRecipe, match=message):
        COSINE.with_field(name, value)


def test_a_field_without_meaning_is_not_overridden_in_silence() -> None:
    with pytest.raises(UnsupportedRecipe, match="no field max_steps; constant_with_warmup has"):
        Schedule(curve=ConstantWithWarmup(warmup_steps=2)).with_field("max_steps", 9)


@pytest.mark.parametrize("table", [{}, {"kind": None}, {"kind": ["constant"]}, {"kind": "sequence", "curves": 3}])
def test_a_table_that_is_no_schedule_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedRecipe, match="schedule"):
        schedule_from_table(table)


# --- Durations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (1000, Duration(value=1000, unit="steps")),
        ("1e3", Duration(value=1000, unit="steps")),
        ("2e12T", Duration(value=2 * 10**12, unit="tokens")),
        ("3ep", Duration(value=3, unit="epochs")),
    ],
)
def test_durations_of_olmo(text: int | str, expected: Duration) -> None:
    assert olmo_duration(text) == expected


@pytest.mark.parametrize("text", ["soon", "T", "1.5ep", "infT", None])
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(UnsupportedRecipe, match="max_duration"):
        olmo_duration(text)


def test_published_runs_are_as_long_as_their_tokens_say() -> None:
    """OLMo 2: 4e12 tokens in batches of 512 x 4096, 5e12 in batches of 2048 x 4096."""
    assert max_steps(olmo_duration("4e12T"), Progress(tokens_per_step=512 * 4096)) == 1907349
    assert max_steps(olmo_duration("5e12T"), Progress(tokens_per_step=2048 * 4096)) == 596047


def test_the_end_moves_when_the_batch_size_changes() -> None:
    duration = Duration(value=10_000, unit="tokens")

    assert max_steps(duration, Progress(tokens_per_step=10)) == 1000
    assert max_steps(duration, Progress(tokens_per_step=20, step=300, tokens=3000)) == 650
    assert max_tokens(Duration(value=1000, unit="steps"), Progress(tokens_per_step=20, step=300, tokens=3000)) == 17000


def test_epochs_need_their_length() -> None:
    epochs = Duration(value=2, unit="epochs")

    assert max_steps(epochs, Progress(tokens_per_step=10, batches_per_epoch=30)) == 60
    assert max_steps(epochs, Progress(tokens_per_step=10, step=5, batches=20, batches_per_epoch=30)) == 45
    with pytest.raises(UnsupportedRecipe, match="batches in an epoch is not known"):
        max_steps(epochs, Progress(tokens_per_step=10))


# --- Readers -----------------------------------------------------------------------------------------------------


def olmo_config(**changes: Any) -> dict[str, Any]:
    scheduler = {"name": "cosine_with_warmup", "t_warmup": 5}
    sizes = {"global_train_batch_size": 8, "model": {"max_sequence_length": 128}}
    return {"scheduler": scheduler, "max_duration": 40, **sizes} | changes


def core_config(scheduler: Mapping[str, Any] | None, value: int = 40, unit: str = "steps") -> dict[str, Any]:
    return {
        "train_module": {"scheduler": scheduler},
        "trainer": {"max_duration": {"value": value, "unit": unit}, "hard_stop": {"value": 5, "unit": "steps"}},
        "data_loader": {"global_batch_size": 1000},
    }


def test_olmo_warms_up_from_a_tenth_unless_told_otherwise() -> None:
    assert rate(schedule_from_olmo(olmo_config()), 1.0, 1) == 0.1 + (1.0 - 0.1) * 1 / 5


@pytest.mark.parametrize("units", ["steps", "tokens"])
def test_olmo_runs_as_long_as_its_duration_says(units: str) -> None:
    config = olmo_config(scheduler={"units": units, "t_warmup": 1}, max_duration="2ep")

    schedule = schedule_from_olmo(config, batches_per_epoch=30)

    assert schedule.to_table()["max_steps"] == {"steps": 60, "tokens": 60 * 1024}[units]
    with pytest.raises(UnsupportedRecipe, match="batches in an epoch"):
        schedule_from_olmo(config)


def test_a_restart_that_forgot_the_optimizer_warms_up_again() -> None:
    config = olmo_config(reset_optimizer_state=True, load_path="run/step20")

    schedule = schedule_from_olmo(config, restart_step=20)

    assert rate(schedule, 1.0, 20) == 0.0
    assert rate(schedule, 1.0, 25) == rate(schedule_from_olmo(olmo_config()), 1.0, 25)
    with pytest.raises(UnsupportedRecipe, match="reset_optimizer_state"):
        schedule_from_olmo(config)


def test_olmo_core_counts_in_units_and_ignores_the_hard_stop() -> None:
    in_steps = schedule_from_olmo_core(core_config({"type": "cos_with_warmup", "warmup": 5}))
    in_tokens = schedule_from_olmo_core(core_config({"type": "cos_with_warmup", "warmup": 5000, "units": "tokens"}))
    in_epochs = schedule_from_olmo_core(
        core_config({"type": "cos_with_warmup", "warmup": 5}, 2, "epochs"), batches_per_epoch=20
    )

    assert in_steps == in_epochs == COSINE
    assert in_tokens.to_table()["max_steps"] == 40_000
    assert rate(in_tokens, 1.0, 5, 5000) == 1.0


def test_curves_that_begin_after_the_end_of_a_run_are_left_out() -> None:
    parts = [{"type": "linear_with_warmup", "warmup": 0}, {"type": "power_lr", "warmup_fraction": 0.1}]
    sequential = {"type": "sequential", "schedulers": parts, "schedulers_max": [50]}

    table = schedule_from_olmo_core(core_config(sequential, 40)).to_table()

    assert [curve["kind"] for curve in table["curves"]] == ["linear_with_warmup"]
    assert table["curves"][0]["max_steps"] == 40 and table["curve_steps"] == []


def test_a_run_without_a_scheduler_keeps_its_rate() -> None:
    assert rate(schedule_from_olmo_core(core_config(None)), 0.003, 17) == 0.003


def test_old_configs_state_a_class_and_deprecated_names() -> None:
    now = {"type": "wsd", "warmup": 5, "decay": 10}
    before = {"_CLASS_": "olmo_core.optim.scheduler.WSD", "warmup_steps": 5, "decay_steps": 10}

    assert schedule_from_olmo_core(core_config(before)) == schedule_from_olmo_core(core_config(now))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"type": "cyclic"}, "scheduler.type = 'cyclic'"),
        ({"type": "cos_with_warmup", "warmup": 5, "cooldown": 3}, "scheduler.cooldown"),
        ({"type": "cos_with_warmup"}, "exactly one of warmup and warmup_fraction"),
        ({"type": "wsd", "warmup": 5, "decay": 3, "decay_fraction": 0.1}, "exactly one of decay and decay_fraction"),
        ({"type": "constant", "lr_field": "beta"}, "scheduler.lr_field = 'beta'"),
        ({"type": "constant", "units": "hours"}, "units = 'hours'"),
        (
            {"type": "composable", "stages": [{"duration": 3, "end_lr": 0.1, "shape": "wavy"}]},
            "stages.0.shape = 'wavy'",
        ),
        ({"type": "sequential", "schedulers": [{"type": "constant"}], "schedulers_max": [1, 2]}, "schedulers_max"),
        (
            {"type": "sequential", "schedulers": [{"type": "magic"}], "schedulers_max": []},
            "schedulers.0.type = 'magic'",
        ),
    ],
)
def test_what_olmo_core_may_set_and_is_not_known_is_refused_by_name(scheduler: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedRecipe, match=message):
        schedule_from_olmo_core(core_config(scheduler))


@pytest.mark.parametrize(
    ("scheduler", "message"), [({"name": "cyclic"}, "'cyclic'"), ({"cooldown": 1}, "scheduler.cooldown")]
)
def test_what_olmo_may_set_and_is_not_known_is_refused_by_name(scheduler: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedRecipe, match=message):
        schedule_from_olmo(olmo_config(scheduler=scheduler))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_mup": True}, "use_mup"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler"),
        ({"lr-decay-style": "cyclic"}, "lr_decay_style = 'cyclic'"),
        ({"train-iters": None, "lr-decay-iters": None}, "neither lr_decay_iters nor train_iters"),
    ],
)
def test_what_gpt_neox_may_set_and_is_not_known_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedRecipe, match=message):
        schedule_from_neox(PYTHIA | changes, "main")


def test_a_fraction_of_the_run_to_decay_over_is_newer_than_version_1() -> None:
    config = {"train_iters": 1000, "lr_decay_fraction": 0.5}

    assert schedule_from_neox(config, "main").to_table()["max_steps"] == 500
    assert schedule_from_neox(config, "v1.0").to_table()["max_steps"] == 1000


# --- Beside the trainers' own code -------------------------------------------------------------------------------


@pytest.mark.published
@pytest.mark.filterwarnings("ignore")
def test_rates_equal_those_of_olmo_core_s_classes() -> None:
    """Random settings of every class, each step of a run."""
    scheduler = importlib.import_module("olmo_core.optim.scheduler")
    draw = random.Random(0)
    names = "CosWithWarmup HalfCosWithWarmup LinearWithWarmup CosWithWarmupAndLinearDecay InvSqrtWithWarmup".split()

    for _ in range(300):
        length, base = draw.randint(30, 300), draw.uniform(1e-4, 1e-2)
        warmup = draw.choice([{"warmup": draw.randint(1, length)}, {"warmup_fraction": draw.random() / 2 + 0.1}])
        decay = draw.choice([{}, {"decay": draw.randint(1, length - 1), "decay_fraction": None}])
        options = [(name, {"alpha_f": draw.random()}) for name in names]
        options += [("WSD", decay), ("PowerLR", decay), ("ConstantWithWarmup", {})]
        for name, more in options:
            theirs = getattr(scheduler, name)(**warmup, **more)
            config = core_config(theirs.as_config_dict(), length)
            ours = schedule_from_olmo_core(config)
            for step in range(1, length + 1):
                try:
                    expected = theirs.get_lr(base, step, length)
                except AssertionError:
                    continue  # Settings that the trainer would stop at.
                assert rate(ours, base, step) == expected, (config, step)


@pytest.mark.published
@pytest.mark.filterwarnings("ignore")
def test_rates_equal_those_of_olmo_s_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random settings of every name, each step of a run and the ten that follow it."""
    monkeypatch.setitem(sys.modules, "wandb", MagicMock())
    optim, config_module = importlib.import_module("olmo.optim"), importlib.import_module("olmo.config")
    draw = random.Random(0)

    for _ in range(100):
        for name in config_module.SchedulerType:
            length, base = draw.randint(30, 300), draw.uniform(1e-4, 1e-2)
            settings = {"t_warmup": draw.randint(1, 30), "alpha_f": draw.random()}
            settings |= draw.choice([{}, {"warmup_min_lr": 0.0}, {"t_max": float(draw.randint(31, 400))}])
            scheduler = config_module.SchedulerConfig(name=name, **settings)
            theirs = optim.build_scheduler(types.SimpleNamespace(scheduler=scheduler))
            ours = schedule_from_olmo(olmo_config(scheduler={"name": name.value, **settings}, max_duration=length))
            for step in range(1, length + 11):
                assert rate(ours, base, step) == theirs.get_lr(base, step, length), (name, settings, step)
