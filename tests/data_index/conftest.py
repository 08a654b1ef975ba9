"""What these tests share: brute force over a native run folder, a real run that may be damaged, folders of any run."""

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml

FIXTURE = Path(__file__).parents[1] / "fixtures" / "olmo-core"


@dataclass(frozen=True)
class Reading:
    step: int
    epoch: int
    position: int
    instance: int
    again: bool  # the instance had been read before


class RawRun:
    """A run from its raw files alone (numpy, Parquet, TOML; nothing of data_index): what the index is held against."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = tomllib.loads((folder / "run.toml").read_text())
        self.length: int = self.manifest["sequence_length"]
        self.documents: list[dict[str, Any]] = pyarrow.parquet.read_table(folder / "documents.parquet").to_pylist()

    @cached_property
    def token_ids(self) -> np.ndarray:
        """Every instance, file after file."""
        files = [self.folder / file["path"] for file in self.manifest["files"]]
        return np.concatenate([np.fromfile(path, dtype="<u2").reshape(-1, self.length) for path in files])

    @cached_property
    def readings(self) -> list[Reading]:
        """Everything the run read, in order."""
        found: list[Reading] = []
        seen: set[int] = set()
        for segment in self.manifest["segments"]:
            order = np.load(self.folder / "order" / f"epoch-{segment['epoch']}.npy")
            size = segment["instances_per_batch"]
            for row in range(segment["num_steps"] * size):
                position = segment["first_position"] + row
                instance, step = int(order[position]), segment["first_step"] + row // size
                found.append(Reading(step, segment["epoch"], position, instance, instance in seen))
                seen.add(instance)
        return found

    def place(self, instance: int) -> tuple[str, int]:
        """File of an instance and its first token there."""
        for file in self.manifest["files"]:
            if instance < file["num_instances"]:
                return file["name"], instance * self.length
            instance -= file["num_instances"]
        raise IndexError(instance)

    def pieces(self, instance: int) -> list[tuple[dict[str, Any], int]]:
        """Documents in an instance, in order, and how many of its tokens each has."""
        file, start = self.place(instance)
        there = [d for d in self.documents if d["file"] == file]
        counts = [(d, min(d["end"], start + self.length) - max(d["start"], start)) for d in there]
        return [(document, count) for document, count in counts if count > 0]


@pytest.fixture(scope="session")
def raw(tiny_source: Path) -> RawRun:
    return RawRun(tiny_source)


@pytest.fixture
def core_copy(tmp_path: Path) -> Path:
    """The OLMo-core run that a test may damage, without its weights; its data lie beside it."""
    weights = shutil.ignore_patterns("*.distcp")
    return Path(shutil.copytree(FIXTURE, tmp_path / "published", ignore=weights)) / "main"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# --- folders of runs, as trainers leave them -------------------------------------------------------------------------

WriteCore = Callable[..., Path]
WriteOlmo = Callable[..., Path]


@pytest.fixture(scope="session")
def write_core() -> WriteCore:
    """Writes the folder of an OLMo-core run that published nothing but its config."""

    def write(
        folder: Path,
        dataset: Any,
        *,
        loader: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        epochs: int = 2,
    ) -> Path:
        kind = "composable.ComposableDataLoaderConfig" if isinstance(dataset, list) else "NumpyDataLoaderConfig"
        config = {
            "dataset": dataset,
            "data_loader": {"global_batch_size": 1024, "seed": 34521, "_CLASS_": f"olmo_core.data.{kind}"}
            | (loader or {}),
            "trainer": {"max_duration": {"value": epochs, "unit": "epochs"}} | (trainer or {}),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


@pytest.fixture(scope="session")
def write_olmo() -> WriteOlmo:
    """Writes a run folder of the legacy OLMo trainer: checkpoints by step, each with what is special about it.

    `config` holds changes by name (`data__seed` is data.seed); `position` is (0-based epoch, examples seen), None
    where no trainer state was published.
    """

    def write(folder: Path, saved: dict[int, dict[str, Any]], **common: Any) -> Path:
        published = FIXTURE.parent / "olmo" / "run" / "step20-unsharded" / "config.yaml"
        for step, special in saved.items():
            config = yaml.safe_load(published.read_text())
            for name, value in ({"stop_at": None} | common | special.get("config", {})).items():
                *tables, key = name.split("__")
                table = config
                for part in tables:
                    table = table[part]
                table[key] = value
            home = folder / f"step{step}-unsharded"
            home.mkdir(parents=True, exist_ok=True)
            (home / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            (home / "model.pt").write_bytes(b"")
            if (position := special.get("position")) is not None:
                state = {
                    "epoch": position[0],
                    "global_step": step,
                    "global_train_examples_seen_this_epoch": position[1],
                    "global_train_tokens_seen": step * config["global_train_batch_size"] * 128,
                    "world_size": special.get("world_size", 1),
                }
                torch.save(state, home / "train.pt")
        return folder

    return write
