"""`blame` on runs whose cause is known, and on the ways in which it must not claim one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_index.metric_queries import logged_metrics
from data_index.registration import add
from data_index.workspace import Workspace
from forensics.attribution import Blame, blame
from forensics.forking import fork
from forensics.investigation import Search
from forensics.lookup import batch
from forensics.spike_window import window_of
from forensics.window_replay import WindowReplay
from tests.conftest import FIXTURES, REAL_RUNS
from tests.spiked.causes import Cause, forget_second_moments, glitched_rate, repeated_ngram, span_of_ngrams
from tests.spiked.runs import SMALL, Planted, Sizes, make_spiked_run
from tests.spiked.text import Text

CLEAR_Z = 7.5
FEW = Search(top=4, nulls=4)  # where what is asked does not depend on how many rows are taken away
MODELS = {
    "grouped-query": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "sliding window": {
        "model_type": "olmo3",
        "num_key_value_heads": 2,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "GPT-NeoX": {"model_type": "gpt_neox", "layer_norm_eps": 1e-5, "use_parallel_residual": True, "rotary_pct": 0.25},
}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text.collect(tmp_path_factory.mktemp("text"), SMALL.vocabulary, characters=200_000)


def spiked(folder: Path, text: Text, cause: Cause, sizes: Sizes = SMALL, after: int = 0) -> tuple[Workspace, Planted]:
    """A workspace with a run called `spiked`, and what was planted in it.

    What the text is depends on the Python at hand: the first seed is taken whose log clearly shows a spike, so many
    steps `after` the planted one.
    """
    for seed in range(20):
        planted = make_spiked_run(folder / str(seed) / "spiked", text, cause, seed, sizes)
        workspace = Workspace(folder / str(seed) / "workspace")
        workspace.create()
        add(planted.folder, workspace=workspace)
        window = window_of(workspace, workspace.run("spiked"), planted.step + after)
        if window.peak == planted.step + after and (window.z or 0.0) > CLEAR_Z:
            return workspace, planted
    raise AssertionError("no seed gives a spike")


@pytest.fixture(scope="module")
def ngram_run(text: Text, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Planted, Blame]:
    """A run with one instance of a repeated n-gram, and whom it blames."""
    workspace, planted = spiked(tmp_path_factory.mktemp("ngram"), text, Cause(rows=1, spoil=repeated_ngram))
    return workspace, planted, blame("spiked", planted.step, workspace=workspace)


def test_the_planted_instance_is_first_and_its_removal_restores_the_loss(
    ngram_run: tuple[Workspace, Planted, Blame],
) -> None:
    _, planted, answer = ngram_run
    first = answer.candidates[0]

    assert (answer.verdict, answer.cause) == ("data", "instance")
    assert (first["step"], first["instance"]) == (planted.step, planted.instances[0])
    assert first["restored"] > 0.6 and first["loss_if_removed"] < first["null_low"] <= first["null_high"]
    assert answer.documents and answer.documents[0]["num_tokens"] <= SMALL.length * SMALL.rows
    assert {"repetition", "repeated_text"} & set(first["signals"]) and answer.odds[0].base_with <= 1


def test_a_removal_is_the_fork_without_the_row(ngram_run: tuple[Workspace, Planted, Blame]) -> None:
    """What blame states is what anyone gets who takes the steps again without the row, to the bit."""
    workspace, planted, answer = ngram_run
    start = answer.found.window.start.step
    edit = f"drop instance:{planted.instances[0]} @{planted.step}"
    made = fork("spiked", from_step=start, num_steps=planted.step - start, edits=[edit], workspace=workspace)

    assert made.steps[-1]["loss"] == answer.candidates[0]["loss_if_removed"]
    assert made.steps[-1]["grad_norm"] == answer.candidates[0]["grad_norm_if_removed"]
    assert f"--from {start}" in answer.commands[0] and edit in answer.commands[0]


def test_a_document_left_out_is_the_fork_that_masks_it(ngram_run: tuple[Workspace, Planted, Blame]) -> None:
    workspace, planted, answer = ngram_run
    start, first = answer.found.window.start.step, answer.documents[0]
    assert {step for step, _ in first["rows"]} == {planted.step}
    edit = f"mask document:{first['document_id']} @{planted.step}"
    made = fork("spiked", from_step=start, num_steps=planted.step - start, edits=[edit], workspace=workspace)

    assert made.steps[-1]["loss"] == first["loss_if_hidden"]
    assert made.steps[-1]["grad_norm"] == first["grad_norm_if_hidden"]
    assert first["restored"] > 0.5 and first["loss_if_hidden"] < first["null_low"]


def test_what_is_predicted_of_a_row_of_the_peak_is_what_its_removal_gives(
    ngram_run: tuple[Workspace, Planted, Blame],
) -> None:
    """Loss and gradient norm without a row of the peak's own batch follow from losses, shares and norms."""
    _, planted, answer = ngram_run
    rows = answer.found.gradients[planted.step]
    for suspect in answer.found.suspects:
        _, row = suspect.place
        assert rows.losses_without[row] == pytest.approx(suspect.removal.loss, rel=1e-5)
        # The shares are a finite difference in fp32.
        assert rows.norms_without[row] == pytest.approx(suspect.removal.grad_norm, rel=5e-3)


def test_the_same_question_computes_no_removal_again(
    ngram_run: tuple[Workspace, Planted, Blame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted search goes on with what it has."""
    workspace, planted, answer = ngram_run

    def never(self: WindowReplay, edited: object) -> tuple[float, float]:
        raise AssertionError("a removal was computed again")

    monkeypatch.setattr(WindowReplay, "outcome", never)
    again = blame("spiked", planted.step, workspace=workspace)
    assert json.dumps(again.to_json()) == json.dumps(answer.to_json())


def test_no_data_are_blamed_on_weaker_evidence(ngram_run: tuple[Workspace, Planted, Blame]) -> None:
    """Each condition alone: the same finding without it is unexplained."""
    _, _, answer = ngram_run
    found, first = answer.found, answer.found.suspects[0]
    assert found.verdict()[0] == "instance"
    ordinary = replace(first, loss_z=2.0, norm_z=2.0)
    band = found.bands["loss"]
    among_random_ones = replace(band, low=first.removal.loss - 0.01, high=first.removal.loss + 0.01)
    half = found.peak_loss - 0.45 * (found.excess or 0.0)
    weak = replace(first, removal=replace(first.removal, loss=half))
    higher = replace(found.window, logged={"loss": found.peak_loss + 0.5 * (found.excess or 0.0)})
    weaker = {
        "an ordinary row": replace(found, suspects=(ordinary, *found.suspects[1:]), group=None),
        "no more than random rows": replace(found, bands={"loss": among_random_ones}, group=None),
        "less than half of the excess": replace(found, suspects=(weak, *found.suspects[1:]), group=None),
        "not what was logged": replace(found, window=higher),
        "no history": replace(found, usual=None),
    }

    assert {name: one.verdict()[0] for name, one in weaker.items()} == dict.fromkeys(weaker, None)
    assert "something besides" in weaker["not what was logged"].verdict()[1]
    assert "too little history" in weaker["no history"].verdict()[1]


def test_a_span_is_found_inside_an_ordinary_row(text: Text, tmp_path: Path) -> None:
    workspace, planted = spiked(tmp_path, text, Cause(rows=1, spoil=span_of_ngrams))
    answer = blame("spiked", planted.step, workspace=workspace)
    first = answer.candidates[0]
    found = np.zeros(SMALL.length, dtype=bool)
    found[first["span_start"] : first["span_stop"]] = True

    assert first["instance"] == planted.instances[0]
    assert (found & planted.changed[0]).sum() > 0.7 * planted.changed[0].sum()
    assert (found & ~planted.changed[0]).sum() < 0.3 * planted.changed[0].sum()
    assert first["restored_by_span"] > 0.35


@pytest.mark.parametrize(
    "cause",
    [
        Cause(tamper=forget_second_moments),
        Cause(tamper=forget_second_moments, recorded=True),
        Cause(recipe=glitched_rate),
        Cause(recipe=glitched_rate, recorded=True),
    ],
    ids=["moments", "moments in the checkpoint", "rate", "rate in the recipe"],
)
def test_a_spike_that_the_data_did_not_make_is_unexplained(cause: Cause, text: Text, tmp_path: Path) -> None:
    workspace, planted = spiked(tmp_path, text, cause, replace(SMALL, learning_rate=3e-3), after=1)
    answer = blame("spiked", planted.step + 1, search=FEW, workspace=workspace)

    assert answer.verdict == "unexplained" and answer.cause is None
    if cause.recorded:
        assert "no row, group of rows or batch explains it" in answer.reason
        assert planted.step in answer.found.steps  # the update that did it
    else:
        assert "neither in the data nor in the recipe" in answer.reason or "something besides" in answer.reason


def test_where_nothing_spikes_nothing_is_blamed(ngram_run: tuple[Workspace, Planted, Blame]) -> None:
    workspace, planted, _ = ngram_run
    logged = logged_metrics(workspace, workspace.run("spiked"), planted.step - 9, planted.step - 1)
    calmest = min(logged, key=lambda step: logged[step]["grad_norm"])
    answer = blame("spiked", calmest, workspace=workspace)

    assert answer.verdict == "unexplained" and "is no spike" in answer.reason


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(name: str, text: Text, tmp_path: Path) -> None:
    sizes = replace(SMALL, model=MODELS[name])
    workspace, planted = spiked(tmp_path, text, Cause(rows=3, spoil=repeated_ngram), sizes=sizes)
    answer = blame("spiked", planted.step, search=FEW, workspace=workspace)

    assert answer.verdict == "data"
    assert {row["instance"] for row in answer.candidates[:3]} == set(planted.instances)
    rows = answer.found.gradients[planted.step]
    assert rows.agreement == pytest.approx(1, abs=0.01) and rows.shares.mean() == pytest.approx(1)


@pytest.mark.parametrize("name", ["core", "skip", "olmo"])
def test_runs_of_the_real_trainers(name: str, tmp_path: Path) -> None:
    """Three rows of a step of a real run are replaced by repeated n-grams, in a fork from the trainer's checkpoint."""
    workspace = Workspace(tmp_path / "workspace")
    workspace.create()
    add(FIXTURES / REAL_RUNS[name], name=name, workspace=workspace)
    run, random = workspace.run(name), np.random.default_rng(0)
    read = [row["instance"] for row in batch(name, "22", workspace=workspace).to_pylist()]
    edits = []
    for number, instance in enumerate((read[1], read[3], read[5])):
        ngram = random.integers(run.vocabulary_size // 2, run.vocabulary_size, size=5 + number)
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps({"token_ids": np.resize(ngram, run.sequence_length).tolist()}))
        edits.append(f"replace instance:{instance} with={path} @22")
    made = fork(name, from_step=10, num_steps=14, edits=edits, workspace=workspace)
    answer = blame(made.id, 22, search=FEW, workspace=workspace)
    added = range(run.num_instances, run.num_instances + 3)

    assert (answer.verdict, answer.cause) == ("data", "group")
    assert {row["instance"] for row in answer.candidates[:3]} == set(added)
    assert answer.found.peak_loss == made.steps[11]["loss"]
