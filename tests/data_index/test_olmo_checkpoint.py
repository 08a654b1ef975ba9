"""Checkpoint folders of the legacy OLMo trainer are told apart, and its own state is read without torch."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data_index.errors import CorruptFile, MissingFile, UnknownLayout, UnsafeFile, UnsupportedRecipe
from data_index.olmo_checkpoint import (
    ModelNumbers,
    layout_of,
    local_world_size,
    model_numbers,
    rank_archives,
    read_config,
    read_trainer_state,
    sharded_kind,
    states_of,
    unsharded_file,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
STEP10 = FIXTURES / "olmo" / "run" / "step10-unsharded"
SHARDED = FIXTURES / "olmo-sharded"
ALL = ("weights", "optimizer", "trainer")


def save(folder: Path, name: str = "train.pt", **state: Any) -> Path:
    """A folder with a trainer state as torch.save writes it."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
    return folder


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


# --- which layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "layout", "kind"),
    [
        ("olmo/run/step10-unsharded", "olmo", None),
        ("olmo-variants/ddp-step10", "olmo", None),
        ("olmo-variants/safetensors-step10", "olmo", None),
        ("olmo-variants/sharded/torch_legacy-step2", "olmo_sharded", "torch_legacy"),
        ("olmo-variants/sharded/olmo_core-step2", "olmo_sharded", "olmo_core"),
        ("olmo-sharded/torch_legacy", "olmo_sharded", "torch_legacy"),
        ("olmo-sharded/torch_new", "olmo_sharded", "torch_new"),
        ("olmo-sharded/olmo_core", "olmo_sharded", "olmo_core"),
        ("olmo-sharded/local", "olmo_sharded", "local"),
    ],
)
def test_folders_that_the_trainer_wrote_are_told_apart(folder: str, layout: str, kind: str | None) -> None:
    assert (layout_of(FIXTURES / folder), states_of(FIXTURES / folder)) == (layout, ALL)
    if kind:
        assert sharded_kind(FIXTURES / folder) == kind


@pytest.mark.parametrize(
    ("names", "layout", "states"),
    [
        (["model.pt"], "olmo", ("weights",)),
        (["config.yaml", "model.safetensors", "other.pt"], "olmo", ("weights", "trainer")),
        (["model.safetensors", "train.pt"], "olmo", ("weights", "trainer")),
        (["config.yaml", "model/metadata.json", "model/rank_0.safetensors"], "olmo_sharded", ("weights",)),
        (["config.json", "model.safetensors"], "hf", ("weights",)),
        (["model.safetensors", "optimizer.safetensors"], "hf", ("weights", "optimizer")),
        (["pytorch_model.bin.index.json"], "hf", ("weights",)),
        (["state.json", "model.safetensors"], None, ()),  # the native layout
        (["config.json", "model_and_optim/.metadata", "train/rank0.pt"], None, ()),  # OLMo-core
        (["config.yaml"], None, ()),
        ([], None, ()),
    ],
)
def test_a_folder_holds_the_states_whose_files_are_there(
    names: list[str], layout: str | None, states: tuple[str, ...], tmp_path: Path
) -> None:
    files(tmp_path, *names)

    assert (layout_of(tmp_path), states_of(tmp_path)) == (layout, states)


def test_safetensors_come_before_pickles_and_train_before_other(tmp_path: Path) -> None:
    """The trainer's own order; two files of one state may differ."""
    files(tmp_path, "model.pt", "model.safetensors", "train.pt", "other.pt")

    assert unsharded_file(tmp_path, "weights").name == "model.safetensors"
    assert unsharded_file(tmp_path, "trainer").name == "train.pt"
    with pytest.raises(MissingFile, match="holds no optim.safetensors or optim.pt"):
        unsharded_file(tmp_path, "optimizer")
    with pytest.raises(MissingFile, match="is no sharded checkpoint: none of model_and_optim/.metadata, .* is there"):
        sharded_kind(tmp_path)


# --- the trainer's state ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["olmo/run/step10-unsharded", "olmo-variants/ddp-step10"])
def test_the_trainers_state_is_what_torch_reads(folder: str) -> None:
    state = read_trainer_state(FIXTURES / folder)
    known = torch.load(FIXTURES / folder / "train.pt", weights_only=False)

    assert list(state) == list(known)
    for name in ("epoch", "global_step", "global_train_examples_seen_this_epoch", "global_train_tokens_seen"):
        assert state[name] == known[name]
    assert state["unsharded_checkpoints"] == [str(path) for path in known["unsharded_checkpoints"]]
    assert (state["rng"]["numpy"][1] == known["rng"]["numpy"][1]).all()
    assert state["rng"]["python"] == known["rng"]["python"]


@pytest.mark.parametrize("kind", ["torch_legacy", "torch_new", "olmo_core", "local"])
def test_a_sharded_checkpoint_has_the_trainers_state_too(kind: str) -> None:
    state = read_trainer_state(SHARDED / kind)

    assert (state["global_step"], state["global_train_tokens_seen"], state["world_size"]) == (2, 128, 2)
    assert state["checkpoints"] == ["run/step2"]
    assert not {"model", "optim"} & set(state)


CONFIG = "global_train_batch_size: 8\nmodel: {max_sequence_length: 128}\n"


@pytest.mark.parametrize(
    ("state", "examples", "tokens"),
    [
        ({"global_step": 3, "global_train_examples_seen": 20, "global_train_tokens_seen": 5}, 20, 5),
        ({"global_step": 3, "global_data_step": 2}, 16, 2048),
        ({"global_step": 3}, 24, 3072),
        ({"global_step": 3, "epoch": None}, 24, 3072),
    ],
)
def test_older_states_are_brought_to_todays_names(
    state: dict[str, Any], examples: int, tokens: int, tmp_path: Path
) -> None:
    (save(tmp_path / "a", "other.pt", **state) / "config.yaml").write_text(CONFIG)
    found = read_trainer_state(tmp_path / "a")

    assert (found["global_train_examples_seen_this_epoch"], found["global_train_tokens_seen"]) == (examples, tokens)
    assert (found["epoch"], found["global_step"]) == (0, 3)


def test_a_state_that_counts_batches_needs_their_size(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="counts batches; its config.yaml, .* is not there"):
        read_trainer_state(save(tmp_path, global_step=3))
    (tmp_path / "config.yaml").write_text("global_train_batch_size: many\n")
    with pytest.raises(CorruptFile, match="global_train_batch_size is 'many', not a number of at least 1"):
        read_trainer_state(tmp_path)


@pytest.mark.parametrize("value", [-1, 1.5, "3", None, True])
def test_a_count_that_is_none_is_corrupt(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="train.pt: global_step is .*, not a count"):
        read_trainer_state(save(tmp_path, global_step=value))


def test_what_is_no_trainer_state_says_so(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "train.pt")
    with pytest.raises(CorruptFile, match="holds no trainer state"):
        read_trainer_state(tmp_path)
    (tmp_path / "train.safetensors").touch()
    with pytest.raises(UnknownLayout, match="is read from train.pt, not from safetensors"):
        read_trainer_state(tmp_path)


def test_a_rank_that_is_missing_is_named(tmp_path: Path) -> None:
    for rank in (0, 2):
        save(tmp_path, f"rank{rank}.pt", global_step=1)
    with pytest.raises(MissingFile, match="rank1.pt is not there: the checkpoint is incomplete"):
        rank_archives(tmp_path)
    save(tmp_path, "rank1.pt", global_step=1)
    assert [Path(archive.source).name for archive in rank_archives(tmp_path)] == ["rank0.pt", "rank1.pt", "rank2.pt"]


# --- config ----------------------------------------------------------------------------------------------------------


def model_config(folder: Path, model: str) -> Path:
    (folder / "config.yaml").write_text(f"model: {{{model}}}\n")
    return folder


@pytest.mark.parametrize(
    ("model", "kv_rows"),
    [
        ("d_model: 64, n_heads: 4", 64),
        ("d_model: 64, n_heads: 4, n_kv_heads: null, multi_query_attention: null", 64),
        ("d_model: 64, n_heads: 4, n_kv_heads: 2", 32),
        ("d_model: 64, n_heads: 4, multi_query_attention: true", 16),
        ("d_model: 64, n_heads: 4, multi_query_attention: false, n_kv_heads: 4", 64),
    ],
)
def test_the_key_projection_has_as_many_rows_as_the_config_makes_it(model: str, kv_rows: int, tmp_path: Path) -> None:
    numbers = model_numbers(model_config(tmp_path, model))

    assert numbers == ModelNumbers(d_model=64, kv_rows=kv_rows, norm_after=False)
    assert model_numbers(tmp_path / "none") is None


def test_the_norms_place_comes_from_the_config() -> None:
    assert model_numbers(STEP10) == ModelNumbers(d_model=64, kv_rows=64, norm_after=True)


@pytest.mark.parametrize(
    "model", ["d_model: 64", "d_model: 64, n_heads: 0", "d_model: 64, n_heads: 5", "d_model: yes, n_heads: 1"]
)
def test_impossible_sizes_are_corrupt(model: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="config.yaml: (n_heads|d_model) "):
        model_numbers(model_config(tmp_path, model))


def test_contradictory_heads_are_refused(tmp_path: Path) -> None:
    """The trainer refuses them too."""
    with pytest.raises(UnsupportedRecipe, match="n_kv_heads to 2 and multi_query_attention to True"):
        model_numbers(model_config(tmp_path, "d_model: 64, n_heads: 4, n_kv_heads: 2, multi_query_attention: true"))


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("a: [1", CorruptFile, "is not YAML"),
        ("- 1", CorruptFile, "is not a config"),
        ("a: \xff".encode("latin-1"), CorruptFile, "is not YAML"),
        ("[" * 5000, CorruptFile, "is not YAML"),
        ("a: !!python/object/apply:os.system ['touch {marker}']", CorruptFile, "could not determine a constructor"),
        ("a: &a {x: 1}\nb: {<<: [*a, *a]}", UnsafeFile, "merges mappings"),
        ("model: 3", CorruptFile, "has no model section"),
    ],
)
def test_a_hostile_config_constructs_nothing(text: str | bytes, error: type, match: str, tmp_path: Path) -> None:
    content = text if isinstance(text, bytes) else text.replace("{marker}", str(tmp_path / "marker")).encode()
    (tmp_path / "config.yaml").write_bytes(content)

    with pytest.raises(error, match=match):
        model_numbers(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.yaml").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UnsafeFile, match="claims 1,099,511,627,776 bytes"):
        read_config(tmp_path)


def test_the_number_of_ranks_is_stated(tmp_path: Path) -> None:
    assert local_world_size(SHARDED / "local") == 2
    with pytest.raises(MissingFile, match="metadata.yaml is not there"):
        local_world_size(tmp_path)
    shutil.copy(SHARDED / "local" / "config.yaml", tmp_path / "metadata.yaml")
    with pytest.raises(CorruptFile, match="world_size is None"):
        local_world_size(tmp_path)
