"""A whole model to ask: of a model folder, a GGUF file, or a run's checkpoint, in any architecture transformers has.

Unlike `models.build_model`, which makes a model to be trained as its trainer did, this takes transformers' own
attention and cache. No code of a repository is run: settings that would name some are left out, and weights come from
our own readers.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_index.errors import CorruptFile, ForensicsError, UnsupportedRecipe
from data_index.files import read_json_object
from data_index.gguf_file import read_gguf
from data_index.run import Checkpoint
from replay.models import LARGEST
from replay.weights import read_weights

if TYPE_CHECKING:
    from data_index.remote.path import Place

# They name code to fetch (kernels, modules), or another way to store weights.
_OF_CODE = ("auto_map", "custom_pipelines", "transformers_weights")


def model_of_place(place: Place, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a folder with config.json, or of a GGUF file; in evaluation mode. From servers it is fetched whole.

    Raises:
        MissingFile, MissingState, CorruptFile, UnsafeFile, AccessDenied, Unreachable, Offline
        UnsupportedRecipe: transformers has no such model; it is quantised; the place says nothing of its shape.
        torch.OutOfMemoryError: memory does not hold it.
    """
    require_model(place)
    if place.suffix == ".gguf":
        return _of_gguf(place, device, dtype)
    alone = Checkpoint(run=place.name, step=0, location=place, layout="hf", states=("weights",))
    return model_of_checkpoint(alone, read_json_object(place / "config.json"), device=device, dtype=dtype)


def require_model(place: Place) -> None:
    """
    Raises:
        UnsupportedRecipe: the place says nothing of a model's shape.
    """
    if place.suffix != ".gguf" and not (place / "config.json").is_file():
        raise UnsupportedRecipe(
            f"{place} has no config.json, which says how its tensors make a model: name a folder that has one, or a "
            "GGUF file; a trainer's checkpoint belongs to a run (forensics add)"
        )


def model_of_checkpoint(
    checkpoint: Checkpoint, config: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype = torch.float32
) -> Any:
    """The same of a checkpoint in any layout that is read.

    Args:
        config: a transformers config as a dict, with `model_type`.
    """
    return model_of_weights(read_weights(checkpoint), config, str(checkpoint.location), device=device, dtype=dtype)


def model_of_weights(
    weights: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    where: str,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The same of weights that were read.

    Args:
        weights: all of them, under transformers' names; where: they come from, for messages.
    """
    return _filled(_empty(config, where), weights, where, device, dtype)


def _of_gguf(place: Place, device: torch.device, dtype: torch.dtype) -> Any:
    read_gguf(place)  # sizes and offsets are sound, before a library believes them
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    here = str(place if isinstance(place, Path) else place.download())
    try:
        with _quiet():
            config = load_gguf_checkpoint(here)["config"]
            model = _empty(config, str(place))
            read = load_gguf_checkpoint(here, return_tensors=True, model_to_load=model, torch_dtype=dtype)
    except ForensicsError:
        raise
    except Exception as error:  # the library raises whatever its parts do
        _raise_if_of_memory(error)
        raise UnsupportedRecipe(f"{place}: transformers makes no model of it ({str(error)[:200]})") from error
    return _filled(model, read["tensors"], str(place), device, dtype)


def _empty(config: Mapping[str, Any], where: str) -> Any:
    """The model without memory for its weights.

    Raises:
        UnsupportedRecipe, CorruptFile
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = _settings(config)
    kind = settings.pop("model_type", None)
    if "quantization_config" in settings:
        raise UnsupportedRecipe(f"{where} is quantised ({kind}): prompt the model it was made from, or a GGUF file")
    for name, largest in LARGEST.items():
        value = settings.get(name, 1)
        if isinstance(value, int) and not 0 < value <= largest:
            raise CorruptFile(f"{where}: its config has {name} = {value}, which no model has")
    try:
        with _quiet(), torch.device("meta"):
            parsed = AutoConfig.for_model(kind, **settings)
            return AutoModelForCausalLM.from_config(parsed, trust_remote_code=False, attn_implementation="sdpa")
    except Exception as error:  # of what a config may say, every field can fail in its own way
        raise UnsupportedRecipe(
            f"{where}: transformers makes no causal language model of type {str(kind)[:40]!r} of its config "
            f"({str(error)[:200]})"
        ) from error


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the model; nothing that names code."""
    kept = {}
    for key, value in config.items():
        if key in _OF_CODE or "_implementation" in key:
            continue
        kept[key] = _settings(value) if isinstance(value, Mapping) else value
    return kept


def _filled(
    empty: Any, weights: Mapping[str, torch.Tensor], where: str, device: torch.device, dtype: torch.dtype
) -> Any:
    """The model with its weights.

    Raises:
        CorruptFile: some are missing, or of another shape.
    """
    claimed = sum(parameter.numel() for parameter in empty.parameters())
    there = sum(tensor.numel() for tensor in weights.values())
    if claimed > 2 * there:
        raise CorruptFile(f"{where}: {there:,} numbers are there for the {claimed:,} parameters that its config claims")
    try:
        with _quiet():
            model, told = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=dict(weights),
                dtype=dtype,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # they are told below, each by name
                output_loading_info=True,
            )
    except Exception as error:  # as above
        _raise_if_of_memory(error)
        raise CorruptFile(f"{where}: its weights do not fit its config ({str(error)[:200]})") from error
    wrong = [f"{name} is missing" for name in told["missing_keys"]]
    wrong += [f"{name} is {tuple(of)}, not {tuple(due)}" for name, of, due in told["mismatched_keys"]]
    if wrong:
        more = f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        raise CorruptFile(f"{where}: its weights do not fit its config: {', '.join(sorted(wrong)[:3])}{more}")
    return model.to(device).eval()


def _raise_if_of_memory(error: Exception) -> None:
    """A model that is sound and too large must not pass for a damaged one; on a CPU torch says so in words."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
        raise torch.OutOfMemoryError(str(error)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers tells its progress and what it thinks of a config; what matters of that is an error here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
