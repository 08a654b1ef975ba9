"""No pickle in any place where a checkpoint may hold one runs code, unfolds, or is believed about its size."""

import base64
import io
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.attacks.opening import Twin, assert_refused
from tests.attacks.payloads import BOASTS, CARRIERS, archive, pickled

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHARDED = FIXTURES / "olmo-sharded"
NEOX = FIXTURES / "neox-checkpoint" / "zero-main" / "global_step6"


@dataclass(frozen=True)
class Place:
    """A file of a real checkpoint that holds a pickle, and how its hostile twin is written."""

    source: Path
    file: str
    write: Callable[[Path, bytes], object] = lambda path, pickle: path.write_bytes(archive(pickle))
    layout: str | None = None
    says: str | None = None


def as_first_item(path: Path, pickle: bytes) -> None:
    """An item of a distributed checkpoint that is as long as the one it replaces."""
    content = path.read_bytes()
    second = content.find(b"PK\x05\x06") + 22  # behind the end of the first item's directory
    hostile = archive(pickle)
    hostile = padded(hostile, second) if len(hostile) <= second else hostile
    path.write_bytes(hostile + content[second:] if len(hostile) <= second else hostile + content)


def padded(content: bytes, length: int) -> bytes:
    """A zip of a given length: what is missing becomes an entry."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("p", b"")
    missing = length - len(buffer.getvalue())
    if missing < 0:
        return content
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("p", bytes(missing))
    return buffer.getvalue()


def as_name(path: Path, pickle: bytes) -> None:
    """The OLMo trainer's safetensors keep names as pickles in base64."""
    safetensors.torch.save_file({base64.b64encode(pickle, b"-_").decode(): torch.zeros(2)}, path)


def as_bytes(path: Path, pickle: bytes) -> None:
    """… and values that are no tensors as pickles in bytes."""
    name = base64.b64encode(pickled(b"X\x05\x00\x00\x00state\x85\x88\x86"), b"-_").decode()
    safetensors.torch.save_file({name: torch.frombuffer(bytearray(pickle), dtype=torch.uint8)}, path)


PLACES = {
    "model.pt": Place(SHARDED / "unsharded", "model.pt"),
    "optim.pt": Place(SHARDED / "unsharded", "optim.pt"),
    "train.pt": Place(SHARDED / "unsharded", "train.pt"),
    "rank0.pt": Place(SHARDED / "torch_legacy", "rank0.pt"),
    # What rank 1 holds instead of a tree is found to differ from what rank 0 holds.
    "rank1.pt": Place(SHARDED / "torch_legacy", "rank1.pt", says="torch_legacy/rank"),
    "local model": Place(SHARDED / "local", "model/rank0.pt"),
    "local optim": Place(SHARDED / "local", "optim/rank1.pt"),
    "local train": Place(SHARDED / "local", "train/rank0.pt"),
    ".metadata": Place(SHARDED / "torch_new", "model_and_optim/.metadata", Path.write_bytes),
    "a .distcp item": Place(SHARDED / "torch_new", "model_and_optim/__0_0.distcp", as_first_item),
    "a safetensors name": Place(FIXTURES / "olmo-variants" / "safetensors-step10", "optim.safetensors", as_name),
    "safetensors bytes": Place(FIXTURES / "olmo-variants" / "safetensors-step10", "optim.safetensors", as_bytes),
    "NeoX slice": Place(NEOX, "mp_rank_00_model_states.pt", layout="neox"),
    "NeoX layer": Place(NEOX, "layer_02-model_00-model_states.pt", layout="neox"),
    "NeoX rank": Place(NEOX, "zero_pp_rank_1_mp_rank_00_optim_states.pt", layout="neox"),
    "pytorch_model.bin": Place(SHARDED / "unsharded", "pytorch_model.bin", layout="hf"),
}


# What is read as others are: one of a kind is enough where every way to boast is tried.
SIMILAR = ("model.pt", "train.pt", "rank0.pt", "rank1.pt", "local model", "local train", "a .distcp item", "NeoX layer")


def twins(place: Place, bodies: dict[str, bytes], tmp_path: Path) -> list[Twin]:
    found = []
    for number, (name, body) in enumerate(bodies.items()):
        folder = tmp_path / f"twin {number}" / place.source.name
        left_out = () if place.layout is None else ("model.pt", "optim.pt", "train.pt", "optim-of-local.pt")
        shutil.copytree(place.source, folder, ignore=shutil.ignore_patterns(*left_out))
        place.write(folder / place.file, pickled(body))
        says = place.says or place.file.rsplit("/", 1)[-1]
        found.append(Twin(name=name, folder=folder, kind="checkpoint", says=says, layout=place.layout))
    return found


@pytest.mark.parametrize("place", PLACES)
def test_no_pickle_runs_code(place: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bodies = {name: carrier(canary) for name, carrier in CARRIERS.items()}

    assert_refused(twins(PLACES[place], bodies, tmp_path), canary)


@pytest.mark.parametrize("place", [place for place in PLACES if place not in SIMILAR])
def test_no_pickle_is_believed_about_sizes(place: str, tmp_path: Path) -> None:
    assert_refused(twins(PLACES[place], BOASTS, tmp_path))
