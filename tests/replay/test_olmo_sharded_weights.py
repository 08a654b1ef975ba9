"""Sharded checkpoints of the legacy OLMo trainer are put together from all ranks' files.

`fixtures/olmo-sharded` is one state saved by the trainer's four checkpointers (ai2-olmo 0.6.0, ai2-olmo-core 0.1.0, two
gloo processes, FSDP FULL_SHARD, two key heads for four query heads, two steps), and unsharded by its own script.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from data_index.errors import CorruptFile, MissingFile, MissingState, UnsafeFile
from data_index.olmo_checkpoint import layout_of, states_of
from data_index.pickles import read_torch_archive
from data_index.run import Checkpoint
from replay.names_olmo import trainer_parameters
from replay.stored_tensors import of_archive
from replay.weights import content_hash, read_optimizer, read_tensor, read_weights

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHARDED, VARIANTS = FIXTURES / "olmo-sharded", FIXTURES / "olmo-variants" / "sharded"
KINDS = ("torch_legacy", "torch_new", "olmo_core", "local")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(
        run="two", step=2, location=folder, layout=layout_of(folder) or "olmo_sharded", states=states_of(folder)
    )


def hashes(folder: Path) -> dict[str, str]:
    """Content of a checkpoint's weights and moments."""
    place = checkpoint(folder)
    return {"weights": content_hash(read_weights(place))} | {
        moment: content_hash(tensors) for moment, tensors in read_optimizer(place).items()
    }


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint to be changed."""
    return lambda kind: Path(shutil.copytree(SHARDED / kind, tmp_path / kind))


def assert_same(ours: dict[str, torch.Tensor], raw: dict[str, torch.Tensor]) -> None:
    for name, parts in trainer_parameters(ours).items():
        assert torch.equal(torch.cat([ours[part] for part in parts]), raw[name]), name
    assert len(trainer_parameters(ours)) == len(raw)


# --- all ranks together ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_files_together_are_what_the_trainers_script_makes_of_them(kind: str) -> None:
    weights, moments = read_weights(checkpoint(SHARDED / kind)), read_optimizer(checkpoint(SHARDED / kind))
    known = torch.load(SHARDED / "unsharded" / "optim.pt", weights_only=False)["state"]

    assert layout_of(SHARDED / kind) == "olmo_sharded"
    assert_same(weights, torch.load(SHARDED / "unsharded" / "model.pt", weights_only=False))
    for moment in ("exp_avg", "exp_avg_sq"):
        assert_same(moments[moment], {name: state[moment] for name, state in known.items()})
    assert {float(step) for step in moments["step"].values()} == {2.0} and len(moments["step"]) == 25
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (8, 16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.v_proj.weight"])
def test_one_tensor_equals_its_place_among_all(kind: str, name: str) -> None:
    place = checkpoint(SHARDED / kind)

    assert torch.equal(read_tensor(place, name), read_weights(place)[name])
    assert torch.equal(read_tensor(place, name, "exp_avg_sq"), read_optimizer(place)["exp_avg_sq"][name])


@pytest.mark.parametrize("kind", ["torch_legacy", "olmo_core", "local"])
def test_one_tensor_is_read_although_others_are_damaged(kind: str, copy: Callable[[str], Path]) -> None:
    """What is not asked for is not read."""
    folder, known = copy(kind), checkpoint(SHARDED / kind)
    head = read_tensor(known, "lm_head.weight")[:4].numpy().tobytes()
    damaged = 0
    for path in [*folder.glob("rank*.pt"), *folder.glob("model/rank*")]:
        content = path.read_bytes()
        path.write_bytes(content.replace(head, bytes(len(head))))
        damaged += head in content

    assert damaged == 1
    assert torch.equal(read_tensor(checkpoint(folder), "model.norm.weight"), read_tensor(known, "model.norm.weight"))


def test_checkpoints_of_one_rank_are_what_torch_and_safetensors_read() -> None:
    legacy, core = VARIANTS / "torch_legacy-step2", VARIANTS / "olmo_core-step2"
    shapes = json.loads((core / "model" / "metadata.json").read_text())["tensors"]
    flat = safetensors.torch.load_file(core / "model" / "rank_0.safetensors")

    assert_same(read_weights(checkpoint(legacy)), torch.load(legacy / "rank0.pt", weights_only=False)["model"])
    assert_same(
        read_weights(checkpoint(core)), {name: flat[name].reshape(entry["shape"]) for name, entry in shapes.items()}
    )


def test_saving_by_olmo_core_counted_one_step_more() -> None:
    """It takes a step with zero gradients when checkpoint 0 has no moments: step 2 is not that of torch_legacy.

    Source: Python package ai2-olmo-core 0.1.0 (distributed/checkpoint.py, init_optimizer_state)
    """
    steps = [
        {float(step) for step in read_optimizer(checkpoint(VARIANTS / folder))["step"].values()}
        for folder in ("torch_legacy-step2", "olmo_core-step2")
    ]
    assert steps == [{2.0}, {3.0}]


# --- other ways to say the same --------------------------------------------------------------------------------------


def test_replicas_of_the_model_are_counted_once(copy: Callable[[str], Path]) -> None:
    """With hybrid sharding every group of ranks saves the whole model."""
    folder = copy("torch_legacy")
    for rank in (0, 1):
        shutil.copy(folder / f"rank{rank}.pt", folder / f"rank{rank + 2}.pt")
    assert hashes(folder) == hashes(SHARDED / "unsharded")

    folder = copy("local")
    for part in ("model", "optim"):
        for rank in (0, 1):
            shutil.copy(folder / part / f"rank{rank}.pt", folder / part / f"rank{rank + 2}.pt")
    (folder / "metadata.yaml").write_text("world_size: 4\n")
    assert hashes(folder) == hashes(SHARDED / "unsharded")

    folder = copy("olmo_core")
    shutil.copy(folder / "model" / "rank_1.safetensors", folder / "model" / "rank_3.safetensors")
    for entry in (described := metadata(folder))["tensors"].values():
        if (place := entry["shard_spec_per_file"].get("rank_1.safetensors")) is not None:
            entry["shard_spec_per_file"]["rank_3.safetensors"] = place
    write_metadata(folder, described)
    assert hashes(folder) == hashes(SHARDED / "unsharded")


def metadata(folder: Path, part: str = "model") -> Any:
    return json.loads((folder / part / "metadata.json").read_text())


def write_metadata(folder: Path, content: Any, part: str = "model") -> None:
    (folder / part / "metadata.json").write_text(json.dumps(content))


def test_offsets_in_the_older_form_are_read(copy: Callable[[str], Path]) -> None:
    folder = copy("olmo_core")
    described = metadata(folder)
    for entry in described["tensors"].values():
        places = entry.pop("shard_spec_per_file").items()
        # One stretch was a pair by itself once, several a list of pairs.
        entry["flattened_offsets_per_file"] = {
            file: place["flattened_offsets"][0] if len(place["flattened_offsets"]) == 1 else place["flattened_offsets"]
            for file, place in places
        }
    write_metadata(folder, described)

    assert hashes(folder) == hashes(SHARDED / "unsharded")


def core_folder(folder: Path, files: dict[str, dict[str, torch.Tensor]], tensors: dict[str, Any]) -> Path:
    """A sharded checkpoint of kind olmo_core with a model only."""
    shutil.copytree(SHARDED / "olmo_core", folder, ignore=shutil.ignore_patterns("model", "optim"))
    (folder / "model").mkdir()
    for name, content in files.items():
        safetensors.torch.save_file(content, folder / "model" / name)
    write_metadata(folder, {"tensors": tensors})
    return folder


WTE = "transformer.wte.weight"
WHOLE = torch.arange(72 * 16, dtype=torch.float32).reshape(72, 16)


def test_blocks_and_scattered_stretches_are_put_in_their_places(tmp_path: Path) -> None:
    flat = WHOLE.flatten()
    stretches = {"a.safetensors": [[0, 5], [100, 1000]], "b.safetensors": [[1000, 1152], [5, 5], [5, 100]]}
    files = {f: {WTE: torch.cat([flat[a:b] for a, b in pairs])} for f, pairs in stretches.items()}
    places = {file: {"flattened_offsets": pairs, "local_shape": None} for file, pairs in stretches.items()}
    entry = {"shape": [72, 16], "is_sharded": True, "dtype": "F32", "shard_spec_per_file": places}
    folder = core_folder(tmp_path / "stretches", files, {WTE: entry})
    assert torch.equal(read_weights(checkpoint(folder))["model.embed_tokens.weight"], WHOLE)

    blocks = {"a.safetensors": ((0, 0), (72, 10)), "b.safetensors": ((0, 10), (72, 6))}
    files = {file: {WTE: WHOLE[:, start[1] : start[1] + size[1]].flatten()} for file, (start, size) in blocks.items()}
    entry["shard_spec_per_file"] = {
        file: {"flattened_offsets": None, "global_offset": list(start), "local_shape": list(size)}
        for file, (start, size) in blocks.items()
    }
    folder = core_folder(tmp_path / "blocks", files, {WTE: entry})
    assert torch.equal(read_weights(checkpoint(folder))["model.embed_tokens.weight"], WHOLE)


def change_local(folder: Path, change: Callable[[dict[str, Any]], None], part: str = "model") -> None:
    for path in sorted((folder / part).glob("rank*.pt")):
        state = torch.load(path, weights_only=False)
        change(state)
        torch.save(state, path)


def older_form(state: dict[str, Any]) -> None:
    """Flat parameters as torch up to 2.0 described them: the first parameter that a rank holds, and stretches."""
    for module in state["modules"]:
        for handle in module["handles"]:
            infos = handle.pop("flat_param._shard_param_infos")
            held = [number for number, info in enumerate(infos) if info.in_shard]
            handle["flat_param._shard_indices"] = (held[0], held[-1])
            handle["flat_param._shard_param_offsets"] = [
                (infos[n].intra_param_start_idx, infos[n].intra_param_end_idx) for n in held
            ]


def test_flat_parameters_of_older_torch_are_read(copy: Callable[[str], Path]) -> None:
    folder = copy("local")
    change_local(folder, older_form)
    state = torch.load(folder / "model" / "rank1.pt", weights_only=False)

    assert any(h["flat_param._shard_indices"][0] > 0 for m in state["modules"] for h in m["handles"])
    assert hashes(folder) == hashes(SHARDED / "unsharded")


def empty_moments(state: dict[str, Any]) -> None:
    """Moments without elements for parameters of which this rank holds no part."""
    for group in state["param_groups"]:
        for number in group["params"]:
            state["state"].setdefault(number, {"exp_avg": torch.zeros(0), "exp_avg_sq": torch.zeros(0)})


def test_moments_of_a_rank_without_a_part_are_no_piece(copy: Callable[[str], Path]) -> None:
    folder = copy("local")
    change_local(folder, empty_moments, "optim")
    state = torch.load(folder / "optim" / "rank1.pt", weights_only=False)["state"]

    assert any(len(moments["exp_avg"]) == 0 for moments in state.values())
    assert hashes(folder) == hashes(SHARDED / "unsharded")


# --- what is missing is named ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "file", "match"),
    [
        ("torch_legacy", "rank1.pt", r"holds 1 files rank<r>.pt with 1 of the 2 shards of .*: ranks are missing"),
        ("olmo_core", "model/rank_1.safetensors", "rank_1.safetensors is not there"),
        ("local", "model/rank1.pt", "model holds the files of 1 ranks; metadata.yaml counts 2"),
        ("local", "metadata.yaml", "metadata.yaml is not there: the checkpoint is incomplete"),
        ("torch_new", "model_and_optim/__1_0.distcp", "__1_0.distcp is not there: the checkpoint is incomplete"),
    ],
)
def test_a_missing_file_is_named(kind: str, file: str, match: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    (folder / file).unlink()

    with pytest.raises(MissingFile, match=match):
        read_weights(checkpoint(folder))


def test_a_missing_state_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("olmo_core")
    shutil.rmtree(folder / "optim")
    with pytest.raises(MissingState, match="checkpoint 2 of two has no optimizer state .*; it has weights, trainer"):
        read_optimizer(checkpoint(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_corrupt(kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    patterns = ("rank0.pt", "model/rank*0.*", "model_and_optim/__0_0.distcp")
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CorruptFile, match="is not a torch archive|is not a whole safetensors|places an item at"):
        read_weights(checkpoint(folder))


# --- hostile files ---------------------------------------------------------------------------------------------------

A, B = "rank_0.safetensors", "rank_1.safetensors"


def spec(*pairs: Any, **others: Any) -> dict[str, Any]:
    return {"flattened_offsets": list(pairs)} | others


def block(start: list[int], sizes: list[int]) -> dict[str, Any]:
    return {"flattened_offsets": None, "global_offset": start, "local_shape": sizes}


HUGE = 10**13


@pytest.mark.parametrize(
    ("shape", "places", "match"),
    [
        ([HUGE], {A: spec([0, HUGE])}, "places 10000000000000 elements .*; its file has"),
        ([HUGE], {A: spec([0, 576]), B: spec([576, 1152])}, "do not make up its shape|cannot have the shape"),
        (
            [HUGE, HUGE],
            {A: spec([0, 576]), B: spec([HUGE, HUGE + 576])},
            "do not make up its shape|cannot have the shape",
        ),
        ([72, 16], {A: spec([0, 576])}, "do not make up its shape"),
        ([72, 16], {A: spec([0, 576]), B: spec([500, 1076])}, "do not make up its shape"),
        ([72, 16], {A: spec([0, 576]), B: spec([0, 500], [1076, 1152])}, "overlapping pieces"),
        ([72, 16], {A: spec([0, 576]), B: spec([577, 1153])}, "do not make up its shape"),
        ([72, 16], {A: spec([0, 576]), B: spec([-1, 575])}, "where sizes or offsets belong"),
        ([72, 16], {A: spec([0, 576]), B: spec([1152, 576])}, "where stretches of elements belong"),
        ([72, 16], {A: spec([0, 576]), B: spec([0.5, 576.5])}, "where sizes or offsets belong"),
        ([72, 16], {A: spec([0, 576]), B: spec([576, 1152, 1])}, "does not describe tensors"),
        ([72, 16], {A: spec([0, 576]), B: spec("xy")}, "where sizes or offsets belong"),
        ([72, 16], {A: spec([0, 576]), B: 3}, "does not describe tensors"),
        ([72, 16], {A: spec([0, 576]), B: {"flattened_offsets": None}}, "does not describe tensors"),
        ([72, 16], {A: spec([0, 576]), B: spec([576, 1151])}, "places 575 elements"),
        ([72, -16], {A: spec([0, 576]), B: spec([576, 1152])}, "where sizes or offsets belong"),
        ("72", {A: spec([0, 576]), B: spec([576, 1152])}, "where sizes or offsets belong"),
        ([72, 16], {A: block([0, 0], [36, 16]), B: block([36, 0], [36, 17])}, "places a block"),
        ([72, 16], {A: block([0, 0], [36, 16]), B: block([37, 0], [36, 16])}, "do not make up its shape"),
        ([72, 16], {A: block([0, 0], [36, 16]), B: block([0, 0], [16, 36])}, "overlapping pieces"),
        ([72, 16], {A: block([0, 0], [36, 16]), B: block([36, -1], [36, 16])}, "where sizes or offsets belong"),
        ([72, HUGE], {A: block([0, 0], [36, 16]), B: block([36, 0], [36, HUGE])}, "places a block"),
        ([0, 2**70], {}, "cannot have the shape"),
        ([72, 16], {}, "do not make up its shape"),
        ([72, 16], [], "does not describe tensors"),
    ],
)
def test_offsets_that_cannot_be_are_refused(shape: Any, places: Any, match: str, tmp_path: Path) -> None:
    flat = WHOLE.flatten()
    files = {A: {WTE: flat[:576].clone()}, B: {WTE: flat[576:].clone()}}
    entry = {"shape": shape, "is_sharded": True, "dtype": "F32", "shard_spec_per_file": places}
    folder = core_folder(tmp_path / "hostile", files, {WTE: entry})

    with pytest.raises(CorruptFile, match=match):
        read_weights(checkpoint(folder))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dtype": "F33"}, "does not describe tensors"),
        ({"dtype": "I32"}, "is torch.float32 .*, not flat torch.int32"),
        ({"dtype": None}, "does not describe tensors"),
    ],
)
def test_another_dtype_is_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    entry = {"shape": [72, 16], "dtype": "F32", "shard_spec_per_file": {A: spec([0, 1152])}} | change
    folder = core_folder(tmp_path / "hostile", {A: {WTE: WHOLE.flatten()}}, {WTE: entry})

    with pytest.raises(CorruptFile, match=match):
        read_weights(checkpoint(folder))


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "..", "x/a.safetensors", "..\\a.safetensors", ""])
def test_metadata_cannot_name_a_file_outside_its_folder(name: str, tmp_path: Path) -> None:
    entry = {"shape": [72, 16], "dtype": "F32", "shard_spec_per_file": {name: spec([0, 1152])}}
    folder = core_folder(tmp_path / "hostile", {A: {WTE: WHOLE.flatten()}}, {WTE: entry})
    safetensors.torch.save_file({WTE: WHOLE.flatten()}, folder / "a.safetensors")

    with pytest.raises(UnsafeFile, match="metadata.json names .*, outside its folder"):
        read_weights(checkpoint(folder))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"tensors": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[]", "is not an object"),
        (b"{}", "describes no tensors"),
        (b'{"tensors": {"a": 3}}', "does not describe tensors"),
        (b'{"tensors": {}}', "holds no model state"),
    ],
)
def test_metadata_of_another_form_is_corrupt(content: bytes, match: str, copy: Callable[[str], Path]) -> None:
    folder = copy("olmo_core")
    (folder / "model" / "metadata.json").write_bytes(content)

    with pytest.raises(CorruptFile, match=match):
        read_weights(checkpoint(folder))


def test_huge_metadata_is_not_read(copy: Callable[[str], Path]) -> None:
    folder = copy("olmo_core")
    with (folder / "model" / "metadata.json").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UnsafeFile, match="claims 1,099,511,627,776 bytes"):
        read_weights(checkpoint(folder))


class Touch:
    """Unpickled by the standard library, this would leave a marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_pickled_groups_of_olmo_core_are_not_opened(copy: Callable[[str], Path]) -> None:
    """Moments carry their names; what else the trainer pickled is not needed."""
    folder = copy("olmo_core")
    path = folder / "optim" / A
    tensors = safetensors.torch.load_file(path)
    hostile = torch.frombuffer(bytearray(pickle.dumps(Touch(folder / "marker"))), dtype=torch.uint8)
    safetensors.torch.save_file(tensors | {"param_group0": hostile}, path)
    described = metadata(folder, "optim")
    described["tensors"]["param_group0"] |= {
        "shape": [len(hostile)],
        "shard_spec_per_file": {A: spec([0, len(hostile)])},
    }
    write_metadata(folder, described, "optim")

    assert hashes(folder) == hashes(SHARDED / "unsharded")
    assert not (folder / "marker").exists()


@pytest.mark.parametrize("kind", ["torch_legacy", "local"])
def test_a_pickled_rank_runs_nothing(kind: str, copy: Callable[[str], Path]) -> None:
    folder = copy(kind)
    path = folder / ("rank1.pt" if kind == "torch_legacy" else "model/rank1.pt")
    torch.save({"modules": [], "model": Touch(folder / "marker")}, path)

    with pytest.raises(UnsafeFile, match="rank1.pt names .*: refused, nothing was run"):
        read_weights(checkpoint(folder))
    assert not (folder / "marker").exists()


# --- sharded tensors, written by torch with two ranks that do not exist ----------------------------------------------


def save_ranks(folder: Path, change: Callable[[int, Any], None]) -> Path:
    """rank0.pt and rank1.pt with the embedding cut in two, its description changed before each is saved."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata
    from torch.distributed._shard.sharded_tensor.metadata import TensorProperties
    from torch.testing._internal.distributed.fake_pg import FakeStore

    folder.mkdir()
    shutil.copy(SHARDED / "torch_legacy" / "config.yaml", folder)
    for rank, rows in enumerate((slice(0, 40), slice(40, 72))):
        init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
        try:
            places = [ShardMetadata([0, 0], [40, 16], "rank:0/cpu"), ShardMetadata([40, 0], [32, 16], "rank:1/cpu")]
            tensor = ShardedTensor._init_from_local_shards_and_global_metadata(
                [Shard(WHOLE[rows].clone(), places[rank])],
                ShardedTensorMetadata(places, WHOLE.size(), TensorProperties(dtype=torch.float32)),
            )
            change(rank, tensor)
            torch.save({"model": {WTE: tensor}}, folder / f"rank{rank}.pt")
        finally:
            destroy_process_group()
    return folder


def place_of(tensor: Any) -> Any:
    return tensor.local_shards()[0].metadata


def shift(rank: int, tensor: Any, by: int) -> None:
    if rank == 1:
        place_of(tensor).shard_offsets = [40 + by, 0]


def resize(tensor: Any, size: tuple[int, ...]) -> None:
    tensor.metadata().size = torch.Size(size)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda rank, tensor: None, None),
        (lambda rank, tensor: shift(rank, tensor, -1), "do not make up its shape"),
        (lambda rank, tensor: shift(rank, tensor, 1), "do not make up its shape"),
        (lambda rank, tensor: shift(rank, tensor, HUGE), "do not make up its shape"),
        (lambda rank, tensor: shift(rank, tensor, -50), "do not make up its shape"),
        (lambda rank, tensor: shift(rank, tensor, -40), "two ranks hold shards of .* at"),
        (lambda rank, tensor: resize(tensor, (HUGE, 16)), "do not make up its shape"),
        (lambda rank, tensor: resize(tensor, (1152,)), "do not make up its shape"),
        (lambda rank, tensor: resize(tensor, (72 + rank, 16)), "different sizes"),
        (lambda rank, tensor: setattr(place_of(tensor), "shard_sizes", [16, 40]), "a shard of .*, not .* as declared"),
        (lambda rank, tensor: setattr(place_of(tensor), "shard_sizes", ["x", 1]), "no sharded tensor as torch writes"),
        (lambda rank, tensor: setattr(place_of(tensor), "shard_offsets", None), "no sharded tensor as torch writes"),
        (lambda rank, tensor: setattr(tensor.metadata(), "shards_metadata", 3), "no sharded tensor as torch writes"),
        (lambda rank, tensor: setattr(tensor.metadata().tensor_properties, "dtype", torch.int64), "a shard of"),
        (lambda rank, tensor: setattr(tensor.local_shards()[0], "tensor", 3), "holds no tensor where"),
        (lambda rank, tensor: tensor.local_shards().clear(), "0 of the 2 shards of .*: ranks are missing"),
    ],
)
def test_shards_are_held_against_what_is_declared(
    change: Callable[[int, Any], None], match: str | None, tmp_path: Path
) -> None:
    folder = save_ranks(tmp_path / "step2", change)
    if match is None:
        assert torch.equal(read_weights(checkpoint(folder))["model.embed_tokens.weight"], WHOLE)
        return
    with pytest.raises((CorruptFile, MissingFile), match=match):
        read_weights(checkpoint(folder))


def test_ranks_that_hold_different_things_are_corrupt(copy: Callable[[str], Path]) -> None:
    folder = copy("torch_legacy")
    for other in ({"model": {}}, {"model": 3}, {}, []):
        torch.save(other, folder / "rank1.pt")
        with pytest.raises(CorruptFile, match="and the other ranks' files hold different"):
            read_weights(checkpoint(folder))


def test_a_storage_is_held_against_its_bytes_before_pieces_are_put_together(tmp_path: Path) -> None:
    """The first piece may be honest: memory for all of them is taken when it is read."""
    torch.save(torch.zeros(2), tmp_path / "rank0.pt")
    archive = read_torch_archive(tmp_path / "rank0.pt")
    boasting = replace(archive.value.storage, num_elements=HUGE)

    with pytest.raises(CorruptFile, match="storage 0 has 8 bytes, not 40000000000000"):
        of_archive(archive, replace(archive.value, storage=boasting, shape=(HUGE,)), "a")


# --- flat parameters that cannot be ----------------------------------------------------------------------------------


def handle_of(state: dict[str, Any]) -> Any:
    return state["modules"][-1]["handles"][0]


def first_info(state: dict[str, Any], **changes: int) -> None:
    infos = list(handle_of(state)["flat_param._shard_param_infos"])
    number = next(n for n, info in enumerate(infos) if info.in_shard)
    infos[number] = infos[number]._replace(**changes)
    handle_of(state)["flat_param._shard_param_infos"] = tuple(infos)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: first_info(s, offset_in_shard=10**9), "lies outside its flat parameter"),
        (lambda s: first_info(s, offset_in_shard=-1), "lies outside its flat parameter"),
        (lambda s: first_info(s, numel_in_shard=HUGE), "elements of .* cannot be its elements"),
        (
            lambda s: first_info(s, numel_in_shard=HUGE, intra_param_end_idx=HUGE - 1, intra_param_start_idx=0),
            "outside",
        ),
        (lambda s: first_info(s, in_shard=False), "do not make up its shape"),
        (lambda s: first_info(s, offset_in_shard="x"), "holds no flat parameters"),
        (lambda s: handle_of(s).update({"flat_param._shapes": []}), "holds no flat parameters"),
        (lambda s: handle_of(s).update({"flat_param._fqns": [3] * 99}), "holds no flat parameters"),
        (lambda s: handle_of(s).pop("flat_param.data"), "holds no flat parameters"),
        (lambda s: handle_of(s).update({"flat_param.data": torch.zeros(2, 3)}), "is no flat tensor"),
        (lambda s: handle_of(s).update({"flat_param.data": 3}), "is no flat tensor"),
        (lambda s: s.update(modules=3), "holds no flat parameters"),
        (lambda s: s.update(modules=[]), "holds no model state"),
    ],
)
def test_flat_parameters_that_cannot_be_are_refused(
    change: Callable[[dict[str, Any]], None], match: str, copy: Callable[[str], Path]
) -> None:
    folder = copy("local")
    change_local(folder, change)

    with pytest.raises(CorruptFile, match=match):
        read_weights(checkpoint(folder))


def huge_shapes(state: dict[str, Any]) -> None:
    handle = handle_of(state)
    handle["flat_param._shapes"] = tuple(torch.Size((HUGE, 2)) for _ in handle["flat_param._shapes"])


def test_a_parameter_of_terabytes_is_refused_before_it_is_allocated(copy: Callable[[str], Path]) -> None:
    folder = copy("local")
    change_local(folder, huge_shapes)
    with pytest.raises(CorruptFile, match=r"do not make up its shape \(10000000000000, 2\)"):
        read_weights(checkpoint(folder))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s["state"].update({0: {"exp_avg": torch.zeros(3)}}), "exp_avg of .* is not cut as the parameter is"),
        (lambda s: s["state"].update({99: {}, 98: {"step": 1}}), "holds no optimizer state as torch writes it"),
        (lambda s: s["param_groups"][0].pop("param_names"), "holds no optimizer state as torch writes it"),
        (lambda s: s["param_groups"][0]["param_names"].pop(), "holds no optimizer state as torch writes it"),
        (lambda s: s.update(state=3), "holds no optimizer state as torch writes it"),
    ],
)
def test_optimizers_that_do_not_fit_the_flat_parameters_are_refused(
    change: Callable[[dict[str, Any]], None], match: str, copy: Callable[[str], Path]
) -> None:
    folder = copy("local")
    change_local(folder, change, "optim")

    with pytest.raises(CorruptFile, match=match):
        read_optimizer(checkpoint(folder))
