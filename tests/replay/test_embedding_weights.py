"""Embedding matrices of every layout, and of single files, without the rest of the model."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_index.errors import CorruptFile, ForensicsError, MissingState, UnknownLayout, UnsupportedRecipe
from data_index.workspace import Workspace
from replay.embedding_weights import embeddings_of_checkpoint, embeddings_of_place
from replay.weights import read_weights
from tests.data_index.test_gguf_file import gguf

ENTRY = torch.linspace(-2, 2, 6 * 64).reshape(6, 64)
EXIT = ENTRY.flip(0).contiguous()
NAMES = {"model.embed_tokens.weight": ENTRY, "model.norm.weight": torch.ones(64)}


def folder_of_model(folder: Path, dtype: torch.dtype, *, tied: bool) -> Path:
    tensors = NAMES if tied else NAMES | {"lm_head.weight": EXIT}
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_folder_gives_its_matrices(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    found = embeddings_of_place(folder_of_model(tmp_path, dtype, tied=tied))

    assert torch.equal(found.input.read(), ENTRY.to(dtype))
    assert (found.output is None) == tied and (found.output is None or torch.equal(found.output.read(), EXIT.to(dtype)))
    assert found.num_bytes == (1 if tied else 2) * 6 * 64 * dtype.itemsize


@pytest.mark.parametrize("name", ["core", "olmo"])
def test_a_checkpoint_of_a_real_trainer_gives_what_the_whole_model_has(core_shared: Workspace, name: str) -> None:
    run = core_shared.run(name)
    checkpoint = core_shared.checkpoints(run)[-1]
    found, whole = embeddings_of_checkpoint(checkpoint), read_weights(checkpoint)

    assert torch.equal(found.input.read(), whole["model.embed_tokens.weight"])
    assert found.output is not None and torch.equal(found.output.read(), whole["lm_head.weight"])
    assert found.second_moments["input"].shape == found.input.shape


def test_no_other_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from replay import stored_tensors

    read: list[str] = []
    original = stored_tensors.StoredTensor.read

    def noted(tensor: stored_tensors.StoredTensor) -> torch.Tensor:
        read.append(tensor.name)
        return original(tensor)

    monkeypatch.setattr(stored_tensors.StoredTensor, "read", noted)
    for matrix in embeddings_of_place(folder_of_model(tmp_path, torch.float32, tied=False)).matrices:
        matrix.read()

    assert sorted(read) == ["lm_head.weight", "model.embed_tokens.weight"]


@pytest.mark.parametrize("state", [lambda names: names, lambda names: {"step": 3, "model": names}])
def test_a_torch_file_gives_its_matrices(tmp_path: Path, state: Callable[[dict], dict]) -> None:
    torch.save(state({"transformer.wte.weight": ENTRY, "transformer.wpe.weight": EXIT}), tmp_path / "some.pt")
    found = embeddings_of_place(tmp_path / "some.pt")

    assert torch.equal(found.input.read(), ENTRY) and found.output is None


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_gives_its_matrices(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import save

    state = {"app.model.embed_tokens.weight": ENTRY, "app.lm_head.weight": EXIT}
    save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    found = embeddings_of_place(tmp_path / "dcp")

    assert torch.equal(found.input.read(), ENTRY)
    assert found.output is not None and torch.equal(found.output.read(), EXIT)


def blocks_of_q8_0(matrix: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    """Blocks of 32 numbers: a half-precision scale, then 32 int8; and the numbers that they stand for."""
    content, numbers = b"", []
    for block in matrix.reshape(-1, 32):
        scale = np.float16(float(block.abs().max()) / 127)
        ints = (block / float(scale)).round().clamp(-127, 127).to(torch.int8)
        content += struct.pack("<e", scale) + ints.numpy().tobytes()
        numbers.append(ints.float() * float(scale))
    return content, torch.stack(numbers).reshape(matrix.shape)


def test_gguf_gives_its_matrices_dequantised(tmp_path: Path) -> None:
    content, expected = blocks_of_q8_0(ENTRY)
    half = EXIT.to(torch.bfloat16)
    tensors = {
        "token_embd.weight": ((6, 64), 8, content),
        "output.weight": ((6, 64), 30, half.view(torch.uint8).numpy().tobytes()),
    }
    (tmp_path / "m.gguf").write_bytes(gguf({"general.architecture": "llama"}, tensors))
    found = embeddings_of_place(tmp_path / "m.gguf")

    assert torch.equal(found.input.read(), expected) and found.input.num_bytes == 6 * 2 * 34
    assert found.output is not None and torch.equal(found.output.read(), half)


def test_blocks_of_q4_1_are_scale_and_minimum(tmp_path: Path) -> None:
    nibbles = np.arange(32) % 16
    block = struct.pack("<ee", 0.5, -1.0) + (nibbles[:16] | nibbles[16:] << 4).astype(np.uint8).tobytes()
    (tmp_path / "m.gguf").write_bytes(gguf({}, {"token_embd.weight": ((1, 32), 3, block)}))

    assert embeddings_of_place(tmp_path / "m.gguf").input.read()[0].tolist() == (nibbles * 0.5 - 1.0).tolist()


@pytest.mark.parametrize(
    ("tensors", "error", "said"),
    [
        ({"token_embd.weight": ((2**40, 64), 0, bytes(64))}, CorruptFile, "the file ends before"),
        ({"token_embd.weight": ((6, 33), 8, bytes(400))}, CorruptFile, "no matrix in blocks of 32"),
        ({"token_embd.weight": ((6, 2, 32), 0, bytes(1600))}, CorruptFile, "no matrix"),
        ({"token_embd.weight": ((6, 64), 7777, bytes(400))}, UnsupportedRecipe, "type 7777"),
        ({"other.weight": ((6, 64), 0, bytes(1600))}, MissingState, "token_embd"),
    ],
)
def test_a_gguf_tensor_that_does_not_fit_is_refused(
    tmp_path: Path, tensors: dict, error: type[Exception], said: str
) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf({}, tensors))

    with pytest.raises(error, match=said):
        embeddings_of_place(tmp_path / "m.gguf")


def test_a_hostile_safetensors_header_is_refused(tmp_path: Path) -> None:
    header = {"embed_tokens.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 16]}}
    content = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + bytes(16))

    with pytest.raises(ForensicsError):
        embeddings_of_place(tmp_path / "m.safetensors")


def test_what_could_be_two_embeddings_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {"encoder.embed_tokens.weight": ENTRY, "decoder.embed_tokens.weight": EXIT}
    save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(UnsupportedRecipe, match="encoder.embed_tokens"):
        embeddings_of_place(tmp_path)


def test_a_folder_without_a_model_says_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownLayout, match="gguf"):
        embeddings_of_place(tmp_path)
