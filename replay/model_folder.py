"""A model folder as transformers loads one: which files of a source go into it, and other layouts written as one."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from data_index.errors import CorruptFile, UnsafeFile
from data_index.files import atomic_file, copy_file, require_file, write_json
from data_index.olmo_checkpoint import HUGGING_FACE
from data_index.run import Checkpoint
from replay.row_reset import RowReset, with_rows_reset
from replay.weights import StoredPart, iterate_weights, stored_weights
from replay.weights_hf import chosen_file, files_of_index

if TYPE_CHECKING:
    from data_index.remote.path import Place, RemotePath
    from replay.recipe import Recipe

SHARD_BYTES = 5 * 10**9  # of a written file of weights, about which the memory that writing takes
# Files with tensors: of other formats, of optimizers. They hold rows as they were, or none of a model's.
_TENSOR_FILES = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|h5|msgpack|onnx|onnx_data|ot|npz|tflite|mlmodel|distcp)"
    r"|.*\.(safetensors|bin|h5|msgpack)\.index(\.\w+)?\.json"
)
# Of a folder on a server that cannot be listed.
_USUAL_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *(
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "LICENSE",
        "README.md",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """`name`: its path in the folder, parts separated by slashes."""

    name: str
    place: Place
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """
    Attributes:
        weights: those that transformers would load; their index is among `others`.
        others: configuration, tokenizer and what else is copied as it is.
        left_out: other files of tensors, and folders with such: they hold the rows as they were.
        copied: weights are safetensors, so that copies of them are changed; else they are written anew.
    """

    weights: tuple[ModelFile, ...]
    others: tuple[ModelFile, ...]
    left_out: tuple[str, ...]
    copied: bool

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in (*self.weights, *self.others))


def model_files(folder: Place) -> ModelFiles:
    """The files of a folder that transformers saved; of one on a server, nothing is fetched but lists and an index.

    Raises:
        MissingFile, CorruptFile, AccessDenied, Unreachable, Offline
        UnsafeFile: a name leads out of the folder, or a file is none.
    """
    chosen = chosen_file(folder)
    names = list(files_of_index(chosen)) if chosen.suffix == ".json" else [chosen.name]
    weights = tuple(_file(folder, name) for name in names)
    copied = all(name.endswith(".safetensors") for name in names)
    others, left_out = [], []
    listed = [name for name in _listed(folder) if name not in names]
    with_tensors = {name.partition("/")[0] for name in listed if "/" in name and _TENSOR_FILES.fullmatch(name)}
    for name in listed:
        first, inside, _ = name.partition("/")
        if copied and name == chosen.name:
            others.append(_file(folder, name))
        elif inside and first in with_tensors:
            left_out.append(f"{first}/")
        elif _TENSOR_FILES.fullmatch(name) or name in HUGGING_FACE or name.endswith("/"):
            left_out.append(name)
        else:
            others.append(_file(folder, name))
    return ModelFiles(weights=weights, others=tuple(others), left_out=tuple(dict.fromkeys(left_out)), copied=copied)


def _file(folder: Place, name: str) -> ModelFile:
    place = folder / name
    return ModelFile(name=name, place=place, num_bytes=require_file(place))


def _listed(folder: Place) -> list[str]:
    """Files below a folder, hidden ones not; linked folders, which are not entered, end with a slash."""
    if isinstance(folder, Path):
        return sorted(_walked(folder))
    return sorted(_served(folder))


def _walked(folder: Path) -> Iterator[str]:
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(base).relative_to(folder)
        yield from ((below / name).as_posix() + "/" for name in folders if Path(base, name).is_symlink())
        yield from ((below / name).as_posix() for name in names if not name.startswith("."))


def _served(folder: RemotePath) -> Iterator[str]:
    from data_index.remote import hub, hub_files

    address = hub.address_of(f"{folder.url.rstrip('/')}/.")
    if address is None:
        yield from (name for name in _USUAL_FILES if (folder / name).is_file())
        return
    below = address.path.removesuffix(".")
    for path in hub_files.files_at(folder.url, folder.cache):
        name = path.removeprefix(below)
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/") or {"\\", "\0"} & set(name):
            raise UnsafeFile(f"{folder} lists {path[:200]!r}, outside its folder")
        if path.startswith(below) and not any(part.startswith(".") for part in parts):
            yield name


# --- written ---------------------------------------------------------------------------------------------------------


def copy_files(files: Sequence[ModelFile], target: Path, wrote: Callable[[int], None] = lambda count: None) -> None:
    """Copy files into a folder that is being built; those on servers are fetched whole, into the shared cache.

    Args:
        wrote: called with the bytes of each file that is there.
    Raises:
        MissingFile, UnsafeFile, DiskFull, AccessDenied, Unreachable, Offline, CorruptFile
    """
    for file in files:
        here = file.place if isinstance(file.place, Path) else file.place.download()
        copy_file(here, target / file.name)
        wrote(file.num_bytes)


def write_weights(
    target: Path,
    checkpoint: Checkpoint,
    resets: Mapping[str, RowReset],
    wrote: Callable[[int], None] = lambda count: None,
) -> None:
    """All weights of a checkpoint as safetensors under transformers' names, with rows reset; one shard is in memory.

    Args:
        wrote: called with the bytes of each tensor that was read, before its shard is written.
    Raises:
        MissingState, MissingFile, CorruptFile, UnsafeFile, UnsupportedRecipe, DiskFull
    """
    from safetensors.torch import save_file

    places = shard_names(stored_weights(checkpoint))
    tensors = iterate_weights(checkpoint)
    files = list(dict.fromkeys(places.values()))
    for file in files:
        held = {}
        for _ in range(sum(place == file for place in places.values())):
            name, tensor = next(tensors)
            held[name] = with_rows_reset(tensor, resets[name]) if name in resets else tensor.contiguous()
            wrote(tensor.numel() * tensor.element_size())
        with atomic_file(target / file) as temporary:
            save_file(held, temporary, metadata={"format": "pt"})
    if len(files) > 1:
        size = sum(part_bytes(part) for part in stored_weights(checkpoint).values())
        write_json(target / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})


def shard_names(parts: Mapping[str, StoredPart]) -> dict[str, str]:
    """The file that each tensor is written to: in their order, a new one where one would hold over SHARD_BYTES."""
    numbers: dict[str, int] = {}
    number, held = 0, 0
    for name, part in parts.items():
        size = part_bytes(part)
        if held and held + size > SHARD_BYTES:
            number, held = number + 1, 0
        numbers[name] = number
        held += size
    if not number:
        return dict.fromkeys(parts, "model.safetensors")
    return {name: f"model-{at + 1:05}-of-{number + 1:05}.safetensors" for name, at in numbers.items()}


def part_bytes(part: StoredPart) -> int:
    return math.prod(part.shape) * part.tensor.dtype.itemsize


def config_of(recipe: Recipe, checkpoint: Checkpoint, eos_token_id: int | None) -> dict[str, Any]:
    """config.json for a checkpoint's weights, from the model that the run's recipe describes.

    Raises:
        UnsupportedRecipe: an architecture that is not known here.
        CorruptFile: the checkpoint's weights are not that model's.
    """
    import torch
    from transformers import AutoConfig

    from replay.models import build_model
    from replay.train_state import require_fitting

    require_fitting(recipe, checkpoint)
    parts = stored_weights(checkpoint)
    model = build_model(recipe.model, device=torch.device("meta"))
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    there = {name: part.shape for name, part in parts.items()}
    if own != there:
        wrong = sorted(name for name in own.keys() | there.keys() if own.get(name) != there.get(name))
        raise CorruptFile(
            f"the weights of checkpoint {checkpoint.step} of {checkpoint.run} do not fit its model config: {wrong[:3]}"
        )
    settings = {key: value for key, value in recipe.model.items() if key != "model_type"}
    if eos_token_id is not None:
        settings.setdefault("eos_token_id", eos_token_id)
    for role in ("bos_token_id", "pad_token_id"):
        settings.setdefault(role, None)  # the architecture's defaults are ids of other tokenizers
    config = AutoConfig.for_model(recipe.model["model_type"], **settings)
    dtypes = {str(part.tensor.dtype).removeprefix("torch.") for part in parts.values()}
    stored = {"dtype": dtypes.pop()} if len(dtypes) == 1 else {}
    return json.loads(config.to_json_string()) | {"architectures": [type(model).__name__]} | stored
