"""Checkpoint folders of the legacy OLMo trainer: what kind they are, their config, and the trainer's own state.

`step<N>-unsharded/` holds config.yaml, model.pt, optim.pt and train.pt (the oldest: other.pt), each possibly as
.safetensors, which the trainer tries first. `step<N>/` is sharded in one of four ways, told apart by their files. The
tensors themselves are read by `replay.weights`.

Source: Python package ai2-olmo 0.6.0 (olmo/checkpoint.py, olmo/train.py, olmo/config.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import CorruptFile, MissingFile, UnknownLayout, UnsupportedRecipe
from data_index.pickles import TorchArchive, read_torch_archive
from data_index.plain_yaml import read_yaml

if TYPE_CHECKING:
    from data_index.remote.path import Place

# What tells a sharded folder's writer, by the trainer's names for them.
SHARDED_KINDS = {
    "torch_new": "model_and_optim/.metadata",
    "olmo_core": "model/metadata.json",
    "local": "model/rank0.pt",
    "torch_legacy": "rank0.pt",
}
# Files that show weights, optimizer and trainer state to be there.
_SHARDED_STATES = {
    "torch_new": ("model_and_optim/.metadata", "model_and_optim/.metadata", "train/rank0.pt"),
    "olmo_core": ("model/metadata.json", "optim/metadata.json", "train/rank0.pt"),
    "local": ("model/rank0.pt", "optim/rank0.pt", "train/rank0.pt"),
    "torch_legacy": ("rank0.pt", "rank0.pt", "rank0.pt"),
}
_UNSHARDED = {"weights": ("model",), "optimizer": ("optim",), "trainer": ("train", "other")}
# Where transformers saves weights, in the order in which it looks for them.
HUGGING_FACE = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNumbers:
    """What the model config says of the parameters' sizes and places. `kv_rows`: rows of the key projection."""

    d_model: int
    kv_rows: int
    norm_after: bool


def layout_of(folder: Path) -> str | None:
    """`olmo` (unsharded), `olmo_sharded`, `hf` (a model as transformers saves it), or None: none of these."""
    if (folder / "state.json").is_file():
        return None  # the native layout
    legacy = (folder / "config.yaml").is_file() or _file_of(folder, "trainer") or (folder / "model.pt").is_file()
    if legacy and _file_of(folder, "weights"):
        return "olmo"
    if (folder / "config.yaml").is_file() and any((folder / mark).is_file() for mark in SHARDED_KINDS.values()):
        return "olmo_sharded"
    return "hf" if any((folder / name).is_file() for name in HUGGING_FACE) else None


def states_of(folder: Path) -> tuple[str, ...]:
    """Which of weights, optimizer and trainer state a checkpoint folder holds; none where `layout_of` knows none."""
    layout = layout_of(folder)
    if layout == "olmo":
        return tuple(state for state in _UNSHARDED if _file_of(folder, state))
    if layout == "hf":
        return ("weights", "optimizer") if (folder / "optimizer.safetensors").is_file() else ("weights",)
    if layout is None:
        return ()
    marks = dict(zip(_UNSHARDED, _SHARDED_STATES[sharded_kind(folder)], strict=True))
    return tuple(state for state, mark in marks.items() if (folder / mark).is_file())


def sharded_kind(folder: Path) -> str:
    """Which of the trainer's four sharded checkpointers wrote a folder.

    Raises:
        MissingFile: none of them did.
    """
    for kind, mark in SHARDED_KINDS.items():
        if (folder / mark).is_file():
            return kind
    raise MissingFile(
        f"{folder} is no sharded checkpoint: none of {', '.join(SHARDED_KINDS.values())} is there (a folder with "
        f"model.pt is unsharded)"
    )


def _file_of(folder: Place, state: str) -> Place | None:
    candidates: list[Place] = [folder / f"{stem}.{end}" for stem in _UNSHARDED[state] for end in ("safetensors", "pt")]
    return next((path for path in candidates if path.is_file()), None)


def unsharded_file(folder: Place, state: str) -> Place:
    """The file of a state (`weights`, `optimizer`, `trainer`) that the trainer would load.

    Raises:
        MissingFile
    """
    found = _file_of(folder, state)
    if found is None:
        names = " or ".join(f"{stem}.{end}" for stem in _UNSHARDED[state] for end in ("safetensors", "pt"))
        raise MissingFile(f"{folder} holds no {names}")
    return found


# --- config ----------------------------------------------------------------------------------------------------------


def read_config(folder: Place, name: str = "config.yaml") -> dict[str, Any] | None:
    """`folder/config.yaml` as it is; None where there is none. Numbers such as `1e-5` stay text: YAML 1.1 says so.

    Raises:
        CorruptFile, UnsafeFile
    """
    path = folder / name
    return read_yaml(path) if path.is_file() else None


def local_world_size(folder: Path) -> int:
    """How many ranks wrote a sharded checkpoint of kind `local`.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    metadata = read_config(folder, "metadata.yaml")
    if metadata is None:
        raise MissingFile(f"{folder}/metadata.yaml is not there: the checkpoint is incomplete")
    return _count(folder / "metadata.yaml", metadata, "world_size")


def model_numbers(folder: Place) -> ModelNumbers | None:
    """The sizes that `folder/config.yaml` states; None without a config.

    Raises:
        CorruptFile, UnsafeFile, UnsupportedRecipe
    """
    config = read_config(folder)
    if config is None:
        return None
    path, model = folder / "config.yaml", config.get("model")
    if not isinstance(model, Mapping):
        raise CorruptFile(f"{path} has no model section")
    d_model, heads = _count(path, model, "d_model"), _count(path, model, "n_heads")
    if model.get("n_kv_heads") is not None:
        kv_heads = _count(path, model, "n_kv_heads")
        stated = model.get("multi_query_attention")
        if stated is not None and kv_heads != (1 if stated else heads):
            raise UnsupportedRecipe(f"{path} sets n_kv_heads to {kv_heads} and multi_query_attention to {stated}")
    else:
        kv_heads = 1 if model.get("multi_query_attention") else heads
    if d_model % heads:
        raise CorruptFile(f"{path}: d_model {d_model} is no multiple of n_heads {heads}")
    return ModelNumbers(
        d_model=d_model, kv_rows=d_model // heads * kv_heads, norm_after=bool(model.get("norm_after", False))
    )


def _count(path: Place, section: Mapping[str, Any], name: str) -> int:
    value = section.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CorruptFile(f"{path}: {name} is {value!r}, not a number of at least 1")
    return value


# --- the trainer's own state -----------------------------------------------------------------------------------------


def read_trainer_state(folder: Path) -> dict[str, Any]:
    """The trainer's state: `epoch`, `global_step`, `global_train_examples_seen_this_epoch`, `global_train_tokens_seen`
    and whatever else it saved (`world_size`, `checkpoints` …). Paths are text; random states are opaque.

    Older files that count batches, or name the counts otherwise, are brought to these names as the trainer would. In a
    sharded folder it is the state of rank 0.

    Raises:
        MissingFile: there is none, or it counts batches and no config.yaml says how large they were.
        CorruptFile, UnsafeFile
    """
    path = _trainer_file(folder)
    state = read_torch_archive(path).value
    if not isinstance(state, dict):
        raise CorruptFile(f"{path} holds no trainer state")
    state = {str(key): value for key, value in state.items() if key not in ("model", "optim")}
    state["epoch"] = _seen(path, state.get("epoch") or 0, "epoch")
    state["global_step"] = _seen(path, state.get("global_step"), "global_step")
    examples = state.get("global_train_examples_seen_this_epoch", state.get("global_train_examples_seen"))
    tokens = state.get("global_train_tokens_seen")
    batches = state.get("global_data_step", state["global_step"])
    if examples is None:
        examples = _seen(path, batches, "global_data_step") * _of_config(folder, "global_train_batch_size")
    if tokens is None:
        tokens = _seen(path, batches, "global_data_step") * _of_config(folder, "global_train_batch_size")
        tokens *= _of_config(folder, "model", "max_sequence_length")
    state["global_train_examples_seen_this_epoch"] = _seen(path, examples, "global_train_examples_seen_this_epoch")
    state["global_train_tokens_seen"] = _seen(path, tokens, "global_train_tokens_seen")
    return state


def _trainer_file(folder: Path) -> Place:
    for path in (folder / "train" / "rank0.pt", folder / "rank0.pt"):
        if path.is_file():
            return path
    found = unsharded_file(folder, "trainer")
    if found.suffix == ".safetensors":
        stem = found.name.removesuffix(".safetensors")
        raise UnknownLayout(f"{found}: the trainer's own state is read from {stem}.pt, not from safetensors")
    return found


def _seen(path: Place, value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CorruptFile(f"{path}: {name} is {value!r}, not a count")
    return value


def _of_config(folder: Path, *names: str) -> int:
    config: Any = read_config(folder)
    if config is None:
        raise MissingFile(f"{folder} counts batches; its config.yaml, which says how large they were, is not there")
    for name in names[:-1]:
        config = config.get(name) if isinstance(config, Mapping) else None
    return _count(folder / "config.yaml", config if isinstance(config, Mapping) else {}, names[-1])


def rank_archives(folder: Path) -> list[TorchArchive]:
    """`rank<r>.pt` of every rank, in their order; tensors stay on disk.

    Raises:
        MissingFile: one is missing between others.
        CorruptFile, UnsafeFile
    """
    ranks = {int(path.stem[4:]): path for path in folder.glob("rank*.pt") if path.stem[4:].isdecimal()}
    # Not up to the highest number, which a file's name may set at will.
    missing = next((rank for rank in range(max(len(ranks), 1)) if rank not in ranks), None)
    if missing is not None:
        raise MissingFile(f"{folder}/rank{missing}.pt is not there: the checkpoint is incomplete")
    return [read_torch_archive(ranks[rank]) for rank in sorted(ranks)]
