"""The whole model behind a source of tokens: to prompt it, to tell it from another, to say what it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_index.errors import OutOfMemory
from data_index.files import read_json_object
from data_index.gguf_file import read_gguf
from data_index.run import Checkpoint
from data_index.workspace import Workspace
from forensics.fetching import bytes_of_weights
from forensics.token_source import TokenSource

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def prompted_model(source: TokenSource, workspace: Workspace, device: Any, precision: str) -> Any:
    """
    Raises:
        UnsupportedRecipe: the place makes no model.
        MissingFile, MissingState, CorruptFile, UnsafeFile, AccessDenied, Unreachable, Offline
    """
    import torch

    from replay.causal_model import model_of_checkpoint, model_of_place

    dtype = getattr(torch, DTYPES[precision])
    if source.run is None:
        return model_of_place(source.place, device=device, dtype=dtype)
    checkpoint = _checkpoint(source, workspace)
    return model_of_checkpoint(checkpoint, _config(checkpoint, source, workspace), device=device, dtype=dtype)


@contextmanager
def device_memory(source: TokenSource, precision: str) -> Iterator[None]:
    """
    Raises:
        OutOfMemory: the device does not hold the model, or a single prompt of it.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device does not hold {source.label} in {precision}: take --precision bf16, or --device cpu "
            f"({str(error)[:200]})"
        ) from error


def _checkpoint(source: TokenSource, workspace: Workspace) -> Checkpoint:
    if source.run is None:
        return Checkpoint(run=source.label, step=0, location=source.place, layout="hf", states=("weights",))
    assert source.step is not None
    return workspace.checkpoint(workspace.run(source.run), source.step)


def _config(checkpoint: Checkpoint, source: TokenSource, workspace: Workspace) -> Any:
    """The checkpoint's own config where it is saved as transformers does, else the run's."""
    from replay.recipe import recipe_of_run

    if checkpoint.layout == "hf" and (checkpoint.location / "config.json").is_file():
        return read_json_object(checkpoint.location / "config.json")
    assert source.run is not None
    return recipe_of_run(workspace.run(source.run), approximate=True).model


def bytes_to_fetch(source: TokenSource, workspace: Workspace) -> int:
    """Of the weights, where they are on a server and not here yet."""
    place = source.place
    if isinstance(place, Path):
        return 0
    if place.suffix == ".gguf":
        return place.size() if place.copy() is None else 0
    return bytes_of_weights(_checkpoint(source, workspace))


def num_parameters(source: TokenSource, workspace: Workspace) -> int:
    """By the headers of what is stored; a matrix that is saved twice counts twice."""
    from replay.weights import stored_weights

    if source.place.suffix == ".gguf":
        return sum(tensor.num_elements for tensor in read_gguf(source.place).tensors.values())
    return sum(math.prod(part.shape) for part in stored_weights(_checkpoint(source, workspace)).values())
