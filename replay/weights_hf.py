"""Models as transformers saves them: one file or several with an index, safetensors or pickles.

Names are transformers' own of today; files keep the names of the version that wrote them. The pickles are read through
the allow-list. A file `optimizer.safetensors` beside the weights, in the native format's names, is the optimizer's
state.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from data_index.errors import CorruptFile, MissingFile
from data_index.files import read_json_object, require_file
from data_index.olmo_checkpoint import HUGGING_FACE
from data_index.pickles import read_torch_archive
from replay.stored_tensors import (
    StoredTensor,
    check_total,
    inside,
    of_archive,
    stored_safetensors,
)

if TYPE_CHECKING:
    from data_index.remote.path import Place, RemotePath
    from data_index.remote.progress import Progress

# Constants that older versions saved with the weights; today's models compute them.
_CONSTANTS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attention|attn)\.(bias|masked_bias))$")


def hf_model(folder: Place) -> dict[str, StoredTensor]:
    """The parameters of a model folder; of the files that transformers would choose.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    chosen = chosen_file(folder)
    tensors = _of_index(chosen) if chosen.suffix == ".json" else _of_file(chosen)
    parameters = {todays_name(name): tensor for name, tensor in tensors.items() if not _CONSTANTS.search(name)}
    if len(parameters) != sum(not _CONSTANTS.search(name) for name in tensors):
        raise CorruptFile(f"{chosen} holds the output layer twice, as embed_out and as lm_head")
    if _ties_embeddings(folder):
        parameters.pop("lm_head.weight", None)
    return parameters


def chosen_file(folder: Place) -> Place:
    """The file that transformers would begin with: the weights, or the index of several files of them.

    Raises:
        MissingFile
    """
    candidates: list[Place] = [folder / name for name in HUGGING_FACE]
    chosen = next((path for path in candidates if path.is_file()), None)
    if chosen is None:
        raise MissingFile(f"{folder} holds none of {', '.join(HUGGING_FACE)}")
    return chosen


def files_of_index(path: Place) -> dict[str, Place]:
    """The files beside an index that it names, by name.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    return {name: inside(path.parent, name, path.name) for name in dict.fromkeys(_weight_map(path).values())}


def download_model(folder: RemotePath, progress: Progress | None = None) -> None:
    """Fetch the weight files that transformers would choose, whole; their hashes are compared where one is stated.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline, ChangedFile, CorruptFile, DiskFull
    """
    for file in weight_files(folder):
        file.download(progress)


def weight_files(folder: RemotePath) -> list[RemotePath]:
    """The files that hold the weights which transformers would choose.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline, CorruptFile, UnsafeFile
    """
    chosen = chosen_file(folder)
    files = list(files_of_index(chosen).values()) if chosen.suffix == ".json" else [chosen]
    return [file for file in files if not isinstance(file, Path)]


def _weight_map(path: Place) -> dict[str, str]:
    places = read_json_object(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise CorruptFile(f"{path} has no weight_map from names to files")
    return places


def todays_name(name: str) -> str:
    """What transformers calls a parameter now. GPT-NeoX's output layer is `embed_out` in every published file."""
    return "lm_head." + name.removeprefix("embed_out.") if name.startswith("embed_out.") else name


def _of_file(path: Place) -> dict[str, StoredTensor]:
    if path.suffix == ".safetensors":
        return stored_safetensors(path)
    archive = read_torch_archive(path)
    if not isinstance(archive.value, dict) or not all(isinstance(name, str) for name in archive.value):
        raise CorruptFile(f"{path} holds no model state: parameters by name")
    found = {name: of_archive(archive, record, name) for name, record in archive.value.items()}
    check_total(found, require_file(path), str(path))
    return found


def _of_index(path: Place) -> dict[str, StoredTensor]:
    """The tensors that an index places in files beside it."""
    places = _weight_map(path)
    held = {name: _of_file(file) for name, file in files_of_index(path).items()}
    missing = [name for name, file in places.items() if name not in held[file]]
    if missing:
        raise CorruptFile(f"{path} places {missing[0]} in {places[missing[0]]}, which lacks it")
    return {name: held[file][name] for name, file in places.items()}


def _ties_embeddings(folder: Place) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json_object(config).get("tie_word_embeddings") is True
