"""`blame` where batches are small, numbers are none, and what it kept is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_index.batch import Batch
from data_index.errors import InvalidRange, StepOutOfRange
from data_index.registration import add
from data_index.workspace import Workspace
from forensics import window_replay
from forensics.attribution import blame, prepare_search
from forensics.attribution_picture import _together, page_below, picture_of
from forensics.attribution_plan import stages_of
from forensics.cli.output import to_json
from forensics.figure import write_figure
from forensics.forking import fork
from forensics.investigation import Search
from forensics.marked_text import MarkedText, marked_text
from forensics.removal import Band, read_outcomes
from forensics.spike_window import SpikeWindow, UsualValue
from forensics.suspects import row_gradients, suspect_steps
from forensics.window_replay import TakenStep
from replay.train_state import TrainState, initial_state
from replay.train_step import StepResult, accumulate_gradients
from tests.replay.test_batch_losses import CPU, RECIPE, SETTINGS, ragged
from tests.spiked.causes import Cause, Random, repeated_ngram
from tests.spiked.runs import Planted, Sizes, make_spiked_run
from tests.spiked.text import Text

TINY = Sizes(num_steps=40, first_spike=28, hidden=32, length=64, learning_rate=1e-3)
GIVEN = {
    "device": "cpu",
    "precision": "recipe",
    "enforce_determinism": True,
    "approximate": False,
    "fresh_optimizer": False,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text.collect(tmp_path_factory.mktemp("text"), TINY.vocabulary, characters=200_000)


def made(folder: Path, text: Text, cause: Cause, sizes: Sizes = TINY) -> tuple[Workspace, Planted]:
    planted = make_spiked_run(folder / "spiked", text, cause, 0, sizes)
    workspace = Workspace(folder / "workspace")
    workspace.create()
    add(planted.folder, workspace=workspace)
    return workspace, planted


@pytest.fixture(scope="module")
def ordinary(text: Text, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Planted]:
    return made(tmp_path_factory.mktemp("ordinary"), text, Cause(rows=1, spoil=repeated_ngram))


def test_rows_that_are_no_numbers_are_found_and_drawn(text: Text, tmp_path: Path) -> None:
    """Two rows hold a token whose embedding is NaN: no measurement of the batch is a number, nor any null's."""
    poison = int(next(token for token in text.rare if token != text.end))

    def spoil(rows: np.ndarray, text: Text, random: Random) -> np.ndarray:
        return np.where(np.arange(rows.shape[1]) == 20, poison, rows)

    def tamper(state: TrainState, random: Random) -> None:
        with torch.no_grad():
            state.model.get_input_embeddings().weight[poison] = torch.nan

    workspace, planted = made(tmp_path, text, Cause(rows=2, spoil=spoil, tamper=tamper, recorded=True))
    answer = blame("spiked", planted.step, workspace=workspace)
    picture = tmp_path / "picture.png"
    write_figure(picture_of(answer), picture)

    assert (answer.verdict, answer.cause) == ("data", "group")
    assert {row["instance"] for row in answer.candidates[:2]} == set(planted.instances)
    assert answer.found.restored(answer.found.group) == 1 and "instead of no number" in answer.reason
    assert json.loads(to_json(answer.to_json()))["candidates"][0]["null_high"] is None
    assert "no number" in page_below(answer) and picture.stat().st_size > 0


def test_a_batch_of_one_row_is_the_cause_as_a_whole(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row cannot be taken away, only replaced. And what `--plan` says of the stages before is what they do."""
    workspace, planted = made(tmp_path, text, Cause(rows=1, spoil=repeated_ngram), replace(TINY, rows=1))
    window, setup = prepare_search(workspace, workspace.run("spiked"), planted.step, Search(), **GIVEN)
    replay_stage = next(stage for stage in stages_of(setup, window, Search()) if stage.stage == "replay")
    forwards = 0
    train_step, accumulate = window_replay.train_step, window_replay.accumulate_gradients

    def counted_step(*arguments: object) -> StepResult:
        nonlocal forwards
        forwards += 3
        return train_step(*arguments)  # type: ignore[arg-type]

    def counted_losses(*arguments: object) -> object:
        nonlocal forwards
        forwards += 1
        return accumulate(*arguments)  # type: ignore[arg-type]

    after: dict[str, int] = {}
    monkeypatch.setattr(window_replay, "train_step", counted_step)
    monkeypatch.setattr(window_replay, "accumulate_gradients", counted_losses)
    answer = blame(
        "spiked",
        planted.step,
        workspace=workspace,
        progress=lambda stage, done, total: after.__setitem__(stage, forwards),
    )

    assert window.peak == planted.step and after["replay"] == replay_stage.forwards
    assert (answer.verdict, answer.cause) == ("data", "batch") and answer.candidates == ()
    write_figure(picture_of(answer), tmp_path / "picture.html", page_below(answer))


def test_no_fork_is_named_that_would_take_more_away(ordinary: tuple[Workspace, Planted]) -> None:
    """An instance that stands eight times in a batch: a group of seven is the cause, and `drop` would take all."""
    workspace, planted = ordinary
    edit = f"repeat instance:{planted.instances[0]} times=8 @{planted.step}"
    forked = fork("spiked", from_step=24, num_steps=planted.step - 23, edits=[edit], workspace=workspace)
    answer = blame(forked.id, planted.step, workspace=workspace)

    assert answer.cause == "group" and len(answer.found.group.places) == 7
    assert answer.commands == () and "in 8 rows, of which 7 were taken away" in answer.notes[-1]


def test_a_step_that_was_skipped_has_no_loss_to_explain(ordinary: tuple[Workspace, Planted]) -> None:
    workspace, _ = ordinary
    run = workspace.run("spiked")
    (whole,) = run.segments
    first = replace(whole, num_steps=25)
    second = replace(whole, first_step=26, num_steps=15, first_position=25 * 8, outcome="skipped")
    with pytest.raises(StepOutOfRange, match="skipped step 27"):
        prepare_search(workspace, replace(run, segments=(first, second)), 27, Search(), **GIVEN)


@pytest.mark.parametrize("settings", [{"top": 0}, {"nulls": 0}, {"nulls": -1}, {"before": -1}])
def test_a_search_without_suspects_or_nulls_is_refused(settings: dict[str, int]) -> None:
    """Without random removals beside it, a removal shows nothing."""
    with pytest.raises(InvalidRange):
        Search(**settings)


@pytest.mark.parametrize("content", ["{{", "[1]", '{"a": "b"}', '{"a": [1, 2]}', '{"a": [1.0]}', '{"a": null}', "\xff"])
def test_damaged_outcomes_are_not_believed(content: str, tmp_path: Path) -> None:
    path = tmp_path / "outcomes.json"
    path.write_bytes(content.encode("latin-1"))

    assert read_outcomes(path) == {}
    path.write_text('{"good": [1.5, NaN], "bad": ["x", 1.0]}')
    assert list(read_outcomes(path)) == ["good"]


def test_nulls_that_are_no_numbers_lie_above_every_number() -> None:
    band = Band(low=np.inf, high=np.inf, num=3)

    assert band.is_below(1e9) and not band.is_below(np.nan) and str(band) == "no number"


def test_the_update_after_which_the_loss_is_no_number_is_suspected() -> None:
    def taken(step: int, before: float, after: float | None) -> TakenStep:
        result = StepResult(step=step, loss=1, z_loss=0, grad_norm=1, learning_rate=1, tokens=1, num_targets=1)
        return TakenStep(result=result, peak_loss_before=before, peak_loss_after=after)

    nan = float("nan")
    steps = [taken(1, 5, 5.2), taken(2, 5.2, nan), taken(3, nan, nan), taken(4, nan, None)]
    usual = {"loss": UsualValue(value=5, scale=0.1, num_values=20)}
    window = SpikeWindow(asked=4, onset=4, peak=4, start=None, measure="loss", usual=usual, logged={})  # type: ignore[arg-type]
    assert suspect_steps(window, steps, nan) == [2, 4]


def test_a_long_window_is_drawn_with_few_bars() -> None:
    """A picture of a bar for each of a thousand updates would be higher than can be drawn."""
    moved = np.random.default_rng(0).normal(size=1001)
    steps = [SimpleNamespace(step=number, moved=float(by)) for number, by in enumerate(moved)]
    found = SimpleNamespace(taken=steps, steps=(1000,), excess=0.0)
    groups = _together(SimpleNamespace(found=found))  # type: ignore[arg-type]

    assert [step.step for group in groups for step in group] == list(range(1000)) and len(groups) <= 25


@pytest.mark.parametrize("settings", [s for s in SETTINGS if "rank" not in s and s != "bf16"])
def test_the_loss_without_a_row_is_that_of_the_batch_without_it(settings: str) -> None:
    """By every rule of the denominator, with rows that are filtered, masked and hidden in part."""
    recipe = replace(RECIPE, z_loss=0.0, **SETTINGS[settings])
    state = initial_state(recipe, seed=1, device=CPU)
    accumulate_gradients(state, ragged(), recipe)
    found = row_gradients(state, ragged(), recipe)
    for row in range(6):
        with torch.no_grad():
            there = accumulate_gradients(state, without(ragged(), row), recipe).logged.item()
        assert found.losses_without[row] == pytest.approx(there, rel=1e-5)


def test_shares_are_computed_in_fp32_whatever_the_recipe() -> None:
    """In bf16 a finite difference is mostly rounding."""
    recipe = replace(RECIPE, precision="bf16")
    state = initial_state(recipe, seed=1, device=CPU)
    accumulate_gradients(state, ragged(), recipe)
    before = {name: p.grad.clone() for name, p in state.model.named_parameters()}
    found = row_gradients(state, ragged(), recipe)
    exact = row_gradients(state, ragged(), replace(recipe, precision="fp32"))

    assert np.array_equal(found.shares, exact.shares) and found.agreement == pytest.approx(1, abs=0.02)
    assert all(torch.equal(p.grad, before[name]) for name, p in state.model.named_parameters())


def test_a_target_whose_loss_is_0_is_a_target(ordinary: tuple[Workspace, Planted]) -> None:
    """A model that knows a repeated n-gram by heart loses exactly nothing on it."""
    workspace, _ = ordinary
    ids, is_target = np.arange(4), np.array([True, False, True])
    losses = np.array([0.0, 0.0, np.nan], dtype=np.float32)
    marked: MarkedText = marked_text(workspace.run("spiked"), ids, losses, is_target, "title", None)

    page = marked.as_html()
    assert "token 1: 0.00 nats" in page and "token 2: no target" in page and "token 3: no number" in page


def without(batch: Batch, row: int) -> Batch:
    kept = np.arange(len(batch.token_ids)) != row
    names = ("instances", "token_ids", "counts_as_target", "counted_by_trainer", "filtered")
    return replace(batch, **{name: getattr(batch, name)[kept] for name in names})
