"""Whole models to prompt: what transformers saved is what is loaded, and nothing in a config runs code."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from data_index.errors import CorruptFile, ForensicsError, MissingFile, UnsafeFile, UnsupportedRecipe
from replay.causal_model import model_of_place
from tests.data_index.test_gguf_file import gguf

CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
IDS = torch.arange(1, 15)[None]


def saved(folder: Path, **settings: Any) -> Any:
    """A folder as transformers saves it, and the model."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(**SIZES | {"model_type": "llama", "intermediate_size": 48} | settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"model_type": "gpt_neox"},
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4},
        {"model_type": "olmo2", "num_key_value_heads": 2},
    ],
    ids=["llama", "gpt_neox", "gpt2", "olmo2"],
)
def test_a_folder_gives_the_model_that_was_saved(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = saved(tmp_path, **settings)

    assert torch.equal(logits(model_of_place(tmp_path, device=CPU)), logits(model))


def test_a_config_names_no_code(tmp_path: Path) -> None:
    """Kernels and modules of a repository are code; they are not fetched, let alone run."""
    model = saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "attn_implementation": "someone/kernels"}
    config |= {"_attn_implementation": "someone/kernels", "experts_implementation": "someone/kernels"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    found = model_of_place(tmp_path, device=CPU)

    assert torch.equal(logits(found), logits(model)) and found.config._attn_implementation == "sdpa"


def damaged(folder: Path, what: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    match what:
        case "quantised":
            config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        case "unheard of":
            config["model_type"] = "unheard-of"
        case "layers":
            config["num_hidden_layers"] = 10**9
        case "wide":
            config["hidden_size"] = 2**15
        case "missing":
            del weights["model.norm.weight"]
        case "shape":
            weights["model.norm.weight"] = torch.ones(31)
        case "no config":
            (folder / "config.json").unlink()
            return
        case "no weights":
            (folder / "model.safetensors").unlink()
            return
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("quantised", UnsupportedRecipe, "quantised"),
        ("unheard of", UnsupportedRecipe, "unheard-of"),
        ("layers", CorruptFile, "num_hidden_layers = 1000000000"),
        ("wide", CorruptFile, "parameters that its config claims"),
        ("missing", CorruptFile, r"model\.norm\.weight is missing"),
        ("shape", CorruptFile, r"do not fit its config: \S+ is \(.*\), not \("),
        ("no config", UnsupportedRecipe, "no config.json"),
        ("no weights", MissingFile, "holds none of"),
    ],
)
def test_what_makes_no_model_is_refused(tmp_path: Path, what: str, error: type[Exception], said: str) -> None:
    saved(tmp_path)
    damaged(tmp_path, what)

    with pytest.raises(error, match=said):
        model_of_place(tmp_path, device=CPU)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_model_that_is_too_large_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    saved(tmp_path)

    def full(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        model_of_place(tmp_path, device=CPU)


def as_gguf(model: Any) -> bytes:
    """The same model as llama.cpp keeps it: its own names, and rotated halves of heads laid side by side."""
    config, state = model.config, model.state_dict()
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    for name, tensor in state.items():
        name = name.replace("model.layers.", "blk.").removesuffix(".weight")
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        values = tensor.numpy()
        if count := heads.get(name.rpartition(".")[2]):
            values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        tensors[f"{name}.weight"] = (values.shape, 0, np.ascontiguousarray(values).tobytes())
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": config.num_hidden_layers,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "llama.context_length": config.max_position_embeddings,
        "llama.vocab_size": config.vocab_size,
    }
    return gguf(metadata, tensors)


def test_a_gguf_file_gives_the_same_model(tmp_path: Path) -> None:
    model = saved(tmp_path, num_key_value_heads=2)
    (tmp_path / "m.gguf").write_bytes(as_gguf(model))
    found = model_of_place(tmp_path / "m.gguf", device=CPU)

    # Norms' epsilon is rounded to fp32 in the file.
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=1e-6)


def test_a_damaged_gguf_file_is_refused(tmp_path: Path) -> None:
    content = as_gguf(saved(tmp_path))
    for length in (0, 40, 700, len(content) // 2, len(content) - 8):
        (tmp_path / "m.gguf").write_bytes(content[:length])
        with pytest.raises(ForensicsError):
            model_of_place(tmp_path / "m.gguf", device=CPU)
    (tmp_path / "m.gguf").write_bytes(content[:16] + struct.pack("<Q", 2**60) + content[24:])
    with pytest.raises(UnsafeFile, match="metadata keys"):
        model_of_place(tmp_path / "m.gguf", device=CPU)
