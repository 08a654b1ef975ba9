import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data_index.batch_queries import plan_of
from data_index.errors import InvalidEdit, InvalidRange, MissingCheckpoint, UnsupportedRecipe
from data_index.workspace import Workspace
from forensics.divergence import compare
from forensics.fork_list import forks_of
from forensics.forking import ForkResult, fork
from forensics.lookup import at, batch, where
from forensics.reproduction import replay
from forensics.tidying import prune, remove
from replay.recipe import recipe_of_run
from replay.recording import read_trace
from replay.weights import read_optimizer, read_weights


def fork_tiny(workspace: Workspace, *edits: str, first: int = 5, steps: int = 10, **options: object) -> ForkResult:
    return fork("tiny", from_step=first, num_steps=steps, edits=edits, workspace=workspace, device="cpu", **options)  # type: ignore[arg-type]


def losses(workspace: Workspace, name: str) -> dict[int, float]:
    run = workspace.run(name)
    rows = workspace.learned(workspace.home(run.name), "metrics")
    return {row["step"]: row["value"] for row in rows if row["name"] == "loss"}


def states_equal(workspace: Workspace, one: str, other: str, step: int) -> bool:
    a, b = (workspace.checkpoint(workspace.run(name), step) for name in (one, other))
    weights, theirs = read_weights(a), read_weights(b)
    moments, their_moments = read_optimizer(a), read_optimizer(b)
    return all(torch.equal(weights[name], theirs[name]) for name in weights) and all(
        torch.equal(moments[kind][name], their_moments[kind][name]) for kind in moments for name in weights
    )


def test_an_empty_fork_equals_its_parent_bit_for_bit(tiny: Workspace) -> None:
    result = fork_tiny(tiny)
    parent = losses(tiny, "tiny")

    assert {row["step"]: row["loss"] for row in result.steps} == {step: parent[step] for step in range(6, 16)}
    assert states_equal(tiny, "tiny", result.id, 15)


def test_an_empty_fork_of_the_real_run_equals_a_replay_of_it(core_shared: Workspace, same_kernels: bool) -> None:
    result = fork("core", from_step=10, num_steps=10, workspace=core_shared, device="cpu")
    report = replay("core", "10:20", workspace=core_shared, device="cpu")

    assert [row["loss"] for row in result.steps] == [row["loss"] for row in report.steps]
    assert states_equal(core_shared, "core", result.id, 20) == same_kernels


def test_replacing_a_batch_by_itself_changes_nothing(tiny: Workspace) -> None:
    own = batch("tiny", 8, workspace=tiny).column("instance").to_pylist()
    listed = ",".join(map(str, own))
    result = fork_tiny(tiny, f"replace instance:{listed} with=instance:{listed} @8")

    assert states_equal(tiny, "tiny", result.id, 15)


def test_rows_from_a_file_with_the_same_tokens_change_nothing(tiny: Workspace, tmp_path: Path) -> None:
    (row,) = batch("tiny", 8, workspace=tiny).slice(2, 1).to_pylist()
    tokens = batch("tiny", 8, instance=row["instance"], tokens=True, workspace=tiny).to_pylist()[0]["token_ids"]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"token_ids": tokens}) + "\n")
    result = fork_tiny(tiny, f"replace instance:{row['instance']} with={file} @8")
    (replaced,) = batch(result.id, 8, workspace=tiny).slice(2, 1).to_pylist()

    assert states_equal(tiny, "tiny", result.id, 15)
    assert (replaced["instance"], replaced["file"]) == (tiny.run("tiny").num_instances, "inserted.bin")


def test_dropping_the_bad_rows_removes_the_spike_and_leaves_the_steps_before_alone(tiny: Workspace) -> None:
    result = fork_tiny(tiny, "drop where:\"source LIKE '%.pyc.z'\" @9")
    ours, parent = losses(tiny, result.id), losses(tiny, "tiny")

    assert [ours[step] for step in (6, 7, 8)] == [parent[step] for step in (6, 7, 8)]
    assert ours[9] < parent[9] and ours[10] != parent[10]
    assert "drop 2 rows in 1 steps (9..9); the loss is divided by the targets that remain" in result.edits


def test_a_fork_is_asked_like_a_run(tiny: Workspace) -> None:
    dropped = batch("tiny", 9, workspace=tiny).column("instance").to_pylist()[:3]
    result = fork_tiny(tiny, f"drop instance:{','.join(map(str, dropped))} @9", "mask span:50:10-20")
    rows = batch(result.id, 9, workspace=tiny).to_pylist()

    assert len(rows) == 5 and not set(dropped) & {row["instance"] for row in rows}
    masked = [row for row in batch(result.id, "5:15", workspace=tiny).to_pylist() if row["masked"]]
    assert {(row["instance"], row["masked"]) for row in masked} == {(50, 10)}
    assert at(result.id, 9, workspace=tiny)["checkpoint_before"] == 5
    assert where(result.id, instance=dropped[0], workspace=tiny).num_rows == 0
    assert forks_of(tiny, "tiny")[0]["done"] == 10


def test_a_fork_replays_and_forks_again(tiny: Workspace) -> None:
    first = fork_tiny(tiny, "shuffle @5:15 seed=3", save_every=5)
    again = fork(first.id, from_step=10, num_steps=5, workspace=tiny, device="cpu")

    assert replay(first.id, "5:15", workspace=tiny, device="cpu").grade == "R0"
    assert states_equal(tiny, first.id, again.id, 15)


def test_masks_and_denominators_survive_a_second_fork(tiny: Workspace) -> None:
    document = batch("tiny", 12, workspace=tiny).to_pylist()[0]["document_ids"][0]
    dropped = batch("tiny", 13, workspace=tiny).to_pylist()[0]["instance"]
    edits = (f"mask document:{document} @12 rescale=false", f"drop instance:{dropped} @13 rescale=false")
    first = fork_tiny(tiny, *edits, save_every=5)
    again = fork(first.id, from_step=10, num_steps=5, workspace=tiny, device="cpu")
    run = tiny.run(first.id)
    plan = plan_of(tiny, run, 10, 15)

    assert plan[12].masks and plan[12].loss_denominator == plan[13].loss_denominator == 8 * 63
    assert states_equal(tiny, first.id, again.id, 15)


def test_the_same_command_finds_the_fork_and_an_interrupted_one_goes_on(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay.recording.SECONDS_BETWEEN_SAVES", 0.0)
    taken: list[int] = []

    def stop_at_8(result: object, last: int) -> None:
        taken.append(result.step)  # type: ignore[attr-defined]
        if len(taken) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fork_tiny(tiny, "shuffle seed=1", progress=stop_at_8)
    result = fork_tiny(tiny, "shuffle seed=1", progress=stop_at_8)
    found = fork_tiny(tiny, "shuffle seed=1", progress=stop_at_8)

    assert taken == list(range(6, 16)) and found == result
    assert len(result.steps) == 10 and tiny.fork_ids() == [result.id]


def test_going_on_without_save_every_keeps_the_states_that_were_kept(tiny: Workspace) -> None:
    result = fork_tiny(tiny, "shuffle seed=1", save_every=2)
    fork_tiny(tiny, "shuffle seed=1")

    assert [c.step for c in tiny.checkpoints(tiny.run(result.id))] == [5, 6, 8, 10, 12, 14, 15]


def test_spans_masked_twice_count_once(tiny: Workspace) -> None:
    result = fork_tiny(tiny, "mask span:50:10-20", "mask span:50:15-30", "repeat instance:50 times=2")
    rows = [row for row in batch(result.id, "5:15", workspace=tiny).to_pylist() if row["instance"] == 50]

    assert [row["masked"] for row in rows] == [20, 20]


def test_different_edits_are_different_forks(tiny: Workspace) -> None:
    ids = {fork_tiny(tiny, *edits, steps=1).id for edits in ((), ("shuffle seed=1",), ("shuffle seed=2",))}
    ids.add(fork_tiny(tiny, steps=1, overrides={"recipe.learning_rate": 1e-3}).id)

    assert len(ids) == 4


def test_the_recipe_can_be_overridden(tiny: Workspace) -> None:
    slower = fork_tiny(tiny, steps=3, overrides={"recipe.learning_rate": 1e-3})
    parent = losses(tiny, "tiny")

    assert slower.steps[0]["loss"] == parent[6] and slower.steps[1]["loss"] != parent[7]
    assert slower.steps[0]["learning_rate"] == recipe_of_run(tiny.run("tiny")).schedule.learning_rate(
        1e-3, step=6, tokens=0
    )
    assert tiny.run(slower.id).recipe_overrides == {"learning_rate": 1e-3}


def test_the_trace_has_a_row_for_each_step_and_layer(tiny: Workspace) -> None:
    result = fork_tiny(tiny)
    trace = read_trace(result.folder)

    assert trace["step"].tolist() == list(range(6, 16))
    for name in ("weight_norm_by_layer", "grad_norm_by_layer", "update_norm_by_layer"):
        assert trace[name].shape == (10, 5) and np.isfinite(trace[name]).all()
    with h5py.File(next((result.folder / "trace").glob("*.h5"))) as file:
        assert file.attrs["layers"].tolist() == ["embedding", "layer 0", "layer 1", "final norm", "head"]
    total = np.linalg.norm(trace["grad_norm_by_layer"], axis=1)
    np.testing.assert_allclose(total, [row["grad_norm"] for row in result.steps], rtol=1e-5)


def test_traced_norms_are_those_of_the_saved_states(tiny: Workspace) -> None:
    result = fork_tiny(tiny, steps=3, save_every=1)
    trace, run = read_trace(result.folder), tiny.run(result.id)
    states = [read_weights(tiny.checkpoint(run, step)) for step in (5, 6, 7, 8)]
    for row, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        update = sum(float((after[name] - before[name]).double().square().sum()) for name in after)
        weights = sum(float(tensor.double().square().sum()) for tensor in after.values())

        assert np.linalg.norm(trace["update_norm_by_layer"][row]) == pytest.approx(update**0.5, rel=1e-9)
        assert np.linalg.norm(trace["weight_norm_by_layer"][row]) == pytest.approx(weights**0.5, rel=1e-9)
        assert result.steps[row]["update_norm"] == pytest.approx(update**0.5, rel=1e-9)


def test_compare_says_how_far_and_that_it_claims_nothing(tiny: Workspace) -> None:
    same = fork_tiny(tiny)
    other = fork_tiny(tiny, "shuffle seed=1")
    result = compare(same.id, other.id, workspace=tiny)
    values = {(r["fork"], r["metric"], r["step"]): r["treatment"] for r in result.rows}

    assert {value for (name, _, _), value in values.items() if name == same.id} == {0.0}
    assert values[other.id, "distance/all", 15] > 0.01 and values[other.id, "heldout_loss", 15] != 0
    assert all(r["null_low"] is None and r["p_value"] is None for r in result.rows)
    assert "no nulls, no claim" in result.notes[0]


def test_compare_refuses_what_is_no_fork(tiny_shared: Workspace) -> None:
    with pytest.raises(InvalidEdit, match="tiny is a run, not a fork"):
        compare("tiny", workspace=tiny_shared)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("drop instance:99999", "no row of steps 6..15 of tiny is instance 99999"),
        ("drop instance:3 @19", "reaches outside the fork"),
        ("drop document:99999", "no row of steps 6..15 of tiny is document:99999"),
        ("drop tag:none", "is tag:none"),
        ('drop where:"no_such_column = 1"', "cannot be answered"),
        ('drop where:"1 = 1" @7', "step 7 is left without a row"),
        ("mask span:50:60-70", "is not I:START-STOP with 0 <= START < STOP <= 64"),
        ("swap instance:1,2,3", "swap takes two instances|no row of steps"),
        ("swap @7 with=30", "swap takes two different steps"),
        ("repeat instance:50 times=many", "is not a whole number"),
        ("drop instance:50 rescale=maybe", "neither true nor false"),
        ("insert instance:99999 @7", "tiny has instances"),
    ],
)
def test_an_edit_that_cannot_be_is_refused_and_leaves_no_fork(tiny: Workspace, edit: str, message: str) -> None:
    with pytest.raises(InvalidEdit, match=message):
        fork_tiny(tiny, edit)

    assert tiny.fork_ids() == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"token_ids": [1]}', "has 1 tokens; a row of tiny takes 2 to 64"),
        ('{"token_ids": [1, 70000]}', "token ids must lie in 0..65535"),
        ('{"words": []}', "neither"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tiny: Workspace, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(InvalidEdit, match=message):
        fork_tiny(tiny, f"insert with={tmp_path / 'rows.jsonl'} @7")


def test_short_text_is_padded_outside_the_loss(tiny: Workspace, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "import this"}\n')
    result = fork_tiny(tiny, f"insert with={tmp_path / 'rows.jsonl'} @7", steps=2)
    rows = batch(result.id, 7, tokens=True, workspace=tiny).to_pylist()

    assert len(rows) == 9 and rows[-1]["token_ids"][-1] == tiny.run("tiny").eos_token_id
    counted = sum(token != 0 for token in rows[-1]["token_ids"]) - 1
    assert result.steps[1]["num_targets"] == 8 * 63 + counted


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"first": 6}, MissingCheckpoint),
        ({"steps": 0}, InvalidRange),
        ({"overrides": {"recipe.nothing": 1}}, UnsupportedRecipe),
    ],
)
def test_forks_that_cannot_start_say_why(tiny: Workspace, options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        fork_tiny(tiny, **options)  # type: ignore[arg-type]
    assert tiny.fork_ids() == []


def test_remove_and_prune_show_first_and_protect_parents(tiny: Workspace, tiny_copy: Path) -> None:
    from data_index.errors import Busy, MissingFile

    result = fork_tiny(tiny, save_every=1)
    with pytest.raises(Busy, match="tiny has forks, which need it"):
        list(remove("tiny", confirmed=True, workspace=tiny))
    with pytest.raises(MissingFile, match="outside the workspace"):
        list(prune("tiny", keep_every=10, confirmed=True, workspace=tiny))
    shown = list(prune(result.id, keep_every=5, confirmed=False, workspace=tiny))
    assert "would delete 7 states" in shown[0]
    list(prune(result.id, keep_every=5, confirmed=True, workspace=tiny))
    steps = [c.step for c in tiny.checkpoints(tiny.run(result.id))]
    assert steps == [5, 6, 10, 15]
    list(remove(result.id, confirmed=False, workspace=tiny))
    assert tiny.fork_ids() == [result.id]
    list(remove(result.id, confirmed=True, workspace=tiny))
    list(remove("tiny", confirmed=True, workspace=tiny))

    assert (tiny.fork_ids(), tiny.run_names()) == ([], []) and (tiny_copy / "run.toml").exists()
