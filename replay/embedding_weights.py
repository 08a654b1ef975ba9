"""The embedding matrices of a checkpoint, a model folder or a single file, without the rest of the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_index.errors import CorruptFile, MissingState, UnknownLayout, UnsupportedRecipe
from data_index.files import require_file
from data_index.gguf_file import read_gguf
from data_index.olmo_checkpoint import HUGGING_FACE, layout_of, states_of
from data_index.pickles import read_torch_archive
from data_index.run import Checkpoint
from data_index.stand_ins import TensorRecord
from replay.stored_tensors import StoredTensor, check_total, of_archive, stored_dcp, stored_safetensors
from replay.weights import StoredPart, stored_moments, stored_weights
from replay.weights_gguf import gguf_matrix

if TYPE_CHECKING:
    from data_index.remote.path import Place

_INPUT = re.compile(r"(.*\.)?(embed_tokens|embed_in|wte|word_embeddings|tok_embeddings|token_embd|embeddings)\.weight")
_OUTPUT = re.compile(r"(.*\.)?(lm_head|lm_head\.w_out|embed_out|output|final_linear|ff_out)\.(weight|bias)")
_OF_BLOCKS = re.compile(r"(^|\.)(layers?|blocks?|blk|h)\.\d+\.")
# Where archives keep the model's state among other things.
_STATES = ("model", "state_dict", "module", "model_state_dict")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingMatrix:
    """A matrix that is still where it is stored. `num_bytes`: what reading it reads."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEmbeddings:
    """
    Attributes:
        output: None where embeddings are tied: the input matrix is the output matrix.
        bias: of the output layer.
        second_moments: Adam's `exp_avg_sq` of `input` and `output`, where the optimizer's state is there.
    """

    place: str
    input: EmbeddingMatrix
    output: EmbeddingMatrix | None = None
    bias: EmbeddingMatrix | None = None
    second_moments: Mapping[str, EmbeddingMatrix]

    @property
    def matrices(self) -> tuple[EmbeddingMatrix, ...]:
        """All that an analysis reads."""
        weights = (self.input, self.output, self.bias)
        return (*(matrix for matrix in weights if matrix is not None), *self.second_moments.values())

    @property
    def num_bytes(self) -> int:
        return sum(matrix.num_bytes for matrix in self.matrices)


def embeddings_of_checkpoint(checkpoint: Checkpoint) -> StoredEmbeddings:
    """Where a checkpoint's embedding matrices lie; no tensor is read, of files on servers only their headers.

    Raises:
        MissingState, MissingFile, CorruptFile, UnsafeFile, UnknownLayout
        UnsupportedRecipe: no matrix, or several, could be the input embedding.
    """
    weights = {name: _of_part(name, part) for name, part in stored_weights(checkpoint).items()}
    moments: dict[str, StoredPart] = {}
    if "optimizer" in checkpoint.states:
        try:
            moments = stored_moments(checkpoint).get("exp_avg_sq", {})
        except MissingState:
            moments = {}  # a model was saved without it
    return _chosen(str(checkpoint.location), weights, {name: _of_part(name, part) for name, part in moments.items()})


def embeddings_of_place(place: Place) -> StoredEmbeddings:
    """The same of a model that belongs to no run: a folder in any layout that is read, or one file of tensors.

    Raises:
        MissingFile, MissingState, CorruptFile, UnsafeFile, UnsupportedRecipe
        UnknownLayout: nothing there holds a model.
    """
    if _is_folder(place):
        return _of_folder(place)
    if place.suffix == ".gguf":
        return _of_gguf(place)
    tensors = stored_safetensors(place) if place.suffix == ".safetensors" else _of_archive(place)
    return _chosen(str(place), {name: _of_tensor(name, tensor) for name, tensor in tensors.items()}, {})


def role_of(name: str) -> str | None:
    """What the name of a tensor says it is: the `input` or the `output` matrix, the output's `bias`; else None."""
    if _OF_BLOCKS.search(name):
        return None
    if _INPUT.fullmatch(name):
        return "input"
    output = _OUTPUT.fullmatch(name)
    return None if output is None else "bias" if output[3] == "bias" else "output"


def _is_folder(place: Place) -> bool:
    if isinstance(place, Path):
        return place.is_dir()
    return place.suffix not in (".gguf", ".safetensors", ".pt", ".pth", ".bin")


def _of_folder(folder: Place) -> StoredEmbeddings:
    if not isinstance(folder, Path):
        return embeddings_of_checkpoint(_alone(folder, "hf", ("weights",)))
    if (folder / "state.json").is_file() and (folder / "model.safetensors").is_file():
        saved = ("weights", "optimizer") if (folder / "optimizer.safetensors").is_file() else ("weights",)
        return embeddings_of_checkpoint(_alone(folder, "native", saved))
    if (folder / "model_and_optim" / ".metadata").is_file():
        return embeddings_of_checkpoint(_alone(folder, "olmo_core", ("weights", "optimizer")))
    if layout := layout_of(folder):
        return embeddings_of_checkpoint(_alone(folder, layout, states_of(folder)))
    if (folder / ".metadata").is_file():
        tensors = stored_dcp(folder, "", "")
        return _chosen(str(folder), {name: _of_tensor(name, tensor) for name, tensor in tensors.items()}, {})
    if list(folder.glob("layer_*-model_00-model_states.pt")):
        from data_index.neox_checkpoint import neox_states

        return embeddings_of_checkpoint(_alone(folder, "neox", neox_states(folder)))
    files = sorted([*folder.glob("*.gguf"), *folder.glob("*.safetensors"), *folder.glob("*.pt")])
    if len(files) == 1:
        return embeddings_of_place(files[0])
    named = f"; name one of {', '.join(file.name for file in files[:5])}" if files else ""
    raise UnknownLayout(
        f"{folder} holds no model that is read ({', '.join(HUGGING_FACE)}, model_and_optim, model.pt, *.gguf){named}"
    )


def _alone(folder: Place, layout: str, states: tuple[str, ...]) -> Checkpoint:
    return Checkpoint(run=folder.name, step=0, location=folder, layout=layout, states=states)


def _of_gguf(place: Place) -> StoredEmbeddings:
    file = read_gguf(place)

    def matrix(name: str) -> EmbeddingMatrix:
        found = gguf_matrix(file, name)
        return EmbeddingMatrix(
            name=name,
            shape=found.tensor.shape,
            dtype=found.type_name,
            num_bytes=found.num_bytes,
            read=found.read,
        )

    if "token_embd.weight" not in file.tensors:
        raise MissingState(f"{place} holds no token_embd.weight: it is no language model, or a later part of one")
    output = matrix("output.weight") if "output.weight" in file.tensors else None
    return StoredEmbeddings(place=str(place), input=matrix("token_embd.weight"), output=output, second_moments={})


def _of_archive(place: Place) -> dict[str, StoredTensor]:
    """The tensors of a .pt file: of its top level, or of the model's state in it."""
    archive = read_torch_archive(place)
    state: Any = archive.value
    for name in _STATES:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    if not isinstance(state, dict):
        raise CorruptFile(f"{place} holds no model state: parameters by name")
    records = {n: r for n, r in state.items() if isinstance(n, str) and isinstance(r, TensorRecord)}
    tensors = {name: of_archive(archive, record, name) for name, record in records.items()}
    check_total(tensors, require_file(place), str(place))
    return tensors


def _of_part(name: str, part: StoredPart) -> EmbeddingMatrix:
    dtype = str(part.tensor.dtype).removeprefix("torch.")
    return EmbeddingMatrix(name=name, shape=part.shape, dtype=dtype, num_bytes=part.tensor.num_bytes, read=part.read)


def _of_tensor(name: str, tensor: StoredTensor) -> EmbeddingMatrix:
    return _of_part(name, StoredPart(tensor=tensor))


def _chosen(
    place: str, weights: Mapping[str, EmbeddingMatrix], moments: Mapping[str, EmbeddingMatrix]
) -> StoredEmbeddings:
    inputs = [n for n, m in weights.items() if len(m.shape) == 2 and _INPUT.fullmatch(n) and not _OF_BLOCKS.search(n)]
    if len(inputs) != 1:
        found = f"these could be: {', '.join(inputs[:5])}" if inputs else f"its {len(weights)} tensors have other names"
        raise UnsupportedRecipe(f"{place} has no matrix that is surely the input embedding; {found}")
    outputs = [n for n in weights if _OUTPUT.fullmatch(n) and not _OF_BLOCKS.search(n)]
    rows = weights[inputs[0]].shape[0]
    output = next((n for n in outputs if n.endswith(".weight")), None)
    bias = next((n for n in outputs if n.endswith(".bias") and weights[n].shape == (rows,)), None)
    if output is not None and len(weights[output].shape) != 2:
        raise CorruptFile(f"{place}: {output} of shape {weights[output].shape} is no matrix")
    by_role = {"input": inputs[0], "output": output or ""}
    return StoredEmbeddings(
        place=place,
        input=weights[inputs[0]],
        output=weights[output] if output else None,
        bias=weights[bias] if bias else None,
        second_moments={role: moments[name] for role, name in by_role.items() if name in moments},
    )
