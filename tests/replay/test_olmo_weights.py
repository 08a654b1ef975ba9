"""Unsharded checkpoints of the legacy OLMo trainer become the same tensors whatever file they lie in."""

import base64
import json
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

from data_index.errors import CorruptFile, MissingFile, MissingState, UnknownLayout, UnsafeFile, UnsupportedRecipe
from data_index.olmo_checkpoint import ModelNumbers, layout_of, states_of
from data_index.run import Checkpoint
from replay import stored_tensors
from replay.names_olmo import Part, numbers_from_shapes, parts_of, trainer_parameters, transformers_names, ungrouped
from replay.weights import (
    content_hash,
    iterate_weights,
    read_optimizer,
    read_tensor,
    read_weights,
    stored_weights,
    trainer_parameter_hash,
)

OLMO = Path(__file__).parents[1] / "fixtures" / "olmo"
VARIANTS = Path(__file__).parents[1] / "fixtures" / "olmo-variants"
STEP0, STEP10 = OLMO / "run" / "step0-unsharded", OLMO / "run" / "step10-unsharded"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
NUMBERS = ModelNumbers(d_model=64, kv_rows=64, norm_after=True)


def checkpoint(folder: Path, **changes: Any) -> Checkpoint:
    fields = {"layout": layout_of(folder) or "olmo", "states": states_of(folder)} | changes
    return Checkpoint(run="tiny", step=10, location=folder, **fields)


def theirs(folder: Path, name: str) -> Any:
    """A file as torch reads it."""
    return torch.load(folder / name, weights_only=False)


def assert_same(ours: dict[str, torch.Tensor], raw: dict[str, torch.Tensor]) -> None:
    """Are our parts, laid end to end, the trainer's tensors, and is there nothing else?"""
    parts = {name: trainer_parameters(ours)[name] for name in raw}
    for name, tensor in raw.items():
        found = [ours[part] for part in parts[name]]
        assert torch.equal(torch.cat(found) if tensor.dim() else found[0], tensor), name
        assert all(part.dtype == tensor.dtype and part.is_contiguous() for part in found)
    assert set(ours) == {part for names in parts.values() for part in names}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Step 10, to be changed."""
    return Path(shutil.copytree(STEP10, tmp_path / "step10-unsharded"))


# --- what is there is read as the trainer reads it -------------------------------------------------------------------


@pytest.mark.parametrize("folder", [STEP0, STEP10, VARIANTS / "ddp-step10"], ids=lambda path: path.name)
def test_weights_are_the_trainers_own(folder: Path) -> None:
    weights = read_weights(checkpoint(folder))

    assert_same(weights, theirs(folder, "model.pt"))
    assert list(weights)[:3] == [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.self_attn.k_norm.weight",
    ]


def test_moments_are_the_trainers_own() -> None:
    moments, known = read_optimizer(checkpoint(STEP10)), theirs(STEP10, "optim.pt")["state"]

    assert set(moments) == set(MOMENTS)
    for moment in MOMENTS:
        assert_same(moments[moment], {name: state[moment] for name, state in known.items()})
    assert {float(step) for step in moments["step"].values()} == {10.0}


def test_moments_numbered_by_ddp_belong_to_the_names_of_its_groups() -> None:
    folder = VARIANTS / "ddp-step10"
    moments, known = read_optimizer(checkpoint(folder)), theirs(folder, "optim.pt")
    names = [name.removeprefix("module.") for group in known["param_groups"] for name in group["param_names"]]

    for moment in MOMENTS:
        assert_same(moments[moment], {names[number]: state[moment] for number, state in known["state"].items()})


@pytest.mark.parametrize("variant", ["safetensors-step10", "ddp-step10"])
def test_other_forms_of_step_10_hold_the_same_bits(variant: str) -> None:
    """One process computes the same under FSDP and DDP; only the form of the files differs."""
    one, other = checkpoint(STEP10), checkpoint(VARIANTS / variant)

    assert content_hash(read_weights(one)) == content_hash(read_weights(other))
    for moment in MOMENTS:
        assert content_hash(read_optimizer(one)[moment]) == content_hash(read_optimizer(other)[moment])


def test_checkpoint_0_has_no_moments() -> None:
    assert read_optimizer(checkpoint(STEP0)) == {"exp_avg": {}, "exp_avg_sq": {}, "step": {}}


def test_transformers_loses_what_the_trainer_lost() -> None:
    """Each parameter has the right place and each half its meaning: up and gate swapped would give another loss."""
    line = next(row for row in map(json.loads, (OLMO / "metrics.jsonl").read_text().splitlines()) if row["step"] == 11)
    tokens = np.concatenate(
        [np.fromfile(p, "<u2")[: p.stat().st_size // 256 * 128] for p in sorted(OLMO.glob("data/*.npy"))]
    )
    rows = torch.from_numpy(tokens.reshape(-1, 128)[line["indices"]].astype(np.int64))
    config = Olmo2Config(
        **{
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "pad_token_id": None,
        },
        **{"num_attention_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "bos_token_id": None},
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "eos_token_id": 0},
    )
    model = Olmo2ForCausalLM(config)
    model.load_state_dict(read_weights(checkpoint(STEP10)), strict=True)
    with torch.no_grad():
        logits = model(rows).logits[:, :-1].reshape(-1, 512)
    losses = torch.nn.functional.cross_entropy(logits, rows[:, 1:].reshape(-1), reduction="none").reshape(8, 127)
    mask = torch.tensor(line["instance_mask"])[:, None]

    # The trainer sums in another order: attention in one kernel, the loss in two micro-batches.
    assert float((losses * mask).sum()) / (8 * 128) == pytest.approx(line["ce_loss"], rel=1e-6)


def test_the_hash_is_over_the_trainers_own_tensors() -> None:
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(theirs(STEP10, "model.pt").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())

    assert trainer_parameter_hash(read_weights(checkpoint(STEP10)), "olmo") == digest.hexdigest()


# --- one tensor without the rest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [STEP10, VARIANTS / "safetensors-step10"], ids=["pt", "safetensors"])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.3.self_attn.k_proj.weight"])
def test_one_tensor_equals_its_place_among_all(folder: Path, name: str) -> None:
    place = checkpoint(folder)

    assert torch.equal(read_tensor(place, name), read_weights(place)[name])
    assert stored_weights(place)[name].shape == read_tensor(place, name).shape
    for moment in MOMENTS:
        assert torch.equal(read_tensor(place, name, moment), read_optimizer(place)[moment][name])


def test_one_tensor_is_read_without_the_rest() -> None:
    tracemalloc.start()
    read_tensor(checkpoint(STEP10), "model.norm.weight")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (STEP10 / "model.pt").stat().st_size > 900_000 and peak < 500_000


def test_weights_come_one_by_one_and_fused_ones_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    plain = stored_tensors.tensor_of_archive
    monkeypatch.setattr(stored_tensors, "tensor_of_archive", lambda *given: reads.append(given) or plain(*given))
    iterator = iterate_weights(checkpoint(STEP10))
    first = next(iterator)
    assert (first[0], len(reads)) == ("model.embed_tokens.weight", 1)
    weights = dict([first, *iterator])

    assert (len(reads), len(weights)) == (35, 47)
    assert content_hash(weights) == content_hash(read_weights(checkpoint(STEP10)))


def test_parts_of_a_fused_parameter_do_not_share_memory() -> None:
    """An optimizer counts `step` up in place: one count for q, k and v would be raised three times."""
    steps = read_optimizer(checkpoint(STEP10))["step"]
    q, k, v = (steps[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv")
    q += 1

    assert (float(q), float(k), float(v)) == (11.0, 10.0, 10.0)
    weights = read_weights(checkpoint(STEP10))
    assert len({tensor.untyped_storage().data_ptr() for tensor in weights.values()}) == len(weights)


def test_a_tensor_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingState, match="checkpoint 10 of tiny has no weight of 'lm_head.bias'; it has 47"):
        read_tensor(checkpoint(STEP10), "lm_head.bias")
    with pytest.raises(MissingState, match="has no exp_inf of 'lm_head.weight'; it has 0"):
        read_tensor(checkpoint(STEP10), "lm_head.weight", "exp_inf")


# --- older and rarer forms -------------------------------------------------------------------------------------------


def save(folder: Path, name: str, state: Any) -> Path:
    torch.save(state, folder / name)
    return folder


def one_group(state: dict[str, Any], key: Callable[[int, str], Any]) -> dict[str, Any]:
    """An optimizer state with all parameters in one group, keyed as asked."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    keys = {name: key(number, name) for number, name in enumerate(names)}
    group = state["param_groups"][0] | {"params": list(keys.values()), "param_names": names}
    return {"state": {keys[name]: state["state"][name] for name in names}, "param_groups": [group]}


@pytest.mark.parametrize(
    "key",
    [lambda number, name: name, lambda number, name: number, lambda number, name: 34 - number],
    ids=["names", "numbers", "numbers in another order"],
)
def test_one_group_holds_the_same_moments(key: Callable[[int, str], Any], copy: Path) -> None:
    """Groups say who decays; whose a moment is, the names say."""
    save(copy, "optim.pt", one_group(theirs(STEP10, "optim.pt"), key))

    for moment, tensors in read_optimizer(checkpoint(copy)).items():
        assert content_hash(tensors) == content_hash(read_optimizer(checkpoint(STEP10))[moment])


def test_numbered_moments_without_names_are_refused(copy: Path) -> None:
    state = one_group(theirs(STEP10, "optim.pt"), lambda number, name: number)
    del state["param_groups"][0]["param_names"]
    save(copy, "optim.pt", state)

    with pytest.raises(CorruptFile, match="state 0 has no name in param_groups .*its parameter cannot be told"):
        read_optimizer(checkpoint(copy))


def test_names_without_a_list_of_names_are_enough(copy: Path) -> None:
    state = theirs(STEP10, "optim.pt")
    for group in state["param_groups"]:
        del group["param_names"]
    save(copy, "optim.pt", state)

    assert content_hash(read_optimizer(checkpoint(copy))["exp_avg"]) == content_hash(
        read_optimizer(checkpoint(STEP10))["exp_avg"]
    )


def test_wrappers_leave_no_trace_in_names(copy: Path) -> None:
    model = theirs(STEP10, "model.pt")
    save(
        copy,
        "model.pt",
        {
            f"_fsdp_wrapped_module.{name.replace('blocks.1.', 'blocks.1._fsdp_wrapped_module.')}": t
            for name, t in model.items()
        },
    )
    assert content_hash(read_weights(checkpoint(copy))) == content_hash(read_weights(checkpoint(STEP10)))
    save(copy, "model.pt", {f"module.{name}": t for name, t in model.items()})
    assert content_hash(read_weights(checkpoint(copy))) == content_hash(read_weights(checkpoint(STEP10)))
    save(copy, "model.pt", model | {"module.transformer.wte.weight": model["transformer.wte.weight"]})
    with pytest.raises(CorruptFile, match="holds a parameter twice"):
        read_weights(checkpoint(copy))


def test_blocks_in_groups_are_counted_through(copy: Path) -> None:
    def grouped(name: str) -> str:
        head, _, tail = name.partition("blocks.")
        return f"{head}block_groups.{int(tail[0]) // 2}.{int(tail[0]) % 2}{tail[1:]}" if tail else name

    save(copy, "model.pt", {grouped(name): t for name, t in theirs(STEP10, "model.pt").items()})
    assert content_hash(read_weights(checkpoint(copy))) == content_hash(read_weights(checkpoint(STEP10)))
    with pytest.raises(CorruptFile, match="block groups of sizes"):
        ungrouped(
            ["transformer.block_groups.0.0.x", "transformer.block_groups.0.1.x", "transformer.block_groups.1.0.x"]
        )


def test_adaptive_clipping_keeps_a_number_for_each_parameter(copy: Path) -> None:
    state = theirs(STEP10, "optim.pt")
    for number, moments in enumerate(state["state"].values()):
        moments["grad_norm_exp_avg"] = torch.tensor(float(number))
    save(copy, "optim.pt", state)
    found = read_optimizer(checkpoint(copy))

    assert set(found) == {*MOMENTS, "grad_norm_exp_avg"}
    first = list(state["state"])[0]
    assert {float(found["grad_norm_exp_avg"][part]) for part in transformers_names(first)} == {0.0}


def test_older_torch_counts_steps_as_plain_numbers(copy: Path) -> None:
    state = theirs(STEP10, "optim.pt")
    for moments in state["state"].values():
        moments["step"] = 10
    save(copy, "optim.pt", state)
    steps = read_optimizer(checkpoint(copy))["step"]

    assert all(torch.equal(step, torch.tensor(10.0)) for step in steps.values()) and len(steps) == 47


def test_the_unshard_script_saves_a_default_dict(tmp_path: Path) -> None:
    """So the trainer's own script writes the optimizer of `local` checkpoints; its numbers have gaps."""
    folder = VARIANTS.parent / "olmo-sharded" / "unsharded"
    changed = Path(shutil.copytree(folder, tmp_path / "local"))
    (changed / "optim-of-local.pt").replace(changed / "optim.pt")
    known = theirs(changed, "optim.pt")["state"]

    assert type(known).__name__ == "defaultdict" and list(known)[:3] == [0, 2, 4]
    for moment, tensors in read_optimizer(checkpoint(changed)).items():
        assert content_hash(tensors) == content_hash(read_optimizer(checkpoint(folder))[moment])


def test_safetensors_come_first(copy: Path) -> None:
    """The trainer loads them, whatever the pickles beside them say."""
    for file in ("model.safetensors", "optim.safetensors"):
        shutil.copy(VARIANTS / "safetensors-step10" / file, copy)
    for file in ("model.pt", "optim.pt"):
        shutil.copy(STEP0 / file, copy)

    assert content_hash(read_weights(checkpoint(copy))) == content_hash(read_weights(checkpoint(STEP10)))
    assert len(read_optimizer(checkpoint(copy))["step"]) == 47


def test_without_a_config_the_shapes_decide(copy: Path) -> None:
    (copy / "config.yaml").unlink()

    assert content_hash(read_weights(checkpoint(copy))) == content_hash(read_weights(checkpoint(STEP10)))
    assert len(read_optimizer(checkpoint(copy))["exp_avg"]) == 47


def test_an_optimizer_without_state_has_no_moments_in_safetensors_too(copy: Path) -> None:
    """An empty dict has no leaves, so that the file holds the groups only."""
    optimizer_file(copy, pickle.dumps(theirs(STEP0, "optim.pt")["param_groups"]))

    assert read_optimizer(checkpoint(copy)) == {"exp_avg": {}, "exp_avg_sq": {}, "step": {}}


def test_fewer_key_heads_make_shorter_keys_and_values(copy: Path) -> None:
    model = theirs(STEP10, "model.pt")
    narrow = {name: t[:96] if name.endswith("att_proj.weight") else t for name, t in model.items()}
    narrow |= {name: t[:16] for name, t in model.items() if name.endswith("k_norm.weight")}
    save(copy, "model.pt", narrow)
    config = (STEP10 / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("n_kv_heads: null", "n_kv_heads: 1"))
    weights = read_weights(checkpoint(copy))

    assert [tuple(weights[f"model.layers.0.self_attn.{part}_proj.weight"].shape) for part in "qkv"] == [
        (64, 64),
        (16, 64),
        (16, 64),
    ]
    fused = model["transformer.blocks.0.att_proj.weight"]
    assert torch.equal(weights["model.layers.0.self_attn.v_proj.weight"], fused[80:96])
    (copy / "config.yaml").write_text(config)
    with pytest.raises(CorruptFile, match=r"att_proj.weight has 96 rows; the model's numbers make it 64 \+ 64 \+ 64"):
        read_weights(checkpoint(copy))


def test_a_projection_both_fused_and_apart_is_corrupt(copy: Path) -> None:
    model = theirs(STEP10, "model.pt")
    save(copy, "model.pt", model | {"transformer.blocks.0.k_proj.weight": torch.zeros(64, 64)})
    with pytest.raises(CorruptFile, match="holds model.layers.0.self_attn.k_proj.weight twice"):
        read_weights(checkpoint(copy))


# --- names -----------------------------------------------------------------------------------------------------------


def test_olmo_1_has_no_norms_and_may_tie_its_head() -> None:
    shapes = {
        "transformer.wte.weight": (512, 64),
        "transformer.blocks.0.att_proj.weight": (192, 64),
        "transformer.blocks.0.attn_out.weight": (64, 64),
        "transformer.blocks.0.ff_proj.weight": (256, 64),
        "transformer.blocks.0.ff_out.weight": (64, 128),
    }
    numbers = numbers_from_shapes(shapes)
    names = [part.name for name, shape in shapes.items() for part in parts_of(name, shape, numbers)]

    assert numbers == ModelNumbers(d_model=64, kv_rows=64, norm_after=False)
    assert sorted(names) == sorted(
        ["model.embed_tokens.weight"]
        + [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"]
        + [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    )
    assert list(trainer_parameters(names)) == [
        "transformer.wte.weight",
        *(f"transformer.blocks.0.{part}.weight" for part in ("attn_out", "ff_out", "att_proj", "ff_proj")),
    ]


def test_blocks_of_type_llama_keep_projections_apart() -> None:
    assert parts_of("transformer.blocks.7.k_proj.weight", (64, 64), NUMBERS) == (
        Part(name="model.layers.7.self_attn.k_proj.weight", rows=None),
    )


def test_the_feed_forwards_first_half_is_up() -> None:
    assert parts_of("transformer.blocks.0.ff_proj.weight", (6, 64), NUMBERS) == (
        Part(name="model.layers.0.mlp.up_proj.weight", rows=slice(0, 3)),
        Part(name="model.layers.0.mlp.gate_proj.weight", rows=slice(3, 6)),
    )
    with pytest.raises(CorruptFile, match=r"ff_proj.weight has 7 rows; .* 3 \+ 4"):
        parts_of("transformer.blocks.0.ff_proj.weight", (7, 64), NUMBERS)


def test_names_go_there_and_back() -> None:
    names = list(theirs(STEP10, "model.pt"))
    ours = [part for name in names for part in transformers_names(name)]

    assert list(trainer_parameters(reversed(ours))) == names
    assert [part for parts in trainer_parameters(ours).values() for part in parts] == ours
    assert "transformer.blocks.0.att_proj.weight" not in trainer_parameters(
        set(ours) - {"model.layers.0.self_attn.v_proj.weight"}
    )


@pytest.mark.parametrize(
    "name",
    [
        "transformer.wpe.weight",
        "transformer.blocks.0.att_proj.bias",
        "transformer.blocks.0.norm.weight",
        "lm_head.weight",
    ],
)
def test_parameters_without_a_place_are_named(name: str) -> None:
    with pytest.raises(UnsupportedRecipe, match=f"the OLMo parameter '{name}' has no place"):
        transformers_names(name)


def test_norms_before_the_sublayers_are_refused() -> None:
    """Olmo2 norms what comes out of a sublayer; the same weight before it is another model."""
    before = ModelNumbers(d_model=64, kv_rows=64, norm_after=False)
    with pytest.raises(UnsupportedRecipe, match="norm before its sublayer"):
        parts_of("transformer.blocks.0.attn_norm.weight", (64,), before)


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ({}, "hold no transformer.wte.weight"),
        ({"transformer.wte.weight": (8,)}, "hold no transformer.wte.weight"),
        ({"transformer.wte.weight": (512, 64), "transformer.blocks.0.att_proj.weight": (65, 64)}, "has 65 rows"),
        ({"transformer.wte.weight": (512, 64), "transformer.blocks.0.att_proj.weight": (64, 64)}, "has 64 rows"),
    ],
)
def test_shapes_that_are_no_olmo_model_are_corrupt(shapes: dict[str, tuple[int, ...]], match: str) -> None:
    with pytest.raises(CorruptFile, match=match):
        numbers_from_shapes(shapes)


# --- hostile and damaged files ---------------------------------------------------------------------------------------


class Touch:
    """Unpickled by the standard library, this would leave a marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def encoded(keys: Any, is_pickled: Any = False) -> str:
    return base64.urlsafe_b64encode(pickle.dumps((keys, is_pickled))).decode()


def optimizer_file(folder: Path, groups: bytes) -> None:
    (folder / "optim.pt").unlink()
    raw = torch.frombuffer(bytearray(groups), dtype=torch.uint8)
    safetensors.torch.save_file({encoded(("param_groups",), True): raw}, folder / "optim.safetensors")


def test_a_pickled_value_in_safetensors_runs_nothing(copy: Path) -> None:
    optimizer_file(copy, pickle.dumps([{"params": [], "x": Touch(copy / "marker")}]))

    with pytest.raises(UnsafeFile, match=r"optim.safetensors \('param_groups',\) names .*: refused, nothing was run"):
        read_optimizer(checkpoint(copy))
    assert not (copy / "marker").exists()


def test_a_pickled_name_in_safetensors_runs_nothing(copy: Path) -> None:
    (copy / "model.pt").unlink()
    hostile = base64.urlsafe_b64encode(pickle.dumps(Touch(copy / "marker"))).decode()
    safetensors.torch.save_file({hostile: torch.zeros(1)}, copy / "model.safetensors")

    with pytest.raises(UnsafeFile, match="model.safetensors, name .* names .*: refused, nothing was run"):
        read_weights(checkpoint(copy))
    assert not (copy / "marker").exists()


@pytest.mark.parametrize("file", ["model.pt", "optim.pt"])
def test_a_pickled_state_runs_nothing(file: str, copy: Path) -> None:
    save(copy, file, {"state": {}, "x": Touch(copy / "marker")})

    with pytest.raises(UnsafeFile, match=f"{file} names .*: refused, nothing was run"):
        (read_weights if file == "model.pt" else read_optimizer)(checkpoint(copy))
    assert not (copy / "marker").exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("model.norm.weight", "is no name as the OLMo trainer writes it .*layout hf"),
        ("!" + encoded(("transformer.wte.weight",)), "is no name as the OLMo trainer writes it"),
        (encoded("transformer.wte.weight"), "is not a pair of keys and a flag"),
        (encoded(()), "is not a pair of keys and a flag"),
        (encoded((None,)), "is not a pair of keys and a flag"),
        (encoded(("a",), "yes"), "is not a pair of keys and a flag"),
        (base64.urlsafe_b64encode(b"\x80\x02K").decode(), "is not a whole pickle"),
        (encoded(("a",), True), "holds no pickled value: torch.float32"),
        (encoded(("a", "b")), "holds no model state"),
    ],
)
def test_names_of_another_form_are_refused(name: str, match: str, copy: Path) -> None:
    (copy / "model.pt").unlink()
    safetensors.torch.save_file({name: torch.zeros(1)}, copy / "model.safetensors")

    with pytest.raises(CorruptFile, match=match):
        read_weights(checkpoint(copy))


def test_a_name_cannot_lie_below_a_value_or_come_twice(copy: Path) -> None:
    (copy / "model.pt").unlink()
    again = base64.urlsafe_b64encode(pickle.dumps((("a",), False), 2)).decode()
    for second, match in ((encoded(("a", "b")), "lies below a value"), (again, "twice")):
        safetensors.torch.save_file(
            {encoded(("a",)): torch.zeros(1), second: torch.ones(1)}, copy / "model.safetensors"
        )
        with pytest.raises(CorruptFile, match=match):
            read_weights(checkpoint(copy))


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ([], "holds no model state"),
        ({}, "holds no model state"),
        ({"transformer.wte.weight": 3}, "holds no model state"),
        ({7: torch.zeros(1)}, "holds no model state"),
        ({"transformer.ln_f.weight": torch.zeros(64)}, None),
    ],
)
def test_what_is_no_model_state_says_so(state: Any, match: str | None, copy: Path) -> None:
    save(copy, "model.pt", state)
    if match is None:
        assert list(read_weights(checkpoint(copy))) == ["model.norm.weight"]
        return
    with pytest.raises(CorruptFile, match=match):
        read_weights(checkpoint(copy))


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ([], "holds no optimizer state"),
        ({"state": {}}, "holds no optimizer state"),
        ({"state": [], "param_groups": []}, "holds no optimizer state"),
        ({"state": {}, "param_groups": 3}, "param_groups is no list of groups"),
        ({"state": {"a": 3}, "param_groups": []}, "state 'a' has no name"),
        ({"state": {"a": {"step": "x"}}, "param_groups": []}, "holds a str, not a tensor"),
        ({"state": {}, "param_groups": [{"params": [0, 0], "param_names": ["a", "b"]}]}, "number 0 to two parameters"),
    ],
)
def test_what_is_no_optimizer_state_says_so(state: Any, match: str, copy: Path) -> None:
    save(copy, "optim.pt", state)
    with pytest.raises(CorruptFile, match=match):
        read_optimizer(checkpoint(copy))


def test_many_names_for_the_same_bytes_are_refused(copy: Path) -> None:
    """A file of a megabyte could else fill any memory."""
    shared = torch.zeros(250, 1000)
    save(copy, "model.pt", {f"transformer.blocks.{layer}.attn_out.weight": shared for layer in range(3)})
    with pytest.raises(UnsafeFile, match="its 3 tensors claim 3000000 bytes of 10"):
        read_weights(checkpoint(copy))


@pytest.mark.parametrize("keep", [0, 1000, 500_000, -1])
def test_a_truncated_file_is_corrupt(keep: int, copy: Path) -> None:
    for file, read in (("model.pt", read_weights), ("optim.pt", read_optimizer)):
        (copy / file).write_bytes((STEP10 / file).read_bytes()[:keep])
        with pytest.raises(CorruptFile, match=f"{file} is not a torch archive"):
            read(checkpoint(copy))


def test_a_damaged_tensor_is_named(copy: Path) -> None:
    content = bytearray((copy / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.pt").write_bytes(content)
    with pytest.raises(CorruptFile, match="is damaged: its checksum differs"):
        read_weights(checkpoint(copy))


def test_a_state_that_is_not_there_is_named(copy: Path) -> None:
    (copy / "optim.pt").unlink()
    with pytest.raises(MissingState, match="checkpoint 10 of tiny has no optimizer state .* it has weights, trainer"):
        read_optimizer(checkpoint(copy))
    with pytest.raises(MissingFile, match="holds no optim.safetensors or optim.pt"):
        read_optimizer(checkpoint(copy, states=("weights", "optimizer")))
    with pytest.raises(UnknownLayout, match="weights of the layout 'other'"):
        read_weights(checkpoint(copy, layout="other"))
    with pytest.raises(UnknownLayout, match="optimizer states of the layout 'other'"):
        read_optimizer(checkpoint(copy, layout="other"))


def test_a_folder_with_another_name_is_read_by_its_files() -> None:
    """Folders get renamed; the files say whether a checkpoint is sharded."""
    assert content_hash(read_weights(checkpoint(STEP10, layout="olmo_sharded"))) == content_hash(
        read_weights(checkpoint(STEP10))
    )
