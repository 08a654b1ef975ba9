"""What the readers of trainers' folders share: step folders, token files wherever they were put, names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import CorruptFile, MissingFile, UnknownLayout
from data_index.files import MAX_JSON_BYTES, read_limited, require_file
from data_index.run import TokenFile
from data_index.run_check import TOKEN_DTYPE_BYTES

if TYPE_CHECKING:
    import numpy as np

    from data_index.remote.files import Data
    from data_index.remote.path import Place

# Steps are counted in 64 bits; a folder's name may hold any number.
_STEP = re.compile(r"(\d{1,18})(?:-unsharded)?$")
MAX_PATH, MAX_PARTS = 4096, 128


def step_folders(folder: Path, is_checkpoint: Callable[[Path], bool], stem: str = "step") -> dict[int, Path]:
    """Checkpoint folders named step<N> or step<N>-unsharded, at `folder` or up to two levels below, by step.

    Args:
        stem: what stands before the number.
    """
    candidates = [folder, *sorted(folder.glob(f"{stem}*")), *sorted(folder.glob(f"*/{stem}*"))]
    found: dict[int, Path] = {}
    for path in candidates:
        match = _STEP.match(path.name.removeprefix(stem)) if path.name.startswith(stem) else None
        if match and is_checkpoint(path):
            found.setdefault(int(match[1]), path)
    return dict(sorted(found.items()))


def refuse_settings(settings: Mapping[str, Any], config: str) -> None:
    """
    Raises:
        UnknownLayout: there is a setting, and the run's own config says all.
    """
    if settings:
        raise UnknownLayout(f"--set {next(iter(settings))}: {config} of the run itself says how it was trained")


def default_name(folder: Path) -> str:
    """A run's name from its folder's."""
    return re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("-.") or "run"


def read_file(path: Path) -> bytes:
    """
    Raises:
        MissingFile, UnsafeFile
    """
    return read_limited(path, MAX_JSON_BYTES)


def token_dtype(name: Any) -> np.dtype:
    """The dtype of token files that a config names: whole numbers, and nothing that numpy could take for objects.

    Raises:
        CorruptFile
    """
    import numpy as np

    dtype = name if isinstance(name, str) and name in TOKEN_DTYPE_BYTES else None
    if dtype is None:
        raise CorruptFile(f"the config names {str(name)[:80]!r} as the dtype of its tokens, which is no whole number")
    return np.dtype(dtype)


def first_existing(folder: Path, data: Data, name: str) -> Path | None:
    """Look for a file on disk by its whole path, then by ever shorter tails of it, below `data` or around `folder`."""
    data = data if isinstance(data, Path) else None
    if len(name) > MAX_PATH or len(Path(name).parts) > MAX_PARTS:
        return None
    parts = Path(name).parts
    tails = [Path(*parts[start:]) for start in range(len(parts)) if ".." not in parts[start:]]
    bases = [data] if data is not None else [folder, *folder.parents[:2], *(p / "data" for p in folder.parents[:2])]
    for candidate in ([Path(name)] if data is None else []) + [base / tail for base in bases for tail in tails]:
        if os.path.isfile(candidate):  # which, unlike Path.is_file, takes a name that no file can have
            return candidate.absolute()
    return None


def find_file(folder: Path, data: Data, name: str, what: str) -> Place:
    """
    Raises:
        MissingFile: with the places that were looked at.
    """
    if data is not None and not isinstance(data, Path):
        remote = data.find(name)
        if remote is None:
            there = f"the {len(data.files):,} files of {data.origin}"
            raise MissingFile(f"the {what} {name} of {folder} is not among {there}")
        return remote
    path = first_existing(folder, data, name)
    if path is None:
        raise MissingFile(
            f"the {what} {name} of {folder} was found neither as written nor below "
            f"{data or f'{folder} and its parents'}: say where the data are with --data DIR"
        )
    return path


def find_on_disk(folder: Path, data: Data, name: str, what: str) -> Path:
    """
    Raises:
        MissingFile: also where it is on a server, as such files are read whole.
    """
    place = find_file(folder, data, name, what)
    if not isinstance(place, Path):
        raise MissingFile(f"the {what} {place} is on a server, and is read from disk only: download it")
    return place


def place_files(
    names: Sequence[str],
    paths: Iterable[Place],
    dtype: str,
    instances_of: Callable[[int], int],
    *,
    first_instance: int = 0,
    label_masks: Mapping[int, Path] | None = None,
) -> tuple[TokenFile, ...]:
    """Number the instances of files laid end to end. A file that is listed again gets `#2`, `#3` … to its name.

    Args:
        instances_of: bytes of a file -> instances cut from it.
        label_masks: number of a file -> its file of booleans.
    """
    placed: list[TokenFile] = []
    for number, (name, path) in enumerate(zip(numbered(names), paths, strict=True)):
        num_bytes = require_file(path)
        placed.append(
            TokenFile(
                name=name,
                path=path,
                dtype=dtype,
                num_bytes=num_bytes,
                first_instance=first_instance,
                num_instances=instances_of(num_bytes),
                label_mask=(label_masks or {}).get(number),
                sha256=None if isinstance(path, Path) else path.sha256,
            )
        )
        first_instance += placed[-1].num_instances
    return tuple(placed)


def numbered(names: Sequence[str]) -> list[str]:
    """Names told apart: one that comes again gets `#2`, `#3` … added."""
    times: Counter[str] = Counter()
    told_apart = []
    for name in names:
        times[name] += 1
        told_apart.append(name if times[name] == 1 else f"{name}#{times[name]}")
    return told_apart


def lookup(config: Any, path: str) -> Any:
    """A value in nested tables by dotted name; None where any part is absent."""
    for part in path.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config
