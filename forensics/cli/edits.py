"""Edits and recipe overrides as they are given on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_index.errors import InvalidEdit, MissingFile


def read_edits(given: Sequence[str]) -> list[str]:
    """Edits in order; `@FILE` stands for the list `edits` of a TOML file.

    Raises:
        MissingFile, InvalidEdit
    """
    edits: list[str] = []
    for text in given:
        edits += _from_file(Path(text[1:])) if text.startswith("@") else [text]
    return edits


def _from_file(path: Path) -> list[str]:
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise MissingFile(f"{path}, given as --edit @{path}, is not there") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidEdit(f"{path} is not TOML: {error}") from error
    edits = table.get("edits")
    if not isinstance(edits, list) or not all(isinstance(edit, str) for edit in edits):
        raise InvalidEdit(
            f'{path} has no list of edits, such as edits = ["drop instance:12 @137", "mask document:881"]'
        )
    return edits


def read_settings(given: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs; values are read as TOML, so that numbers are numbers.

    Raises:
        InvalidEdit
    """
    settings: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidEdit(f"--set takes key=value, such as train_batch_size=1024, not {text!r}")
        settings[name] = _as_toml(value)
    return settings


def _as_toml(value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def read_overrides(given: Sequence[str]) -> dict[str, Any]:
    """`recipe.field=value` pairs; values are read as TOML, so that numbers are numbers.

    Raises:
        InvalidEdit
    """
    overrides: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.startswith("recipe."):
            raise InvalidEdit(f"--set takes recipe.field=value, such as recipe.learning_rate=1e-3, not {text!r}")
        overrides[name] = _as_toml(value)
    return overrides
