"""Models as transformers saves them are read in all its forms, and no index leads outside."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Olmo2Config, Olmo2ForCausalLM

from data_index.errors import CorruptFile, MissingFile, MissingState, UnsafeFile
from data_index.olmo_checkpoint import layout_of, states_of
from data_index.run import Checkpoint
from replay.weights import content_hash, iterate_weights, read_optimizer, read_tensor, read_weights

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 0}


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(run="hub", step=1, location=folder, layout=layout_of(folder) or "hf", states=states_of(folder))


def model(seed: int = 0, **changes: Any) -> Olmo2ForCausalLM:
    torch.manual_seed(seed)
    return Olmo2ForCausalLM(Olmo2Config(**(SIZES | TOKENS | changes)))


def save_pickles(known: torch.nn.Module, folder: Path) -> None:
    torch.save(known.state_dict(), folder / "pytorch_model.bin")


def save_pickles_with_index(known: torch.nn.Module, folder: Path) -> None:
    state = known.state_dict()
    names = list(state)
    halves = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, held in halves.items():
        torch.save({name: state[name] for name in held}, folder / file)
    places = {name: file for file, held in halves.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


FORMS: dict[str, Callable[[Any, Path], None]] = {
    "one file": lambda known, folder: known.save_pretrained(folder),
    "an index": lambda known, folder: known.save_pretrained(folder, max_shard_size="8KB"),
    "a pickle": save_pickles,
    "pickles with an index": save_pickles_with_index,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_models_parameters(form: str, tmp_path: Path) -> None:
    known = model()
    FORMS[form](known, tmp_path)
    place = checkpoint(tmp_path)
    weights = read_weights(place)

    assert (layout_of(tmp_path), place.states) == ("hf", ("weights",))
    assert len(list(tmp_path.glob("*.index.json"))) == ("index" in form)
    assert content_hash(weights) == content_hash(dict(known.named_parameters()))
    assert content_hash(dict(iterate_weights(place))) == content_hash(weights)
    name = "model.layers.1.mlp.gate_proj.weight"
    assert torch.equal(read_tensor(place, name), known.get_parameter(name))


def test_other_dtypes_keep_their_bits(tmp_path: Path) -> None:
    known = model().to(torch.bfloat16)
    known.save_pretrained(tmp_path)

    assert content_hash(read_weights(checkpoint(tmp_path))) == content_hash(dict(known.named_parameters()))


def test_transformers_choice_among_several_forms_is_ours(tmp_path: Path) -> None:
    """A repository often holds the same step twice; safetensors come first, one file before an index."""
    save_pickles_with_index(model(3), tmp_path)
    save_pickles(model(2), tmp_path)
    model(1).save_pretrained(tmp_path, max_shard_size="8KB")
    for seed, files in ((1, "model*"), (2, "pytorch_model.bin"), (3, "pytorch_model*")):
        weights = read_weights(checkpoint(tmp_path))
        assert content_hash(weights) == content_hash(dict(model(seed).named_parameters()))
        for path in tmp_path.glob(files):
            path.unlink()
    with pytest.raises(MissingFile, match="holds none of model.safetensors, model.safetensors.index.json"):
        read_weights(Checkpoint(run="hub", step=1, location=tmp_path, layout="hf", states=("weights",)))


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    known = model(tie_word_embeddings=True)
    save_pickles(known, tmp_path)
    known.config.save_pretrained(tmp_path)
    assert "lm_head.weight" in known.state_dict()

    assert content_hash(read_weights(checkpoint(tmp_path))) == content_hash(dict(known.named_parameters()))


def test_constants_that_were_saved_with_weights_are_none(tmp_path: Path) -> None:
    """Older versions saved attention masks and frequencies; today's models compute them."""
    torch.manual_seed(0)
    known = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **TOKENS))
    constants = {
        f"gpt_neox.layers.{layer}.attention.{name}": torch.ones(1)
        for layer in (0, 1)
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
    }
    torch.save(known.state_dict() | constants, tmp_path / "pytorch_model.bin")
    weights = read_weights(checkpoint(tmp_path))

    assert "gpt_neox.layers.0.attention.dense.bias" in weights
    assert content_hash(weights) == content_hash(dict(known.named_parameters()))


def test_moments_beside_the_weights_are_read(tmp_path: Path) -> None:
    known = model()
    known.save_pretrained(tmp_path)
    with pytest.raises(MissingState, match="checkpoint 1 of hub has no optimizer state .*optimizer.safetensors"):
        read_optimizer(checkpoint(tmp_path))
    flat = {f"exp_avg.{name}": p.detach() * 2 for name, p in known.named_parameters()}
    flat |= {f"exp_avg_sq.{name}": p.detach() * 3 for name, p in known.named_parameters()}
    flat |= {f"step.{name}": torch.tensor(1.0) for name, _ in known.named_parameters()}
    safetensors.torch.save_file(flat, tmp_path / "optimizer.safetensors")
    moments = read_optimizer(checkpoint(tmp_path))

    assert list(moments) == ["exp_avg", "exp_avg_sq", "step"]
    assert torch.equal(moments["exp_avg_sq"]["lm_head.weight"], known.lm_head.weight * 3)
    assert torch.equal(read_tensor(checkpoint(tmp_path), "lm_head.weight", "exp_avg"), known.lm_head.weight * 2)


# --- hostile and damaged folders -------------------------------------------------------------------------------------


def index(folder: Path, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", ["../b.safetensors", "/etc/passwd", "..", ".", "", "x/b.safetensors", "..\\b"])
def test_an_index_cannot_name_a_file_outside_its_folder(name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")

    with pytest.raises(UnsafeFile, match="model.safetensors.index.json names .*, outside its folder"):
        read_weights(checkpoint(index(tmp_path / "hub", {"weight_map": {"a": name}})))


@pytest.mark.parametrize("content", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": ["b"]}}])
def test_an_index_of_another_form_is_corrupt(content: Any, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="is not an object|has no weight_map from names to files"):
        read_weights(checkpoint(index(tmp_path, content)))


def test_an_index_is_held_against_its_files(tmp_path: Path) -> None:
    index(tmp_path, {"weight_map": {"a": "b.safetensors", "c": "b.safetensors"}})
    with pytest.raises(MissingFile, match="b.safetensors is not there"):
        read_weights(checkpoint(tmp_path))
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(CorruptFile, match="places c in b.safetensors, which lacks it"):
        read_weights(checkpoint(tmp_path))


class Touch:
    """Unpickled by the standard library, this would leave a marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_pickled_model_runs_nothing(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": Touch(tmp_path / "marker")}, tmp_path / "pytorch_model.bin")

    with pytest.raises(UnsafeFile, match="pytorch_model.bin names .*: refused, nothing was run"):
        read_weights(checkpoint(tmp_path))
    assert not (tmp_path / "marker").exists()


def test_a_model_in_torchs_oldest_form_is_refused(tmp_path: Path) -> None:
    """Before 1.6 torch wrote a row of pickles; they are not opened."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CorruptFile, match="pytorch_model.bin is not a torch archive"):
        read_weights(checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ([], "holds no model state"),
        ({3: torch.zeros(1)}, "holds no model state"),
        ({"a": 3}, "holds no tensor where a"),
    ],
)
def test_what_is_no_model_says_so(state: Any, match: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptFile, match=match):
        read_weights(checkpoint(tmp_path))


def test_many_names_for_the_same_bytes_are_refused(tmp_path: Path) -> None:
    shared = torch.zeros(100_000)
    torch.save({str(number): shared for number in range(3)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeFile, match="its 3 tensors claim 1200000 bytes of 40"):
        read_weights(checkpoint(tmp_path))


def test_a_dtype_that_no_checkpoint_uses_is_named(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(CorruptFile, match="a is of dtype F8_E8M0, which no checkpoint uses"):
        read_weights(checkpoint(tmp_path))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_corrupt(file: str, tmp_path: Path) -> None:
    FORMS["one file" if file.startswith("model") else "a pickle"](model(), tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-1])
    with pytest.raises(CorruptFile, match=f"{file} is not a (whole safetensors file|torch archive)"):
        read_weights(checkpoint(tmp_path))


def test_a_pickle_in_another_place_than_a_name_stays_closed(tmp_path: Path) -> None:
    """A safetensors header is JSON; what looks like a pickle there is only text."""
    hostile = pickle.dumps(Touch(tmp_path / "marker")).decode("latin-1")
    safetensors.torch.save_file({hostile: torch.zeros(1)}, tmp_path / "model.safetensors")

    assert list(read_weights(checkpoint(tmp_path))) == [hostile]
    assert not (tmp_path / "marker").exists()


def test_gpt_neox_output_layer_has_todays_name(tmp_path: Path) -> None:
    """Every published file calls it embed_out, weights and moments alike."""
    torch.manual_seed(0)
    known = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **TOKENS))
    state = {name.replace("lm_head", "embed_out"): tensor for name, tensor in known.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    safetensors.torch.save_file({f"exp_avg.{n}": t for n, t in state.items()}, tmp_path / "optimizer.safetensors")

    assert content_hash(read_weights(checkpoint(tmp_path))) == content_hash(dict(known.named_parameters()))
    assert torch.equal(read_tensor(checkpoint(tmp_path), "lm_head.weight", "exp_avg"), known.lm_head.weight)
    torch.save(state | {"lm_head.weight": state["embed_out.weight"]}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptFile, match="holds the output layer twice"):
        read_weights(checkpoint(tmp_path))
