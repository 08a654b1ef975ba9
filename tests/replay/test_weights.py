import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_index.errors import CorruptFile, MissingFile, MissingState
from data_index.run import Checkpoint
from data_index.workspace import Workspace
from replay.recipe import recipe_of_run
from replay.train_state import initial_state, load_state, moment_tensors, save_state, weight_tensors
from replay.weights import (
    content_hash,
    read_optimizer,
    read_safetensors,
    read_weights,
    trainer_parameter_hash,
    write_safetensors,
)

CPU = torch.device("cpu")


def test_olmo_core_weights_hash_to_the_trainers_record(core_shared: Workspace) -> None:
    """Read without olmo_core and without its pickles; the trainer recorded a sha256 after every step."""
    run = core_shared.run("core")
    recorded = {r["step"]: r["sha256"] for r in core_shared.learned(core_shared.home("core"), "parameter_hashes")}

    for step in (10, 20):
        weights = read_weights(core_shared.checkpoint(run, step))
        assert trainer_parameter_hash(weights, "olmo_core") == recorded[step]


def test_the_optimizer_state_of_checkpoint_0_says_step_1(core_shared: Workspace) -> None:
    """OLMo-core's save of checkpoint 0 runs an optimizer step with zero gradients (olmo-core 3.0.0)."""
    moments = read_optimizer(core_shared.checkpoint(core_shared.run("core"), 0))

    assert {float(step) for step in moments["step"].values()} == {1.0}
    assert all(not t.any() for t in moments["exp_avg"].values())


def test_a_saved_state_loads_to_the_same_bits(tiny_shared: Workspace, tmp_path: Path) -> None:
    run = tiny_shared.run("tiny")
    recipe = recipe_of_run(run)
    state = load_state(tiny_shared.checkpoint(run, 10), recipe, device=CPU)
    save_state(state, tmp_path / "step10")
    place = Checkpoint(
        run="copy", step=10, location=tmp_path / "step10", layout="native", states=("weights", "optimizer", "trainer")
    )
    again = load_state(place, recipe, device=CPU)

    assert content_hash(weight_tensors(state)) == content_hash(weight_tensors(again))
    assert content_hash(moment_tensors(state)) == content_hash(moment_tensors(again))


def test_the_random_generator_goes_on_where_the_checkpoint_left_it(tiny_shared: Workspace, tmp_path: Path) -> None:
    run = tiny_shared.run("tiny")
    recipe = recipe_of_run(run)
    state = load_state(tiny_shared.checkpoint(run, 10), recipe, device=CPU)
    torch.manual_seed(77)
    save_state(state, tmp_path / "step10")
    expected = torch.rand(3)
    place = Checkpoint(
        run="copy", step=10, location=tmp_path / "step10", layout="native", states=("weights", "optimizer", "trainer")
    )
    torch.manual_seed(0)
    load_state(place, recipe, device=CPU)

    assert torch.equal(torch.rand(3), expected)


def test_equal_content_has_one_hash_whatever_the_order(tmp_path: Path) -> None:
    a, b = torch.ones(2), torch.zeros(3, dtype=torch.int64)

    first = write_safetensors(tmp_path / "1", {"a": a, "b": b})
    assert first == write_safetensors(tmp_path / "2", {"b": b, "a": a})
    assert first != content_hash({"a": a.double(), "b": b}) and first != content_hash({"a": b, "b": a})


def safetensors_file(path: Path, header: object, data: bytes = b"\0" * 8, length: int | None = None) -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        (GOOD, b"\0" * 7, None),  # truncated
        (GOOD, b"\0" * 9, None),  # something appended
        (GOOD, b"\0" * 8, 2**60),  # a header of an exabyte
        ({"a": GOOD["a"] | {"shape": [2**40]}}, b"\0" * 8, None),
        ({"a": GOOD["a"] | {"data_offsets": [0, 2**50]}}, b"\0" * 8, None),
        ({"a": GOOD["a"], "b": GOOD["a"]}, b"\0" * 8, None),  # overlapping
        ({"a": GOOD["a"] | {"dtype": "F33"}}, b"\0" * 8, None),
        ([], b"", None),
    ],
)
def test_damaged_and_hostile_safetensors_are_refused(tmp_path: Path, header: object, data: bytes, length: int) -> None:
    with pytest.raises(CorruptFile, match="not a whole safetensors file"):
        read_safetensors(safetensors_file(tmp_path / "x", header, data, length))


def test_a_missing_file_and_a_missing_state_say_so(tmp_path: Path, tiny_shared: Workspace) -> None:
    with pytest.raises(MissingFile, match="is not there"):
        read_safetensors(tmp_path / "none")
    bare = Checkpoint(run="bare", step=3, location=tmp_path, layout="native", states=("weights",))
    with pytest.raises(MissingState, match="checkpoint 3 of bare has no optimizer state .* it has weights"):
        read_optimizer(bare)


def test_weights_of_another_model_are_refused(tiny_shared: Workspace) -> None:
    run = tiny_shared.run("tiny")
    recipe = recipe_of_run(run)
    wider = replace(recipe, model=dict(recipe.model) | {"hidden_size": 64})

    with pytest.raises(CorruptFile, match="checkpoint 10 of tiny do not fit its model config"):
        load_state(tiny_shared.checkpoint(run, 10), wider, device=CPU)


def test_initial_weights_depend_on_the_seed_alone(tiny_shared: Workspace) -> None:
    recipe = recipe_of_run(tiny_shared.run("tiny"))
    hashes = [content_hash(weight_tensors(initial_state(recipe, seed=s, device=CPU))) for s in (1, 1, 2)]

    assert hashes[0] == hashes[1] != hashes[2]
