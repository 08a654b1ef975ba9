import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.errors import (
    CorruptFile,
    InvalidRange,
    MissingCheckpoint,
    MissingState,
    StepOutOfRange,
    UnsupportedRecipe,
)
from data_index.registration import add
from data_index.seal import write_seal
from data_index.workspace import Workspace
from forensics.explaining import explain_report, summarize_report
from forensics.reproduction import prepare, replay, replay_folder
from forensics.sample_run import plan_of_segments
from replay.train_step import StepResult

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("steps", ["0:20", "5:15", "10:20", "0:5"])
def test_the_sample_run_replays_bit_for_bit(tiny_shared: Workspace, steps: str) -> None:
    """10:20 crosses the epoch's border at step 14."""
    report = replay("tiny", steps, workspace=tiny_shared, device="cpu")

    assert (report.grade, report.weights_equal, report.states_equal) == ("R0", True, True)
    assert report.first_divergent_step is None and report.max_abs_loss_difference == 0.0
    assert report.fingerprint_matches is True and report.differences == ()


def test_between_checkpoints_only_the_log_can_be_compared(tiny_shared: Workspace) -> None:
    report = replay("tiny", "5:8", workspace=tiny_shared, device="cpu")

    assert (report.grade, report.weights_equal) == ("R1", None)
    assert any("no checkpoint at step 8" in note for note in report.notes)


@pytest.mark.parametrize(("recorded", "grade"), [("same", "R0"), ("other", "R1")])
def test_without_a_checkpoint_the_trainers_hash_decides(
    tiny_shared: Workspace, monkeypatch: pytest.MonkeyPatch, recorded: str, grade: str
) -> None:
    learned = Workspace.learned

    def with_hashes(workspace: Workspace, home: Path, kind: str) -> list[dict[str, Any]]:
        rows = [{"step": 8, "sha256": recorded}]
        return rows if kind == "parameter_hashes" else learned(workspace, home, kind)

    monkeypatch.setattr(Workspace, "learned", with_hashes)
    monkeypatch.setattr("forensics.reproduction.trainer_parameter_hash", lambda weights, order: "same")
    report = replay("tiny", "5:8", workspace=tiny_shared, device="cpu")

    assert (report.grade, report.weights_equal, report.states_equal) == (grade, recorded == "same", None)


def test_a_hash_of_the_weights_is_not_said_to_be_a_checkpoint(tiny_shared: Workspace) -> None:
    report = replay("tiny", "5:8", workspace=tiny_shared, device="cpu")
    hashed = replace(report, grade="R0", weights_equal=True)

    assert any("after step 8" in line and "hash" in line for line in summarize_report(hashed))
    assert not any("checkpoint 8" in line for line in summarize_report(hashed))
    assert "Weights and moments at 8: nothing to compare with" in explain_report(hashed)


@pytest.mark.parametrize("steps", ["0:10", "10:20"])
def test_a_run_of_the_real_olmo_core_trainer_replays(core_shared: Workspace, same_kernels: bool, steps: str) -> None:
    """Parameters after every step (sha256 in the fixture), loss, z-loss, gradient norm and learning rate.

    Bit for bit where kernels are those of the machine that made the fixture; elsewhere within 1e-6 of each loss,
    which is about two units in the last place of an fp32 loss near 5.
    """
    report = replay("core", steps, workspace=core_shared, device="cpu")

    if same_kernels:
        assert (report.grade, report.first_divergent_step, report.states_equal) == ("R0", None, True)
        assert all(row["parameters_equal"] for row in report.steps)
    else:
        assert report.grade == "R1" and report.weight_distance is not None and report.weight_distance < 1e-6
    for row in report.steps:
        assert row["learning_rate"] == row["learning_rate_logged"]
        assert row["z_loss"] == pytest.approx(row["z_loss_logged"], rel=1e-6)
        assert row["grad_norm"] == pytest.approx(row["grad_norm_logged"], rel=1e-6)


@pytest.mark.parametrize("steps", ["0:10", "10:25"])
def test_the_skip_rule_and_the_instance_filter_replay(
    core_shared: Workspace, known_kernels: dict[str, bool], steps: str
) -> None:
    """SkipStepAdamW, windows of attention, shared key heads; row 6 of step 16 is filtered, its tokens still count.

    The window of the rule is not in checkpoint 10: it is filled from the log.
    """
    report = replay("skip", steps, workspace=core_shared, device="cpu")

    if known_kernels["skip"]:
        assert (report.grade, report.first_divergent_step, report.weights_equal) == ("R0", None, True)
    else:
        assert report.grade == "R1"
    for row in report.steps:
        assert (row["learning_rate"], row["skipped"]) == (row["learning_rate_logged"], row["skipped_logged"])
        assert row["z_loss"] == pytest.approx(row["z_loss_logged"], rel=1e-6)
        assert row["grad_norm"] == pytest.approx(row["grad_norm_logged"], rel=1e-6)
    assert not any("skip rule" in note for note in report.notes)


@pytest.mark.parametrize("steps", ["0:10", "10:20", "20:25"])
def test_a_run_of_the_legacy_olmo_trainer_replays(core_shared: Workspace, steps: str) -> None:
    """transformers' Olmo2 splits two fused projections, so gradients are rounded otherwise than the trainer's.

    2e-6 is four units in the last place of a loss near 6; 4.8e-7 was measured.
    """
    report = replay("olmo", steps, workspace=core_shared, device="cpu")

    assert report.grade == "R1"
    for row in report.steps:
        assert abs(row["loss"] - row["loss_logged"]) <= 2e-6
        assert abs(row["grad_norm"] - row["grad_norm_logged"]) <= 2e-6
        assert abs(row["z_loss"] - row["z_loss_logged"]) <= 2e-9
        assert row["learning_rate"] == row["learning_rate_logged"]


def test_a_window_that_the_log_does_not_fill_is_said(core_shared: Workspace, tmp_path: Path) -> None:
    """Without the log of the steps before, the rule cannot judge as the trainer did."""
    record = tmp_path / "late.jsonl"
    lines = (FIXTURES / "olmo-core" / "skipstep" / "metrics.jsonl").read_text().splitlines()
    record.write_text("\n".join(line for line in lines if json.loads(line)["step"] > 5) + "\n")
    workspace = Workspace(tmp_path / "workspace")
    run = tmp_path / "skipstep"
    shutil.copytree(FIXTURES / "olmo-core" / "skipstep", run)
    (run / "metrics.jsonl").unlink()
    add(run, name="skip", data=FIXTURES / "olmo-core", metrics=record, workspace=workspace)

    report = replay("skip", "10:12", workspace=workspace, device="cpu")

    assert any("The skip rule compares with the 16 steps before; the log has 5" in note for note in report.notes)


def test_a_real_run_replays_past_its_last_checkpoint_by_its_hashes(core_shared: Workspace, same_kernels: bool) -> None:
    report = replay("core", "20:25", workspace=core_shared, device="cpu")

    assert report.grade == ("R0" if same_kernels else "R1")
    assert [row["step"] for row in report.steps] == [21, 22, 23, 24, 25]


def change_one_token(folder: Path, step: int) -> tuple[str, int]:
    """Flip a bit of the first token of the first row that a step reads; returns the file's name and the byte."""
    from data_index.run_file import read_run
    from data_index.tokens import TokenReader

    run = read_run(folder)
    instance = int(plan_of_segments(run)[step].instances[0])
    file, offset = TokenReader(run, None).place_of(instance)
    tokens = np.fromfile(file.path, dtype="<u2")
    tokens[offset + 1] ^= 1
    tokens.tofile(file.path)
    return file.name, offset + 1


def test_a_changed_token_is_named_by_file_and_block(tiny: Workspace, tiny_copy: Path) -> None:
    name, _ = change_one_token(tiny_copy, 8)

    with pytest.raises(CorruptFile, match=rf"{name} changed: block 0 \(bytes 0\.\."):
        replay("tiny", "5:10", workspace=tiny, device="cpu")


def test_without_verifying_the_first_divergent_step_is_named(tiny: Workspace, tiny_copy: Path) -> None:
    change_one_token(tiny_copy, 8)
    report = replay("tiny", "5:10", workspace=tiny, device="cpu", verify=False)

    assert (report.first_divergent_step, report.weights_equal) == (8, False)
    assert report.grade == "unbanded" and report.differences[0].name == "model.embed_tokens.weight"
    assert report.differences[0].max_abs > 0


def test_a_changed_weight_is_named(tiny: Workspace, tiny_copy: Path) -> None:
    from replay.weights import read_safetensors, write_safetensors

    path = tiny_copy / "checkpoints" / "step10" / "model.safetensors"
    tensors = read_safetensors(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-6
    write_safetensors(path, tensors)
    report = replay("tiny", "5:10", workspace=tiny, device="cpu")

    assert report.grade == "R1"
    assert [(d.name, d.num_different) for d in report.differences] == [("model.layers.1.mlp.up_proj.weight", 1)]


def test_a_changed_moment_is_named_too(tiny: Workspace, tiny_copy: Path) -> None:
    from replay.weights import read_safetensors, write_safetensors

    path = tiny_copy / "checkpoints" / "step10" / "optimizer.safetensors"
    tensors = read_safetensors(path)
    tensors["exp_avg_sq.model.norm.weight"][3] *= 2
    write_safetensors(path, tensors)
    report = replay("tiny", "5:10", workspace=tiny, device="cpu")

    assert (report.grade, report.weights_equal, report.states_equal) == ("R1", True, False)
    assert [d.name for d in report.differences] == ["exp_avg_sq.model.norm.weight"]


def test_another_run_under_the_same_name_is_another_replay(tiny: Workspace) -> None:
    setup = prepare(tiny, tiny.run("tiny"), "cpu", "recipe")
    before = replay_folder(setup, 5, 10, True)
    path = tiny.home("tiny") / "run.toml"
    path.write_text(path.read_text() + "\n# registered anew\n")
    write_seal(path.parent)

    assert replay_folder(setup, 5, 10, True) != before


class Stop(Exception):
    pass


def test_an_interrupted_replay_goes_on_to_the_same_bits(tiny: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replay.recording.SECONDS_BETWEEN_SAVES", 0.0)

    def stop_at_9(result: StepResult, last: int) -> None:
        if result.step == 9:
            raise Stop

    with pytest.raises(Stop):
        replay("tiny", "0:20", workspace=tiny, device="cpu", progress=stop_at_9)
    steps: list[int] = []
    report = replay("tiny", "0:20", workspace=tiny, device="cpu", progress=lambda r, last: steps.append(r.step))

    assert steps == list(range(10, 21))
    assert report.grade == "R0" and [row["step"] for row in report.steps] == list(range(1, 21))


def test_a_finished_replay_starts_anew(tiny: Workspace) -> None:
    steps: list[int] = []
    for _ in range(2):
        replay("tiny", "5:7", workspace=tiny, device="cpu", progress=lambda r, last: steps.append(r.step))

    assert steps == [6, 7, 6, 7]


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        ("6:10", MissingCheckpoint, "tiny has no checkpoint at step 6; the nearest are 5 and 10"),
        ("15:25", StepOutOfRange, r"tiny took steps 1\.\.20, not 25"),
        ("10:5", InvalidRange, "holds no step"),
        ("10", InvalidRange, "a range from checkpoint to checkpoint"),
        ("a:b", InvalidRange, "neither a step"),
    ],
)
def test_wrong_ranges_say_what_there_is(
    tiny_shared: Workspace, steps: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        replay("tiny", steps, workspace=tiny_shared, device="cpu")


def test_a_truncated_checkpoint_is_an_error_and_nothing_is_lost(tiny: Workspace, tiny_copy: Path) -> None:
    path = tiny_copy / "checkpoints" / "step5" / "optimizer.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CorruptFile, match="step5/optimizer.safetensors is not a whole safetensors file"):
        replay("tiny", "5:7", workspace=tiny, device="cpu")
    path.unlink()
    with pytest.raises(MissingState, match="checkpoint 5 of tiny has no optimizer state"):
        replay("tiny", "5:7", workspace=tiny, device="cpu")
    path.write_bytes(whole)

    assert replay("tiny", "5:10", workspace=tiny, device="cpu").grade == "R0"


def test_a_copied_run_replays_from_its_new_place(tiny_copy: Path, tmp_path: Path) -> None:
    """Paths inside a native run folder are relative to it."""
    moved = shutil.move(tiny_copy, tmp_path / "elsewhere")
    workspace = Workspace(tmp_path / "w")
    add(moved, name="moved", workspace=workspace)

    assert replay("moved", "15:20", workspace=workspace, device="cpu").grade == "R0"


def test_steps_are_taken_with_the_config_of_their_own_checkpoint(tmp_path: Path) -> None:
    """A restarted run may go on with other settings: the next checkpoint's config is the one that counts."""
    run = tmp_path / "olmo"
    shutil.copytree(FIXTURES / "olmo", run)
    config = run / "run" / "step20-unsharded" / "config.yaml"
    config.write_text(config.read_text().replace("max_grad_norm: 1.0", "max_grad_norm: 0.5"))
    workspace = Workspace(tmp_path / "workspace")
    add(run, workspace=workspace)

    assert replay("olmo", "0:10", workspace=workspace, device="cpu").grade == "R1"
    assert replay("olmo", "10:20", workspace=workspace, device="cpu").grade == "unbanded"
    with pytest.raises(UnsupportedRecipe, match=r"another config after step 10 .*max_grad_norm.*: take 0:10 and 10:20"):
        replay("olmo", "0:20", workspace=workspace, device="cpu")
