"""Faults that are planted in copies of runs: token files, orders, configs, records, tokenizers. All from a seed."""

from __future__ import annotations

import gzip
import json
import random
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
import yaml

from data_index.pickles import read_torch_archive

# Damages something below a folder; False: there is nothing to damage so.
Fault = Callable[[Path, random.Random], bool | None]

# --- token files -----------------------------------------------------------------------------------------------------


def token_faults(pattern: str, dtype: str, length: int) -> dict[str, Fault]:
    """
    Args:
        pattern: of the token files below the run's folder. length: tokens of a row.
    """

    def some(folder: Path, chance: random.Random) -> Path:
        return chance.choice(sorted(folder.glob(pattern)))

    def change(folder: Path, chance: random.Random, how: Callable[[np.ndarray], Any]) -> None:
        path = some(folder, chance)
        tokens = np.fromfile(path, dtype)
        changed = how(tokens)
        (tokens if changed is None else changed).tofile(path)

    def flip(tokens: np.ndarray, chance: random.Random, bits: int) -> None:
        tokens[chance.randrange(len(tokens))] ^= 1 << chance.randrange(bits)

    def swap(tokens: np.ndarray, chance: random.Random, size: int) -> None:
        one, other = chance.sample(range(len(tokens) // size), 2)
        rows = tokens[: len(tokens) // size * size].reshape(-1, size)
        rows[[one, other]] = rows[[other, one]]

    def swap_files(folder: Path, chance: random.Random) -> bool:
        files = sorted(folder.glob(pattern))
        if len(files) < 2:
            return False
        one, other = chance.sample(files, 2)
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return True

    def replaced(tokens: np.ndarray, chance: random.Random) -> np.ndarray:
        return np.random.default_rng(chance.randrange(2**32)).permutation(tokens)

    return {
        "a bit of a token": lambda f, c: change(f, c, lambda t: flip(t, c, 8 * t.itemsize)),
        "a token": lambda f, c: change(f, c, lambda t: flip(t, c, 7)),
        "two tokens swapped": lambda f, c: change(f, c, lambda t: swap(t, c, 1)),
        "two rows swapped": lambda f, c: change(f, c, lambda t: swap(t, c, length)),
        "two files swapped": swap_files,
        "file truncated": lambda f, c: change(f, c, lambda t: t[: -c.randrange(1, len(t) // 2)]),
        "file extended": lambda f, c: change(f, c, lambda t: np.append(t, t[: c.randrange(1, len(t))])),
        "another file of the size": lambda f, c: change(f, c, lambda t: replaced(t, c)),
        "file deleted": lambda f, c: some(f, c).unlink(),
    }


# --- configs ---------------------------------------------------------------------------------------------------------


def in_files(
    pattern: str, read: Callable[[str], Any], write: Callable[[Any], str], change: Callable[..., Any]
) -> Fault:
    """Change what every config of a run says, in the same way."""

    def fault(folder: Path, chance: random.Random) -> bool:
        seed = chance.random()
        paths = sorted(folder.glob(pattern))
        for path in paths:
            config = read(path.read_text())
            change(config, random.Random(seed))
            path.write_text(write(config))
        return bool(paths)

    return fault


def in_json(pattern: str, change: Callable[..., Any]) -> Fault:
    return in_files(pattern, json.loads, json.dumps, change)


def in_yaml(pattern: str, change: Callable[..., Any]) -> Fault:
    return in_files(pattern, yaml.safe_load, yaml.safe_dump, change)


def in_toml(pattern: str, change: Callable[..., Any]) -> Fault:
    return in_files(pattern, tomllib.loads, tomli_w.dumps, change)


def field(name: str, value: Callable[[Any, random.Random], Any]) -> Callable[[Any, random.Random], None]:
    """A change of one field, by its dotted name."""
    *tables, key = name.split(".")

    def change(config: Any, chance: random.Random) -> None:
        for table in tables:
            config = config[int(table) if table.isdigit() else table]
        config[key] = value(config.get(key), chance)

    return change


def other_number(value: Any, chance: random.Random) -> int:
    return int(value or 0) + chance.choice((1, 2, 7, 100))


def half_or_double(value: Any, chance: random.Random) -> int:
    return int(value) // 2 if chance.random() < 0.5 else int(value) * 2


def shuffled(values: list[Any], chance: random.Random) -> list[Any]:
    first = chance.randrange(len(values))
    return values[first + 1 :] + values[: first + 1] if first + 1 < len(values) else values[::-1]


def in_state(pattern: str, change: Callable[[dict[str, Any], random.Random], None]) -> Fault:
    """Change the trainer's states (torch archives)."""

    def fault(folder: Path, chance: random.Random) -> bool:
        seed = chance.random()
        paths = sorted(folder.glob(pattern))
        for path in paths:
            state = dict(read_torch_archive(path).value)
            change(state, random.Random(seed))
            path.unlink()
            torch.save(_plain(state), path)
        return bool(paths)

    return fault


def _plain(value: Any) -> Any:
    """What a state holds besides tensors; its random numbers decide no order."""
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None}
    return value if isinstance(value, int | float | str) else None


# --- orders and records ----------------------------------------------------------------------------------------------


def number_faults(pattern: str, dtype: str, *, header: bool = False) -> dict[str, Fault]:
    """Of a file of numbers: headerless as the trainers', or .npy."""

    def changed(how: Callable[[np.ndarray, random.Random], np.ndarray]) -> Fault:
        def fault(folder: Path, chance: random.Random) -> bool:
            if not (paths := sorted(folder.glob(pattern))):
                return False
            path = chance.choice(paths)
            numbers = how(np.load(path).copy() if header else np.fromfile(path, dtype), chance)
            np.save(path, numbers) if header else numbers.tofile(path)
            return True

        return fault

    def swapped(numbers: np.ndarray, chance: random.Random) -> np.ndarray:
        one, other = chance.sample(range(len(numbers)), 2)
        numbers[[one, other]] = numbers[[other, one]]
        return numbers

    def altered(numbers: np.ndarray, chance: random.Random) -> np.ndarray:
        numbers[chance.randrange(len(numbers))] ^= 1
        return numbers

    return {
        "permuted": changed(swapped),
        "cut": changed(lambda numbers, chance: numbers[: -chance.randrange(1, len(numbers))]),
        "altered": changed(altered),
    }


def line_faults(pattern: str, change: Callable[[str, random.Random], str | None]) -> dict[str, Fault]:
    """Of a file of lines, packed or not. `change` gives None for a line that holds nothing to change."""

    def edited(how: Callable[[list[str], random.Random], bool]) -> Fault:
        def fault(folder: Path, chance: random.Random) -> bool:
            if not (paths := sorted(folder.glob(pattern))):
                return False
            path = chance.choice(paths)
            packed = path.suffix == ".gz"
            raw = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
            lines = raw.decode().splitlines()
            if not how(lines, chance):
                return False
            text = "".join(f"{line}\n" for line in lines).encode()
            path.write_bytes(gzip.compress(text) if packed else text)
            return True

        return fault

    def altered(lines: list[str], chance: random.Random) -> bool:
        options = [n for n, line in enumerate(lines) if change(line, random.Random(0)) is not None]
        if not options:
            return False
        number = chance.choice(options)
        lines[number] = change(lines[number], chance) or ""
        return True

    def swapped(lines: list[str], chance: random.Random) -> bool:
        if len(lines) < 2:
            return False
        one, other = chance.sample(range(len(lines)), 2)
        lines[one], lines[other] = lines[other], lines[one]
        return True

    return {"altered": edited(altered), "permuted": edited(swapped)}


def numbers_swapped(line: str, chance: random.Random) -> str | None:
    """Two numbers of a line of tabs."""
    step, *numbers = line.split("\t")
    one, other = chance.sample(range(len(numbers)), 2)
    numbers[one], numbers[other] = numbers[other], numbers[one]
    return "\t".join([step, *numbers])


def border_moved(line: str, chance: random.Random) -> str:
    start, stop, *rest = line.split(",")
    return ",".join([start, str(int(stop) + chance.choice((-1, 1))), *rest])


def batch_altered(line: str, chance: random.Random) -> str | None:
    """A batch in a record: two of its instances swapped, or another hash."""
    record = json.loads(line)
    key = "index" if "index" in record else "indices"
    if key not in record:
        return None
    if record.get("input_ids_i64_sha256") and chance.random() < 0.5:
        record["input_ids_i64_sha256"] = record["input_ids_i64_sha256"][::-1]
    else:
        record[key] = shuffled(record[key], chance)
    return json.dumps(record)


# --- tokenizers ------------------------------------------------------------------------------------------------------


def tokenizer_faults(pattern: str) -> dict[str, Fault]:
    def swapped(model: dict[str, Any], chance: random.Random) -> None:
        one, other = chance.sample(sorted(model["model"]["vocab"]), 2)
        vocabulary = model["model"]["vocab"]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    def dropped(model: dict[str, Any], chance: random.Random) -> None:
        model["model"]["merges"].pop(chance.randrange(len(model["model"]["merges"])))

    def truncated(folder: Path, chance: random.Random) -> bool:
        (path,) = folder.glob(pattern)
        content = path.read_bytes()
        path.write_bytes(content[: chance.randrange(len(content))])
        return True

    return {
        "two entries swapped": in_json(pattern, swapped),
        "a merge dropped": in_json(pattern, dropped),
        "truncated": truncated,
    }


def byte_faults(pattern: str) -> dict[str, Fault]:
    """Of any file: a bit, a cut, more, none."""

    def changed(how: Callable[[bytearray, random.Random], Any]) -> Fault:
        def fault(folder: Path, chance: random.Random) -> bool:
            if not (paths := sorted(path for path in folder.glob(pattern) if path.is_file())):
                return False
            path = chance.choice(paths)
            content = bytearray(path.read_bytes())
            if not content:
                return False
            how(content, chance)
            path.write_bytes(content)
            return True

        return fault

    def flipped(content: bytearray, chance: random.Random) -> None:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)

    def cut(content: bytearray, chance: random.Random) -> None:
        del content[chance.randrange(len(content)) :]

    return {
        "a bit": changed(flipped),
        "cut": changed(cut),
        "extended": changed(lambda content, chance: content.extend(chance.randbytes(chance.randrange(1, 64)))),
    }


def number_in_toml(names: str) -> Fault:
    """Change a number of a run.toml by one of these keys."""

    def fault(folder: Path, chance: random.Random) -> bool:
        path = folder / "run.toml"
        text = path.read_text()
        found = list(re.finditer(rf"^({names}) = (\d+)$", text, re.MULTILINE))
        if not found:
            return False
        chosen = chance.choice(found)
        path.write_text(f"{text[: chosen.start(2)]}{int(chosen[2]) + 1}{text[chosen.end(2) :]}")
        return True

    return fault


def named(prefix: str, faults: Mapping[str, Fault]) -> dict[str, Fault]:
    return {f"{prefix}: {name}": fault for name, fault in faults.items()}
