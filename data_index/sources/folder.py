"""What the readers of trainers' folders share: step folders, token files wherever they were put, names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_index.errors import MissingFile, UnknownLayout
from data_index.run import TokenFile

_STEP = re.compile(r"step(\d+)(?:-unsharded)?$")


def step_folders(folder: Path, is_checkpoint: Callable[[Path], bool]) -> dict[int, Path]:
    """Checkpoint folders named step<N> or step<N>-unsharded, at `folder` or up to two levels below, by step."""
    candidates = [folder, *sorted(folder.glob("step*")), *sorted(folder.glob("*/step*"))]
    found: dict[int, Path] = {}
    for path in candidates:
        if (match := _STEP.match(path.name)) and is_checkpoint(path):
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
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is not there") from error


def first_existing(folder: Path, data: Path | None, name: str) -> Path | None:
    """Look for a file by its whole path, then by ever shorter tails of it, below `data` or around `folder`."""
    parts = Path(name).parts
    tails = [Path(*parts[start:]) for start in range(len(parts)) if ".." not in parts[start:]]
    bases = [data] if data is not None else [folder, *folder.parents[:2], *(p / "data" for p in folder.parents[:2])]
    for candidate in ([Path(name)] if data is None else []) + [base / tail for base in bases for tail in tails]:
        if candidate.is_file():
            return candidate.absolute()
    return None


def find_file(folder: Path, data: Path | None, name: str, what: str) -> Path:
    """
    Raises:
        MissingFile: with the places that were looked at.
    """
    path = first_existing(folder, data, name)
    if path is None:
        raise MissingFile(
            f"the {what} {name} of {folder} was found neither as written nor below "
            f"{data or f'{folder} and its parents'}: say where the data are with --data DIR"
        )
    return path


def place_files(
    names: Sequence[str],
    paths: Iterable[Path],
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
    times: dict[str, int] = {}
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        times[name] = times.get(name, 0) + 1
        num_bytes = path.stat().st_size
        placed.append(
            TokenFile(
                name=name if times[name] == 1 else f"{name}#{times[name]}",
                path=path,
                dtype=dtype,
                num_bytes=num_bytes,
                first_instance=first_instance,
                num_instances=instances_of(num_bytes),
                label_mask=(label_masks or {}).get(number),
            )
        )
        first_instance += placed[-1].num_instances
    return tuple(placed)


def lookup(config: Any, path: str) -> Any:
    """A value in nested tables by dotted name; None where any part is absent."""
    for part in path.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config
