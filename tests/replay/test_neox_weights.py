"""Checkpoints that GPT-NeoX wrote (tests/fixtures/neox-checkpoint) are read to the bit, and damaged ones refused."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from data_index.errors import CorruptFile, MissingFile, MissingState, UnknownLayout, UnsafeFile, UnsupportedRecipe
from data_index.neox_checkpoint import is_neox_checkpoint, neox_states, read_counts, saves_adam_count
from data_index.pickles import read_torch_archive
from data_index.run import Checkpoint
from data_index.stand_ins import Inert, TensorRecord
from replay.names_neox import from_neox, optimizer_groups
from replay.weights import content_hash, iterate_weights, read_optimizer, read_tensor, read_weights, tensor_of_archive

FIXTURES = Path(__file__).parents[1] / "fixtures" / "neox-checkpoint"
ZERO = ("zero-v1.0", "zero-main", "bf16-main")
MAIN, FIRST_RANK = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"
OLD, NEW = FIXTURES / "zero-v1.0" / "global_step6", FIXTURES / "zero-main" / "global_step6"


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(run="neox", step=6, location=folder, layout="neox", states=neox_states(folder))


def transformers_model(*, tied: bool = False) -> GPTNeoXForCausalLM:
    sizes = {"vocab_size": 128, "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2}
    tokens = {"bos_token_id": None, "eos_token_id": None}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **tokens, num_attention_heads=2, tie_word_embeddings=tied))


@pytest.mark.parametrize("name", ZERO)
def test_weights_and_moments_are_those_that_the_trainer_held(name: str) -> None:
    """In stretches of one rank after another, in turns, padded, cut free of padding, and of two pipeline stages."""
    place = checkpoint(FIXTURES / name / "global_step6")
    read = {"fp32": read_weights(place)} | read_optimizer(place)
    truth = load_file(FIXTURES / name / "truth.safetensors")

    assert len(truth) == {"zero-v1.0": 84, "zero-main": 48, "bf16-main": 45}[name]
    for key, expected in truth.items():
        kind, theirs = key.split(".", 1)
        assert torch.equal(read[kind][str(from_neox(theirs))], expected), key


@pytest.mark.parametrize("name", [*ZERO, "v1.0"])
def test_names_and_shapes_are_the_transformers_models(name: str) -> None:
    folder = next((FIXTURES / name).glob("global_step*"))
    place, model = checkpoint(folder), transformers_model(tied=name == "bf16-main")
    weights, moments = read_weights(place), read_optimizer(place)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    assert place.states == ("weights", "optimizer", "trainer")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == shapes
    assert {name: tuple(tensor.shape) for name, tensor in moments["exp_avg_sq"].items()} == shapes
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert content_hash(dict(iterate_weights(place))) == content_hash(weights)
    name = "gpt_neox.layers.1.attention.dense.weight"
    assert torch.equal(read_tensor(place, name), weights[name])
    assert torch.equal(read_tensor(place, name, "exp_avg"), moments["exp_avg"][name])


@pytest.mark.parametrize(
    ("name", "step", "updates", "adam_count", "saved", "ranks", "stages"),
    [
        ("v1.0", 7, 7, 7, True, 1, 1),
        # The trainer begins with an update without gradients, which Adam counts.
        ("zero-v1.0", 6, 3, 4, False, 3, 1),
        ("zero-main", 6, 2, 2, True, 3, 1),
        ("bf16-main", 6, 6, 6, True, 1, 2),
    ],
)
def test_counts_are_the_trainers(
    name: str, step: int, updates: int, adam_count: int, saved: bool, ranks: int, stages: int
) -> None:
    folder = FIXTURES / name / f"global_step{step}"
    counts = read_counts(folder)

    assert (counts.step, counts.num_updates, counts.num_skipped) == (step, updates, step - updates)
    assert (counts.num_ranks, counts.num_slices, counts.num_layers, counts.padded_vocab_size) == (ranks, stages, 2, 128)
    assert {float(count) for count in read_optimizer(checkpoint(folder))["step"].values()} == {adam_count}
    assert saves_adam_count(folder) is saved


def test_without_an_optimizer_the_layers_own_weights_are_read(tmp_path: Path) -> None:
    folder = copy_of(OLD, tmp_path)
    for path in folder.glob("zero_*"):
        path.unlink()
    weights = read_weights(checkpoint(folder))

    assert neox_states(folder) == ("weights", "trainer")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    held = read_weights(checkpoint(OLD))
    assert all(torch.equal(weights[name], held[name].half()) for name in weights)
    with pytest.raises(MissingState, match="has no optimizer state"):
        read_optimizer(checkpoint(folder))


def test_a_model_that_was_no_pipeline_is_read_from_one_file(tmp_path: Path) -> None:
    """There its names begin with `sequential`, and constants of the rotation may lie between them."""
    folder = copy_of(OLD, tmp_path)
    module: dict[str, Any] = {}
    for path in sorted(folder.glob("layer_*")):
        module |= {f"sequential.{int(path.name[6:8])}.{name}": t for name, t in thawed(path).items()}
        path.unlink()
    assert "sequential.2.attention.rotary_emb.inv_freq" in module
    change(folder / MAIN, lambda state: state | {"module": module})

    assert content_hash(read_weights(checkpoint(folder))) == content_hash(read_weights(checkpoint(OLD)))


def test_moments_before_the_first_update_are_none(tmp_path: Path) -> None:
    folder = copy_of(FIXTURES / "v1.0" / "global_step7", tmp_path, "global_step0")

    def first(state: Any) -> Any:
        state["optimizer"]["state"] = {}
        return state | {"iteration": 0, "lr_scheduler": state["lr_scheduler"] | {"num_iters": 0}}

    change(folder / MAIN, first)
    assert read_optimizer(checkpoint(folder)) == {"exp_avg": {}, "exp_avg_sq": {}, "step": {}}


def test_groups_are_those_of_gpt_neox() -> None:
    names = ["gpt_neox.embed_in.weight", "gpt_neox.layers.0.input_layernorm.weight"]
    names += ["gpt_neox.layers.0.mlp.dense_h_to_4h.bias", "gpt_neox.final_layer_norm.bias", "lm_head.weight"]

    assert optimizer_groups(names, 1) == [names]
    assert optimizer_groups(names, 2) == [[names[0], names[4]], names[1:4]]
    assert optimizer_groups(names, 3) is None


@pytest.mark.parametrize("name", ["2.norm.scale", "7.attention.query.weight", "2.mlp.fc1.weight", "1.mlp.linear1.bias"])
def test_a_parameter_without_a_place_is_named(name: str) -> None:
    with pytest.raises(UnsupportedRecipe, match=f"the GPT-NeoX parameter '{name}' has no place"):
        from_neox(name)


# --- damaged and hostile folders -------------------------------------------------------------------------------------


def copy_of(folder: Path, into: Path, name: str = "") -> Path:
    return Path(shutil.copytree(folder, into / (name or folder.name)))


def thawed(path: Path) -> Any:
    """The content of a file with tensors in memory; objects of the trainer's own classes are left out."""
    archive = read_torch_archive(path)

    def thaw(value: Any) -> Any:
        if isinstance(value, TensorRecord):
            return tensor_of_archive(archive, value)
        if isinstance(value, dict):
            return {key: thaw(item) for key, item in value.items() if not isinstance(item, Inert)}
        if isinstance(value, list):
            return [thaw(item) for item in value]
        return value

    return thaw({key: value for key, value in archive.value.items() if not key.endswith("rng_state")})


def change(path: Path, changed: Callable[[Any], Any]) -> None:
    torch.save(changed(thawed(path)), path)


def changed_optimizer(**values: Any) -> Callable[[Any], Any]:
    def changed(state: Any) -> Any:
        return state | {"optimizer_state_dict": state["optimizer_state_dict"] | values}

    return changed


def altered(alter: Callable[[Any], None]) -> Callable[[Any], Any]:
    def changed(state: Any) -> Any:
        alter(state["optimizer_state_dict"])
        return state

    return changed


def test_files_written_again_are_read_as_before(tmp_path: Path) -> None:
    """What the tests below damage is sound before."""
    for source in (OLD, NEW):
        folder = copy_of(source, tmp_path / source.parent.name)
        for path in folder.glob("*.pt"):
            change(path, lambda state: state)
        assert content_hash(read_weights(checkpoint(folder))) == content_hash(read_weights(checkpoint(source)))


def test_ranks_that_changed_places_are_noticed(tmp_path: Path) -> None:
    """Sizes and names would fit; but the weights are not those that the model computed with."""
    folder = copy_of(NEW, tmp_path)
    second = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    (folder / FIRST_RANK).rename(folder / "first")
    second.rename(folder / FIRST_RANK)
    (folder / "first").rename(second)
    with pytest.raises(CorruptFile, match="weights are not those of the model's own files"):
        read_weights(checkpoint(folder))


def test_a_checkpoint_under_another_steps_name_is_noticed(tmp_path: Path) -> None:
    """Published folders were seen that hold another step's files."""
    with pytest.raises(CorruptFile, match="global_step7 was saved at step 6: it is another checkpoint"):
        read_weights(checkpoint(copy_of(NEW, tmp_path, "global_step7")))


@pytest.mark.parametrize(
    ("source", "file", "match"),
    [
        (NEW, "zero_pp_rank_1_mp_rank_00_optim_states.pt", "incomplete .3 ranks saved it"),
        (OLD, "zero_pp_rank_2_mp_rank_00_optim_states.pt", "incomplete .3 ranks saved it"),
        (FIXTURES / "bf16-main" / "global_step6", "mp_rank_01_model_states.pt", "2 stages saved the model"),
        (NEW, "layer_03-model_00-model_states.pt", "lacks layer 1 of 2 .layer_03"),
        (NEW, "layer_00-model_00-model_states.pt", "lacks gpt_neox.embed_in.weight"),
        (NEW, MAIN, "mp_rank_00_model_states.pt is not there"),
    ],
)
def test_a_missing_file_is_named(source: Path, file: str, match: str, tmp_path: Path) -> None:
    folder = copy_of(source, tmp_path)
    (folder / file).unlink()
    place = replace(checkpoint(folder), states=("weights", "optimizer"))
    with pytest.raises(MissingFile, match=match):
        read_weights(place)
    with pytest.raises(MissingFile, match=match):
        read_optimizer(place)


def test_matrices_that_were_cut_over_ranks_are_refused_by_name(tmp_path: Path) -> None:
    folder = copy_of(NEW, tmp_path)
    change(folder / MAIN, lambda state: state | {"args": state["args"] | {"model_parallel_size": 2}})
    with pytest.raises(UnsupportedRecipe, match="saved by 2 model-parallel ranks.*convert_neox_to_hf.py"):
        read_weights(checkpoint(folder))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"iteration": None}, "iteration is None, not a count"),
        ({"iteration": True}, "iteration is True, not a count"),
        ({"iteration": 5, "skipped_steps": 2**60}, "was saved at step 5|skipped_steps is .*, not a count"),
        ({"skipped_steps": -1}, "skipped_steps is -1, not a count"),
        ({"lr_scheduler": {"num_iters": 7}}, "counts 7 updates and 4 skipped steps in 6 steps"),
        ({"lr_scheduler": []}, "lr_scheduler is a list, not a table"),
        ({"args": None}, "args is a NoneType, not a table"),
        ({"dp_world_size": 0}, "dp_world_size is 0, not a count"),
        ({"param_shapes": [{"0.word_embeddings.weight": (128, 8)}]}, "of 1 groups|holds .* elements"),
        ({"param_shapes": [{"0.word_embeddings.weight": (-1,)}, {}]}, "has no shape in param_shapes"),
        ({"param_shapes": [{"0.word_embeddings.weight": (2**39,) * 8}, {}]}, "holds .* elements for parameters of"),
        ({"param_shapes": [{"2.attention.rotary_emb.inv_freq": (1,)}, {}]}, "name a parameter twice, or a constant"),
    ],
)
def test_a_main_file_that_misstates_is_corrupt(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = copy_of(NEW, tmp_path)
    change(folder / MAIN, lambda state: state | changes)
    with pytest.raises(CorruptFile, match=match):
        read_weights(checkpoint(folder))


def test_a_number_of_ranks_that_nobody_has_costs_nothing(tmp_path: Path) -> None:
    folder = copy_of(NEW, tmp_path)
    change(folder / MAIN, lambda state: state | {"dp_world_size": 2**52})
    with pytest.raises(MissingFile, match="zero_pp_rank_3_mp_rank_00_optim_states.pt is not there"):
        read_weights(checkpoint(folder))
    change(folder / MAIN, lambda state: state | {"dp_world_size": 3, "mp_world_size": 2**52})
    with pytest.raises(MissingFile, match="mp_rank_01_model_states.pt is not there"):
        read_weights(checkpoint(folder))


def test_an_order_of_parameters_that_was_not_saved_is_not_guessed(tmp_path: Path) -> None:
    folder = copy_of(NEW, tmp_path)
    change(folder / MAIN, lambda state: state | {"param_shapes": None})
    with pytest.raises(UnknownLayout, match="no param_shapes were saved.*convert_neox_to_hf.py"):
        read_optimizer(checkpoint(folder))


def test_another_partition_is_refused_by_name(tmp_path: Path) -> None:
    folder = copy_of(NEW, tmp_path)
    for path in folder.glob("zero_*"):
        change(path, lambda state: {"optimizer_state_dict": {"zero_stage": 3, "fp32_flat_groups": []}})
    with pytest.raises(UnknownLayout, match="partitioned in a way that no version of GPT-NeoX.*convert_neox_to_hf.py"):
        read_optimizer(checkpoint(folder))


WEIGHTS = "single_partition_of_fp32_groups"


def cut_weights(state: Any) -> None:
    state[WEIGHTS][0] = state[WEIGHTS][0][:-1].clone()


def long_moments(state: Any) -> None:
    state["base_optimizer_state"]["state"][0]["exp_avg"] = torch.zeros(5000)


def short_stretches(state: Any) -> None:
    """All of one length, and too short together."""
    state[WEIGHTS][1] = torch.zeros(3)
    for moment in ("exp_avg", "exp_avg_sq"):
        state["base_optimizer_state"]["state"][1][moment] = torch.zeros(3)


def halved(state: Any) -> None:
    state[WEIGHTS][0] = state[WEIGHTS][0].half()


def repeated(state: Any) -> None:
    state[WEIGHTS][0] = torch.zeros(5000)[:1].expand(len(state[WEIGHTS][0]))


def no_groups(state: Any) -> None:
    del state["base_optimizer_state"]["param_groups"]


def fewer_groups(state: Any) -> None:
    state["base_optimizer_state"]["param_groups"].pop()


def odd_numbers(state: Any) -> None:
    state["base_optimizer_state"]["param_groups"][0]["params"] = ["x"]


def count_of_text(state: Any) -> None:
    state["base_optimizer_state"]["state"][0]["step"] = "many"


def no_moments(state: Any) -> None:
    state["base_optimizer_state"] = 5


@pytest.mark.parametrize(
    ("alter", "match"),
    [
        (cut_weights, "are of different lengths"),
        (long_moments, "are of different lengths"),
        (short_stretches, "with the files of the other ranks, holds 151 elements for parameters of 224"),
        (halved, "fp32 of the optimizer is no tensor in fp32"),
        (repeated, "fp32 of the optimizer does not lie end to end"),
        (no_groups, "param_groups is a NoneType, not a list"),
        (fewer_groups, "the optimizer has no group 1"),
        (odd_numbers, "holds no optimizer state: state and param_groups"),
        (count_of_text, "count of updates is not a count"),
        (no_moments, "base_optimizer_state is a int, not a list"),
        (lambda state: state.update({WEIGHTS: [None]}), "param_shapes are of 2 groups, the optimizer has 1"),
        (lambda state: state.update({WEIGHTS: 3}), "single_partition_of_fp32_groups is a int, not a list"),
        (lambda state: state.update(group_paddings=[-1, 0]), "group_paddings are no counts"),
        (lambda state: state.update(group_paddings="0"), "group_paddings are no counts"),
    ],
)
def test_partitions_that_do_not_add_up_are_corrupt(alter: Callable[[Any], None], match: str, tmp_path: Path) -> None:
    folder = copy_of(NEW, tmp_path)
    change(folder / FIRST_RANK, altered(alter))
    with pytest.raises(CorruptFile, match=match):
        read_weights(checkpoint(folder))
    with pytest.raises(CorruptFile, match=match):
        read_optimizer(checkpoint(folder))


def test_stretches_in_turns_that_do_not_add_up_are_corrupt(tmp_path: Path) -> None:
    turns = "local_sub_partitions_of_fp32_groups"
    for number, (values, match) in enumerate(
        [
            ({turns: [[torch.zeros(300)], []]}, "has not the 1 stretches of its weights"),
            ({turns: [[], []], "base_optimizer_state": [[], []]}, "hold different numbers of stretches"),
            ({"base_optimizer_state": [[{}], [{}]]}, "has not the 4 stretches of its weights"),
            ({"base_optimizer_state": []}, "has not the 4 stretches of its weights"),
        ]
    ):
        folder = copy_of(OLD, tmp_path / str(number))
        change(folder / FIRST_RANK, changed_optimizer(**values))
        with pytest.raises(CorruptFile, match=match):
            read_optimizer(checkpoint(folder))


def test_an_optimizer_saved_whole_is_held_against_the_model(tmp_path: Path) -> None:
    source = FIXTURES / "v1.0" / "global_step7"

    def other_shape(state: Any) -> Any:
        state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(8, 128)
        return state

    def three_groups(state: Any) -> Any:
        state["optimizer"]["param_groups"].append({"params": []})
        return state

    for number, (changed, match) in enumerate(
        [
            (other_shape, r"exp_avg of the optimizer has shape \(8, 128\), not \(128, 8\)"),
            (three_groups, "the optimizer has 3 groups, which GPT-NeoX does not make"),
            (lambda state: state | {"optimizer": []}, "holds no optimizer state"),
        ]
    ):
        folder = copy_of(source, tmp_path / str(number))
        change(folder / MAIN, changed)
        with pytest.raises(CorruptFile, match=match):
            read_optimizer(checkpoint(folder))
    folder = copy_of(source, tmp_path / "other")
    change(folder / MAIN, lambda state: state | {"optimizer": {"momentum": []}})
    with pytest.raises(UnknownLayout, match="kept in a way that no version of GPT-NeoX was seen to"):
        read_optimizer(checkpoint(folder))


class Touch:
    """Unpickled by the standard library, this would leave a marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("file", [MAIN, FIRST_RANK, "layer_02-model_00-model_states.pt"])
def test_no_file_runs_anything(file: str, tmp_path: Path) -> None:
    folder = copy_of(NEW, tmp_path)
    change(folder / file, lambda state: state | {"more": Touch(tmp_path / "marker")})
    with pytest.raises(UnsafeFile, match="refused, nothing was run"):
        read_weights(replace(checkpoint(folder), states=("weights", "optimizer")))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("file", [MAIN, FIRST_RANK, "layer_02-model_00-model_states.pt"])
def test_a_truncated_file_is_corrupt(file: str, tmp_path: Path) -> None:
    folder = copy_of(NEW, tmp_path)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptFile, match=f"{file} is not a torch archive"):
        read_weights(replace(checkpoint(folder), states=("weights", "optimizer")))
    assert is_neox_checkpoint(folder)
    assert "trainer" in neox_states(folder)


def test_layers_that_share_their_bytes_many_times_are_refused(tmp_path: Path) -> None:
    """A small file could else claim any amount of memory."""
    folder = copy_of(NEW, tmp_path)
    for path in folder.glob("zero_*"):
        path.unlink()
    shared = torch.zeros(1).expand(2**30)
    change(folder / "layer_02-model_00-model_states.pt", lambda state: state | {"attention.dense.bias": shared})
    with pytest.raises(UnsafeFile, match="reaches past its storage|claim .* bytes"):
        read_weights(checkpoint(folder))


def test_the_fixture_is_in_the_order_of_the_groups() -> None:
    """The count of a group's elements is that of the transformers model's parameters in it."""
    model = transformers_model()
    decayed, exempt = optimizer_groups([name for name, _ in model.named_parameters()], 2) or ([], [])
    numels = {name: math.prod(parameter.shape) for name, parameter in model.named_parameters()}

    assert (sum(numels[name] for name in decayed), sum(numels[name] for name in exempt)) == (3584, 224)
