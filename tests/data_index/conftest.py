"""What these tests share: brute force over a native run folder, and a real run that may be damaged."""

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

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
